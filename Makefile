# Every task of the project, each one line away. Recipes stay short: longer ones live in scripts/.
# Each step does only what is not done yet.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PORT ?= 6379
PYTHON ?= /usr/bin/python3
SERVER ?= redis-server
# `make test-python SERVERS="redis-7.0" ARGS="-k tutorial"`: names as in tests/servers.py
TEST_SERVER := redis-7.0
FULL_SERVERS := redis-8.2
SUBSET_SERVERS := valkey-8.1 valkey-9.1
SERVERS ?=
RETRY_FAILED ?=
ARGS ?=
# test files that run at the same time: they wait for servers, for pip and for time to pass, and two cores are busy with six
JOBS ?= 6

export PORT PYTHON SERVER
# pytest rewrites each test file once and keeps that, not once a process and run.
unexport PYTHONDONTWRITEBYTECODE
# rustup's folder, for shells that have not read its profile
export PATH := $(PATH):$(HOME)/.cargo/bin

# Asked for when first needed (after `setup`), then remembered.
VENV = $(eval VENV := $$(shell PYTHON='$(PYTHON)' scripts/python.sh venv))$(VENV)
INTERPRETER = $(eval INTERPRETER := $$(shell PYTHON='$(PYTHON)' scripts/python.sh))$(INTERPRETER)
CARGO = PYO3_PYTHON='$(INTERPRETER)' cargo
# Programs of cargo find Python's library here; the module itself gets it from the loader.
RUN_CARGO = LD_LIBRARY_PATH="$$('$(INTERPRETER)' -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}" $(CARGO)
LOADER = CARGO_TARGET_DIR='$(abspath $(or $(CARGO_TARGET_DIR),target))/loader' cargo
VENV_PYTHON = '$(VENV)/bin/python'
PYTEST = $(VENV_PYTHON) -m pytest
# What fails is not run again: a race that shows once in ten runs is a defect. CI alone sets RETRY_FAILED=yes: it names what failed
# once, and is not lost over it.
run-tests = $(PYTEST) --server "$(1)" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(2) $(ARGS) || { status=$$?; \
	[ "$(RETRY_FAILED)" = yes ] && [ $$status -eq 1 ] && echo 'pinion: FLAKY unless it fails again:' && \
	$(PYTEST) --server "$(1)" --last-failed --last-failed-no-failures none $(2) $(ARGS); }

.PHONY: help
help: ## show this list
	@echo 'make TARGET [PORT=$(PORT)] [PYTHON=$(PYTHON)] [SERVER=$(SERVER)]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install what is missing to build and run (apt, virtual environment)
	@scripts/setup.sh runtime

.PHONY: setup-test
setup-test: ## the same for tests
	@scripts/setup.sh test

.PHONY: setup-compat
setup-compat:
	@scripts/setup.sh compat

.PHONY: setup-package
setup-package:
	@scripts/setup.sh package

.PHONY: setup-docs
setup-docs:
	@scripts/setup.sh docs

.PHONY: setup-bench
setup-bench:
	@scripts/setup.sh bench

.PHONY: setup-counts
setup-counts:
	@scripts/setup.sh counts

.PHONY: build
build: setup ## build target/release/libpinion.so (the loader), and beside it the module for PYTHON
	@PYTHON='$(PYTHON)' scripts/build.sh

.PHONY: dist
dist: setup ## wheels for all Pythons on this machine, and a .deb, into dist/ (ARGS=/path/to/python3 for one)
	@scripts/dist.sh $(ARGS)

.PHONY: run
run: build ## build, then run a server with the module on PORT
	@scripts/run.sh

.PHONY: setup-demo
setup-demo:
	@scripts/setup.sh demo

.PHONY: demo
demo: setup-demo build ## play the tutorial, a herd, an outage and a batch against real servers and check every reply
	@$(VENV_PYTHON) scripts/demo --server '$(SERVER)' $(ARGS)

.PHONY: fmt
fmt: ## format the Rust code
	@cargo fmt
	@cd loader && cargo fmt

.PHONY: rooms
rooms: ## which room of src/ knows which; fails unless knowledge flows one way
	@scripts/rooms.py

.PHONY: lint
lint: setup-test ## check the format, the rooms, and run clippy: warnings are errors
	@cargo fmt --check
	@scripts/rooms.py >/dev/null
	@scripts/rules.py
	@$(CARGO) clippy --lib -- -D warnings
	@$(CARGO) clippy --all-targets --features bench,model -- -D warnings
	@cd loader && cargo fmt --check && $(LOADER) clippy --release -- -D warnings

.PHONY: test-rust
test-rust: setup-test ## cargo test
	@$(RUN_CARGO) test --lib $(ARGS)
	@cd loader && $(LOADER) test --quiet

.PHONY: test-python
test-python: setup-test build ## pytest: all tests on SERVERS (default: redis-7.0); ARGS go to pytest
	@for server in $(or $(SERVERS),$(TEST_SERVER)); do \
		$(call run-tests,$$server,); \
	done

.PHONY: test
test: ## everything that a change must pass on one server: lint, Rust tests, all Python tests; about eight minutes
	@scripts/beside.sh 'lint test-rust' test-python

