# Two commands for a fresh machine: `make run` and `make test`. Everything lives in .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Any torch from 2.11 on will do. The pin keeps pip from choosing a build of several GB where a CPU build is
# offered; `make run TORCH="torch>=2.11"` takes whatever pip prefers.
TORCH  ?= torch==2.13.0
# The release that belongs to that torch, for tests in Triton's interpreter and for fla; a CUDA build of torch brings
# its own, and TRITON=triton takes it.
TRITON ?= triton==3.7.1
# For two cores: tests wait for programs that they start.
WORKERS ?= 3
# Python compiles what it imports, once, and keeps it; all of torch ahead would take minutes.
unexport PYTHONDONTWRITEBYTECODE
PIP_OPTIONS := --quiet --no-compile
SOURCES := core cli plugins tests docs bench

.PHONY: setup run test lint types docs bench check clean

setup: $(VENV)/.ready-dev

$(VENV)/.ready: requirements.txt pyproject.toml core/pyproject.toml cli/pyproject.toml $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install $(PIP_OPTIONS) "$(TORCH)" -r requirements.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(BIN)/python -m pip install $(PIP_OPTIONS) "$(TORCH)" "$(TRITON); sys_platform == 'linux'" -r requirements-dev.txt
	touch $@

run: $(VENV)/.ready
	$(BIN)/rnn-lab fit --model e74 --n-state 32 --target 1M --minutes 1

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/kernels

lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: setup
	$(BIN)/mypy core/rnn_lab cli/rnn_lab_cli plugins/*/rnn_lab_*

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	$(BIN)/python bench/run.py

# What .ci/run does after `make setup`.
check: lint types
	$(BIN)/python docs/generate.py --check
	$(MAKE) test
	$(BIN)/python bench/e3_models.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
