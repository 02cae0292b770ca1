"""Conversions of the reference cases with other arguments, and with other files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_salmonn.hub.convert import ConversionReport, convert_checkpoint


LORA = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_{}.default.weight"
FC1 = "speech_Qformer.bert.encoder.layer.{}.intermediate_query.dense.weight"


def convert(case: Path, output: Path, **changes: Any) -> ConversionReport:
    """Convert a reference case with other arguments."""
    beats = case / "beats.pt"
    arguments: dict[str, Any] = {
        "whisper": str(case / "whisper"),
        "llm": str(case / "llama"),
        "checkpoint": case / "salmonn.pth",
        "beats": str(beats) if beats.exists() else None,
        "qformer_heads": 4,
        "output": output,
    }
    return convert_checkpoint(**(arguments | changes))


def altered_checkpoint(case: Path, path: Path, alter: Callable[[dict[str, Any]], Any]) -> Path:
    """The case's checkpoint with other content."""
    content = torch.load(case / "salmonn.pth", weights_only=True)
    alter(content)
    torch.save(content, path)
    return path


def writable_copy(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    return copy


def assert_fails(match: str, case: Path, folder: Path, **changes: Any) -> None:
    """The conversion raises and leaves nothing behind."""
    folder.mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=match):
        convert(case, folder / "new" / "converted", **changes)
    assert list(folder.iterdir()) == []
