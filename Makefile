# Everything runs in a virtual environment that the targets make by themselves. A stamp per extra
# remembers what is installed; it is made again when pyproject.toml or constraints.txt change.
#
#   make demo     train and evaluate the main job on an embedded synthetic set (under 3 minutes on 2 cores)
#   make test     run the test suite          make test-slow   with Inductor and the long trainings
#   make lint     ruff                        make types       mypy --strict
#   make docs     build the documentation     make bench       run the benchmarks on the CPU
#   make format   let ruff rewrite            make clean       remove what the targets made

PYTHON ?= python3
VENV ?= .venv
# What to add to pytest's command line, such as PYTEST="-k fusion -x".
PYTEST ?=
WORKERS ?= logical
BENCH ?=
# The PyTorch that `make constraints` pins.
TORCH ?= 2.13.0

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow lint types format docs bench constraints api clean

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra of pyproject.toml: .venv/.stamps/test is the package with its test extra.
$(STAMPS)/%: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing mmrobust[$*] into $(VENV) (a minute or two, once)"
	@$(PIP) -c constraints.txt -e '.[$*]'
	@mkdir -p $(STAMPS) && touch $@

demo: $(STAMPS)/examples
	$(BIN)/python -m examples.mer demo --out runs/demo

test: $(STAMPS)/test
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal -m "not slow" $(PYTEST)

test-slow: $(STAMPS)/test
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(PYTEST)

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMPS)/dev
	$(BIN)/mypy

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMPS)/dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

bench: $(STAMPS)/bench
	$(BIN)/python -m benchmarks $(BENCH) --device cpu --json runs/bench
	$(BIN)/python -m benchmarks report runs/bench

# Resolves from nothing: remove the environment first (make clean).
constraints: | $(VENV)/pyvenv.cfg
	$(PIP) -e '.[dev]' 'torch==$(TORCH)'
	$(BIN)/python tools/pin.py > constraints.tmp && mv constraints.tmp constraints.txt

api: $(STAMPS)/test
	$(BIN)/python -m tests.test_public_api

clean:
	rm -rf $(VENV) runs docs/_build .mypy_cache .pytest_cache .ruff_cache build dist