.PHONY: test-matrix
test-matrix: setup-test build ## the other servers of the matrix: Redis 8.2 whole, Valkey 8.1 and 9.1 in part
	@for server in $(FULL_SERVERS); do \
		$(call run-tests,$$server,-m 'not once and not soak and not compat and not package'); \
	done
	@for server in $(SUBSET_SERVERS); do \
		$(call run-tests,$$server,-m 'matrix and not once and not soak and not package'); \
	done

.PHONY: test-package
test-package: setup-package ## build one wheel and the .deb, then play them: a newcomer's walk in an empty environment, a Debian that boots
	@scripts/dist.sh '$(INTERPRETER)'
	@$(PYTEST) -n 2 --dist loadfile -m package tests/test_packages.py tests/test_deb.py $(ARGS)

.PHONY: test-compat
test-compat: setup-compat build ## other people's clients, unmodified, on SERVERS (redis-7.0): gears-cli, redgrease, rgsync, ...; minutes
	@for server in $(or $(SERVERS),$(TEST_SERVER)); do \
		$(PYTEST) --server "$$server" -n 2 --dist loadfile -m compat $(ARGS) tests/compat tests/test_examples.py; \
	done

.PHONY: docs
docs: setup-docs ## build the site into target/site, check its links, and open each page in a headless browser
	@$(VENV_PYTHON) scripts/docs/api.py --check
	@NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs --quiet build --strict
	@$(VENV_PYTHON) scripts/docs/browse.py $(ARGS)

# Tests that touch most of the module's memory and threads, and last for minutes under a sanitizer.
SANITIZED := $(addprefix tests/test_,$(addsuffix .py,conversions limits hooks linked_client streams persistence read_through read_through_lease write_behind write_behind_late write_behind_random paused async async_failures user_code_everywhere time_events sanitizer))

.PHONY: test-asan
test-asan: setup-test ## a subset of the tests on a server with AddressSanitizer, on SERVERS (redis-7.0); ARGS: other tests
	@SERVER_NAME='$(or $(SERVERS),$(TEST_SERVER))' scripts/sanitize.sh $(or $(ARGS),$(SANITIZED))

.PHONY: test-model
test-model: setup-test ## the queue, the link of a client and the exchange of shards under thousands of orders of their threads
	@$(RUN_CARGO) test --lib --features model model $(ARGS)

.PHONY: fuzz
fuzz: setup-test build ## fuzz each decoder and a server for FUZZ_SECONDS (600); FUZZ_KEEP=yes keeps inputs that led to something new
	@FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(RUN_CARGO) test --lib fuzz -- --nocapture
	@FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(PYTEST) --server "$(or $(SERVERS),$(TEST_SERVER))" -s --timeout 7200 $(ARGS) tests/test_fuzz.py

.PHONY: soak
soak: setup-test build ## the long tests, an hour of chaos among them (SERVERS="..." for others than redis-7.0)
	@for server in $(or $(SERVERS),redis-7.0); do \
		$(PYTEST) --server "$$server" -m soak --timeout 1800 $(ARGS); \
	done

.PHONY: bench
bench: setup-bench build ## benchmarks, a table and pictures in target/bench; ARGS go to benches/run.py
	@mkdir -p target/bench
	@$(VENV_PYTHON) benches/run.py --json target/bench/results.json $(ARGS)
	@$(VENV_PYTHON) benches/plot.py target/bench/results.json target/bench/performance

.PHONY: bench-inner
bench-inner: setup ## the inner loops by themselves
	@$(RUN_CARGO) bench --features bench --bench inner

.PHONY: bench-compare
bench-compare: setup-bench ## what has changed between the kept results and those of the last `make bench`
	@$(VENV_PYTHON) benches/compare.py benches/results/latest.json target/bench/results.json

.PHONY: bench-keep
bench-keep: setup-bench ## keep the results of the last `make bench`, and make the tables and pictures of the docs from them
	@$(VENV_PYTHON) benches/keep.py target/bench/results.json
	@$(VENV_PYTHON) benches/plot.py benches/results/latest.json docs/performance

.PHONY: bench-profile
bench-profile: setup-counts build ## how many instructions a command takes and in whose code, by callgrind
	@$(VENV_PYTHON) benches/instructions.py $(ARGS)

.PHONY: bench-budgets
bench-budgets: setup-counts build ## fail where a path takes 3 % more instructions than benches/budgets.json says (ARGS=--update keeps new ones)
	@$(VENV_PYTHON) benches/budgets.py $(ARGS)

.PHONY: bench-smoke
bench-smoke: setup-test build ## every benchmark once, briefly: do they still work?
	@$(VENV_PYTHON) benches/run.py --smoke $(ARGS)
	@$(VENV_PYTHON) benches/run.py --smoke --scenario hit --scenario loader --against $(or $(PINION_MODULE),$(or $(CARGO_TARGET_DIR),target)/release/libpinion.so)

.PHONY: clean
clean: ## remove everything that was built or downloaded
	rm -rf target dist .venv .cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
