//! The file, the environment, the command line and files of secrets: what is read and what holds over what.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A file of its own in the system's folder for such, removed at the end.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(content: impl AsRef<[u8]>) -> TemporaryFile {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ringway-config-{}-{number}", std::process::id()));
        fs::write(&path, content).expect("the temporary folder can be written");
        TemporaryFile(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("the temporary folder's name is UTF-8")
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn command_line_over_environment_over_file() {
    let text = "[server]\nport = 1";
    let port = |text: &str, environment: &[(&str, &str)], overrides: &[(&str, &str)]| {
        Config::from_toml(text, "c.toml", &pairs(environment), &pairs(overrides)).map(|config| config.server.port)
    };
    assert_eq!(port("", &[], &[]), Ok(8080));
    assert_eq!(port(text, &[], &[]), Ok(1));
    assert_eq!(port(text, &[("PORT", "2")], &[]), Ok(2));
    assert_eq!(port(text, &[("PORT", "")], &[]), Ok(1));
    assert_eq!(port(text, &[("RINGWAY_SERVER__PORT", "3"), ("PORT", "2")], &[]), Ok(3));
    assert_eq!(port(text, &[("PORT", "2")], &[("server.port", "4")]), Ok(4));
    // A value that does not hold does no harm.
    assert_eq!(port("[server]\nport = 70000", &[("PORT", "2")], &[]), Ok(2));
    check_with(text, &[("PORT", "http")], {
        "environment variable PORT: server.port = \"http\": must be a whole number from 0 to 65535"
    });
}

#[test]
fn every_kind_of_value_from_the_environment() {
    let environment = [
        ("HOST", "127.0.0.1"),
        ("METRICS_ENABLED", "False"),
        ("RINGWAY_SERVER__WORKERS", "3"),
        ("RINGWAY_SERVER__PIN", "no"),
        ("RINGWAY_SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
        ("RINGWAY_LIMITS__BODY_BYTES", "20MiB"),
        ("RINGWAY_TIMEOUTS__CONNECT", "2"),
        ("RINGWAY_METRICS__BUCKETS", "[0.1, 1]"),
        ("RINGWAY_LOGGING__SAMPLE", "0.5"),
        ("RINGWAY_LOGGING__REDACT", "[]"),
        ("RINGWAY_SERVICES__SMS__PREFIX", "/other"),
        ("RINGWAY_SERVICES__MY_APP__TIMEOUTS__CONNECT", "3s"),
        ("RINGWAY_SERVICES__NEW__PREFIX", "/new"),
        ("RINGWAY_SERVICES__NEW__ENDPOINTS", "[{ url = \"http://a\", weight = 2 }, \"http://b\"]"),
        ("REDIS_URL", "redis://localhost"),
        SECRET,
        ("RINGWAY_PORT", "tcp://10.0.0.1:80"),
        ("RINGWAY_SERVICE_HOST", "10.0.0.1"),
    ];
    let text = format!("{SMS}[services.my-app]\nprefix = \"/app\"\nendpoints = [\"http://a\"]\n");
    let config = parse(&text, &environment).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.server.host.to_string(), "127.0.0.1");
    assert!(!config.metrics.enabled && !config.server.pin);
    assert_eq!(config.server.workers, Workers::Count(3));
    assert_eq!(config.server.trusted_proxies.len(), 2);
    assert_eq!(config.limits.body_bytes, 20 << 20);
    assert_eq!(config.timeouts.connect.as_secs(), 2);
    assert_eq!(config.metrics.buckets, [0.1, 1.0]);
    assert_eq!((config.logging.sample, config.logging.redact.len()), (0.5, 0));
    let names: Vec<(&str, &str)> = config.services.iter().map(|s| (s.name.as_str(), s.prefix.as_str())).collect();
    assert_eq!(names, [("my-app", "/app"), ("new", "/new"), ("sms", "/other")]);
    assert_eq!(config.services[0].timeouts.connect.as_secs(), 3);
    assert_eq!(config.services[1].endpoints.iter().map(|endpoint| endpoint.weight).collect::<Vec<_>>(), [2, 1]);

    check_with("", &[("RINGWAY_METRICS__BUCKETS", "[1, 0]")], {
        "environment variable RINGWAY_METRICS__BUCKETS: metrics.buckets[1] = \"[1, 0]\": must be a positive number of seconds"
    });
}

#[test]
fn values_from_files() {
    let port = TemporaryFile::new("9090\n");
    for name in ["PORT_FILE", "RINGWAY_SERVER__PORT_FILE"] {
        assert_eq!(parse("", &[(name, port.path())]).map(|config| config.server.port), Ok(9090), "{name}");
    }
    check_with("", &[("PORT_FILE", port.path()), ("PORT", "1")], {
        "environment variable PORT: server.port: both PORT and PORT_FILE are set; only one may be"
    });
    check_with("", &[("PORT_FILE", "/nonexistent")], {
        "environment variable PORT_FILE: server.port: /nonexistent: cannot be read: No such file or directory (os error 2)"
    });
    let errors = parse("", &[("PORT_FILE", "/dev/zero")]).expect_err("endless").to_string();
    assert!(errors.contains("/dev/zero: is longer than 65536 bytes"), "{errors}");
    // What is in such a file may be a secret.
    let secret = TemporaryFile::new("hunter2");
    check_with("", &[("PORT_FILE", secret.path())], {
        "environment variable PORT_FILE: server.port: must be a whole number from 0 to 65535"
    });
}

#[test]
fn load_reads_the_file_that_is_named() {
    let file = TemporaryFile::new("[server]\nport = 7\n");
    let source = |path: &str| Source { path: Some(PathBuf::from(path)), ..Source::default() };
    let config = load(&source(file.path())).expect("valid");
    assert_eq!((config.server.port, config.origin.as_str()), (7, file.path()));

    let missing = load(&source("/nonexistent.toml")).expect_err("missing").to_string();
    assert_eq!(missing, "/nonexistent.toml: cannot be read: No such file or directory (os error 2)");
    let folder = load(&source("/")).expect_err("a folder").to_string();
    assert!(folder.starts_with("/: cannot be read: "), "{folder}");
    let binary = TemporaryFile::new(b"[server]\n# \xc3\xa9 \xff");
    let errors = load(&source(binary.path())).expect_err("not UTF-8").to_string();
    assert_eq!(errors, format!("{}:2:5: is not UTF-8", binary.path()));

    assert_eq!(file::find(None, Path::new("/nonexistent.toml")), Ok(None));
    let found = file::find(None, &file.0).expect("readable").expect("there");
    assert_eq!(found.1, file.path());
}
