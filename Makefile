# Everything that is done to this project. `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CGO_ENABLED := 0

GO        ?= go
FUZZTIME  ?= 30s
BENCHTIME ?= 1s
BENCH     ?= .
RUNS      ?= 20
# SHARED is the folder with the fixture scripts that accept and boot-test need; WORK is
# where their images are made and kept; FIXTURES is where the bootable ones are, if they
# are elsewhere.
SHARED    ?= ../shared
WORK      ?= $(or $(TMPDIR),/tmp)/remaster-accept-$(shell id -u)
FIXTURES  ?= $(WORK)/fixtures

GOLANGCI_VERSION := v2.15.0
GOLANGCI_LINT    ?= $(CURDIR)/.tools/bin/golangci-lint-$(GOLANGCI_VERSION)

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

RACE ?= ./pkg/disk/... ./pkg/qcow2/... ./pkg/vhd/... ./pkg/source/... ./pkg/sink/...

.PHONY: help build test race lint fuzz soak bench demo accept boot-test oracles clean

help: ## print this
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## build bin/remaster
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/remaster ./cmd/remaster

test: oracles ## vet and test everything, by tools that no one here wrote
	$(GO) vet ./...
	$(GO) test -timeout 10m ./...

race: ## test what runs at once with the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout 10m $(RACE)

oracles: ## install the tools that the tests are judged by (root, Debian)
	@scripts/oracles

lint: $(GOLANGCI_LINT) ## check format, layers and style
	@test -z "$$(gofmt -l .)" || { gofmt -l . | sed 's/$$/: not gofmted/'; exit 1; }
	$(GOLANGCI_LINT) run ./...
	@if command -v shellcheck > /dev/null; then shellcheck scripts/* .ci/run; else echo 'shellcheck is missing: scripts not checked'; fi

$(CURDIR)/.tools/bin/golangci-lint-$(GOLANGCI_VERSION):
	GOBIN=$(@D) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(@D)/golangci-lint $@

fuzz: ## run each fuzz target for FUZZTIME (30s)
	@scripts/fuzz '$(FUZZTIME)'

soak: oracles ## random edits of ext4 and replays of its journal, by RUNS seeds a kind (20)
	$(GO) test -timeout 3h -run 'Model|Crash|Kernel|Recover' ./pkg/ext4 -ext4.runs=$(RUNS)

bench: oracles ## run the benchmarks (BENCH=regexp BENCHTIME=1s)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchtime '$(BENCHTIME)' -benchmem ./...

demo: build ## remaster the demo image: plan, build, verify
	@scripts/demo

# The tests of internal/accept keep to REMASTER_WORK and run the program as an ordinary
# user; see the package comment.
accept boot-test: export REMASTER_SHARED = $(abspath $(SHARED))
accept boot-test: export REMASTER_WORK = $(WORK)
accept boot-test: export REMASTER_FIXTURES = $(FIXTURES)
accept boot-test: export REMASTER_ORACLES = required

accept: ## every layout and format, and one boot (SHARED=../shared)
	@scripts/oracles boot
	$(GO) test -count 1 -v -timeout 40m -run 'TestLayouts|TestBoot$$' ./internal/accept

boot-test: ## boot every result: 3 images x 3 formats, BIOS and UEFI (SHARED=../shared)
	@scripts/oracles boot
	REMASTER_BOOT=all $(GO) test -count 1 -v -timeout 90m -run 'TestBootMatrix' ./internal/accept

clean: ## remove what was built
	rm -rf bin .cache .tools
