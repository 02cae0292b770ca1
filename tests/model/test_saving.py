"""Saving: full and adapter-only folders load equal, whatever they replace."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config, tiny_model, tiny_processor
from model_bases import randomise_adapter, save_bases
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file
from saved_folders import ADAPTER, ADAPTER_CONFIG, CONNECTOR, WEIGHTS, assert_loads_equal, edited_copy, prompt_logits
from transformers import AutoModel, GenerationConfig

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor


TRAINED_PARTS = {"ln_speech", "ln_audio", "qformer", "projector"}
QUICK_LAYOUT: dict[str, Any] = {"segment_seconds": [2, 5, 10, 30], "trim_audio_tokens": True}


def tied_config(**options: Any) -> SalmonnConfig:
    values = tiny_config("qwen2", **QUICK_LAYOUT, **options).to_dict()
    values["text_config"]["tie_word_embeddings"] = True
    del values["tie_word_embeddings"]
    return SalmonnConfig(**values)


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
    loaded = SalmonnForConditionalGeneration.from_pretrained(folder)
    assert torch.allclose(prompt_logits(loaded), prompt_logits(model), atol=1e-5)
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


def test_model_of_an_adapter_only_folder_is_saved_without_a_base_of_no_name(
    based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    based_model.save_pretrained(tmp_path / "apart", adapter_only=True)
    loaded = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "apart")
    assert loaded.name_or_path == loaded.config.name_or_path == str(tmp_path / "apart")
    loaded.save_pretrained(tmp_path / "whole")
    adapter_config = json.loads((tmp_path / "whole" / ADAPTER_CONFIG).read_text())
    assert adapter_config["base_model_name_or_path"] is None  # AutoModel would look for "None" on the Hub
    found = AutoModel.from_pretrained(tmp_path / "whole").state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in based_model.state_dict().items())


@pytest.mark.parametrize("adapter_only", [True, False])
def test_generation_settings_are_loaded_again(
    based_model: SalmonnForConditionalGeneration, adapter_only: bool, tmp_path: Path
) -> None:
    model = copy.deepcopy(based_model)
    model.generation_config.update(num_beams=4, no_repeat_ngram_size=6)
    model.save_pretrained(tmp_path, adapter_only=adapter_only)
    for loaded in (SalmonnForConditionalGeneration.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert (loaded.generation_config.num_beams, loaded.generation_config.no_repeat_ngram_size) == (4, 6)
    given = GenerationConfig(num_beams=2)
    loaded = SalmonnForConditionalGeneration.from_pretrained(tmp_path, generation_config=given)
    assert (loaded.generation_config.num_beams, loaded.generation_config.no_repeat_ngram_size) == (2, None)


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
    assert torch.allclose(prompt_logits(adapted), prompt_logits(bucket_model), atol=1e-5)


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


@pytest.mark.parametrize("loader", [SalmonnForConditionalGeneration, AutoModel])
@pytest.mark.parametrize("form", ["saved_folder", "adapter_folder"])
def test_fields_of_the_config_are_taken_by_every_folder(
    loader: Any, form: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(form)
    values: dict[str, Any] = {"max_encoder_batch": 2, "lora_dropout": 0.5}
    values["text_config"] = {"attention_dropout": 0.25}
    loaded = loader.from_pretrained(folder, dtype=torch.float64, **values)
    assert (loaded.config.max_encoder_batch, loaded.config.lora_dropout) == (2, 0.5)
    assert loaded.config.text_config.attention_dropout == 0.25
    assert loaded.config.text_config.hidden_size == 32  # what is not given stays
    assert loaded.dtype == torch.float64
    with pytest.raises(ValueError, match="max_encoder_batch"):
        loader.from_pretrained(folder, max_encoder_batch=0)


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


def test_adapter_only_save_of_resized_embeddings_raises(
    based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = copy.deepcopy(based_model)
    model.resize_token_embeddings(model.config.text_config.vocab_size)
    assert model.config.text_model_id == based_model.config.text_model_id
    model.resize_token_embeddings(300)
    with pytest.raises(ValueError, match=r"config\.text_model_id is not set, as it is once a base .* or resized; set"):
        model.save_pretrained(tmp_path / "saved", adapter_only=True)
    model.save_pretrained(tmp_path / "saved")
    assert_loads_equal(tmp_path / "saved", model)
    assert model.config.speech_model_id == based_model.config.speech_model_id


def with_trained_head(model: SalmonnForConditionalGeneration) -> SalmonnForConditionalGeneration:
    """A copy whose head was trained beside the adapter."""
    trained = copy.deepcopy(model)
    trained.lm_head.weight.requires_grad_(True)
    with torch.no_grad():
        trained.lm_head.weight += 1.0
    return trained


def test_adapter_only_save_of_trained_bases_raises(
    based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = with_trained_head(based_model)
    message = r"but lm_head\.weight of them may have been trained; save without adapter_only, or call requires_grad_"
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "saved", adapter_only=True)
    assert not (tmp_path / "saved").exists()
    model.model.speech_encoder.requires_grad_(True)
    with pytest.raises(ValueError, match=r"but model\.speech_encoder\.conv1\.weight and \d+ more of them"):
        model.save_pretrained(tmp_path / "saved", adapter_only=True)


def test_full_save_does_not_name_trained_bases(based_model: SalmonnForConditionalGeneration, tmp_path: Path) -> None:
    model = with_trained_head(based_model)
    model.config.text_model_revision = "main"
    model.save_pretrained(tmp_path)
    loaded = assert_loads_equal(tmp_path, model)
    assert (loaded.config.text_model_id, loaded.config.text_model_revision) == (None, None)
    assert loaded.config.speech_model_id == based_model.config.speech_model_id
    assert loaded.config.audio_model_id == based_model.config.audio_model_id


def test_full_save_of_a_model_that_nobody_has_trained_names_its_bases(
    based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    plain = tiny_model(based_model.config)  # as torch makes it: all of its weights require gradients
    plain.save_pretrained(tmp_path / "plain")
    based_model.save_pretrained(tmp_path / "adapted")
    for folder in ("plain", "adapted"):
        assert SalmonnConfig.from_pretrained(tmp_path / folder).text_model_id == based_model.config.text_model_id


def test_bases_that_were_trained_as_a_whole_are_saved_and_no_longer_named(
    based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    model = tiny_model(copy.deepcopy(based_model.config))
    model.model.audio_encoder.requires_grad_(False)
    model.train()
    with torch.no_grad():
        model.lm_head.weight += 1.0
    model.eval().requires_grad_(False)  # as `add_lora` does
    with pytest.raises(
        ValueError, match=r"but config\.speech_model_id, config\.text_model_id is not set, as it is once"
    ):
        model.save_pretrained(tmp_path, adapter_only=True)
    model.save_pretrained(tmp_path)
    loaded = assert_loads_equal(tmp_path, model)
    assert (loaded.config.speech_model_id, loaded.config.text_model_id) == (None, None)
    assert loaded.config.audio_model_id == based_model.config.audio_model_id


def test_save_does_not_upload(bucket_model: SalmonnForConditionalGeneration, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"call model\.push_to_hub\(repo_id\) instead"):
        bucket_model.save_pretrained(tmp_path, push_to_hub=True)
