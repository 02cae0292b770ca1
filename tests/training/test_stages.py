"""What a stage trains, and what stays as it is."""

import copy
from typing import Any

import pytest
import torch
from conftest import tiny_model
from workspace import quick_config

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.training.stages import (
    keep_in_eval,
    load_trained,
    part_of,
    prepare_stage,
    sharded_layers,
    trained_parameters,
)


ATTENTION = [f"{part}.{tensor}" for part in ("query", "key", "value", "output", "layer_norm") for tensor in "wb"]
QFORMER_LAYER = [
    *(f"self_attention.{name}" for name in ATTENTION),
    *(f"cross_attention.{name}" for name in ATTENTION),
    *(f"{part}.{tensor}" for part in ("fc1", "fc2", "layer_norm") for tensor in "wb"),
]
CONNECTOR = {
    *(f"model.{part}.{tensor}" for part in ("ln_speech", "ln_audio", "projector") for tensor in ("weight", "bias")),
    *(f"model.qformer.{name}" for name in ("query_tokens", "layer_norm.weight", "layer_norm.bias")),
    *(
        f"model.qformer.layers.{layer}." + name.removesuffix(name[-1]) + {"w": "weight", "b": "bias"}[name[-1]]
        for layer in range(2)
        for name in QFORMER_LAYER
    ),
}
LORA = {
    f"model.language_model.layers.{layer}.self_attn.{projection}.lora_{matrix}.default.weight"
    for layer in range(2)
    for projection in ("q_proj", "v_proj")
    for matrix in "AB"
}


def prepared(lora: bool = False, **options: Any) -> SalmonnForConditionalGeneration:
    model = tiny_model(quick_config(), lora=lora)
    prepare_stage(model, **options)
    return model


@pytest.mark.parametrize("lora", [False, True])
def test_connector_and_lora_are_trained_and_nothing_else(lora: bool) -> None:
    model = prepared(lora)
    trained = trained_parameters(model)
    assert trained.keys() == {"connector", "lora"}
    assert set(trained["connector"]) == CONNECTOR
    assert set(trained["lora"]) == LORA


def test_loaded_adapter_is_trained_too(saved_folder: Any) -> None:
    model = SalmonnForConditionalGeneration.from_pretrained(saved_folder)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if ".lora_" in name)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    prepare_stage(model)
    assert set(trained_parameters(model)["lora"]) == LORA
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_lora_may_be_left_out() -> None:
    model = prepared(train_lora=False)
    assert trained_parameters(model).keys() == {"connector"}
    assert not model.has_lora


@pytest.mark.parametrize("encoder", ["speech_encoder", "audio_encoder"])
def test_encoder_may_be_trained(encoder: str) -> None:
    model = prepared(**{f"train_{encoder}": True})
    assert trained_parameters(model).keys() == {"connector", "lora", encoder}
    whole = {f"model.{encoder}.{name}" for name, _ in getattr(model.model, encoder).named_parameters()}
    assert set(trained_parameters(model)[encoder]) == whole - {"model.speech_encoder.embed_positions.weight"}
    model.train()
    assert getattr(model.model, encoder).training


def test_trained_encoder_is_no_longer_the_base_of_the_config() -> None:
    model = tiny_model(quick_config())
    model.config.update({"speech_model_id": "whisper", "speech_model_revision": "main", "audio_model_id": "beats"})
    prepare_stage(model, train_speech_encoder=True)
    assert (model.config.speech_model_id, model.config.speech_model_revision) == (None, None)
    assert model.config.audio_model_id == "beats"


def test_head_that_was_trained_before_is_no_longer_of_the_base_of_the_config() -> None:
    model = tiny_model(quick_config(), lora=True)
    model.config.update({"speech_model_id": "whisper", "text_model_id": "vicuna", "text_model_revision": "main"})
    model.lm_head.weight.requires_grad_(True)
    prepare_stage(model)
    assert (model.config.text_model_id, model.config.text_model_revision) == (None, None)
    assert model.config.speech_model_id == "whisper"


