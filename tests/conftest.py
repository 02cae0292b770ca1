"""Fixtures: tiny random models, audio made on the spot, and the reference cases where they are present."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modeling_salmonn.hub.convert import convert_checkpoint


os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SALMONN_SHARED", ROOT.parent / "shared"))
CASES = ("tiny", "nobeats")


class ReferenceCase:
    """One folder of recorded data: the authors' code run with small random weights."""

    def __init__(self, folder: Path, converted: Path):
        self.folder = folder
        self.converted = converted
        self.golden: dict[str, Any] = json.loads((folder / "golden.json").read_text())
        self.tensors: dict[str, torch.Tensor] = load_file(folder / "golden.safetensors")
        self.has_beats = (folder / "beats.pt").exists()

    def clips(self) -> dict[str, dict[str, Any]]:
        return self.golden["wavs"]

    def audio(self, clip: str) -> str:
        return str(self.folder / "audio" / f"{clip}.wav")

    def compare(self, name: str, value: torch.Tensor, tolerance: float, time_axis: int = 1) -> None:
        """Compare with the recorded tensor, or with every 16th entry of its time axis where only that is recorded."""
        value = value.detach().float()
        if name in self.tensors:
            expected = self.tensors[name].float()
        else:
            expected = self.tensors[f"{name}.every16"].float()
            value = value.index_select(time_axis, torch.arange(0, value.shape[time_axis], 16))
        assert value.shape == expected.shape, f"{name}: {tuple(value.shape)} against {tuple(expected.shape)}"
        worst = (value - expected).abs().max().item()
        assert worst <= tolerance, f"{name} differs by {worst:.2e}"


def reference_folder(case: str) -> Path:
    folder = SHARED / "reference" / case
    if not folder.is_dir():
        pytest.skip(f"the reference data {folder} is not on this machine")
    return folder


def convert_case(folder: Path, output: Path, **options: Any) -> Path:
    beats = folder / "beats.pt"
    convert_checkpoint(
        whisper=str(folder / "whisper"),
        beats=str(beats) if beats.exists() else None,
        llm=str(folder / "llama"),
        checkpoint=folder / "salmonn.pth",
        config=folder / "decode_config.yaml",
        qformer_heads=4,
        output=output,
        **options,
    )
    return output


@pytest.fixture(scope="session", params=CASES)
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReferenceCase:
    folder = reference_folder(request.param)
    return ReferenceCase(folder, convert_case(folder, tmp_path_factory.mktemp("converted") / request.param))
