//! Tells the binary which commit it was built from; without git and without `HEADWATER_COMMIT` it says `unknown`.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=HEADWATER_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && std::path::Path::new(&log).exists()
    {
        // Grows with every commit and checkout of this worktree.
        println!("cargo:rerun-if-changed={log}");
    }
    let commit = std::env::var("HEADWATER_COMMIT")
        .ok()
        .filter(|commit| !commit.trim().is_empty())
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=HEADWATER_BUILD_COMMIT={}", commit.trim());
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
