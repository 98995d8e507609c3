//! No text, variable or option makes the reader panic.

use proptest::prelude::*;

use super::*;

/// Pieces that get past the parser more often than characters do.
fn fragment() -> impl Strategy<Value = String> {
    let keys = prop::sample::select(KEYS).prop_map(|key| key.replace('*', "s"));
    let value = prop_oneof![
        any::<i64>().prop_map(|value| value.to_string()),
        any::<f64>().prop_map(|value| format!("{value:?}")),
        "\\PC{0,12}".prop_map(|text| format!("{text:?}")),
        "(http|unix)://?[a-z0-9:\\[\\]@/%.]{0,12}".prop_map(|text| format!("[{text:?}]")),
        "/[a-z%/.]{0,8}".prop_map(|text| format!("{text:?}")),
        Just("[[], {}, 1, \"\"]".to_owned()),
        Just("{ url = 1, weight = \"\" }".to_owned()),
        "(redis|rediss|https?)://[a-z0-9:@/%*.]{0,12}".prop_map(|text| format!("{text:?}")),
        Just("[{ name = \"a\", hash = \"sha256:\", expires = 2030-01-31, rate_limit = 1 }]".to_owned()),
        Just("{ GET = [\"a\"], nope = 1 }".to_owned()),
    ];
    prop_oneof![
        (keys, value).prop_map(|(key, value)| format!("{key} = {value}\n")),
        "\\[{1,2}[a-z.]{0,12}\\]{1,2}\n",
        "\\PC{0,20}\n",
    ]
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>()) {
        let _ = parse(&text, &[]);
    }

    #[test]
    fn near_misses_never_panic(fragments in prop::collection::vec(fragment(), 0..6)) {
        let _ = parse(&fragments.concat(), &[]);
    }

    #[test]
    fn arbitrary_environments_never_panic(key in prop::sample::select(KEYS), name in "\\PC{0,12}", value in "\\PC{0,20}") {
        let variable = format!("RINGWAY_{}", key.replace('*', "s").replace('.', "__").to_uppercase());
        let _ = parse("", &[(&variable, &value), (&format!("RINGWAY_{name}"), "x")]);
        let _ = Config::from_toml("", "c.toml", &[], &pairs(&[(&name, &value)]));
    }
}
