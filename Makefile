# Thin: every target is one command. `make` alone lists them.

CARGO ?= cargo
PREFIX ?= /usr/local

.DEFAULT_GOAL := help
.PHONY: help build images demo test e2e bench lint docs-check install uninstall clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

build: ## the release binary: target/release/sampan
	$(CARGO) build --release --locked --package sampan

images: ## the images of tests and demo: target/images/*.tar
	$(CARGO) xtask images

demo: ## a cluster with a small application on this machine (root)
	scripts/demo

test: ## everything CI runs (root; installs what is missing)
	scripts/test

e2e: ## only the end-to-end tests (root)
	scripts/test install build images e2e

bench: ## measure, and write bench/RESULTS.md (root)
	scripts/bench

lint: ## formatting, clippy, crate edges, licences
	scripts/test fmt clippy edges licences

docs-check: ## links in the documentation, and a test for each promise
	scripts/test docs promises

install: build ## into PREFIX (/usr/local), with systemd units
	PREFIX=$(PREFIX) scripts/install

uninstall: ## what `install` installed
	PREFIX=$(PREFIX) scripts/uninstall

clean: ## build results
	$(CARGO) clean
