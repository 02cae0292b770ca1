"""Saving and loading: full and adapter-only folders, damaged ones, and a process without this package."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    WhisperConfig,
    WhisperModel,
)

from modeling_salmonn import (
    SalmonnConfig,
    SalmonnFeatureExtractor,
    SalmonnForConditionalGeneration,
    SalmonnProcessor,
)


WEIGHTS, CONNECTOR = "model.safetensors", "connector.safetensors"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
TRAINED_PARTS = {"ln_speech", "ln_audio", "qformer", "projector"}
QUICK_LAYOUT: dict[str, Any] = {"segment_seconds": [2, 5, 10, 30], "trim_audio_tokens": True}
INSTRUCTION, NEW_TOKENS = "What do you hear?", 8
HUB_ID = "someone/salmonn-tiny"

# Without this package: load, generate, save again, load what was saved, and run the pipeline on that.
CLEAN_PROCESS = f"""
import importlib.util, json, sys
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

assert importlib.util.find_spec("modeling_salmonn") is None
audio, output, *sources = sys.argv[1:]

def generate(source):
    assert AutoConfig.from_pretrained(source, trust_remote_code=True).model_type == "salmonn"
    model = AutoModel.from_pretrained(source, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    inputs = processor(text={INSTRUCTION!r}, audio=audio)
    return model, processor, model.generate(**inputs, max_new_tokens={NEW_TOKENS}).tolist()

answers = []
for index, source in enumerate(sources):
    model, processor, first = generate(source)
    again = f"{{output}}/{{index}}"
    options = {{"adapter_only": True}} if model.config.text_model_id else {{}}
    model.save_pretrained(again, **options)
    processor.save_pretrained(again)
    second = generate(again)[2]
    text = [
        pipeline("audio-text", model=folder, trust_remote_code=True)(
            audio, text={INSTRUCTION!r}, max_new_tokens={NEW_TOKENS}
        )[0]["generated_text"]
        for folder in (source, again)
    ]
    answers.append({{"first": first, "second": second, "text": text}})
print(json.dumps(answers))
"""


def prompt_logits(model: SalmonnForConditionalGeneration) -> torch.Tensor:
    inputs = tiny_processor(model.config)(text=INSTRUCTION, audio=make_clip(1.5), sampling_rate=SAMPLING_RATE)
    with torch.no_grad():
        return model(**inputs).logits


def assert_loads_equal(folder: Path, model: SalmonnForConditionalGeneration) -> SalmonnForConditionalGeneration:
    loaded = SalmonnForConditionalGeneration.from_pretrained(folder)
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert torch.equal(prompt_logits(loaded), prompt_logits(model))
    return loaded


def altered_copy(folder: Path, copy: Path, name: str, alter: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The folder with other tensors in one of its files."""
    shutil.copytree(folder, copy)
    weights = load_file(folder / name)
    alter(weights)
    save_file(weights, copy / name, metadata={"format": "pt"})
    return copy


def edited_copy(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    """The folder with other values in one of its JSON files."""
    shutil.copytree(folder, copy)
    content = json.loads((folder / name).read_text())
    (copy / name).write_text(json.dumps(content | values))
    return copy


def tied_config(**options: Any) -> SalmonnConfig:
    values = tiny_config("qwen2", **QUICK_LAYOUT, **options).to_dict()
    values["text_config"]["tie_word_embeddings"] = True
    del values["tie_word_embeddings"]
    return SalmonnConfig(**values)


def randomise_adapter(model: SalmonnForConditionalGeneration) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)


def official_beats_key(key: str) -> str:
    """The name that the authors of BEATs give to a weight of `BeatsModel`."""
    renames = {
        "patch_embedding.": "patch_embedding.",
        "patch_projection.": "post_extract_proj.",
        "patch_layer_norm.": "layer_norm.",
        "layer_norm.": "encoder.layer_norm.",
        "position_conv.conv.bias": "encoder.pos_conv.0.bias",
        "position_conv.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
        "position_conv.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
        "relative_position_bias.embedding.": "encoder.layers.0.self_attn.relative_attention_bias.",
        "layers.": "encoder.layers.",
    }
    start = next(start for start in renames if key.startswith(start))
    official = renames[start] + key.removeprefix(start)
    return official.replace("gate_proj", "grep_linear").replace("gate_scale", "grep_a")


def save_official_beats(model: SalmonnForConditionalGeneration, path: Path) -> None:
    """The `.pt` file of a fine-tuned BEATs, with its tagging head and the bias table repeated in each layer."""
    config, encoder = model.config.audio_config, model.model.audio_encoder
    weights = {official_beats_key(key): tensor for key, tensor in encoder.state_dict().items()}
    table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    weights |= {table.format(layer): weights[table.format(0)] for layer in range(1, config.num_hidden_layers)}
    weights |= {"predictor.weight": torch.zeros(5, config.hidden_size), "predictor.bias": torch.zeros(5)}
    settings = {
        "encoder_embed_dim": config.hidden_size,
        "encoder_layers": config.num_hidden_layers,
        "encoder_attention_heads": config.num_attention_heads,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "embed_dim": config.patch_embed_size,
        "input_patch_size": config.patch_size,
        "conv_pos": config.conv_pos_kernel,
        "conv_pos_groups": config.conv_pos_groups,
        "num_buckets": config.num_buckets,
        "max_distance": config.max_distance,
        "gru_rel_pos": True,
        "deep_norm": True,
        "finetuned_model": True,
        "predictor_class": 5,
    }
    torch.save({"cfg": settings, "model": weights}, path)


def save_bases(model: SalmonnForConditionalGeneration, folder: Path) -> dict[str, str]:
    """Whisper, BEATs and the language model as folders of their own; returns the config values that name them."""
    parts, config = model.model, model.config
    decoder = {"decoder_attention_heads": 2, "decoder_ffn_dim": 16, "max_target_positions": 8}
    whisper = WhisperModel(WhisperConfig(**(config.speech_config.to_dict() | decoder)))
    whisper.encoder.load_state_dict(parts.speech_encoder.state_dict())
    text_model = AutoModelForCausalLM.from_config(config.text_config)
    text_model.model.load_state_dict(parts.language_model.state_dict())
    text_model.lm_head.load_state_dict(model.lm_head.state_dict())
    bases = {"speech_model_id": whisper, "text_model_id": text_model}
    bases |= {"audio_model_id": parts.audio_encoder} if parts.audio_encoder is not None else {}
    for name, base in bases.items():
        base.save_pretrained(folder / name)
    return {name: str(folder / name) for name in bases}


@pytest.fixture(scope="module")
def based_model(tmp_path_factory: pytest.TempPathFactory) -> SalmonnForConditionalGeneration:
    """A model with a LoRA adapter whose config names the bases that it was made of."""
    model = tiny_model(tiny_config(**QUICK_LAYOUT))
    model.config.update(save_bases(model, tmp_path_factory.mktemp("bases")))
    model.add_lora()
    randomise_adapter(model)
    return model.eval()


@pytest.fixture(scope="module")
def adapter_folder(
    based_model: SalmonnForConditionalGeneration,
    bucket_processor: SalmonnProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "salmonn-adapter"
    based_model.save_pretrained(folder, adapter_only=True)
    bucket_processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize(
    "config",
    [
        tiny_config("llama", **QUICK_LAYOUT),
        tiny_config("qwen2", **QUICK_LAYOUT),
        tiny_config("qwen3", **QUICK_LAYOUT),
        tiny_config("llama", audio=False, **QUICK_LAYOUT),
        tied_config(),
    ],
    ids=["llama", "qwen2", "qwen3", "speech-only", "tied"],
)
def test_full_save_loads_equal(config: SalmonnConfig, lora: bool, tmp_path: Path) -> None:
    model = tiny_model(config, lora=lora)
    model.save_pretrained(tmp_path)
    assert_loads_equal(tmp_path, model)
    assert (tmp_path / ADAPTER).exists() == (tmp_path / ADAPTER_CONFIG).exists() == lora


def test_full_save_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(**QUICK_LAYOUT), lora=True)
    before = prompt_logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(prompt_logits(model), before)
    assert model.active_adapters() == ["default"]


def test_tied_embeddings_are_saved_once_and_tied_again(tmp_path: Path) -> None:
    tiny_model(tied_config()).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    loaded = SalmonnForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_full_weights_are_named_as_without_adapter(saved_folder: Path, bucket_config: SalmonnConfig) -> None:
    keys = load_file(saved_folder / WEIGHTS).keys()
    assert keys == tiny_model(bucket_config).state_dict().keys()
    assert not [key for key in keys if "lora" in key or "base_layer" in key]


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_sharded_save_loads_equal(lora: bool, tmp_path: Path) -> None:
    model = tiny_model(tiny_config(**QUICK_LAYOUT), lora=lora)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / WEIGHTS).exists()
    assert_loads_equal(tmp_path, model)


