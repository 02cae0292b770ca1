# A fresh machine needs Python 3.10 or later; everything else is installed into .venv.

PYTHON ?= python3
# On macOS, or with a GPU: make TORCH=torch
TORCH ?= torch==2.13.0+cpu
CPU_INDEX := https://download.pytorch.org/whl/cpu
BIN := .venv/bin

.PHONY: ask test lint setup clean

# Sets everything up, then asks a model about a clip (random weights: see the README).
ask: setup
	$(BIN)/python -m modeling_salmonn.hub.random_model .venv/salmonn-random
	$(BIN)/salmonn ask .venv/salmonn-random/tone.wav "What do you hear?" --model .venv/salmonn-random --max-new-tokens 20

# Sets everything up, then runs the tests.
test: setup
	$(BIN)/python -m pytest -n auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: .venv/installed

# torch first, in its CPU build, so that no other package pulls the one with CUDA.
.venv/installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH) || $(BIN)/pip install --quiet $(TORCH) --index-url $(CPU_INDEX)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv
