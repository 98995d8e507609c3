//! What `ringway check` prints: enough to see who may pass and how often, and nothing secret.

use super::*;

#[test]
fn what_is_there_by_default() {
    let text = "[services.a]\nprefix = \"/a\"\nendpoints = [\"http://a:1\"]\nauth = \"none\"";
    let config = Config::from_toml(text, "c.toml", &[], &[]).expect("valid");
    let expected = "configuration  c.toml\n\
                    address        0.0.0.0:8080\n\
                    workers        auto, pinned, driver auto\n\
                    rate limits    in memory\n\
                    clients        no credentials\n\
                    services       1\n  \
                      a  /a  auth none  100 in 1m  no cors  round_robin  http://a:1";
    assert_eq!(config.summary(), expected);
}

#[test]
fn what_can_be_there() {
    let text = r#"
        redis = { url = "redis://hunter1:hunter2@Redis.internal/3", on_error = "deny" }
        [auth.jwt]
        algorithms = ["HS256", "EdDSA"]
        jwks_url = "https://issuer.example/jwks?key=hunter3"
        [[auth.api_keys]]
        name = "billing"
        hash = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
        [cors]
        allow_origins = ["https://a.com", "https://b.com"]
        [services.a]
        prefix = "/a"
        endpoints = ["http://a:1", { url = "unix:/b", weight = 2 }]
        auth = "optional"
        rate_limit.enabled = false
        [services.longer]
        prefix = "/longer"
        hosts = ["x.com"]
        load_balancing = "random"
        endpoints = ["http://[::1]:80"]
        required_scopes = { GET = ["b"], POST = ["b", "a"] }
        rate_limits = [{ requests = 1, window = 1, key = "ip" }]
        cors.enabled = true
        [services.z]
        prefix = "/z"
        endpoints = ["http://z:1"]
        cors = { enabled = true, allow_origins = ["*"] }
    "#;
    let config = good(text);
    let expected = "configuration  c.toml\n\
                    address        0.0.0.0:8080\n\
                    workers        auto, pinned, driver auto\n\
                    rate limits    in Redis at redis.internal, database 3, on_error deny\n\
                    clients        tokens (HS256, EdDSA; 1 key, keys from https://issuer.example/jwks), 1 API key\n\
                    services       3\n  \
                      a       /a               auth optional        no limit                   no cors         round_robin  http://a:1, unix:/b (weight 2)\n  \
                      longer  /longer (x.com)  auth required (a b)  100 in 1m + 1 in 1s by ip  cors 2 origins  random       http://[::1]:80\n  \
                      z       /z               auth required        100 in 1m                  cors *          round_robin  http://z:1";
    assert_eq!(config.summary(), expected);
    // Nor does anything else show what is secret.
    for secret in ["hunter1", "hunter2", "hunter3", SECRET.1, "9f86d081"] {
        assert!(!config.summary().contains(secret), "{secret}");
    }
    for secret in ["hunter2", SECRET.1, "9f86d081", "48, 49, 50, 51"] {
        assert!(!format!("{config:?}").contains(secret), "{secret}: {config:?}");
    }
}
