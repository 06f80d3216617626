# `make quickstart` drives one real model down the whole road; `make test` proves the house is in order.
# Both install what they need: a Python environment in .venv, Rust builds in target/, Debian tools where apt is at hand.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
PY := .venv/bin/python
UV := .venv/bin/uv
DEBUG_BIN := target/debug/highroad
RELEASE_BIN := target/release/highroad
DASHBOARD := dashboard/dist/index.html

.PHONY: help quickstart test test-rust test-python test-dashboard fuzz lint mlflow-answers bench env env-bench env-servers dashboard lock clean

help: ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

quickstart: env python-module-release ## Train, track, package, gate, serve, roll back and replay one real model
	@HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) scripts/quickstart.py $(ARGS)

test: lint test-rust test-dashboard fuzz test-python ## Everything CI runs

# `cargo clippy` checks every dependency that the build compiles anyway. Its driver is a compiler too: with it in rustc's place for our
# own crates, one build gives the lints, the tests and the binaries.
test lint test-rust test-python python-module debug-bin: export RUSTC_WORKSPACE_WRAPPER := clippy-driver
test lint test-rust test-python python-module debug-bin: export CLIPPY_ARGS := -Dwarnings__CLIPPY_HACKERY__

lint: debug-bin ## Formatting, clippy and TypeScript, warnings denied
	cd dashboard && npm run --silent check
	cargo fmt --all --check

test-rust: env nextest tools $(DASHBOARD) ## Rust tests (no example in the documentation is code that runs)
	cargo nextest run --workspace --locked

test-dashboard: $(DASHBOARD) ## The dashboard's own unit tests; its pages are tested by pytest
	cd dashboard && npm test --silent

fuzz: ## Mutate small programs against the reader for a few seconds
	scripts/fuzz

test-python: env python-module tools ## pytest: starter, real models, real clients
	HIGHROAD_BIN=$(abspath $(DEBUG_BIN)) $(PY) -m pytest -q -n 2 --dist loadfile --durations 10 tests

mlflow-answers: env ## Record anew what the real MLflow server answers (conformance/mlflow_answers.jsonl)
	$(PY) conformance/mlflow_replay.py --record

bench: env-bench env-servers python-module-release tools ## Highroad beside its peers, interleaved in one run
	cargo build --locked --release --package highroad-serve --package highroad-eval --package highroad-assess --examples
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/peers.py $(ARGS)
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/track.py
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/data.py
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/run.py
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/dashboard.py
	$(PY) benches/gate.py
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/load.py
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/rollout.py
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/monitor.py
	HIGHROAD_BIN=$(abspath $(RELEASE_BIN)) $(PY) benches/scale.py --gate --ratio
	$(PY) benches/index.py

.PHONY: rust debug-bin release-bin nextest tools
# The same selection as the tests', so that dependencies have the same features and are not built again.
debug-bin: rust $(DASHBOARD)
	cargo build --locked --workspace --all-targets

rust:
	@command -v cargo >/dev/null || { echo "error: cargo is missing: install Rust 1.95 (https://rustup.rs)" >&2; exit 2; }

release-bin: rust $(DASHBOARD)
	@echo "Building the highroad binary (a few minutes the first time)"
	cargo build --locked --release --package highroad-cli --package highroad-python --lib --bin highroad

# `cargo build` embeds what is in dashboard/dist; without it the binary has a page that says how to get it.
dashboard: $(DASHBOARD) ## Build the web pages that the binary embeds
dashboard/node_modules/.package-lock.json: dashboard/package-lock.json
	@node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)' 2>/dev/null \
	  || { echo "error: Node 20.19 or newer is missing: install it (https://nodejs.org)" >&2; exit 2; }
# `npm ci` would insist on the builds of every platform that the linter has, and mirrors of the registry lack some of them;
# versions are exact and integrity comes from the lock file either way.
	cd dashboard && npm install --no-save --silent
	@touch $@
