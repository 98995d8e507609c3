//! The layering that `src/lib.rs` promises, read off the source tree.

use std::fs;
use std::path::{Path, PathBuf};

/// The Rust files below a folder or module of `src`, each with its text up to its tests.
fn sources(part: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![root.join(part), root.join(format!("{part}.rs"))];
    let mut found = Vec::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a readable folder");
            files.extend(entries.map(|entry| entry.expect("a readable entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") && path.exists() {
            let is_test = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
            let text = fs::read_to_string(&path).expect("UTF-8");
            let code = text.split("#[cfg(test)]").next().expect("a first part").to_owned();
            if !is_test {
                found.push((path, code));
            }
        }
    }
    assert!(!found.is_empty(), "src/{part} has no Rust file");
    found
}

/// No line of code (comments aside) below `part` holds any of `words`.
fn check_absent(part: &str, words: &[&str]) {
    for (path, text) in sources(part) {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().expect("a first part");
            for word in words {
                assert!(!code.contains(word), "{}:{}: {word}: {}", path.display(), number + 1, line.trim());
            }
        }
    }
}

#[test]
fn pure_modules_are_pure() {
    let impure = [
        "async fn",
        "async move",
        ".await",
        "Instant::now",
        "SystemTime::now",
        "std::fs",
        "io::stdout",
        "TcpStream",
        "fastrand",
        "tokio",
        "monoio",
        "crate::proxy",
        "crate::control",
        "crate::telemetry",
        "unsafe",
    ];
    for part in ["http", "policy", "traffic", "redis/ledger", "redis/resp", "redis/script"] {
        check_absent(part, &impure);
    }
    // What the control plane does with the answers of the DNS.
    for part in ["control/resolve/names", "control/resolve/srv"] {
        check_absent(part, &impure);
    }
}

#[test]
fn what_decides_about_instances_is_pure() {
    for part in ["control/registry/book", "control/registry/instance", "control/registry/validate"] {
        check_absent(part, &["async fn", ".await", "Instant::now", "SystemTime::now", "tokio", "fastrand", "std::fs"]);
    }
}

#[test]
fn the_planes_do_not_know_each_other() {
    check_absent("proxy", &["crate::control", "tokio", "std::fs", "to_socket_addrs", "ToSocketAddrs"]);
    check_absent("control", &["crate::proxy", "monoio"]);
    check_absent("redis", &["crate::control", "crate::telemetry", "tokio", "std::fs", "ToSocketAddrs"]);
    check_absent("telemetry", &["crate::proxy", "crate::control"]);
    check_absent("snapshot", &["crate::proxy", "crate::control", "crate::telemetry"]);
}

#[test]
fn no_lock_in_the_data_plane() {
    // The ledger in memory is what all workers share; it is asked for leases, not for requests.
    for part in ["proxy", "http", "policy", "traffic", "redis/client", "redis/resp", "redis/script"] {
        check_absent(part, &["Mutex", "RwLock", "mpsc", "fetch_", "compare_exchange", "println!", "spawn_blocking"]);
    }
}

#[test]
fn unsafe_blocks_name_their_invariant() {
    // Each block that there may be, with what no safe call of the standard library or rustix does.
    const ALLOWED: [(&str, usize, &str); 4] = [
        (
            "proxy/socket.rs",
            4,
            "descriptors lent out for a call; one that the driver has given up; SIOCOUTQ; the stream behind a half",
        ),
        ("proxy/multishot.rs", 1, "a send from a copy that outlives it"),
        ("proxy/provided.rs", 2, "buffers that the kernel writes to, and their ring"),
        ("control/handover.rs", 1, "close_range, before anything is open"),
    ];
    let mut found: Vec<String> = Vec::new();
    for part in
        ["proxy", "control", "telemetry", "http", "policy", "traffic", "redis", "snapshot", "demo", "gateway", "main"]
    {
        for (path, text) in sources(part) {
            let lines: Vec<&str> = text.lines().collect();
            for (index, _) in lines.iter().enumerate().filter(|(_, line)| line.contains("unsafe {")) {
                let above = &lines[index.saturating_sub(5)..index];
                assert!(above.iter().any(|line| line.contains("// SAFETY:")), "{}:{}", path.display(), index + 1);
                found.push(path.display().to_string());
            }
        }
    }
    for (file, most, what) in ALLOWED {
        let blocks = found.iter().filter(|path| path.ends_with(file)).count();
        assert_eq!(blocks, most, "{file}: {what}");
        found.retain(|path| !path.ends_with(file));
    }
    assert!(found.is_empty(), "unsafe code is not to spread: {found:?}");
}