def test_loaded_model_saves_and_loads_equal(
    saved_folder: Path, bucket_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    SalmonnForConditionalGeneration.from_pretrained(saved_folder).save_pretrained(tmp_path)
    for name in (WEIGHTS, ADAPTER):
        assert load_file(tmp_path / name).keys() == load_file(saved_folder / name).keys()
    assert_loads_equal(tmp_path, bucket_model)


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
def test_save_with_state_dict_writes_these_weights(lora: bool, tmp_path: Path) -> None:
    model = tiny_model(tiny_config(**QUICK_LAYOUT), lora=lora)
    model.save_pretrained(tmp_path / "own", state_dict=model.state_dict())
    assert_loads_equal(tmp_path / "own", model)
    model.save_pretrained(tmp_path / "given", state_dict={key: 2 * value for key, value in model.state_dict().items()})
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor *= 2
    assert_loads_equal(tmp_path / "given", model)


def test_save_writes_no_weights_when_not_the_main_process(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(**QUICK_LAYOUT), lora=True)
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / ADAPTER_CONFIG).exists()


@pytest.mark.parametrize("folder_type", [str, Path])
def test_paths_and_strings_are_accepted(folder_type: type, tmp_path: Path) -> None:
    config = tiny_config(**QUICK_LAYOUT)
    model, folder = tiny_model(config, lora=True), folder_type(tmp_path)
    model.save_pretrained(folder)
    tiny_processor(config).save_pretrained(folder)
    assert torch.equal(prompt_logits(SalmonnForConditionalGeneration.from_pretrained(folder)), prompt_logits(model))
    assert SalmonnProcessor.from_pretrained(folder).audio_token_id == config.audio_token_id


