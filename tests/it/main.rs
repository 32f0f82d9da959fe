//! Whole clusters of real processes: `headwater` itself, ffmpeg as the publisher, `headwater probe` and Chromium as
//! viewers, etcd as the directory. Each test keeps one promise of the README.
//!
//! One binary, so that it links once. Tests work in real time, so few run at a time: one that is busy and one that waits, or
//! one that measures (`.config/nextest.toml`). Without nextest they run one by one (`deploy/dev/test.sh`).

mod harness;

mod admin;
mod browser;
mod chaos;
mod drain;
mod failover;
mod forward;
mod ladder;
mod latency;
mod operations;
mod outage;
mod overload;
mod ownership;
mod play;
mod publish;
mod renditions;
mod replication;
mod tcp;
mod trace;
mod tree;
mod whep;

#[test]
fn nextest_is_told_of_tests_that_exist() {
    let config = include_str!("../../.config/nextest.toml");
    let named = config.split("test(=").skip(1);
    let named: Vec<&str> = named.filter_map(|rest| rest.split(')').next()).collect();
    assert!(!named.is_empty());
    let own = std::env::current_exe().expect("this program");
    let listed = std::process::Command::new(own).arg("--list").output();
    let listed = String::from_utf8(listed.expect("it lists its tests").stdout).expect("text");
    for name in named {
        let line = format!("{name}: test");
        assert!(listed.lines().any(|listed| listed == line), "no {name}");
    }
}
