"""What is trained of a half-precision model is float32, as small steps are lost below; what is asked stays small."""

from pathlib import Path

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_model, tiny_processor
from model_bases import randomise_adapter
from peft import LoraConfig
from safetensors.torch import load_file
from saved_folders import ADAPTER, prompt_logits
from transformers import AutoModel

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration


LANGUAGE_MODEL = r".*language_model\..*\.(q_proj|v_proj)"
KINDS = {"plain": {}, "dora": {"use_dora": True}, "lora_bias": {"lora_bias": True}}


def adapter_dtypes(model: SalmonnForConditionalGeneration, name: str = "default") -> set[torch.dtype]:
    tensors = model.named_parameters()
    return {tensor.dtype for key, tensor in tensors if ".lora_" in key and f".{name}" in key}


def other_dtypes(model: SalmonnForConditionalGeneration) -> set[torch.dtype]:
    return {tensor.dtype for key, tensor in model.named_parameters() if ".lora_" not in key}


def half_precision(config: SalmonnConfig, dtype: torch.dtype = torch.bfloat16) -> SalmonnForConditionalGeneration:
    return tiny_model(config).to(dtype)


@pytest.fixture(scope="module")
def half_folder(bucket_config: SalmonnConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in bfloat16 with an adapter, as the conversion may write it."""
    folder = tmp_path_factory.mktemp("half")
    tiny_model(bucket_config, lora=True).bfloat16().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapter_is_float32(kind: str, dtype: torch.dtype, bucket_config: SalmonnConfig) -> None:
    model = half_precision(bucket_config, dtype)
    model.add_adapter(LoraConfig(target_modules=LANGUAGE_MODEL, **KINDS[kind]))
    assert adapter_dtypes(model) == {torch.float32}
    assert other_dtypes(model) == {dtype}


def test_fresh_lora_is_float32(bucket_config: SalmonnConfig) -> None:
    model = half_precision(bucket_config)
    model.add_lora()
    assert adapter_dtypes(model) == {torch.float32}


def test_loaded_adapter_is_float32_once_it_is_trained(half_folder: Path) -> None:
    model = AutoModel.from_pretrained(half_folder)
    assert adapter_dtypes(model) == {torch.bfloat16}
    model.add_lora()
    assert adapter_dtypes(model) == {torch.float32}
    assert other_dtypes(model) == {torch.bfloat16}


@pytest.mark.parametrize("is_trainable", [True, False])
def test_adapter_that_is_loaded_to_be_trained_is_float32(
    is_trainable: bool, half_folder: Path, bucket_config: SalmonnConfig
) -> None:
    model = half_precision(bucket_config)
    model.load_adapter(str(half_folder), is_trainable=is_trainable)
    assert adapter_dtypes(model) == {torch.float32 if is_trainable else torch.bfloat16}


def test_small_steps_reach_all_of_a_half_precision_adapter(half_folder: Path) -> None:
    model = AutoModel.from_pretrained(half_folder)
    model.add_lora()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    inputs = tiny_processor(model.config)(
        text="Listen.", audio=make_clip(1.0), text_target="a duck", sampling_rate=SAMPLING_RATE
    )
    optimizer = torch.optim.AdamW(trained, lr=3e-5, weight_decay=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    moved = [(new != old).float().mean().item() for new, old in zip(trained, before, strict=True)]
    assert min(moved) > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_float32_adapter_answers_saves_and_loads_on_a_half_precision_model(
    autocast: bool, kind: str, bucket_config: SalmonnConfig, tmp_path: Path
) -> None:
    model = half_precision(bucket_config)
    before = prompt_logits(model)
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=LANGUAGE_MODEL, **KINDS[kind]))
    randomise_adapter(model.eval())
    prompt = tiny_processor(model.config)(text="Listen.", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        answered = prompt_logits(model)
        tokens = model.generate(**prompt, max_new_tokens=3)
    assert tokens.shape[1] == prompt["input_ids"].shape[1] + 3
    assert not torch.allclose(answered, before, atol=0.5)
    model.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / ADAPTER).values()} == {torch.float32}
    loaded = AutoModel.from_pretrained(tmp_path)
    assert {*adapter_dtypes(loaded), *other_dtypes(loaded)} == {torch.bfloat16}
    assert (prompt_logits(loaded) - answered).abs().mean() < 0.1 * (before - answered).abs().mean()
    full = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    trained = {key: tensor for key, tensor in model.state_dict().items() if ".lora_" in key}
    assert all(torch.equal(full.state_dict()[key], tensor) for key, tensor in trained.items())


def test_float32_adapter_is_merged_into_a_half_precision_model(half_folder: Path) -> None:
    model = AutoModel.from_pretrained(half_folder)
    model.add_lora()
    answered = prompt_logits(model.eval())
    with model.lora_scale(0):
        without = prompt_logits(model)
    model.merge_lora()
    assert other_dtypes(model) == {torch.bfloat16}
    assert (prompt_logits(model) - answered).abs().mean() < 0.1 * (without - answered).abs().mean()
