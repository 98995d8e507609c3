use Algorithm::*;

use super::*;
use crate::policy::auth::jwt::{self, Rules, TokenError};
use crate::policy::auth::keys::{JWKS_KEYS_MAX, KeyError, SkipReason};

#[test]
fn secrets() {
    let check = |bytes: usize, allowed: &[Algorithm], expected: Result<(), &str>| {
        let made = KeySet::from_secret(&SECRET[..bytes], allowed).map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(made, expected.map_err(str::to_owned), "{bytes} {allowed:?}");
    };
    check(32, &[HS256], Ok(()));
    check(48, &[HS384, HS256], Ok(()));
    check(64, &ALL, Ok(()));
    check(31, &[HS256], Err("the secret has 31 bytes, HS256 needs at least 32"));
    check(0, &[HS256], Err("the secret has 0 bytes, HS256 needs at least 32"));
    check(47, &[HS256, HS384], Err("the secret has 47 bytes, HS384 needs at least 48"));
    check(63, &[HS512], Err("the secret has 63 bytes, HS512 needs at least 64"));
    let unfit = "a shared secret verifies [HS256, HS384, HS512], none of which is among the allowed algorithms [RS256]";
    check(64, &[RS256], Err(unfit));
    check(64, &[], Err(&unfit.replace("RS256", "")));
}

#[test]
fn pem_files() {
    let read = |text: &str, allowed: &[Algorithm]| KeySet::from_pem(text.as_bytes(), allowed);
    let error = |text: &str| read(text, &ALL).expect_err("refused");
    let both = format!("# first\n{}\n# second\n{}", ISSUER.pem(RS256), ISSUER.pem(ES256));
    assert_eq!(read(&both, &ALL).expect("keys").len(), 2);
    assert_eq!(read(&both.replace('\n', "\r\n"), &ALL).expect("keys").len(), 2);
    let pkcs1 = KeyPair::public_key(&ISSUER.rsa).as_ref();
    let keys = read(&pem("RSA PUBLIC KEY", pkcs1), &[RS256]).expect("a key");
    let token = ISSUER.token(RS256, &header(RS256), &claims());
    assert!(jwt::verify(&keys, &Rules::default(), token.as_bytes(), NOW).is_ok());

    assert_eq!(error(""), KeyError::NotPem);
    assert_eq!(error("a secret"), KeyError::NotPem);
    assert_eq!(KeySet::from_pem(&[0xff; 40], &ALL).expect_err("refused"), KeyError::NotPem);
    for tag in ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"] {
        assert_eq!(error(&pem(tag, &[1, 2, 3])), KeyError::PrivateKey);
    }
    assert_eq!(error(&pem("CERTIFICATE", &[1, 2, 3])), KeyError::PemBlock("CERTIFICATE".into()));
    assert_eq!(error(&pem("PUBLIC KEY", b"nonsense")), KeyError::Invalid);
    assert_eq!(error("-----BEGIN PUBLIC KEY-----\nAAAA"), KeyError::Invalid);
    assert_eq!(error(&ISSUER.pem(ES256).replace("MFk", "MFl")), KeyError::Invalid);
    // Another curve, with a point as long as one of P-256; and P-521.
    for algorithm in [&sig::ECDSA_P256K1_SHA256_ASN1_SIGNING, &sig::ECDSA_P521_SHA512_ASN1_SIGNING] {
        let pair = EcdsaKeyPair::generate(algorithm).expect("a key");
        assert_eq!(error(&pem("PUBLIC KEY", &x509(pair.public_key()))), KeyError::Invalid);
    }
    let unfit = read(&ISSUER.pem(EdDSA), &[HS256]).expect_err("refused").to_string();
    assert_eq!(unfit, "an Ed25519 key verifies [EdDSA], none of which is among the allowed algorithms [HS256]");
    let unfit = read(&ISSUER.pem(ES384), &[ES256]).expect_err("refused");
    assert!(matches!(unfit, KeyError::NoAlgorithm { .. }), "{unfit}");
}

fn jwks(keys: &[Value], allowed: &[Algorithm]) -> Result<(KeySet, Vec<SkipReason>), KeyError> {
    let (set, skipped) = KeySet::from_jwks(json!({ "keys": keys }).to_string().as_bytes(), allowed)?;
    Ok((set, skipped.iter().map(|skipped| skipped.reason).collect()))
}

