# Everything runs in a virtual environment of its own; the first target that needs it makes it.
#   PYTHON=python3.12   another interpreter (3.11 or newer)
#   PIP_ARGS=...        more arguments for pip, such as --extra-index-url=<wheels without CUDA>
#   OUTPUT=...          where the demo and the benchmarks write
#   COVERAGE=--cov      measure what `make test` covers of the core, and fail below the limit
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
OUTPUT ?= runs
WORKERS ?= 2
COVERAGE ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
CHECKS := check-format check-lint check-types check-imports check-changelog
SCRIPTS := docs/gen_tables.py docs/stacked_tables.py docs/update_readme.py docs/griffe_reference.py docs/tables

.DEFAULT_GOAL := help
.PHONY: help demo env test test-slow lint $(CHECKS) format docs bench ci clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## sample the trained video model with and without ERTACache
	$(BIN)/erta demo --output $(OUTPUT)/demo
	@echo "look at $(OUTPUT)/demo/report.html"

env: $(VENV)/.dev ## the environment of the tests, checks and docs

test: $(VENV)/.dev ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) $(COVERAGE)

test-slow: $(VENV)/.dev ## the tests that sample with the trained model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(WORKERS)

lint: $(VENV)/.dev ## formatting, lint, types, import contracts, changelog fragments
	@$(MAKE) --no-print-directory $(CHECKS)

# each is also a hook of .pre-commit-config.yaml; they need what `make env` installs
check-format:
	$(BIN)/ruff format --check .

check-lint:
	$(BIN)/ruff check .

check-types:
	$(BIN)/python -m mypy
	MYPYPATH=docs $(BIN)/python -m mypy $(SCRIPTS)

check-imports:
	$(BIN)/lint-imports

check-changelog:
	$(BIN)/python -m towncrier build --draft --version Unreleased

format: $(VENV)/.dev ## put every file into the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev ## measure again every table of the README and the docs (many hours)
	commands="$$(PYTHONPATH=docs $(BIN)/python -m tables)" && PATH="$(BIN):$$PATH" sh -exc "$$commands"
	$(BIN)/python docs/update_readme.py

ci: ## what continuous integration runs, from a clean checkout
	.ci/run

clean: ## remove what was built; the environment and runs/ stay
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

# the stamps make a second run quick; the environment for development holds the demo's
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (a minute or two)"
	$(INSTALL) -e ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml bench/pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (a few minutes)"
	$(INSTALL) -e ".[dev]" -e bench
	$(INSTALL) --no-deps galaxygrad==0.2.1
	@touch $(VENV)/.demo $@
