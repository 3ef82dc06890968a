# Each target makes its own virtual environment when there is none. `make PYTHON=python3.12 test` picks another python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?=
RERANKER ?=
PYTEST_ARGS ?=
SLOW ?=
# Test files run at a time: a test computes on one thread.
JOBS ?= 2
# The pins are for python 3.11; for another one `make CONSTRAINTS= test` takes the ranges. PINS are more requirements,
# such as PINS='transformers==5.0.*'.
CONSTRAINTS ?= constraints.txt
PINS ?=
BARE ?= .venv-bare

.PHONY: help demo test bare lint format bench docs docs-serve clean

help:
	@echo "make demo    the whole job on example_data with a real model (MODEL=name, RERANKER=name)"
	@echo "make test    the tests;  make test SLOW=1  also the long runs, as .ci/run does"
	@echo "make bare    every command in an installation without extras"
	@echo "make lint    ruff and mypy;  make format  ruff format"
	@echo "make docs    write docs/cli.md from the option models and build the site into build/site;  make docs-serve  show it"
	@echo "make bench   the benchmarks beside other tools (installs them into an environment of their own)"

# The pins keep an installation repeatable; `pip install bgectl` itself takes ranges.
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]' $(PINS)
	@touch $@

demo: $(BIN)/.installed
	$(BIN)/python example_data/demo.py $(if $(MODEL),--model "$(MODEL)") $(if $(RERANKER),--reranker "$(RERANKER)")

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(if $(SLOW),,-m "not slow") $(PYTEST_ARGS)

# Not editable: that would show whether a file was forgotten in the wheel.
bare: $(BIN)/.installed
	$(PYTHON) -m venv --clear $(BARE)
	$(BARE)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) .
	BGECTL_BARE_PYTHON=$(BARE)/bin/python $(BIN)/python -m pytest tests/e2e/test_bare_install.py $(PYTEST_ARGS)

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(BIN)/.installed
	$(BIN)/python docs/make_cli_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site: build/site/index.html"

docs-serve: $(BIN)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

bench: $(BIN)/.installed
	$(BIN)/python benchmarks/validate.py
	$(BIN)/python benchmarks/mine.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/train.py

clean:
	rm -rf $(VENV) .nox .venv-peers $(BARE) demo-output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
