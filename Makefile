# `make demo` and `make test` work in a fresh clone: they make .venv and install into it once, and
# again whenever pyproject.toml or constraints.txt changes. `make PYTHON=python3.12 test` picks another Python.
PYTHON ?= $(shell for candidate in python3.11 python3 python3.12 python3.13; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Not compiled here, where all of torch would be: Python compiles what it imports, when it does, and keeps that for
# the next process, whatever the user's shell says. Without it, every process of the tests would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
INSTALL = $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt
SITE_PACKAGES := python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.DEFAULT_GOAL := help
INTEGRATIONS := $(patsubst integrations/%/pyproject.toml,%,$(wildcard integrations/*/pyproject.toml))
# Ray's tests take longest: the others run beside them.
LONGEST_FIRST := ray $(filter-out ray,$(INTEGRATIONS))
# What runs at once is printed one after the other, by versions of make that can.
WHOLE_OUTPUT := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
.PHONY: help demo docs benchmarks test unit-tests test-gpu test-slow test-integrations types-integrations test-slow-integrations \
	$(foreach task,test types unit-tests test-slow,$(INTEGRATIONS:%=$(task)-%)) lint style types format async versions dist clean

help:
	@echo "make demo       compress and search 10,000 real texts (about 8 minutes the first time)"
	@echo "make test       lint, then all tests but the slow ones"
	@echo "make test-gpu   the tests that need a GPU; neither a network nor LanceDB is needed"
	@echo "make test-slow  the slow tests, those of numerics as on other processors among them"
	@echo "make test-integrations  types and tests of all integrations, each in an environment of its own"
	@echo "                        (of one of them: make $(firstword $(INTEGRATIONS:%=test-%)))"
	@echo "make test-slow-integrations  their slow tests"
	@echo "make docs       build the documentation in site/; warnings are errors"
	@echo "make benchmarks  make BENCHMARKS.md of the records of runs in docs/benchmarks"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff format and fix the code"
	@echo "make versions   give the integrations the version of rqmoe_store/__init__.py"
	@echo "make dist       build and check wheels and sdists of all distributions, and try each in an empty environment"
	@echo "                (about 10 minutes, and 2.5 GB of disk meanwhile)"
	@echo "make async      generate the table for event loops from the blocking one"
	@echo "make clean      remove the virtual environment and caches"

demo: $(VENV)/.installed-demo
	$(BIN)/rqmoe demo

# mypy keeps one core busy for most of a minute, and runs beside the tests.
test: style
	$(MAKE) --no-print-directory --jobs 2 types unit-tests

# Two at a time: most tests keep one core busy. Each process begins with one half of the files, so that tests which
# share what they set up stay together, and takes tests of the other half once it has run its own.
unit-tests: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Installs nothing, for a machine with a GPU may have no network: .venv is used if there is one, else PYTHON, which needs
# pytest and what codecs import, but not LanceDB. Why a test is skipped is printed.
test-gpu:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest tests/gpu -m cuda --confcutdir=tests/gpu

test-slow: $(VENV)/.installed-dev
	RQMOE_TESTS_EXAMPLES=all $(BIN)/python -m pytest -m "slow or costly"

# Installed one after the other, as disks are slower than cores; then tested two at a time.
test-integrations:
	$(MAKE) --no-print-directory --jobs 1 $(INTEGRATIONS:%=integrations/%/.venv/.installed)
	$(MAKE) --no-print-directory --jobs 2 $(WHOLE_OUTPUT) $(firstword $(LONGEST_FIRST:%=unit-tests-%)) types-integrations \
		$(wordlist 2,$(words $(INTEGRATIONS)),$(LONGEST_FIRST:%=unit-tests-%))

# One after the other, since they share a cache: most of what mypy reads is what all of them import.
types-integrations:
	$(MAKE) --no-print-directory --jobs 1 $(INTEGRATIONS:%=types-%)

test-slow-integrations: $(INTEGRATIONS:%=test-slow-%)

# pytest exits with 5 where an integration has no slow tests.
$(INTEGRATIONS:%=test-slow-%): test-slow-%: integrations/%/.venv/.installed
	cd integrations/$* && .venv/bin/python -m pytest -m slow || test $$? -eq 5

# Each in its own environment, so that none can lean on what another one needs.
$(INTEGRATIONS:%=test-%): test-%: types-% unit-tests-%

$(INTEGRATIONS:%=types-%): types-%: integrations/%/.venv/.installed
	cd integrations/$* && .venv/bin/python -m mypy --cache-dir ../.mypy_cache

$(INTEGRATIONS:%=unit-tests-%): unit-tests-%: integrations/%/.venv/.installed
	cd integrations/$* && .venv/bin/python -m pytest

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

benchmarks: $(VENV)/.installed-dev
	$(BIN)/python docs/benchmarks/render.py

lint: style types

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

versions: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python tests/release/versions.py

# Package indexes show READMEs beside no files: their links lead to REPOSITORY, the address of this repository on a forge,
# and are words where none is given.
dist: $(VENV)/.installed-dev
	REPOSITORY="$(REPOSITORY)" PYTHONPATH=tests $(BIN)/python tests/release/dist.py dist

async: $(VENV)/.installed-dev
	PYTHONPATH=. $(BIN)/python tests/generate_async.py

clean:
	rm -rf $(VENV) integrations/.venv integrations/*/.venv integrations/.mypy_cache build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: one per set of extras, all in the same environment.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[demo]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[demo,dev,bench,distributed,report]"
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable ".[docs]"
	@touch $@

# What all integrations need: the core, and the sentence model of their examples. Torch alone takes most of a minute to
# install, to compile and for mypy to read.
integrations/.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; name one: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv integrations/.venv
	integrations/.venv/bin/python $(PIP_INSTALL) --constraint constraints.txt --editable ".[demo]"
	@touch $@

# An environment that sees what that one has, its pip included, and installs what it needs besides.
integrations/%/.venv/.installed: integrations/.venv/.installed integrations/%/pyproject.toml integrations/%/constraints.txt
	integrations/.venv/bin/python -m venv --without-pip integrations/$*/.venv
	echo "import site; site.addsitedir('$$(integrations/.venv/bin/$(SITE_PACKAGES))')" \
		> "$$(integrations/$*/.venv/bin/$(SITE_PACKAGES))/of_all_integrations.pth"
	integrations/$*/.venv/bin/python $(PIP_INSTALL) --constraint integrations/$*/constraints.txt \
		--editable "integrations/$*[test]"
	@touch $@