def test_frozen_encoders_stay_in_eval_mode() -> None:
    model = prepared()
    model.train()
    assert not any(module.training for module in model.model.speech_encoder.modules())
    assert not any(module.training for module in model.model.audio_encoder.modules())
    assert all(module.training for module in model.model.qformer.modules())
    assert all(module.training for module in model.model.language_model.modules())


def test_frozen_encoders_have_no_dropout_in_training() -> None:
    config = quick_config()
    config.speech_config.dropout = config.speech_config.encoder_layerdrop = 0.5
    config.audio_config.hidden_dropout = 0.5
    model = tiny_model(config)
    inputs = {"speech_encoder": torch.randn(1, 80, 200), "audio_encoder": torch.randn(1, 200, 128)}

    @torch.no_grad()
    def states() -> dict[str, torch.Tensor]:
        return {name: getattr(model.model, name)(features).last_hidden_state for name, features in inputs.items()}

    expected = states()
    prepare_stage(model)
    model.train()
    assert all(torch.equal(frames, expected[name]) for name, frames in states().items())


def test_encoder_that_is_unfrozen_later_trains_again() -> None:
    model = prepared()
    prepare_stage(model, train_speech_encoder=True)
    model.train()
    assert model.model.speech_encoder.training
    assert not model.model.audio_encoder.training


def test_copies_keep_their_own_mode() -> None:
    module = torch.nn.Dropout(0.5)
    keep_in_eval(module)
    twin = copy.deepcopy(module)
    keep_in_eval(twin, keep=False)
    twin.train()
    module.train()
    assert (module.training, twin.training) == (False, True)


def test_what_is_trained_is_float32_and_the_rest_is_not() -> None:
    model = tiny_model(quick_config()).to(torch.bfloat16)
    prepare_stage(model)
    types = {(part_of(name), parameter.dtype) for name, parameter in model.named_parameters()}
    frozen = {(part, torch.bfloat16) for part in ("speech_encoder", "audio_encoder", "language_model")}
    assert types == frozen | {("connector", torch.float32), ("lora", torch.float32)}


def test_training_an_absent_encoder_raises() -> None:
    with pytest.raises(ValueError, match="this model has no audio encoder"):
        prepare_stage(tiny_model(quick_config(audio=False)), train_audio_encoder=True)


def test_layers_to_shard_are_those_of_the_language_model() -> None:
    assert sharded_layers(prepared()) == {"LlamaDecoderLayer": 2}
    assert sharded_layers(prepared(), ["LlamaDecoderLayer"]) == {"LlamaDecoderLayer": 2}
    with pytest.raises(ValueError, match=r"shard the layers \['BeatsLayer'\], but only those of the language model"):
        sharded_layers(prepared(), ["LlamaDecoderLayer", "BeatsLayer"])


def named_as_saved(model: SalmonnForConditionalGeneration) -> dict[str, torch.Tensor]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        f"base_model.model.{name.replace('.default.', '.')}" if ".lora_" in name else name: parameter.detach().clone()
        for name, parameter in trained.items()
    }


def test_trained_weights_are_loaded_back() -> None:
    model, other = prepared(lora=True), prepared(lora=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 1.0
    load_trained(other, named_as_saved(model))
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("model.projector.bias"), r"missing \['model.projector.bias'\]"),
        (lambda weights: weights.update(stranger=torch.ones(1)), r"unexpected \['stranger'\]"),
        (
            lambda weights: weights.update({"model.projector.bias": torch.ones(3)}),
            r"other shapes \['model.projector.bias'\]",
        ),
    ],
)
def test_weights_that_do_not_fit_raise(change: Any, message: str) -> None:
    model = prepared()
    weights = named_as_saved(model)
    change(weights)
    with pytest.raises(ValueError, match=message):
        load_trained(model, weights)
