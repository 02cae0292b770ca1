"""Adapters of models whose weights accelerate keeps on disk: answers are those of the model in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from peft import LoraConfig
from saved_folders import prompt_logits
from transformers import AutoModel

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration


LAYERS = "model.language_model.layers"


def place(**devices: str) -> dict[str, str]:
    """A device map with everything in memory, but for what is named by its last two names."""
    parts = ["speech_encoder", "ln_speech", "audio_encoder", "ln_audio", "qformer", "projector"]
    parts += [f"language_model.{part}" for part in ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")]
    places = {f"model.{part}": "cpu" for part in parts} | {"lm_head": "cpu"}
    return places | {f"{LAYERS}.{name.removeprefix('layer')}": device for name, device in devices.items()}


def load(folder: Path, offload: Path, **options: Any) -> SalmonnForConditionalGeneration:
    options.setdefault("device_map", place(layer0="disk", layer1="disk"))
    model = AutoModel.from_pretrained(folder, offload_folder=offload, **options)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    return model


def lora_devices(model: SalmonnForConditionalGeneration) -> set[str]:
    return {parameter.device.type for name, parameter in model.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize(
    ("kind", "devices"),
    [("full", {"layer0": "disk", "layer1": "disk"}), ("full", {"layer1": "disk"}), ("adapter", {"layer0": "disk"})],
    ids=["full, both layers", "full, one layer", "adapter-only"],
)
def test_adapter_of_offloaded_layers_answers_as_in_memory(
    kind: str, devices: dict[str, str], saved_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = saved_folder if kind == "full" else adapter_folder
    in_memory = AutoModel.from_pretrained(folder)
    model = load(folder, tmp_path, device_map=place(**devices))
    assert lora_devices(model) == {"cpu"}
    assert model.hf_device_map == place(**devices)
    torch.testing.assert_close(prompt_logits(model), prompt_logits(in_memory))
    with model.lora_scale(1.0), in_memory.lora_scale(1.0):
        torch.testing.assert_close(prompt_logits(model), prompt_logits(in_memory))


def test_adapter_answers_as_in_memory_when_memory_is_short(
    saved_folder: Path, bucket_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    size = sum(parameter.nbytes for parameter in bucket_model.model.language_model.layers[0].parameters())
    whole = sum(parameter.nbytes for parameter in bucket_model.parameters())
    memory = {"cpu": whole - 2 * size}  # the last parts do not fit
    model = load(saved_folder, tmp_path, device_map="auto", max_memory=memory)
    assert lora_devices(model) == {"cpu"}
    torch.testing.assert_close(prompt_logits(model), prompt_logits(bucket_model))


@pytest.mark.parametrize("adapter_only", [False, True], ids=["full", "adapter"])
def test_offloaded_model_saves_and_loads_equal(adapter_only: bool, adapter_folder: Path, tmp_path: Path) -> None:
    model = load(adapter_folder, tmp_path / "offloaded")
    model.save_pretrained(tmp_path / "saved", adapter_only=adapter_only)
    saved, first = AutoModel.from_pretrained(tmp_path / "saved"), AutoModel.from_pretrained(adapter_folder)
    torch.testing.assert_close(prompt_logits(saved), prompt_logits(first))


@pytest.fixture(scope="module")
def plain(bucket_config: SalmonnConfig) -> SalmonnForConditionalGeneration:
    return tiny_model(bucket_config)


@pytest.fixture(scope="module")
def plain_folder(plain: SalmonnForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    plain.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", False], ids=str)
def test_fresh_adapter_of_offloaded_layers_starts_as_in_memory(
    init: Any, plain: SalmonnForConditionalGeneration, plain_folder: Path, tmp_path: Path
) -> None:
    model = load(plain_folder, tmp_path)
    if init is True:
        model.add_lora()
    else:
        target = r".*language_model\..*\.(q_proj|v_proj)"
        model.add_adapter(LoraConfig(target_modules=target, init_lora_weights=init))
    matrices = [parameter for name, parameter in model.named_parameters() if ".lora_A." in name]
    assert all(matrix.requires_grad and matrix.isfinite().all() and matrix.any() for matrix in matrices)
    same = torch.allclose(prompt_logits(model.eval()), prompt_logits(plain), atol=1e-4)
    assert same == (init is not False)  # which alone does not start from an update of zero


def test_load_adapter_into_offloaded_layers_answers_as_in_memory(
    plain_folder: Path, saved_folder: Path, plain: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model, in_memory = load(plain_folder, tmp_path), AutoModel.from_pretrained(plain_folder)
    for loaded in (model, in_memory):
        loaded.load_adapter(str(saved_folder))
    torch.testing.assert_close(prompt_logits(model), prompt_logits(in_memory))
    assert not torch.allclose(prompt_logits(model), prompt_logits(plain), atol=1e-2)


def test_adapter_that_starts_from_offloaded_weights_raises(plain_folder: Path, tmp_path: Path) -> None:
    model = load(plain_folder, tmp_path)
    with pytest.raises(ValueError, match="use_dora needs weights that are not offloaded; load the model without"):
        model.add_adapter(LoraConfig(target_modules=r".*language_model\..*\.q_proj", use_dora=True))
    assert not model.has_lora


def test_merge_into_offloaded_weights_raises(saved_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"q_proj is quantised, sharded or offloaded; load the model without"):
        load(saved_folder, tmp_path).merge_lora()
