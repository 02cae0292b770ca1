"""Conversion of files whose tensors or settings are damaged: each is refused, and named."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import reference_folder
from conversions import FC1, LORA, altered_checkpoint, assert_fails, writable_copy
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def case() -> Path:
    return reference_folder("tiny")


def damage(weights: dict[str, Any], key: str, kind: str) -> None:
    """Make one tensor of a checkpoint what no trained one can be."""
    values = {
        "int8": lambda tensor: (tensor * 100).to(torch.int8),
        "nan": lambda tensor: torch.where(torch.arange(tensor.numel()).reshape(tensor.shape) == 3, torch.nan, tensor),
        "infinite": lambda tensor: tensor / 0,
        "zero": torch.zeros_like,
        "list": lambda tensor: tensor.tolist(),
        "sparse": lambda tensor: tensor.to_sparse(),
    }
    weights[key] = values[kind](weights[key])


DAMAGES = {
    "int8": "is (int8|I8), not floating-point",
    "nan": "has NaN or infinite values",
    "infinite": "has NaN or infinite values",
}


@pytest.mark.parametrize(
    ("kind", "message"), [*DAMAGES.items(), ("list", "is a list, not a tensor"), ("sparse", "is sparse")]
)
@pytest.mark.parametrize("key", [FC1.format(1), "speech_llama_proj.weight", LORA.format("A")])
def test_convert_with_a_damaged_tensor_raises(key: str, kind: str, message: str, case: Path, tmp_path: Path) -> None:
    file = altered_checkpoint(case, tmp_path / "altered.pth", lambda content: damage(content["model"], key, kind))
    assert_fails(rf"altered\.pth: {re.escape(key)} {message}", case, tmp_path / "output", checkpoint=file)


@pytest.mark.parametrize(("kind", "message"), [*DAMAGES.items(), ("list", "is a list, not a tensor")])
def test_convert_with_a_damaged_tensor_of_beats_raises(kind: str, message: str, case: Path, tmp_path: Path) -> None:
    content = torch.load(case / "beats.pt", weights_only=True)
    damage(content["model"], "encoder.layers.1.fc1.weight", kind)
    torch.save(content, tmp_path / "beats.pt")
    match = rf"beats\.pt: (encoder\.)?layers\.1\.fc1\.weight {message}"
    assert_fails(match, case, tmp_path / "output", beats=str(tmp_path / "beats.pt"))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (FC1.format(1), "model.qformer.layers.1.fc1.weight"),
        (LORA.format("A"), "q_proj.lora_A.default.weight"),
        ("ln_speech.weight", "ln_speech.weight"),
    ],
)
def test_convert_with_a_tensor_of_zeros_raises(key: str, name: str, case: Path, tmp_path: Path) -> None:
    file = altered_checkpoint(case, tmp_path / "altered.pth", lambda content: damage(content["model"], key, "zero"))
    assert_fails(f"{re.escape(name)} holds nothing but zeros", case, tmp_path / "output", checkpoint=file)


@pytest.mark.parametrize("layer", ["ln_speech", "speech_Qformer.bert.encoder.layer.1.output_query.LayerNorm"])
def test_convert_with_weight_and_bias_of_a_norm_swapped_raises(layer: str, case: Path, tmp_path: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        weights = content["model"]
        weights[f"{layer}.weight"], weights[f"{layer}.bias"] = weights[f"{layer}.bias"], weights[f"{layer}.weight"]

    file = altered_checkpoint(case, tmp_path / "altered.pth", swap)
    assert_fails(r"altered\.pth: .*\.weight and its bias are swapped", case, tmp_path / "output", checkpoint=file)


@pytest.mark.parametrize(("kind", "message"), DAMAGES.items())
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("argument", ["whisper", "llm"])
def test_convert_with_a_damaged_tensor_of_a_base_raises(
    argument: str, form: str, kind: str, message: str, case: Path, tmp_path: Path
) -> None:
    base = writable_copy(case / argument.replace("llm", "llama"), tmp_path / "base")
    weights: dict[str, torch.Tensor] = {}
    for file in base.glob("pytorch_model*"):
        weights |= torch.load(file, weights_only=True) if file.suffix == ".bin" else {}
        file.unlink()
    key = min(key for key in weights if "layers.1" in key and "decoder" not in key and key.endswith("q_proj.weight"))
    damage(weights, key, kind)
    if form == "bin":
        torch.save(weights, base / "pytorch_model.bin")
    else:
        copies = {name: tensor.clone() for name, tensor in weights.items()}
        save_file(copies, base / "model.safetensors", {"format": "pt"})
    assert_fails(rf"base: .*weight {message}", case, tmp_path / "output", **{argument: str(base)})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("speech_query_tokens", (96,), r"query_tokens has the shape \(96,\), but 3 dimensions are needed"),
        (FC1.format(0), (192,), r"fc1\.weight has the shape \(192,\), but 2 dimensions are needed"),
        (FC1.format(1), (96, 192), r"layers\.1\.fc1\.weight is \(96, 192\), not \(192, 96\)"),
        ("ln_audio.weight", (64,), r"ln_audio\.weight is \(64,\), not \(48,\)"),
        ("speech_llama_proj.weight", (96, 64), r"projector\.weight is \(96, 64\), not \(64, 96\)"),
    ],
)
def test_convert_with_a_tensor_of_another_shape_names_it(
    key: str, shape: tuple[int, ...], message: str, case: Path, tmp_path: Path
) -> None:
    def alter(content: dict[str, Any]) -> None:
        content["model"][key] = torch.ones(shape)

    file = altered_checkpoint(case, tmp_path / "altered.pth", alter)
    assert_fails(message, case, tmp_path / "output", checkpoint=file)


def test_convert_beyond_the_range_of_half_precision_raises(case: Path, tmp_path: Path) -> None:
    def alter(content: dict[str, Any]) -> None:
        content["model"]["speech_llama_proj.bias"][0] = 1e6

    file = altered_checkpoint(case, tmp_path / "altered.pth", alter)
    message = r"model\.projector\.bias has NaN or infinite values in float16; .* choose bfloat16"
    assert_fails(message, case, tmp_path / "output", checkpoint=file, dtype="float16")
