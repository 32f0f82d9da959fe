//! Whole clusters of real processes: `headwater` itself, ffmpeg as the publisher, `headwater probe` and Chromium as
//! viewers, etcd as the directory. Each test keeps one promise of the README.
//!
//! One binary, so that it links once. Tests run one at a time (`.config/nextest.toml`, `deploy/dev/test.sh`), since they
//! work in real time and want the machine to themselves.

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
