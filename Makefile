# A fresh machine needs Python 3.11 or newer and git. Everything is installed into .venv, once: the stamp's name
# carries what pyproject.toml and constraints.txt say, so that a second run installs nothing.
PYTHON ?= python3
RECIPE ?= quickstart
MINUTES ?= 12
BIN    := .venv/bin
export PYTHONDONTWRITEBYTECODE :=  # unset: the tests start hundreds of processes, each of which would compile the package
STAMP  := .venv/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: quickstart test test-all lint types structure wheel mutants wasm format clean

quickstart: $(STAMP)  ## a chat model of your own, from raw text to conversation
	$(BIN)/fledgling speedrun $(RECIPE) --minutes $(MINUTES)

test: $(STAMP)  ## every test that this machine can run
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

test-all: $(STAMP)  ## the invariants at full size too: hours
	FLEDGLING_FULL=1 FLEDGLING_REQUESTS=200 FLEDGLING_TEXTS=100000 FLEDGLING_CASES=1250 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: $(STAMP) types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)  ## the type checker over the whole package and its benchmarks
	$(BIN)/mypy fledgling benchmarks

structure: $(STAMP)  ## packages, layers, lines, upward imports, cycles
	$(BIN)/python -m tests.invariants.structure

wheel: $(STAMP)  ## a wheel whose native kernels are compiled, for machines of this kind without a compiler
	FLEDGLING_PREBUILT=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

mutants: $(STAMP)  ## make mutants PACKAGE=optim COUNT=50: changes of the code that no test of the package detects
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	$(BIN)/python -m tests.mutants $(PACKAGE) --count $(or $(COUNT),50)

wasm: $(STAMP)  ## the engine of the page in one file, compiled from engine.cpp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[wasm]'
	$(BIN)/python -m fledgling.export.wasm

format: $(STAMP)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is `$(PYTHON) -V 2>&1`, expected Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,fast]'
	@rm -f .venv/.installed-* && touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
