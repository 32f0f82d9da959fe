#!/usr/bin/env bash
# Runs every test: by nextest where it is installed, as .config/nextest.toml says, else by the runner of cargo itself, one cluster at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."

if cargo nextest --version >/dev/null 2>&1; then
    exec cargo nextest run --locked --workspace --no-fail-fast "$@"
fi
echo "cargo-nextest isn't installed: taking cargo test (cargo install --locked cargo-nextest gives limits per test)" >&2
# All but `it`, whose tests are whole sets of processes that want the machine to themselves.
cargo test --locked --workspace --lib --bins --test '[!i]*' --no-fail-fast "$@"
exec cargo test --locked --package headwater --test it --no-fail-fast "$@" -- --test-threads=1
