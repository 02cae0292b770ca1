"""Merging: the model becomes a plain one that answers, saves and loads as before."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from model_bases import randomise_adapter
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from saved_folders import ADAPTER, prompt_logits
from test_saving import tied_config
from transformers import AutoModel

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration


def assert_plain(model: SalmonnForConditionalGeneration) -> None:
    assert model.state_dict().keys() == SalmonnForConditionalGeneration(model.config).state_dict().keys()
    assert not hasattr(model, "peft_config")
    with pytest.raises(ValueError, match="has none; add one"), model.lora_scale(1.0):
        pass


def assert_answers(model: SalmonnForConditionalGeneration, logits: torch.Tensor) -> None:
    torch.testing.assert_close(prompt_logits(model), logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_merged_model_answers_saves_and_loads_as_before(
    kind: str, saved_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    model = AutoModel.from_pretrained(saved_folder if kind == "full" else adapter_folder)
    model.generation_config.max_new_tokens = 7
    answered = prompt_logits(model)
    assert model.merge_lora() is model
    assert_plain(model)
    assert_answers(model, answered)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not (tmp_path / ADAPTER).exists()
    assert_plain(loaded)
    assert_answers(loaded, answered)
    assert loaded.generation_config.max_new_tokens == 7


@pytest.mark.parametrize("target", ["lm_head", "all-linear"])
def test_merged_head_is_no_longer_that_of_the_embeddings(target: str, tmp_path: Path) -> None:
    model = tiny_model(tied_config())
    embeddings = model.get_input_embeddings().weight.detach().clone()
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["lm_head"] if target == "lm_head" else target))
    randomise_adapter(model.eval())
    answered = prompt_logits(model)
    assert_answers(model.merge_lora(), answered)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    model.save_pretrained(tmp_path)
    assert_answers(AutoModel.from_pretrained(tmp_path), answered)


def test_several_active_adapters_are_merged_and_others_dropped(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config, lora=True)
    for name, targets in (("second", ["down_proj"]), ("unused", ["up_proj"])):
        model.add_adapter(LoraConfig(r=2, target_modules=targets), name)
    randomise_adapter(model.eval())
    model.set_adapter(["default", "second"])
    answered = prompt_logits(model)
    assert_answers(model.merge_lora(), answered)
    assert_plain(model)


def test_layers_that_are_merged_already_are_not_merged_twice(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config, lora=True)
    answered = prompt_logits(model)
    next(layer for layer in model.modules() if isinstance(layer, LoraLayer)).merge()
    assert_answers(model.merge_lora(), answered)


def test_merged_model_names_no_base_that_it_no_longer_has(adapter_folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(adapter_folder).merge_lora()
    assert model.config.text_model_id is None
    assert model.config.speech_model_id is not None
    with pytest.raises(ValueError, match=r"must name its bases, but config\.text_model_id is not set"):
        model.save_pretrained(tmp_path, adapter_only=True)


def test_merged_model_takes_a_fresh_adapter(saved_folder: Path) -> None:
    model = AutoModel.from_pretrained(saved_folder).merge_lora()
    answered = prompt_logits(model)
    model.add_lora()
    assert_answers(model.eval(), answered)
    randomise_adapter(model)
    with model.lora_scale(0.0):
        assert_answers(model, answered)


def test_merge_that_fails_changes_nothing(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config, lora=True)
    last = [parameter for name, parameter in model.named_parameters() if ".lora_B." in name][-1]
    last.data[0] = torch.nan
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_lora()
    assert model.state_dict().keys() == before.keys()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[key], equal_nan=True)


def test_merge_without_an_adapter_raises(bucket_config: SalmonnConfig) -> None:
    with pytest.raises(ValueError, match="merge_lora needs a LoRA adapter"):
        tiny_model(bucket_config).merge_lora()


def test_merge_of_a_disabled_adapter_raises(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config, lora=True)
    model.disable_adapters()
    with pytest.raises(ValueError, match=r"disabled; call enable_adapters\(\) first"):
        model.merge_lora()


def test_merge_into_quantised_weights_raises(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config, lora=True)
    base = next(layer for layer in model.modules() if isinstance(layer, LoraLayer)).get_base_layer()
    base.weight = torch.nn.Parameter(base.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"q_proj is quantised, .* load the model without quantization_config"):
        model.merge_lora()


def test_merge_without_a_place_for_a_bias_raises(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config)
    model.add_adapter(LoraConfig(target_modules=r".*language_model\..*\.q_proj", lora_bias=True))
    with pytest.raises(ValueError, match="no place for the lora_bias of model"):
        model.merge_lora()
