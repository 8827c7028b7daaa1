# rsnet: what there is to type. Each command is a script in scripts/ or one line here.

# The Docker Engines that `make test` runs on: 20.10 (this machine's own Debian 12), 26.1 (trixie), 28.5 (sid);
# and, where there is a root of it, 29.7 and 29.7-nftables (scripts/engines).
ENGINE ?= 20.10 28.5
export ENGINE

.PHONY: help run test plugin bench bench-scale bench-overlay release fmt lint clean deps engines

help:
	@echo 'make run       install what is missing, build, install the plugin in the local engine, show two containers that talk'
	@echo 'make test      every test, on real engines (as root); make test ENGINE="26.1" chooses the engines'
	@echo 'make plugin    dist/plugin, for docker plugin create'
	@echo 'make release   dist/release: program, plugin, Debian package, dependencies with licences, sums; the same bytes each time'
	@echo 'make bench     rsnet beside Docker'\''s own bridge and the least remote drivers (as root)'
	@echo 'make bench-scale  a thousand simulated hosts over a real Consul (as root); HOSTS=100 NETWORKS=10'
	@echo 'make bench-overlay  rsnet between two hosts beside Docker'\''s own overlay (as root)'
	@echo 'make fmt lint  format; check format and lints'
	@echo 'make deps      the Debian packages that the tests need (as root)'
	@echo 'make engines   the engines'\'' root file systems, in /var/cache/rsnet (as root)'
	@echo 'make clean     remove what was built; the engines stay'

run:
	scripts/run

test:
	scripts/test

plugin:
	scripts/plugin

release:
	scripts/release

bench: deps engines
	scripts/bench

bench-scale:
	scripts/bench-scale

bench-overlay: deps engines
	scripts/bench-overlay

fmt:
	cargo fmt

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; fi
	if command -v promtool >/dev/null; then promtool test rules packaging/prometheus/alerts-test.yml; fi

deps:
	scripts/deps

engines:
	scripts/engines

clean:
	cargo clean
	rm -rf dist
