"""Adapters of every kind: a folder answers as the model that was saved, or the adapter is refused with the way out."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import tiny_model
from model_bases import randomise_adapter, save_bases
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from saved_folders import ADAPTER, ADAPTER_CONFIG, edited_copy, prompt_logits
from transformers import AutoModel

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration


LANGUAGE_MODEL = r".*language_model\..*\.(q_proj|v_proj)"
SAVED: dict[str, dict[str, Any]] = {
    "another scaling": {"r": 4, "lora_alpha": 20},
    "rslora": {"r": 4, "lora_alpha": 20, "use_rslora": True},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "patterns of one scaling": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"q_proj": 4},
    },
    "one layer": {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    "encoders too": {"target_modules": ["q_proj", "v_proj"]},
    "all but one": {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*speech_encoder.*"},
    "connector": {"target_modules": ["query", "projector"]},
    "head": {"target_modules": ["lm_head"]},
    "all linear": {"target_modules": "all-linear"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\].* requires_grad_\(True\)"),
    "bias": ({"bias": "lora_only"}, "bias='lora_only'"),
    "tokens": ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\]"),
    "parameters": ({"target_modules": [], "target_parameters": ["q_proj.weight"]}, "target_parameters"),
    "replication": ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    "olora": ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    "invocation": ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens=\[1, 2\]"),
    "embeddings": ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens: only linear layers"),
    "convolutions": ({"target_modules": ["conv1", "q_proj"]}, "conv1: only linear layers"),
    "alpha_pattern": (
        {"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 16}},
        "several scalings, 2 at .* and 4 at",
    ),
    "rank_pattern": ({"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}}, "several scalings, 2 at .* and 4 at"),
    "nothing": ({"target_modules": ["no_such_layer"]}, "not found in the base model"),
}


def add_random(model: SalmonnForConditionalGeneration, name: str = "default", **options: Any) -> None:
    model.add_adapter(LoraConfig(**{"target_modules": LANGUAGE_MODEL} | options), name)
    randomise_adapter(model)
    for parameter_name, parameter in model.named_parameters():
        if "lora_magnitude" in parameter_name:
            parameter.data *= 1.5
    model.eval()


def lora_layers(model: SalmonnForConditionalGeneration) -> list[LoraLayer]:
    return [layer for layer in model.modules() if isinstance(layer, LoraLayer)]


@pytest.fixture(scope="module")
def plain(bucket_config: SalmonnConfig, tmp_path_factory: pytest.TempPathFactory) -> SalmonnForConditionalGeneration:
    """A model without adapter that names its bases; tests work on copies."""
    model = tiny_model(bucket_config)
    model.config.update(save_bases(model, tmp_path_factory.mktemp("bases")))
    return model


@pytest.mark.parametrize(
    ("kind", "adapter_only"),
    [*((kind, False) for kind in SAVED), *((kind, True) for kind in ("rslora", "dora", "encoders too", "connector"))],
)
def test_adapter_loads_and_answers_as_it_was_saved(
    kind: str, adapter_only: bool, plain: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = deepcopy(plain)
    add_random(model, **SAVED[kind])
    model.save_pretrained(tmp_path, adapter_only=adapter_only)
    answered = prompt_logits(model)
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(prompt_logits(loaded), answered, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(answered, prompt_logits(plain), atol=1e-2)
    assert {layer.scaling["default"] for layer in lora_layers(loaded)} == {loaded.config.lora_scaling}


@pytest.mark.parametrize("kind", REFUSED)
def test_adapter_that_could_not_be_loaded_again_is_refused_and_leaves_no_trace(
    kind: str, plain: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    options, message = REFUSED[kind]
    model = deepcopy(plain)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        add_random(model, **options)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert model.config.to_dict() == plain.config.to_dict()
    model.save_pretrained(tmp_path)
    assert not (tmp_path / ADAPTER).exists()
    model.add_lora()
    torch.testing.assert_close(prompt_logits(model.eval()), prompt_logits(plain))


def test_second_adapter_that_is_refused_leaves_the_first(plain: SalmonnForConditionalGeneration) -> None:
    model = deepcopy(plain)
    add_random(model, r=4, lora_alpha=20)
    answered = prompt_logits(model)
    with pytest.raises(ValueError, match="conv1: only linear layers"):
        model.add_adapter(LoraConfig(target_modules=["conv1", "q_proj"]), "other")
    assert (model.active_adapters(), model.config.lora_scaling) == (["default"], 5.0)
    torch.testing.assert_close(prompt_logits(model), answered)
    assert not [name for name, _ in model.named_parameters() if ".other." in name]


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        peft.LoHaConfig(target_modules=["q_proj"]),
        peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
        peft.OFTConfig(target_modules=["q_proj"]),
        peft.PromptTuningConfig(num_virtual_tokens=2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_other_methods_than_lora_are_refused(config: Any, bucket_model: SalmonnForConditionalGeneration) -> None:
    with pytest.raises(ValueError, match=rf"{type(config).__name__} is not supported.*use peft\.LoraConfig"):
        bucket_model.add_adapter(config, "other")


def test_what_is_no_adapter_config_is_refused(bucket_model: SalmonnForConditionalGeneration) -> None:
    with pytest.raises(TypeError, match=r"needs a peft\.LoraConfig, got dict"):
        bucket_model.add_adapter({"r": 4}, "other")


@pytest.mark.parametrize("name", ["spoken", "layers", "q_proj", "lora"])
def test_adapter_of_another_name_loads_as_it_was_saved(
    name: str, plain: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = deepcopy(plain)
    add_random(model, name)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(prompt_logits(AutoModel.from_pretrained(tmp_path)), prompt_logits(model))


def test_each_adapter_is_saved_and_the_active_one_answers(
    plain: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = deepcopy(plain)
    add_random(model, "first", r=4, lora_alpha=20)
    add_random(model, "second", r=2, target_modules=r".*language_model\..*\.down_proj")
    answered = {}
    for name in ("first", "second"):
        model.set_adapter(name)
        answered[name] = prompt_logits(model)
        model.save_pretrained(tmp_path / name)
    loaded = AutoModel.from_pretrained(tmp_path / "first")
    torch.testing.assert_close(prompt_logits(loaded), answered["first"])
    loaded.load_adapter(str(tmp_path / "first" / "second"), "second")
    loaded.set_adapter("second")
    torch.testing.assert_close(prompt_logits(loaded), answered["second"])
    assert loaded.config.lora_scaling == 4.0
    torch.testing.assert_close(prompt_logits(AutoModel.from_pretrained(tmp_path / "second")), answered["second"])


@pytest.mark.parametrize("name", ["a.b", "../other", "/tmp/other", "a/b", "lora_a"])
def test_name_that_no_adapter_can_be_saved_by_raises(
    name: str, plain: SalmonnForConditionalGeneration, saved_folder: Path
) -> None:
    model = deepcopy(plain)
    with pytest.raises(ValueError, match=r"cannot be the name of an adapter; give one without dots"):
        add_random(model, name)
    with pytest.raises(ValueError, match=r"cannot be the name of an adapter"):
        model.load_adapter(str(saved_folder), name)
    assert not hasattr(model, "peft_config")


def activate_two(model: SalmonnForConditionalGeneration) -> None:
    add_random(model, "other")
    model.set_adapter(["default", "other"])


def merge_layers(model: SalmonnForConditionalGeneration) -> None:
    for layer in lora_layers(model):
        layer.merge()


def rescale_layers(model: SalmonnForConditionalGeneration) -> None:
    for layer in lora_layers(model):
        layer.scale_layer(0.5)


def quantise_layers(model: SalmonnForConditionalGeneration) -> None:
    """What a layer of 8 bits holds."""
    base = lora_layers(model)[0].get_base_layer()
    base.weight = torch.nn.Parameter(base.weight.data.to(torch.int8), requires_grad=False)


def disable_layers(model: SalmonnForConditionalGeneration) -> None:
    model.disable_adapters()


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (disable_layers, r"disabled, but a folder would answer with it; call enable_adapters\(\) first"),
        (activate_two, r"\['default', 'other'\] are active; choose one by model\.set_adapter\(name\)"),
        (merge_layers, r"merged into the weights of .*; call unmerge\(\) on these layers, or model\.merge_lora\(\)"),
        (rescale_layers, r"has the scaling 2, but by its lora_alpha it would load with 4; undo that change"),
        (quantise_layers, r"q_proj\.weight is quantised .* save with adapter_only=True"),
    ],
    ids=["disabled", "two active", "merged", "rescaled", "quantised"],
)
def test_save_that_would_answer_otherwise_raises_and_writes_nothing(
    alter: Callable[[SalmonnForConditionalGeneration], None],
    message: str,
    plain: SalmonnForConditionalGeneration,
    tmp_path: Path,
) -> None:
    model = deepcopy(plain)
    add_random(model, r=8, lora_alpha=32)
    alter(model)
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_adapter_that_peft_alone_added_is_told_from_none(plain: SalmonnForConditionalGeneration) -> None:
    model = deepcopy(plain)
    peft.get_peft_model(model, LoraConfig(target_modules=LANGUAGE_MODEL))
    names = [name for name, _ in model.named_parameters()]
    way_out = r"; use model\.add_adapter\(config\) instead of get_peft_model"
    with pytest.raises(ValueError, match="cannot scale" + way_out), model.lora_scale(2.0):
        pass
    with pytest.raises(ValueError, match="cannot merge" + way_out):
        model.merge_lora()
    with pytest.raises(ValueError, match="cannot add another to" + way_out):
        model.add_lora()
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("method", [LoraConfig, peft.LoHaConfig])
def test_save_of_layers_that_peft_alone_adapted_raises(
    method: Any, plain: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = deepcopy(plain)
    wrapped = peft.get_peft_model(model, method(target_modules=LANGUAGE_MODEL))
    with pytest.raises(ValueError, match=r"did not add and cannot save; use model\.add_adapter\(config\) instead of"):
        model.save_pretrained(tmp_path)
    wrapped.unload().save_pretrained(tmp_path)
    torch.testing.assert_close(prompt_logits(AutoModel.from_pretrained(tmp_path)), prompt_logits(plain))


def test_adapter_only_save_of_a_quantised_connector_raises(
    plain: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = deepcopy(plain)
    weight = model.model.projector.weight
    model.model.projector.weight = torch.nn.Parameter(weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"projector\.weight is quantised .* skips model\.qformer and model\.projector"
    ):
        model.save_pretrained(tmp_path, adapter_only=True)


def test_adapter_of_quantised_bases_loads_as_it_was_saved(adapter_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    parts = ["model.speech_encoder", "model.audio_encoder", "model.qformer", "model.projector", "lm_head"]
    quantisation = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=parts)
    model = AutoModel.from_pretrained(adapter_folder, quantization_config=quantisation)
    model.save_pretrained(tmp_path, adapter_only=True)
    torch.testing.assert_close(prompt_logits(AutoModel.from_pretrained(tmp_path)), prompt_logits(model))


def test_folder_whose_layers_have_another_scaling_than_the_config_raises(saved_folder: Path, tmp_path: Path) -> None:
    """By lora_alpha and r alone it would seem the same."""
    folder = edited_copy(saved_folder, tmp_path / "copy", ADAPTER_CONFIG, use_rslora=True)
    with pytest.raises(ValueError, match=r"scaling \{11\.31.*\}, but config\.json says 4\.0"):
        AutoModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"alpha_pattern": {"q_proj": 64}}, "several scalings")],
    ids=["modules_to_save", "alpha_pattern"],
)
def test_load_adapter_that_could_not_be_saved_again_raises(
    options: dict[str, Any], message: str, plain: SalmonnForConditionalGeneration, saved_folder: Path, tmp_path: Path
) -> None:
    folder = edited_copy(saved_folder, tmp_path / "copy", ADAPTER_CONFIG, **options)
    model = deepcopy(plain)
    with pytest.raises(ValueError, match=message):
        model.load_adapter(str(folder))
    assert model.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        AutoModel.from_pretrained(folder)


def test_loaded_adapter_is_described_by_the_config(plain: SalmonnForConditionalGeneration, tmp_path: Path) -> None:
    source, model = deepcopy(plain), deepcopy(plain)
    add_random(source, r=4, lora_alpha=20, lora_dropout=0.2, target_modules=r".*language_model\..*\.down_proj")
    source.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path))
    config = model.config
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (4, 20, 0.2)
    assert config.lora_target_modules == ["down_proj"]
    assert load_file(tmp_path / ADAPTER)


def test_add_lora_trains_the_active_adapter_alone(plain: SalmonnForConditionalGeneration) -> None:
    model = deepcopy(plain)
    for name in ("default", "other"):
        add_random(model, name)
    model.requires_grad_(True)
    model.add_lora()
    trained = {name.split(".")[-2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"other"}


def test_adapter_is_added_after_another_was_deleted(plain: SalmonnForConditionalGeneration, tmp_path: Path) -> None:
    model = deepcopy(plain)
    add_random(model)
    model.delete_adapter("default")
    model.save_pretrained(tmp_path / "without")
    torch.testing.assert_close(prompt_logits(AutoModel.from_pretrained(tmp_path / "without")), prompt_logits(plain))
    add_random(model, "other", r=4, lora_alpha=20)
    model.save_pretrained(tmp_path / "with")
    torch.testing.assert_close(prompt_logits(AutoModel.from_pretrained(tmp_path / "with")), prompt_logits(model))
