# `make demo` and `make test` are all that a fresh machine needs: they install what is missing.

SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(HOME)/.cargo/bin:$(PATH)
export RUST_BACKTRACE ?= 0
CARGO := cargo
BIN := target/debug

# Prints how long a step took: `$(call timed,name,command)`.
define timed
	@start=$$SECONDS; $(2) && echo "== $(1): $$((SECONDS - start)) s"
endef

.PHONY: help
help: ## What there is to make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

.PHONY: setup
setup: ## Install the packages that building and testing need, where they are missing
	@scripts/setup.sh

.PHONY: build
build: setup ## Build everything once: programs and tests share one profile
	$(call timed,build,$(CARGO) build --locked --workspace --all-targets)

.PHONY: demo
demo: build ## The tour of README.md on this machine; KEEP=1 leaves it up until Ctrl-C
	@BIN=$(BIN) KEEP=$(KEEP) scripts/demo.sh

.PHONY: test
test: build lint ## Every test
	$(call timed,unit tests,$(CARGO) test --locked --workspace --lib --bins \
		--test wire --test agent --test manifest --test placement --test presence --test recover --test settling \
		--test token --test upgrade --test programs)
	$(call timed,units,scripts/units.sh)
	$(call timed,simulation,$(CARGO) test --locked --workspace --test sim)
	$(call timed,fuzz,scripts/fuzz.sh 15)
	$(call timed,deny,scripts/deny.sh)
	$(call timed,QEMU,scripts/qemu.sh 1 generic_arm64)
	@scripts/e2e.sh

.PHONY: lint
lint: setup ## Format, clippy with warnings denied, documentation without warnings
	$(call timed,format,$(CARGO) fmt --all --check && $(CARGO) fmt --check --manifest-path fuzz/Cargo.toml)
	$(call timed,clippy,$(CARGO) clippy --locked --workspace --all-targets -- -D warnings)
	$(call timed,documentation,RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet)

.PHONY: sim
sim: setup ## Simulation: SEEDS=10000 for a long run, SEED=7 replays one and tells its story
	@SEEDS=$(or $(SEEDS),10000) $(CARGO) test --locked --workspace --test sim whatever -- --nocapture

.PHONY: fuzz
fuzz: setup ## Fuzzing: MINUTES=30 for each decoder; findings end up in fuzz/regressions
	@scripts/fuzz.sh $$(( $(or $(MINUTES),30) * 60 )) target/fuzz/corpus

.PHONY: abuse
abuse: build ## Power cuts and damaged disks, many: POWER_CUTS=100 for the cuts, twice as many damages
	@POWER_CUTS=$(or $(POWER_CUTS),100) $(CARGO) test --locked --workspace --test e2e -- --nocapture cuts::

.PHONY: qemu
qemu: build ## Cards in emulated ARM boards: they boot, join, run containers; CUTS=100 for the power cuts
	$(call timed,QEMU,scripts/qemu.sh $(or $(CUTS),4))

.PHONY: bench
bench: setup ## Sizes, memory, latencies, and 20 minutes at rest, beside the goals of SPECIFICATION.md
	$(CARGO) build --locked --profile device -p limpet-agent
	$(CARGO) build --locked --release -p limpet-controller
	$(CARGO) build --locked --release -p limpet-tests --bin bench
	@mkdir -p target/bench && cp target/device/limpet-agent target/release/limpet target/bench/
	@LIMPET_LAB=limpet-bench- LIMPET_BIN_DIR=$(CURDIR)/target/bench target/release/bench

.PHONY: packages
packages: build ## The Debian packages, and install, tried on a fresh Debian with a real systemd
	$(call timed,packages,scripts/packages.sh $(BIN)/limpet-agent $(BIN)/limpet)

.PHONY: deny
deny: ## Licences, bans, sources and advisories of what is linked (installs cargo-deny)
	@scripts/deny.sh

.PHONY: dist
dist: ## Static programs for every architecture, with their SBOM (CycloneDX) and sums, in dist/
	$(call timed,dist,scripts/dist.sh dist)

.PHONY: reproducible
reproducible: ## Builds the agent for aarch64 here and once more, from a clone elsewhere: the bytes must be the same
	@scripts/reproducible.sh limpet-agent-aarch64
