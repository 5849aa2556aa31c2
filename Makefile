# make install      .venv with everything in it
# make quickstart   the main job, end to end, on text that every machine has
# make test         the test suite (test-all: with the long tests)
# make parity       every way to share the work against one process, as a table
# make check        lint, types, rooms
#
# TORCH=system      keep the torch that the container brings (NGC images): .venv sees the system's packages
# TORCH_INDEX=URL   take torch from this package index (PyTorch publishes one for CPU builds: 200 MB instead of 3 GB)
# EXTRAS=NAMES      optional parts to install beside the usual ones, such as EXTRAS=eval,watch

PYTHON ?= python3
TORCH ?= pinned
TORCH_INDEX ?=
EXTRAS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all parity check clean

help:
	@sed -n 's/^# \?//p' Makefile | head -10

install: .venv/.installed

# Parts that are asked for are installed, whatever is there already.
ifneq ($(EXTRAS),)
.PHONY: .venv/.installed
endif

.venv/.installed: pyproject.toml constraints.txt setup.py tools/install.sh
	PYTHON=$(PYTHON) TORCH=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) EXTRAS=$(EXTRAS) bash tools/install.sh
	@touch $@

quickstart: install
	$(BIN)/python examples/quickstart/run.py

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: install
	$(BIN)/python -m pytest -m ""

parity: install
	$(BIN)/python -m tests.parallel.matrix

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv quickstart