@pytest.mark.parametrize("adapter_only", [False, True], ids=["full", "adapter"])
def test_bfloat16_save_loads_as_bfloat16(
    adapter_only: bool, based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = tiny_model(SalmonnConfig(**based_model.config.to_dict()), lora=True)
    model.to(torch.bfloat16).save_pretrained(tmp_path, adapter_only=adapter_only)
    loaded = SalmonnForConditionalGeneration.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert SalmonnForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_full_save_over_an_adapter_only_folder_replaces_it(
    based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    based_model.save_pretrained(tmp_path, adapter_only=True)
    other = tiny_model(SalmonnConfig(**based_model.config.to_dict()), lora=True)
    torch.nn.init.ones_(other.model.projector.bias)
    other.save_pretrained(tmp_path)
    assert_loads_equal(tmp_path, other)


def test_adapter_only_save_over_a_full_folder_replaces_it(
    based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    other = tiny_model(SalmonnConfig(**based_model.config.to_dict()), lora=True)
    torch.nn.init.ones_(other.lm_head.weight)
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    based_model.save_pretrained(tmp_path, adapter_only=True)
    assert {path.name for path in tmp_path.glob("*.safetensors*")} == {CONNECTOR, ADAPTER}
    assert_loads_equal(tmp_path, based_model)


def test_save_without_adapter_over_a_folder_with_one_replaces_it(tmp_path: Path) -> None:
    config = tiny_config(**QUICK_LAYOUT)
    tiny_model(config, lora=True).save_pretrained(tmp_path)
    plain = tiny_model(config)
    plain.save_pretrained(tmp_path)
    assert_loads_equal(tmp_path, plain)


def test_adapter_files_have_the_form_of_peft(saved_folder: Path) -> None:
    config = PeftConfig.from_pretrained(str(saved_folder))
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha) == (8, 32)
    assert load_file(saved_folder / ADAPTER).keys() == {
        f"base_model.model.model.language_model.layers.{layer}.self_attn.{module}.lora_{matrix}.weight"
        for layer in range(2)
        for module in ("q_proj", "v_proj")
        for matrix in "AB"
    }


def test_adapter_is_loaded_by_peft(
    saved_folder: Path, bucket_model: SalmonnForConditionalGeneration, bucket_config: SalmonnConfig
) -> None:
    base = SalmonnForConditionalGeneration(bucket_config)
    base.load_state_dict(load_file(saved_folder / WEIGHTS))
    adapted = PeftModel.from_pretrained(base.eval(), str(saved_folder))
    assert torch.equal(prompt_logits(adapted), prompt_logits(bucket_model))


def test_adapter_targets_the_language_model_alone(bucket_model: SalmonnForConditionalGeneration) -> None:
    adapted = {name.split(".lora_A")[0] for name, _ in bucket_model.named_parameters() if ".lora_A" in name}
    layers = [f"model.language_model.layers.{layer}.self_attn" for layer in range(2)]
    assert adapted == {f"{layer}.{module}" for layer in layers for module in ("q_proj", "v_proj")}
    names = {name.rsplit(".", 1)[-1] for name, _ in bucket_model.model.speech_encoder.named_modules()}
    assert {"q_proj", "v_proj"} <= names  # Whisper has modules of these names too


def test_adapter_only_save_holds_what_was_trained_alone(
    adapter_folder: Path, based_model: SalmonnForConditionalGeneration
) -> None:
    assert {path.name for path in adapter_folder.glob("*.safetensors")} == {CONNECTOR, ADAPTER}
    connector, state = load_file(adapter_folder / CONNECTOR), based_model.state_dict()
    assert connector.keys() == {key for key in state if key.split(".")[1] in TRAINED_PARTS}
    assert {key.split(".")[1] for key in connector} == TRAINED_PARTS
    assert all(torch.equal(connector[key], state[key]) for key in connector)
    adapter = load_file(adapter_folder / ADAPTER)
    assert len(adapter) == len([key for key in state if ".lora_" in key])


def test_adapter_only_save_loads_equal(adapter_folder: Path, based_model: SalmonnForConditionalGeneration) -> None:
    assert_loads_equal(adapter_folder, based_model)


def test_adapter_only_save_loads_equal_from_an_official_beats_file(
    based_model: SalmonnForConditionalGeneration, adapter_folder: Path, tmp_path: Path
) -> None:
    save_official_beats(based_model, tmp_path / "beats.pt")
    folder = edited_copy(adapter_folder, tmp_path / "copy", "config.json", audio_model_id=str(tmp_path / "beats.pt"))
    assert_loads_equal(folder, based_model)


@pytest.mark.parametrize("adapter_only", [False, True], ids=["full", "adapter"])
def test_loaded_adapter_only_model_saves_in_both_forms(
    adapter_only: bool, adapter_folder: Path, based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    loaded = SalmonnForConditionalGeneration.from_pretrained(adapter_folder)
    loaded.save_pretrained(tmp_path, adapter_only=adapter_only)
    assert (tmp_path / CONNECTOR).exists() == adapter_only
    assert_loads_equal(tmp_path, based_model)


@pytest.mark.parametrize("text_model", ["qwen2", "qwen3"])
def test_adapter_only_save_of_a_speech_only_model_loads_equal(text_model: str, tmp_path: Path) -> None:
    model = tiny_model(tiny_config(text_model, audio=False, **QUICK_LAYOUT))
    model.config.update(save_bases(model, tmp_path))
    model.add_lora()
    randomise_adapter(model)
    model.eval().save_pretrained(tmp_path / "saved", adapter_only=True)
    assert_loads_equal(tmp_path / "saved", model)


def test_adapter_only_save_without_lora_loads_equal(tmp_path: Path) -> None:
    model = tiny_model(tied_config())
    bases = tmp_path / "bases"
    model.config.update(save_bases(model, bases))
    model.save_pretrained(tmp_path / "saved", adapter_only=True)
    assert not (tmp_path / "saved" / ADAPTER).exists()
    assert_loads_equal(tmp_path / "saved", model)


def test_adapter_only_save_without_base_ids_raises(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(**QUICK_LAYOUT))
    model.config.speech_model_id = "openai/whisper-tiny"
    with pytest.raises(ValueError, match=r"must name its bases, but config\.text_model_id, config\.audio_model_id"):
        model.save_pretrained(tmp_path / "saved", adapter_only=True)
    assert not (tmp_path / "saved").exists()


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


def test_save_does_not_upload(bucket_model: SalmonnForConditionalGeneration, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"call model\.push_to_hub\(repo_id\) instead"):
        bucket_model.save_pretrained(tmp_path, push_to_hub=True)


@pytest.mark.parametrize(
    ("auto_class", "expected"),
    [
        (AutoConfig, SalmonnConfig),
        (AutoModel, SalmonnForConditionalGeneration),
        (AutoModelForMultimodalLM, SalmonnForConditionalGeneration),
        (AutoProcessor, SalmonnProcessor),
        (AutoFeatureExtractor, SalmonnFeatureExtractor),
    ],
)
def test_auto_class_needs_no_trust_when_the_package_is_imported(
    auto_class: Any, expected: type, saved_folder: Path
) -> None:
    assert type(auto_class.from_pretrained(saved_folder)) is expected


@pytest.mark.parametrize("auto_class", [AutoModel, SalmonnForConditionalGeneration])
def test_hub_revision_is_loaded_with_its_adapter(
    auto_class: Any, saved_folder: Path, bucket_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    cached = tmp_path / f"models--{HUB_ID.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    for revision, commit in (("main", "0" * 40), ("tuned", "1" * 40)):
        (cached / "refs" / revision).write_text(commit)
        edited_copy(saved_folder, cached / "snapshots" / commit, ADAPTER_CONFIG, base_model_name_or_path=HUB_ID)
    for name in (WEIGHTS, ADAPTER):
        weights = {key: tensor + 1 for key, tensor in load_file(saved_folder / name).items()}
        save_file(weights, cached / "snapshots" / ("0" * 40) / name, metadata={"format": "pt"})
    options: dict[str, Any] = {"cache_dir": str(tmp_path), "local_files_only": True}
    tuned = auto_class.from_pretrained(HUB_ID, revision="tuned", **options).state_dict()
    newest = auto_class.from_pretrained(HUB_ID, **options).state_dict()
    expected = bucket_model.state_dict()
    assert tuned.keys() == newest.keys() == expected.keys()
    assert all(torch.equal(tuned[key], expected[key]) for key in expected)
    assert all(torch.equal(newest[key], expected[key] + 1) for key in expected)


def test_auto_model_loads_the_adapter(saved_folder: Path, bucket_model: SalmonnForConditionalGeneration) -> None:
    for auto_class in (AutoModel, AutoModelForMultimodalLM):
        assert torch.equal(prompt_logits(auto_class.from_pretrained(saved_folder)), prompt_logits(bucket_model))


@pytest.fixture(scope="module")
def clean_process(
    saved_folder: Path, adapter_folder: Path, wav_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """Folder of what the process saved, and what it generated from the full, adapter-only and Hub sources."""
    root = tmp_path_factory.mktemp("clean")
    packages = root / "packages"
    packages.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if "salmonn" not in entry.name.lower():
                (packages / entry.name).symlink_to(entry)
    cached = root / "home" / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    edited_copy(saved_folder, cached / "snapshots" / ("0" * 40), ADAPTER_CONFIG, base_model_name_or_path=HUB_ID)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"PYTHONPATH": str(packages), "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    arguments = [str(wav_file), str(root), str(saved_folder), str(adapter_folder), HUB_ID]
    result = subprocess.run(
        [sys.executable, "-S", "-c", CLEAN_PROCESS, *arguments],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return root, json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("source", [0, 1, 2], ids=["full", "adapter-only", "hub"])
def test_folder_runs_and_saves_without_the_package(
    source: int,
    clean_process: tuple[Path, list[dict[str, Any]]],
    saved_folder: Path,
    adapter_folder: Path,
    wav_file: Path,
) -> None:
    root, answers = clean_process
    folder = adapter_folder if source == 1 else saved_folder
    model = SalmonnForConditionalGeneration.from_pretrained(folder)
    processor = SalmonnProcessor.from_pretrained(folder)
    inputs = processor(text=INSTRUCTION, audio=str(wav_file))
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answers[source] == {"first": ids.tolist(), "second": ids.tolist(), "text": [text, text]}
    assert_loads_equal(root / str(source), model)


@pytest.mark.parametrize("source", [0, 1], ids=["full", "adapter-only"])
def test_folder_saved_without_the_package_has_the_same_code(
    source: int, clean_process: tuple[Path, list[dict[str, Any]]], saved_folder: Path, adapter_folder: Path
) -> None:
    folder, again = (saved_folder, adapter_folder)[source], clean_process[0] / str(source)
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.glob("*.py"):
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    for name in ("config.json", "processor_config.json"):
        expected, found = (json.loads((place / name).read_text()) for place in (folder, again))
        assert found["auto_map"] == expected["auto_map"]
        assert found.get("custom_pipelines") == expected.get("custom_pipelines")
