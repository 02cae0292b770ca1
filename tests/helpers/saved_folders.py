"""Saved folders: their files, edited copies, and whether they load as the model that was saved."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from conftest import SAMPLING_RATE, make_clip, tiny_processor

from modeling_salmonn import SalmonnForConditionalGeneration


WEIGHTS, CONNECTOR = "model.safetensors", "connector.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
INSTRUCTION = "What do you hear?"


def prompt_logits(model: SalmonnForConditionalGeneration) -> torch.Tensor:
    inputs = tiny_processor(model.config)(text=INSTRUCTION, audio=make_clip(1.5), sampling_rate=SAMPLING_RATE)
    with torch.no_grad():
        return model(**inputs).logits


def assert_loads_equal(folder: Path, model: SalmonnForConditionalGeneration) -> SalmonnForConditionalGeneration:
    loaded = SalmonnForConditionalGeneration.from_pretrained(folder)
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert torch.allclose(prompt_logits(loaded), prompt_logits(model), atol=1e-5)  # memory may lie otherwise
    return loaded


def edited_copy(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    """The folder with other values in one of its JSON files."""
    shutil.copytree(folder, copy)
    content = json.loads((folder / name).read_text())
    (copy / name).write_text(json.dumps(content | values))
    return copy
