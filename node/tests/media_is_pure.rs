//! `headwater-media` depends on nothing that does I/O: its cores are fed by shells and run under virtual time.

use std::process::Command;

/// Crates that bring tasks, sockets or clocks with them.
const FORBIDDEN: &[&str] = &[
    "actix",
    "actix-rt",
    "actix-web",
    "async-std",
    "etcd-client",
    "hyper",
    "mio",
    "reqwest",
    "smol",
    "socket2",
    "tokio",
    "tonic",
];

#[test]
fn media_needs_no_runtime() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--manifest-path", manifest])
        .args([
            "-p",
            "headwater-media",
            "-e",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .output()
        .expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let tree = String::from_utf8(output.stdout).expect("text");
    let names: Vec<_> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(names.contains(&"headwater-media"), "{tree}");
    let found: Vec<_> = names
        .iter()
        .filter(|name| FORBIDDEN.contains(name))
        .collect();
    assert!(
        found.is_empty(),
        "headwater-media must not depend on {found:?}"
    );
}
