# make demo    environment, install, the whole loop, ends with a report to open
# make test    environment with development tools, lint, tests
# make lint    ruff and mypy only
# make venv    environment with development tools
#
# TORCH is installed first and alone: where pip has a CPU build of exactly this version it is a fifth of the size of
# what an open requirement would bring. Another version: make test TORCH=torch==2.11.0 PINS=transformers==5.17.0

TORCH ?= torch==2.13.0
PINS ?=
PYTHON ?= python3
OUT ?= runs/demo
BIN := .venv/bin
# --no-compile: Python compiles what is really imported, a fifth of torch.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile

.PHONY: demo test lint venv clean
.DELETE_ON_ERROR:

demo: .venv/.stamp-core
	@$(BIN)/thinkfast demo --out $(OUT)

# A test process a core, one thread each: small operations leave a second thread idle, or spinning.
# Lint and tests both run whatever the other says, and pytest's closing line is the last one.
test: .venv/.stamp-dev
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist worksteal || status=1; \
	exit $$status

lint: .venv/.stamp-dev
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check . || status=1; \
	$(BIN)/mypy || status=1; \
	exit $$status

venv: .venv/.stamp-dev

.venv/bin/python:
	@echo "creating .venv"
	@$(PYTHON) -m venv .venv

.venv/.stamp-core: pyproject.toml | .venv/bin/python
	@echo "installing thinkfast into .venv (a minute or two the first time)"
	@$(BIN)/python -c "import torch" 2>/dev/null || $(INSTALL) $(TORCH)
	@$(INSTALL) -e . $(PINS)
	@touch $@

.venv/.stamp-dev: pyproject.toml | .venv/.stamp-core
	@echo "installing the development tools"
	@$(INSTALL) -e '.[dev,math,gguf]' $(PINS)
	@touch $@

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache build dist src/*.egg-info
