# scenedistill: `make help` lists what there is.
#
# Everything runs in a virtual environment made here when absent. Variables:
#   PYTHON=python3.12     the interpreter that makes the environment (3.11 or newer)
#   VENV=path             where the environment lies (default .venv)
#   PIP_ARGS="..."        further arguments for pip install, such as an index with CPU-only builds of torch
#   EXTRAS=use,test,lint  the extras installed (default dev, which is all that tests use); tests of the rest are skipped
#   DATA=path             class folders that make bench measures on (default: generated scenes)
#   BENCH_ARGS="..."      options of make bench, such as "--pixels '[64]' --repeats 3"
#   PYTEST_ARGS="..."     further arguments for pytest, such as "-m 'not slow'"

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
EXTRAS ?= dev
PYTEST_ARGS ?=
DATA ?=
BENCH_ARGS ?= --batch_size '[64, 32, 16]' --also_compiled true

BIN := $(VENV)/bin
STAMP := $(VENV)/.scenedistill-installed
DOCUMENTS := $(wildcard README.md docs/*.md)

.DEFAULT_GOAL := help
# figures on real images are published with the code, those on generated scenes are not
KEPT = --results results/speed.json --picture docs/pictures/speed.png
TRIED = --results runs/speed.json --picture runs/speed.png

.PHONY: help setup quickstart test coverage lint bench docs tables clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make the virtual environment and install the package with its tools

# Once, and again only when pyproject.toml changes.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || { echo "==> making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "scenedistill needs Python 3.11 or newer: remove $(VENV), then make setup PYTHON=python3.12"; exit 1; }
	@echo "==> installing scenedistill and its tools into $(VENV) (several minutes the first time: torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[$(EXTRAS)]'
	@touch $@

quickstart: setup ## teacher, plain and distilled student on generated scenes, in two to ten minutes
	@echo "==> scenedistill quickstart"
	@$(BIN)/scenedistill quickstart

lint: setup ## ruff and mypy
	@echo "==> ruff"
	@$(BIN)/python -m ruff check src tests benchmarks examples
	@$(BIN)/python -m ruff format --check --quiet src tests benchmarks examples || \
		{ echo "not formatted as ruff does it: $(BIN)/python -m ruff format src tests benchmarks examples"; exit 1; }
	@echo "==> mypy"
	@$(BIN)/python -m mypy

PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
SLOW_UNTIL = 12

test: lint ## ruff, mypy, then every test, in random order; after 12 minutes (SLOW_UNTIL) no slow one begins
	@echo "==> pytest (on a slow machine no slow test begins after $(SLOW_UNTIL) minutes: make test SLOW_UNTIL=120 has time for all)"
	@$(PYTEST) --slow-until $(SLOW_UNTIL) $(PYTEST_ARGS)

coverage: setup ## every test with branch coverage, which takes half as long again
	@echo "==> pytest"
	@$(PYTEST) --cov $(PYTEST_ARGS)

bench: setup ## the speed benchmark with the loops of other packages: make bench DATA=path/to/AID
	@echo "==> installing the rivals"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[bench]'
	@echo "==> speed (an hour or more on two cores; BENCH_ARGS takes the options of scenedistill bench)"
	@$(BIN)/python benchmarks/speed.py $(if $(DATA),--data "$(DATA)" $(KEPT),$(TRIED)) $(BENCH_ARGS)

docs: setup ## the documentation as a site in site/, with API pages; a broken link is an error
	@echo "==> installing what builds the site"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[docs]'
	@echo "==> mkdocs"
	@$(BIN)/python -m mkdocs build --quiet --strict
	@echo "open site/index.html"

tables: setup ## update the tables of README and docs from results/
	@echo "==> tables"
	@$(BIN)/python benchmarks/tables.py $(DOCUMENTS)

clean: ## remove caches and build products; runs, data and the virtual environment stay
	@rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis htmlcov .coverage .coverage.* coverage.xml
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