#[test]
fn jwk_sets_verify() {
    for algorithm in [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA] {
        let token = ISSUER.token(algorithm, &header(algorithm), &claims());
        for jwk in [
            ISSUER.jwk(algorithm),
            with(ISSUER.jwk(algorithm), json!({ "alg": format!("{algorithm:?}"), "use": "sig", "kid": "1" })),
            with(ISSUER.jwk(algorithm), json!({ "key_ops": ["verify"], "x5t": "x", "unheard_of": {} })),
        ] {
            let (keys, skipped) = jwks(std::slice::from_ref(&jwk), &ALL).expect("keys");
            let verified = jwt::verify(&keys, &Rules::default(), token.as_bytes(), NOW);
            assert!(verified.is_ok() && skipped.is_empty(), "{jwk} {verified:?} {skipped:?}");
        }
    }
    // `Ed25519` is EdDSA's name since RFC 9864.
    let (keys, _) = jwks(&[with(ISSUER.jwk(EdDSA), json!({ "alg": "Ed25519" }))], &ALL).expect("keys");
    let token = ISSUER.token(EdDSA, r#"{"alg":"Ed25519"}"#, &claims());
    assert!(jwt::verify(&keys, &Rules::default(), token.as_bytes(), NOW).is_ok());
}

#[test]
fn what_a_jwk_set_holds_besides_is_skipped() {
    let rsa = || ISSUER.jwk(RS256);
    let check = |jwk: Value, expected: SkipReason| {
        let (set, skipped) = jwks(&[jwk.clone(), ISSUER.jwk(ES256)], &[RS256, PS256, ES256]).expect("keys");
        assert_eq!((set.len(), &*skipped), (1, &[expected][..]), "{jwk}");
    };
    check(json!({ "kty": "oct", "k": encode(SECRET), "alg": "HS256" }), SkipReason::Secret);
    check(json!({ "kty": "oct" }), SkipReason::Secret);
    check(with(rsa(), json!({ "d": "AQ" })), SkipReason::Secret);
    check(with(rsa(), json!({ "use": "enc" })), SkipReason::Use);
    check(with(rsa(), json!({ "use": "unheard_of" })), SkipReason::Use);
    check(with(rsa(), json!({ "key_ops": ["encrypt", "wrapKey"] })), SkipReason::Use);
    check(with(rsa(), json!({ "alg": "RSA-OAEP" })), SkipReason::Algorithm);
    check(with(rsa(), json!({ "alg": "RS512" })), SkipReason::Algorithm);
    check(with(rsa(), json!({ "alg": "HS256" })), SkipReason::Algorithm);
    check(with(rsa(), json!({ "alg": "none" })), SkipReason::Algorithm);
    check(with(rsa(), json!({ "alg": "ES256" })), SkipReason::Algorithm);
    check(ISSUER.jwk(EdDSA), SkipReason::Algorithm);
    check(json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "AA" }), SkipReason::Type);
    check(json!({ "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA" }), SkipReason::Type);
    check(json!({ "kty": "EC", "x": "AA", "y": "AA" }), SkipReason::Type);
    check(json!({ "kty": "OKP", "crv": "X25519", "x": encode([0; 32]) }), SkipReason::Type);
    check(json!({ "kty": "rsa" }), SkipReason::Type);
    check(json!({ "kty": "RSA" }), SkipReason::Invalid);
    check(json!({ "kty": "RSA", "n": "", "e": "" }), SkipReason::Invalid);
    check(with(rsa(), json!({ "n": "?" })), SkipReason::Invalid);
    check(with(rsa(), json!({ "e": "AA" })), SkipReason::Invalid);
    check(with(rsa(), json!({ "e": "AQ" })), SkipReason::Invalid);
    check(with(rsa(), json!({ "e": "AAAAAQ" })), SkipReason::Invalid);
    check(with(rsa(), json!({ "e": "AQAA" })), SkipReason::Invalid);
    check(json!({ "kty": "RSA", "n": encode([0xff; 128]), "e": "AQAB" }), SkipReason::Invalid);
    check(json!({ "kty": "RSA", "n": encode([0xff; 2_000]), "e": "AQAB" }), SkipReason::Invalid);
    check(json!({ "kty": "EC", "crv": "P-256", "x": encode([1; 32]), "y": encode([1; 32]) }), SkipReason::Invalid);
    check(with(ISSUER.jwk(ES256), json!({ "crv": "P-384" })), SkipReason::Invalid);
    check(with(ISSUER.jwk(ES256), json!({ "y": encode([1; 31]) })), SkipReason::Invalid);
    check(json!({ "kty": "OKP", "crv": "Ed25519", "x": encode([0; 31]) }), SkipReason::Invalid);
    check(json!({}), SkipReason::Invalid);
    check(json!(5), SkipReason::Invalid);
    check(with(rsa(), json!({ "kid": 5 })), SkipReason::Invalid);
}

