# `make demo` and `make test` are all a fresh machine needs: Python 3.11 or later, make and pip.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
WORKERS ?= 2
NEXT_SCVI ?= 1.5.1

VENV := .venv
BIN := $(VENV)/bin
NEXT := .venv-next
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Compiling every file would take half of the time; Python compiles those that are used, once.
INSTALL := $(PIP) install --no-compile
SOURCES := pyproject.toml constraints.txt

# Two workers of one thread each use two cores better than one process of two threads: most tests are too small to be
# parallel inside. A file stays with one worker, so that its fixtures are built once: with `worksteal` the suite took
# 88 s of CPU, with `loadfile` 68 s.
PYTEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# pip's report in a few lines: its errors go to the other stream and are shown whole.
PROGRESS := awk '/^Collecting/ && ++n % 25 == 0 { print "  " n " packages found" } \
	/^Installing collected/ { print "  writing the files" } { fflush() }'

.PHONY: help install demo test lint test-next docs tutorials clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## make .venv with the package, editable, and all that the tests need

# The stamp is written last: an interrupted installation leaves none and starts again.
$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"multipert needs Python 3.11 or later, $(PYTHON) is {sys.version.split()[0]}: try make PYTHON=python3.12")'
	@rm -f $(VENV)/.installed*
	@if ! $(PIP) --version >/dev/null 2>&1; then \
	  echo "Making $(VENV)"; \
	  if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	    $(PYTHON) -m venv --clear $(VENV); \
	  else \
	    $(PYTHON) -m venv --clear --without-pip $(VENV); \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; \
	  fi; \
	fi
	@echo "Installing multipert and its tests into $(VENV) (a few minutes)"
	@$(INSTALL) -c constraints.txt -e ".[test]" | $(PROGRESS)
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing the documentation tools into $(VENV)"
	@$(INSTALL) -c constraints.txt -e ".[docs,test]" | $(PROGRESS)
	@touch $@

# Without its dependencies, which are those of $(VENV): the next release asks for a newer Python but runs on 3.11.
$(NEXT)/.installed-$(NEXT_SCVI): $(VENV)/.installed
	@echo "Installing scvi-tools $(NEXT_SCVI) into $(NEXT)"
	@rm -rf $(NEXT)
	@$(INSTALL) --quiet --no-deps --ignore-requires-python --target $(NEXT)/site scvi-tools==$(NEXT_SCVI)
	@touch $@

demo: install  ## train and score a model on the simulated screen
	$(BIN)/multipert demo

lint: install  ## style, types, import directions
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint  ## lint, then the tests and the examples in the docstrings
	$(PYTEST)

test-next: $(NEXT)/.installed-$(NEXT_SCVI)  ## the tests against the next scvi-tools
	@PYTHONPATH=$(NEXT)/site $(BIN)/python -c 'import scvi; assert scvi.__version__ == "$(NEXT_SCVI)", scvi.__version__'
	PYTHONPATH=$(CURDIR)/$(NEXT)/site $(PYTEST)

docs: $(VENV)/.installed-docs  ## build the documentation, warnings are errors
	@rm -rf docs/_build docs/generated
	PYTHONWARNINGS=ignore $(BIN)/sphinx-build -W -n --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

tutorials: install  ## run the notebooks and keep their output
	$(BIN)/jupyter execute --inplace tutorials/*.ipynb

clean:  ## remove all that the other commands made, .venv included
	rm -rf $(VENV) $(NEXT) build dist docs/_build docs/generated docs/tutorials multipert-demo
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