$(DASHBOARD): dashboard/node_modules/.package-lock.json $(shell git ls-files dashboard)
	cd dashboard && npm run --silent build

nextest: rust
	@command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest

# promtool lints the metrics page, Chromium renders the dashboard, PostgreSQL is the other database, docker-registry keeps
# packages, buildah and mmdebstrap build the container image, systemd reads its unit,
# libfaketime lets clocks jump, strace kills at a system call, g++ compiles what inductor writes. Without apt the tests that need them say so and fail.
tools:
	@command -v promtool >/dev/null && command -v chromium >/dev/null && command -v docker-registry >/dev/null && command -v buildah >/dev/null && command -v mmdebstrap >/dev/null && command -v systemd-analyze >/dev/null && command -v strace >/dev/null && command -v g++ >/dev/null && ls /usr/lib/*/faketime/libfaketime.so.1 /usr/lib/postgresql/*/bin/postgres /usr/share/datasets/fashion-mnist >/dev/null 2>&1 || scripts/debian-tools prometheus chromium postgresql dataset-fashion-mnist docker-registry buildah mmdebstrap systemd strace g++ libfaketime

env: .venv/.dev ## The pinned, hashed Python environment
env-bench: .venv/.bench
env-servers: target/bench/servers/.done ## Servers that benches/load.py runs beside Highroad

.venv/.uv: requirements/uv.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: install Python 3.11 with venv, or set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --require-hashes -r requirements/uv.txt
	@touch $@

.venv/.dev: .venv/.uv requirements/dev.txt requirements/assets.txt requirements/mlflow2.txt requirements/mlserver.txt
	@echo "Installing the Python environment (torch is about 5 GB unpacked)"
	$(UV) pip install --quiet --python $(PY) --require-hashes -r requirements/dev.txt
	$(UV) pip install --quiet --python $(PY) --require-hashes --no-deps -r requirements/assets.txt
	$(UV) pip install --quiet --python $(PY) --require-hashes --target .venv/mlflow2 -r requirements/mlflow2.txt
	$(UV) venv --quiet --clear --python $(PYTHON) .venv/mlserver
	$(UV) pip install --quiet --python .venv/mlserver/bin/python --require-hashes -r requirements/mlserver.txt
	@touch $@

.venv/.bench: .venv/.dev requirements/bench.txt
	$(UV) pip install --quiet --python $(PY) --require-hashes -r requirements/bench.txt
	@touch $@

# An environment of its own: these servers want older libraries.
target/bench/servers/.done: .venv/.uv requirements/servers.txt
	$(UV) venv --quiet --clear --python $(PYTHON) target/bench/servers
	$(UV) pip install --quiet --python target/bench/servers/bin/python --require-hashes -r requirements/servers.txt
	@touch $@

# The Python module comes out of the same build as the binary, whose dependencies have other features than the module's alone, and
# is used from python/ as it lies there. A wheel is made by maturin: `maturin build --release` in crates/python.
.PHONY: python-module python-module-release
python-module: env debug-bin
	@$(call use-module,debug)

python-module-release: env release-bin
	@$(call use-module,release)

define use-module
cp --remove-destination target/$(1)/lib_highroad.so python/highroad/_highroad.abi3.so
site=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); echo "$(abspath python)" > "$$site/highroad.pth"; \
cd crates/python && $(abspath .venv/bin/maturin) pep517 write-dist-info --metadata-directory "$$site" --interpreter $(abspath $(PY)) >/dev/null 2>&1
endef

lock: .venv/.uv ## Resolve requirements/*.in again
	cd requirements && for f in uv dev bench servers mlflow2 mlserver; do ../$(UV) pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --python-version 3.11 $$f.in -o $$f.txt; done
	cd requirements && ../$(UV) pip compile --quiet --no-deps --generate-hashes --no-emit-index-url --python-version 3.11 assets.in -o assets.txt

clean: ## Remove what was built, trained and installed
	rm -rf target .venv quickstart .highroad dashboard/node_modules dashboard/dist/*
