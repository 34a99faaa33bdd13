# `make demo` and `make test` work in a fresh clone: they make .venv and install into it once, and
# again whenever pyproject.toml or constraints.txt changes. `make PYTHON=python3.12 test` picks another Python.
PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format clean

help:
	@echo "make demo       compress and search 10,000 real texts (about 8 minutes the first time)"
	@echo "make test       lint, then all tests but the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff format and fix the code"
	@echo "make clean      remove the virtual environment and caches"

demo: $(VENV)/.installed-demo
	$(BIN)/rqmoe demo

test: lint
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: one per set of extras, all in the same environment.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[demo]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[demo,dev,bench,distributed]"
	@touch $@ $(VENV)/.installed-demo