#[test]
fn documents_that_are_no_jwk_set() {
    for text in ["", "{", "[]", "null", "{}", r#"{"keys":{}}"#, r#"{"keys":null}"#, "[[]]", "<html>"] {
        assert!(matches!(KeySet::from_jwks(text.as_bytes(), &ALL), Err(KeyError::Jwks(_))), "{text}");
    }
    assert!(matches!(KeySet::from_jwks(&vec![b' '; (1 << 20) + 1], &ALL), Err(KeyError::Jwks(_))));
    let error = jwks(&[], &ALL).expect_err("no key");
    assert_eq!(error.to_string(), "no usable key among the 0 of the JWK Set");
    let error = jwks(&[json!({ "kty": "oct", "kid": "a" })], &ALL).expect_err("no key");
    let expected = "no usable key among the 1 of the JWK Set; key 0 (\"a\"): \
                    it is a symmetric or private key, which does not belong into a published set";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn bounds_and_duplicates() {
    let numbered = |number: usize| with(ISSUER.jwk(ES256), json!({ "kid": number.to_string() }));
    let many: Vec<_> = (0..JWKS_KEYS_MAX + 2).map(numbered).collect();
    let (set, skipped) = jwks(&many, &ALL).expect("keys");
    assert_eq!((set.len(), &*skipped), (JWKS_KEYS_MAX, &[SkipReason::TooMany; 2][..]));
    let same_kid = [numbered(1), numbered(1), with(ISSUER.jwk(RS256), json!({ "kid": "1" }))];
    let (set, skipped) = jwks(&same_kid, &ALL).expect("keys");
    assert_eq!((set.len(), &*skipped), (2, &[SkipReason::Duplicate][..]));
}

#[test]
fn keys_are_selected_by_kid() {
    let jwk = |issuer: &Issuer, kid: &str| with(issuer.jwk(ES256), json!({ "kid": kid }));
    let published = jwks(&[jwk(&ISSUER, "ours"), jwk(&STRANGER, "other")], &ALL).expect("keys").0;
    let mixed = published.clone().and(keys(RS256));
    let verify = |set: &KeySet, token: String| jwt::verify(set, &Rules::default(), token.as_bytes(), NOW).map(|_| ());
    let check = |set: &KeySet, algorithm: Algorithm, kid: Option<&str>, expected| {
        let header = json!({ "alg": format!("{algorithm:?}"), "kid": kid }).to_string();
        let token = ISSUER.token(algorithm, &header, &claims());
        assert_eq!(verify(set, token), expected, "{algorithm:?} {kid:?}");
    };
    check(&published, ES256, Some("ours"), Ok(()));
    check(&published, ES256, None, Ok(()));
    check(&published, ES256, Some("other"), Err(TokenError::Signature));
    check(&published, ES256, Some("new"), Err(TokenError::UnknownKey));
    check(&published, RS256, Some("ours"), Err(TokenError::Algorithm));
    check(&published, HS256, Some("ours"), Err(TokenError::Algorithm));
    check(&published, HS256, None, Err(TokenError::Algorithm));
    // A key without a kid serves tokens whose kid nobody has.
    check(&mixed, RS256, Some("new"), Ok(()));
    check(&mixed, RS256, None, Ok(()));
    check(&mixed, RS256, Some("ours"), Err(TokenError::Algorithm));
    check(&mixed, RS384, Some("new"), Err(TokenError::UnknownKey));
    check(&keys(RS256), RS256, Some("new"), Ok(()));
    check(&keys(RS256), ES256, Some("new"), Err(TokenError::Algorithm));
    // While nothing was fetched yet, the one meant may still come.
    check(&KeySet::default(), ES256, None, Err(TokenError::UnknownKey));
    check(&KeySet::default(), ES256, Some("ours"), Err(TokenError::UnknownKey));
}

#[test]
fn only_so_many_keys_are_tried() {
    let strangers: Vec<_> = std::iter::repeat_with(|| STRANGER.jwk(ES256)).take(8).collect();
    let with_ours = |strangers: &[Value]| jwks(&[strangers, &[ISSUER.jwk(ES256)]].concat(), &ALL).expect("keys").0;
    let token = ISSUER.token(ES256, &header(ES256), &claims());
    let verify = |set: &KeySet| jwt::verify(set, &Rules::default(), token.as_bytes(), NOW).map(|_| ());
    assert_eq!(verify(&with_ours(&strangers[..7])), Ok(()));
    assert_eq!(verify(&with_ours(&strangers)), Err(TokenError::Signature));
}

#[test]
fn keys_do_not_show_themselves() {
    let shown = format!("{:?}", KeySet::from_secret(SECRET, &[HS256]).expect("keys"));
    assert!(!shown.contains("0123456789") && !shown.contains("48, 49, 50"), "{shown}");
}

proptest::proptest! {
    /// Key material comes from files and from the network.
    #[test]
    fn no_key_material_panics(bytes: Vec<u8>, at: proptest::sample::Index, bit in 0..8u32) {
        let _ = KeySet::from_jwks(&bytes, &ALL);
        let _ = KeySet::from_pem(&bytes, &ALL);
        let _ = KeySet::from_pem(pem("PUBLIC KEY", &bytes).as_bytes(), &ALL);
        let _ = KeySet::from_pem(pem("RSA PUBLIC KEY", &bytes).as_bytes(), &ALL);
        for text in [encode(&bytes), String::from_utf8_lossy(&bytes).into_owned()] {
            for members in [json!({ "n": text, "e": text }), json!({ "x": text, "y": text }), json!({ "kid": text })] {
                let keys: Vec<_> = ALL.iter().map(|&algorithm| with(ISSUER.jwk(algorithm), members.clone())).collect();
                let _ = jwks(&keys, &ALL);
            }
        }
        for mut der in [x509(KeyPair::public_key(&ISSUER.rsa)), x509(ISSUER.p256.public_key())] {
            let at = at.index(der.len());
            der[at] ^= 1 << bit;
            let _ = KeySet::from_pem(pem("PUBLIC KEY", &der).as_bytes(), &ALL);
        }
    }
}
