# Everything a newcomer or CI needs. `make` alone lists the targets.
# PYTHON: the interpreter for .venv (3.11 or later). PYTEST_ARGS: more arguments for pytest.
# CLI=local: install the pinned Copilot CLI even if there is one on PATH.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
LOCAL_CLI := .cache/cli/node_modules/.bin/copilot
PYTHON_STAMP := .venv/.stamp
CLI_STAMP := .cache/cli/.stamp
# What the tests and benchmarks drive the gateway with.
NODE_SDK := @github/copilot-sdk@1.0.14
SOURCES := gateway tests bench

# The CLI that tests and benchmarks run is the pinned one, unless the caller names another.
test test-sdks bench chaos: export COPILOT_CLI ?= $(CURDIR)/$(LOCAL_CLI)
ifeq ($(CLI)$(if $(COPILOT_CLI),named,$(shell command -v copilot)),)
SETUP_CLI := $(CLI_STAMP)
else ifeq ($(CLI),local)
SETUP_CLI := $(CLI_STAMP)
endif

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

$(PYTHON_STAMP): pyproject.toml
	@[[ -n "$(PYTHON)" ]] || { echo "Python 3.11 or later is needed (make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@echo "setting up .venv"
	@[[ -x $(BIN)/python ]] || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(CLI_STAMP): deploy/cli/package.json deploy/cli/package-lock.json deploy/install-cli.sh Makefile
	@echo "installing the Copilot CLI into .cache/cli"
	@deploy/install-cli.sh .cache/cli $(NODE_SDK)
	@touch $@

.PHONY: setup
setup: $(PYTHON_STAMP) $(SETUP_CLI) ## Virtual environment, and the Copilot CLI if none is on PATH
	@:

.PHONY: run
run: setup ## A gateway in front of two real CLIs, and what to paste into an application
	@exec $(BIN)/python -m gateway.cli.quickstart

.PHONY: test-servers
test-servers:
	@deploy/install-test-servers.sh

.PHONY: test
test: $(PYTHON_STAMP) $(CLI_STAMP) test-servers ## All tests, on the real CLI and real servers
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(PYTHON_STAMP) $(CLI_STAMP) test-servers ## Minutes of faults, gateway beside HAProxy (CHAOS_ARGS)
	@$(BIN)/python -m tests.chaos --target haproxy gateway $(CHAOS_ARGS)

.PHONY: test-sdks
test-sdks: $(PYTHON_STAMP) $(CLI_STAMP) ## The matrix of SDKs and CLIs (SDKS_ARGS: --sdk, --cli)
	@$(BIN)/python -m tests.sdks.matrix $(SDKS_ARGS)

.PHONY: check
check: $(PYTHON_STAMP) ## Format, lint, types
	@$(BIN)/ruff format --check --quiet $(SOURCES)
	@$(BIN)/ruff check --quiet $(SOURCES)
	@$(BIN)/mypy

.PHONY: fmt
fmt: $(PYTHON_STAMP) ## Format the sources and fix what can be fixed
	@$(BIN)/ruff format --quiet $(SOURCES)
	@$(BIN)/ruff check --quiet --fix $(SOURCES)

.PHONY: bench
bench: $(PYTHON_STAMP) $(CLI_STAMP) test-servers ## Benchmarks, and the pages that show them (BENCH_ARGS: a part)
	@$(BIN)/python -m bench $(or $(BENCH_ARGS),all --publish)

.PHONY: clean
clean: ## Remove all that was set up or generated
	@rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
