"""Folders to examine: how they are changed, and what the doctor must say of them."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.doctor import Check, examine


WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
CONNECTOR = "connector.safetensors"
GOLDEN = "golden_answers.json"
INSTRUCTION = "What do you hear?"


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_extractor(folder: Path, **values: Any) -> None:
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    change_json(path, feature_extractor=settings["feature_extractor"] | values)


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
    hashes = path.with_name("hashes.json")
    if hashes.exists():  # as if it had been saved so
        change_json(hashes, **{path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def greedy_answer(folder: Path, wav_file: Path, max_new_tokens: int) -> str:
    model = SalmonnForConditionalGeneration.from_pretrained(folder)
    processor = SalmonnProcessor.from_pretrained(folder)
    inputs = processor(text=INSTRUCTION, audio=str(wav_file))
    output = model.generate(**inputs, max_new_tokens=max_new_tokens)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def write_golden(folder: Path, wav_file: Path, **values: Any) -> None:
    (folder / "audio").mkdir()
    shutil.copy(wav_file, folder / "audio" / "clip.wav")
    case = {"audio": "audio/clip.wav", "text": INSTRUCTION} | values
    (folder / "golden_answers.json").write_text(json.dumps({"cases": [case]}))


def named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def assert_found(folder: Path, name: str, status: str, *words: str) -> list[Check]:
    """The check has this status, says these words, and no other check failed before it."""
    checks = examine(str(folder))
    found = named(checks, name)
    assert found.status == status, checks
    for word in words:
        assert word in found.detail
    failed = [check.name for check in checks if check.status == "failed"]
    assert failed[:1] == ([name] if status == "failed" else []), checks
    return checks
