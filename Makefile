# Two commands are enough for most people:  make demo  (see it work)  and  make test  (see it proved).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help demo build rpm deb tarball source pages test soak bench simulate matrix check fmt deny clean

TARGET := $(shell uname -m)-unknown-linux-musl
# Where cargo leaves what it builds.
BUILT := $(or $(CARGO_TARGET_DIR),target)
# ring has a little C: musl-gcc where it is installed, else the machine's own compiler, whose code needs nothing of its libc. jemalloc does.
MUSL_CC := $(or $(shell command -v musl-gcc),cc)
FEATURES := $(if $(shell command -v musl-gcc),--features jemalloc)

help:
	@echo 'make demo    build, and show one job from POST /jobs to the page behind its forwarded port (DEMO_ONCE=1: then end)'
	@echo 'make build   a static install folder in dist/, ready to be copied to another machine'
	@echo 'make rpm     the same as an RPM in packages/; also: make deb, make tarball (with an install script), make source (for rpmbuild -ba)'
	@echo 'make test    all tests, with a real cluster in network namespaces where this is root'
	@echo 'make bench   what it costs beside ssh, sbatch, nc, iptables and peers (under 20 minutes, as root); BENCH_ROWS=post-one,client picks rows, BENCH_SHORT=1 measures the cheap ones'
	@echo 'make simulate  the runner with 10,000 jobs of a cluster that is played, started faster and faster (5 minutes; needs etcd): where it can follow no more'
	@echo 'make matrix  the short way of a job with Slurm, etcd, ssh, iptables and nc of other releases (about 25 minutes, 2 GB); then make rpm twice from nothing (10 more)'
	@echo 'make soak    ten minutes (SOAK_SECONDS) of random faults for three runners and three members of etcd; SOAK_SEED repeats them'
	@echo 'make pages   the man pages and the completion anew, from the command line and docs/'
	@echo 'make check   formatting, lints, licences, shell scripts: what CI checks beside the tests'

# For the machine's own libc, so that nothing but Rust is needed.
demo: $(BUILT)/demo/share/keyhole-client.x86_64
	cargo build --package bwvisu-runner
	folder=$(BUILT)/demo
	mkdir -p $$folder/bin
	cp $(BUILT)/debug/bwvisu-runner $$folder/bin/
	rm -rf $$folder/templates && cp -r templates $$folder/templates
	exec $$folder/bin/bwvisu-runner demo $(if $(DEMO_ONCE),--once) $(DEMO_ARGS)

# Always looked at; packaging/build-clients is quick when nothing has changed.
.PHONY: $(BUILT)/demo/share/keyhole-client.x86_64
$(BUILT)/demo/share/keyhole-client.x86_64:
	packaging/build-clients $(BUILT)/demo/share

build:
	rustup target list --installed 2>/dev/null | grep -qx $(TARGET) || packaging/again rustup target add $(TARGET)
	export CC_$(subst -,_,$(TARGET))=$(MUSL_CC)
	# What is built tells nothing of where that was, and is the same wherever it was.
	flags=$$(packaging/remap "$(BUILT)")
	[ -n "$(FEATURES)" ] || echo 'no musl-gcc (Debian: musl-tools), so no jemalloc: the service works, and answers about a third as many requests'
	CARGO_INCREMENTAL=0 RUSTFLAGS="$${RUSTFLAGS:-} $$flags" cargo build --locked --release --package bwvisu-runner --target $(TARGET) $(FEATURES)
	rm -rf dist
	mkdir -p dist/bin
	cp $(BUILT)/$(TARGET)/release/bwvisu-runner dist/bin/
	packaging/build-clients dist/share
	cp -r templates dist/templates
	cp LICENSE dist/
	echo "dist/ is ready: copy it to /opt/runner on the machine that is to run the service"

rpm: build
	packaging/build-rpm

deb: build
	packaging/build-deb

tarball: build
	packaging/build-tarball

source:
	packaging/build-source

pages:
	WRITE_PAGES=1 cargo test --quiet --package bwvisu-runner --test pages

test:
	tests/run

soak:
	tests/run soak

bench:
	tests/run bench

simulate:
	command -v etcd >/dev/null || tests/install-packages
	cargo test --release --package bwvisu-runner --features simulate --test simulate

matrix:
	tests/matrix && failed=0 || failed=$$?
	tests/matrix readme
	# Two builds from nothing, in two folders, and one package.
	tests/packages twice || failed=1
	exit $$failed

check: fmt deny
	cargo clippy --workspace --all-targets --features bwvisu-tests/bed,bwvisu-runner/simulate -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --quiet
	if command -v shellcheck >/dev/null; then
		shellcheck tests/bed tests/bed.d/*.bash tests/bed.d/check tests/bed.d/init tests/bed.d/foreign tests/install-packages tests/run tests/roots tests/matrix tests/packages tests/packages.d/systemd tests/src/docs/boot tests/src/docs/systemctl tests/bench/baselines/health tests/bench/baselines/keyhole-by-hand tests/bench/baselines/keyhole-seed tests/bench/baselines/post-32 tests/bench/baselines/post-one .ci/run runner/src/gateway/iptables/probe.sh runner/src/gateway/iptables/write.sh
		shellcheck packaging/about packaging/again packaging/build-* packaging/install packaging/install.sh packaging/protoc packaging/remap packaging/deb/p*
	else
		echo 'NOT CHECKED: the shell scripts, since shellcheck is not installed' >&2
	fi

fmt:
	cargo fmt --all -- --check

deny:
	command -v cargo-deny >/dev/null || packaging/again cargo install --quiet --locked cargo-deny
	cargo deny --offline check --hide-inclusion-graph licenses bans sources
	# The advisories' database lies elsewhere; where it cannot be had, that is said and nothing more is claimed.
	if cargo deny fetch db >/dev/null 2>&1; then cargo deny check --hide-inclusion-graph advisories; else echo 'NOT CHECKED: advisories, since their database cannot be had here' >&2; fi

clean:
	cargo clean
	rm -rf dist packages
