"""The LoRA adapter: where it sits, and its scale at test time."""

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor


@pytest.fixture(scope="module")
def inputs(bucket_processor: SalmonnProcessor) -> dict[str, torch.Tensor]:
    return bucket_processor(text="What?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)


@torch.no_grad()
def logits(model: SalmonnForConditionalGeneration, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits


def test_lora_adapts_the_language_model_alone(bucket_model: SalmonnForConditionalGeneration) -> None:
    adapted = {name.split(".lora_")[0] for name, _ in bucket_model.named_parameters() if ".lora_" in name}
    assert adapted == {
        f"model.language_model.layers.{layer}.self_attn.{projection}"
        for layer in range(2)
        for projection in ("q_proj", "v_proj")
    }


def test_fresh_lora_changes_nothing(bucket_config: SalmonnConfig, inputs: dict[str, torch.Tensor]) -> None:
    model = tiny_model(bucket_config)
    before = logits(model, inputs)
    model.add_lora()
    assert not any(weight.any() for name, weight in model.named_parameters() if ".lora_B." in name)
    # What is added is zero, but the products are other ones, which a processor may sum in another order.
    assert torch.allclose(logits(model.eval(), inputs), before, atol=1e-5)


def test_lora_targets_follow_the_config(bucket_config: SalmonnConfig) -> None:
    config = tiny_config(lora_target_modules=["q_proj", "down_proj"], lora_rank=2)
    model = tiny_model(config, lora=True)
    adapted = {name.split(".")[-4] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert adapted == {"q_proj", "down_proj"}
    assert all(p.shape[0] == 2 for name, p in model.named_parameters() if ".lora_A." in name)


def test_lora_scale_zero_equals_disabled_adapters(
    bucket_model: SalmonnForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    with bucket_model.lora_scale(0.0):
        off = logits(bucket_model, inputs)
    bucket_model.disable_adapters()
    disabled = logits(bucket_model, inputs)
    bucket_model.enable_adapters()
    assert torch.equal(off, disabled)
    assert not torch.allclose(off, logits(bucket_model, inputs))


def test_lora_scale_is_the_absolute_scaling(
    bucket_model: SalmonnForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    trained = logits(bucket_model, inputs)
    with bucket_model.lora_scale(bucket_model.config.lora_scaling):
        assert torch.equal(logits(bucket_model, inputs), trained)
    with bucket_model.lora_scale(2.0):
        halved = logits(bucket_model, inputs)
    doubled_back = tiny_model(bucket_model.config, lora=True)
    for name, parameter in doubled_back.named_parameters():
        if ".lora_B." in name:
            parameter.data.mul_(0.5)
    assert torch.allclose(halved, logits(doubled_back, inputs), atol=1e-5)


def test_lora_scale_is_restored_after_an_exception(
    bucket_model: SalmonnForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    trained = logits(bucket_model, inputs)
    with pytest.raises(RuntimeError, match="interrupted"), bucket_model.lora_scale(1.0):
        raise RuntimeError("interrupted")
    with pytest.raises(RuntimeError, match="negative dimension"):
        bucket_model.generate(**inputs, lora_scale=1.0, num_beams=-3)
    assert torch.equal(logits(bucket_model, inputs), trained)


def test_generate_takes_a_lora_scale(
    bucket_model: SalmonnForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    with bucket_model.lora_scale(0.5):
        expected = bucket_model.generate(**inputs, max_new_tokens=8)
    assert torch.equal(bucket_model.generate(**inputs, max_new_tokens=8, lora_scale=0.5), expected)
    assert not torch.equal(bucket_model.generate(**inputs, max_new_tokens=8), expected)


def test_lora_scale_without_an_adapter_raises(bucket_config: SalmonnConfig) -> None:
    model = tiny_model(bucket_config)
    with pytest.raises(ValueError, match=r"has none; add one with add_lora\(\)"), model.lora_scale(1.0):
        pass


def test_negative_lora_scale_raises(bucket_model: SalmonnForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match=r"must not be negative, got -1\.0"), bucket_model.lora_scale(-1.0):
        pass
