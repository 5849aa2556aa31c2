# make install      .venv with everything in it
# make quickstart   the main job, end to end, on text that every machine has
# make test         the tests that every change runs (test-ci: those of CI too; test-all: every one)
# make battery      the tests of the reliability rows, the long ones too, and docs/reliability.md from them
# make parity       every way to share the work against one process, as a table
# make check        lint, types, imports
# make site         the pages of docs/ as a site in ./site, dead links refused (REPOSITORY_URL: where links to code lead)
#
# TORCH=system      keep the torch that the container brings (NGC images): .venv sees the system's packages
# TORCH_INDEX=URL   take torch from this package index (PyTorch publishes one for CPU builds: 200 MB instead of 3 GB)
# EXTRAS=NAMES      optional parts to install beside the usual ones, such as EXTRAS=eval,watch
# MCORE=0.19.2      another release of Megatron-Core than the pinned one, in .venv-mcore-0.19.2; from 0.17 on it needs
#                   Python 3.12: make test MCORE=0.19.2 PYTHON=python3.12

PYTHON ?= python3
TORCH ?= pinned
TORCH_INDEX ?=
EXTRAS ?=
MCORE ?=
VENV := .venv$(if $(MCORE),-mcore-$(MCORE))
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-ci test-all battery parity check site clean

help:
	@sed -n 's/^# \?//p' Makefile | head -13

install: $(VENV)/.installed

# Parts that are asked for are installed, whatever is there already.
ifneq ($(EXTRAS),)
.PHONY: $(VENV)/.installed
endif

$(VENV)/.installed: pyproject.toml constraints.txt setup.py tools/install.sh
	PYTHON=$(PYTHON) VENV=$(VENV) MCORE=$(MCORE) TORCH=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) EXTRAS=$(EXTRAS) bash tools/install.sh
	@touch $@

quickstart: install
	$(BIN)/megatron-cpt quickstart

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-ci: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: install
	$(BIN)/python -m pytest -m ""

battery: install
	$(BIN)/python -m tests.reliability.battery

parity: install
	$(BIN)/python -m tests.parallel.matrix

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

site:
	$(MAKE) install EXTRAS=docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-mcore-* quickstart site
