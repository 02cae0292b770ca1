"""Loading: folders whose weights, adapter or bases do not fit raise, or are reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_folders import ADAPTER, ADAPTER_CONFIG, CONNECTOR, WEIGHTS, edited_copy
from transformers import AutoModelForCausalLM

from modeling_salmonn import SalmonnForConditionalGeneration


def altered_copy(folder: Path, copy: Path, name: str, alter: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The folder with other tensors in one of its files."""
    shutil.copytree(folder, copy)
    weights = load_file(folder / name)
    alter(weights)
    save_file(weights, copy / name, metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("part", ["speech", "audio", "text"])
def test_adapter_only_load_without_base_id_raises(part: str, adapter_folder: Path, tmp_path: Path) -> None:
    folder = edited_copy(adapter_folder, tmp_path / "copy", "config.json", **{f"{part}_model_id": None})
    with pytest.raises(ValueError, match=f"does not name the {part} base; set {part}_model_id"):
        SalmonnForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("part", ["speech", "audio", "text"])
def test_adapter_only_load_when_a_base_lacks_a_key_raises(part: str, adapter_folder: Path, tmp_path: Path) -> None:
    name = f"{part}_model_id"
    base = Path(json.loads((adapter_folder / "config.json").read_text())[name])
    key = next(key for key in sorted(load_file(base / WEIGHTS)) if "layers.1." in key)
    altered_copy(base, tmp_path / "base", WEIGHTS, lambda weights: weights.pop(key))
    folder = edited_copy(adapter_folder, tmp_path / "copy", "config.json", **{name: str(tmp_path / "base")})
    with pytest.raises(ValueError, match=rf"weights of {tmp_path}/base do not fit its config: missing \['{key}'\]"):
        SalmonnForConditionalGeneration.from_pretrained(folder)


def test_adapter_only_load_when_a_base_is_another_model_raises(
    based_model: SalmonnForConditionalGeneration, adapter_folder: Path, tmp_path: Path
) -> None:
    values = based_model.config.text_config.to_dict() | {"num_hidden_layers": 3}
    AutoModelForCausalLM.from_config(type(based_model.config.text_config)(**values)).save_pretrained(tmp_path / "base")
    folder = edited_copy(adapter_folder, tmp_path / "copy", "config.json", text_model_id=str(tmp_path / "base"))
    with pytest.raises(ValueError, match=r"unexpected \['model\.language_model\.layers\.2\."):
        SalmonnForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "alter", "message"),
    [
        (WEIGHTS, lambda weights: weights.pop("model.projector.bias"), r"missing \['model\.projector\.bias'\]"),
        (WEIGHTS, lambda weights: weights.pop("lm_head.weight"), r"missing \['lm_head\.weight'\]"),
        (WEIGHTS, lambda weights: weights.update(surplus=torch.zeros(2)), r"unexpected \['surplus'\]"),
        (
            WEIGHTS,
            lambda weights: weights.update({"model.projector.bias": torch.zeros(3)}),
            r"model\.projector\.bias\b.*\b3\b",
        ),
        (
            ADAPTER,
            lambda weights: weights.pop(sorted(weights)[0]),
            r"missing \['model\.language_model\.layers\.0\.self_attn\.q_proj\.lora_A\.default\.weight'\]",
        ),
        (ADAPTER, lambda weights: weights.update(surplus=torch.zeros(2)), r"unexpected \['surplus'\]"),
        (
            ADAPTER,
            lambda weights: weights.update({sorted(weights)[0]: torch.zeros(2, 2)}),
            r"adapter of .* other shapes|layers\.0\.self_attn\.q_proj\.lora_A\b.*\b2\b",
        ),
    ],
    ids=["missing", "missing head", "unexpected", "shape", "adapter missing", "adapter unexpected", "adapter shape"],
)
def test_load_when_weights_do_not_fit_raises(
    name: str, alter: Callable[[dict[str, torch.Tensor]], Any], message: str, saved_folder: Path, tmp_path: Path
) -> None:
    folder = altered_copy(saved_folder, tmp_path / "copy", name, alter)
    with pytest.raises(ValueError, match=message):
        SalmonnForConditionalGeneration.from_pretrained(folder)


def test_adapter_only_load_when_the_connector_lacks_a_key_raises(adapter_folder: Path, tmp_path: Path) -> None:
    folder = altered_copy(
        adapter_folder, tmp_path / "copy", CONNECTOR, lambda weights: weights.pop("model.qformer.query_tokens")
    )
    with pytest.raises(ValueError, match=r"missing \['model\.qformer\.query_tokens'\]"):
        SalmonnForConditionalGeneration.from_pretrained(folder)


def test_adapter_only_load_when_the_adapter_has_another_shape_raises(adapter_folder: Path, tmp_path: Path) -> None:
    folder = altered_copy(
        adapter_folder, tmp_path / "copy", ADAPTER, lambda weights: weights.update({min(weights): torch.zeros(2, 2)})
    )
    with pytest.raises(ValueError, match=r"adapter of .* other shapes|lora_A\b.*\b2\b"):
        SalmonnForConditionalGeneration.from_pretrained(folder)


def test_adapter_only_load_when_a_base_has_another_shape_raises(adapter_folder: Path, tmp_path: Path) -> None:
    base = Path(json.loads((adapter_folder / "config.json").read_text())["text_model_id"])
    altered_copy(
        base, tmp_path / "base", WEIGHTS, lambda weights: weights.update({"lm_head.weight": torch.zeros(3, 3)})
    )
    folder = edited_copy(adapter_folder, tmp_path / "copy", "config.json", text_model_id=str(tmp_path / "base"))
    with pytest.raises(ValueError, match=str(tmp_path / "base")):
        SalmonnForConditionalGeneration.from_pretrained(folder)


def test_load_with_loading_info_returns_the_report_instead_of_raising(saved_folder: Path, tmp_path: Path) -> None:
    def alter(weights: dict[str, torch.Tensor]) -> None:
        weights["surplus"] = weights.pop("model.projector.bias")

    folder = altered_copy(saved_folder, tmp_path / "copy", WEIGHTS, alter)
    adapter = load_file(folder / ADAPTER)
    lost = sorted(adapter)[0]
    save_file({key: adapter[key] for key in adapter if key != lost}, folder / ADAPTER, metadata={"format": "pt"})
    model, info = SalmonnForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, SalmonnForConditionalGeneration)
    assert {"model.projector.bias"} < info["missing_keys"]
    assert any("lora_A" in key for key in info["missing_keys"])
    assert info["unexpected_keys"] == {"surplus"}


def test_load_with_loading_info_reports_nothing_when_whole(saved_folder: Path, adapter_folder: Path) -> None:
    for folder in (saved_folder, adapter_folder):
        _, info = SalmonnForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())


def test_load_with_another_scaling_in_the_adapter_raises(saved_folder: Path, tmp_path: Path) -> None:
    folder = edited_copy(saved_folder, tmp_path / "copy", ADAPTER_CONFIG, lora_alpha=16)
    with pytest.raises(
        ValueError, match=r"scaling \{2\.0\}, but config\.json says 4\.0; make lora_alpha and lora_rank"
    ):
        SalmonnForConditionalGeneration.from_pretrained(folder)


def test_load_without_the_adapter_weights_raises(saved_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(saved_folder, tmp_path / "copy")
    (tmp_path / "copy" / ADAPTER).unlink()
    with pytest.raises(ValueError, match=f"has adapter_config.json but no {ADAPTER}; download the folder again"):
        SalmonnForConditionalGeneration.from_pretrained(tmp_path / "copy")
