//! Tells the binary which commit it was built from, for `--version` and `api_gateway_build_info`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // In a linked work tree these lie elsewhere, in an archive nowhere; a path that is not there would mean a rebuild each time.
    for path in ["HEAD", "logs/HEAD"].into_iter().filter_map(|path| git(&["rev-parse", "--git-path", path])) {
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=BUILD_COMMIT={commit}");
}

/// What git says, where there is a git and a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
