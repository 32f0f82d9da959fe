# Everything a developer and the CI do. Recipes are plain commands: paste them if you like.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

export CARGO_TERM_PROGRESS_WHEN ?= auto
# rustup puts its tools here, which a shell opened before `make deps` does not know.
export PATH := $(PATH):$(HOME)/.cargo/bin

BROWSER_MODULES := tests/browser/node_modules/.package-lock.json

.PHONY: help run demo build test checks autoscaling bench chaos lab lint fmt deps test-deps clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Install what is missing, build, start a whole cluster in one process with a demo stream
	@deploy/dev/deps.sh run
	cargo build --locked --bin headwater
	@deploy/dev/run.sh

demo: ## Push the demo stream to a server that runs already (RTMP_URL=rtmp://host/live/demo)
	@deploy/dev/deps.sh run
	@deploy/dev/demo.sh

build: ## Build the binary
	cargo build --locked --bin headwater

test: test-deps lint $(BROWSER_MODULES) ## Lint, then run every test (installs what the tests need)
	cargo test --locked --workspace --doc
	@deploy/dev/test.sh
	@deploy/dev/checks.sh

checks: test-deps ## Check chart and alerts only, with the binary if it is built
	@deploy/dev/checks.sh

autoscaling: test-deps build ## Let edges come and go with a crowd, as the chart's autoscaler would have it a hundred times as slowly
	@deploy/dev/checks.sh --pattern autoscaling.py

bench: ## Measure the edge against the floor: five minutes on a quiet machine (BENCH="--only fanout", BENCH=--help)
	@deploy/dev/deps.sh run
	cargo build --locked --package headwater --package headwater-bench --bins
	@"$${CARGO_TARGET_DIR:-target}/debug/headwater-bench" --binary "$${CARGO_TARGET_DIR:-target}/debug/headwater" $(BENCH)

chaos: test-deps ## Faults for an hour, in an order that a seed gives; etcd without a quorum for 60 s each time (FOR=600 SEED=7)
	HEADWATER_CHAOS_SECONDS=$(or $(FOR),3600) HEADWATER_CHAOS_SEED=$(or $(SEED),1) HEADWATER_CHAOS_QUORUM_SECONDS=60 \
		cargo test --locked --package headwater --test it chaos -- --nocapture --test-threads=1

lab: build ## Simulate viewers on bad links, and a large fleet; write the tables to tests/lab.md and tests/fleet.md
	@{ sed '/^|/,$$d' tests/lab.md; "$${CARGO_TARGET_DIR:-target}/debug/headwater" lab; } > tests/.lab.md
	@mv tests/.lab.md tests/lab.md
	@{ sed '/^|/,$$d' tests/fleet.md; "$${CARGO_TARGET_DIR:-target}/debug/headwater" lab --fleet; } > tests/.fleet.md
	@mv tests/.fleet.md tests/fleet.md
	@tail -n 3 tests/lab.md
	@cat tests/fleet.md

lint: ## Formatting, clippy and documentation, all without a warning
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	# All packages, so that it has the features that were checked above, and only the edge is checked again.
	cargo clippy --locked --workspace --bench fan_out --features headwater-edge/testkit -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --locked --workspace --no-deps --document-private-items
	bash -n deploy/dev/*.sh deploy/image/*.sh .ci/run
	node --check edge/player/index.js
	node --check edge/player/player.js
	node --check edge/player/events.js
	node --check edge/player/quality.js
	node --check node/ui/admin.js
	node --check edge/player/qoe.js

fmt: ## Format the code
	cargo fmt --all

deps: ## Install what building and running need
	@deploy/dev/deps.sh run

test-deps:
	@deploy/dev/deps.sh test

$(BROWSER_MODULES): tests/browser/package-lock.json
	npm --prefix tests/browser ci --no-audit --no-fund

clean: ## Remove what was built
	cargo clean
	rm -rf tests/browser/node_modules .run
