"""Configurations: official defaults, round trips, and errors at construction."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, PreTrainedConfig, WhisperConfig

from modeling_salmonn import BeatsConfig, SalmonnConfig, SalmonnQFormerConfig


def test_defaults_are_the_official_ones() -> None:
    config = SalmonnConfig()
    assert (config.window_frames, config.stride_frames) == (17, 17)
    assert config.segment_seconds == 30.0
    assert config.trim_audio_tokens is False
    assert config.audio_layout.num_audio_tokens(3000) == 88
    assert (config.lora_rank, config.lora_scaling) == (8, 4.0)
    assert list(config.lora_target_modules) == ["q_proj", "v_proj"]
    assert config.audio_config.num_buckets == 320
    assert config.qformer_config.encoder_hidden_size == config.speech_config.d_model + 768


def test_config_survives_a_round_trip(tmp_path: Path) -> None:
    config = tiny_config("qwen3", segment_seconds=[2, 5, 30], trim_audio_tokens=True, num_query_tokens=2, lora_rank=4)
    config.text_model_id, config.text_model_revision = "someone/model", "abc123"
    config.save_pretrained(tmp_path)
    loaded = SalmonnConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": loaded.name_or_path}
    assert loaded.audio_layout == config.audio_layout
    assert loaded.text_config.model_type == "qwen3"


def test_speech_only_config_survives_a_round_trip(tmp_path: Path) -> None:
    tiny_config(audio=False).save_pretrained(tmp_path)
    loaded = SalmonnConfig.from_pretrained(tmp_path)
    assert loaded.audio_config is None
    assert loaded.qformer_config.encoder_hidden_size == loaded.speech_config.d_model


def test_sub_configs_may_be_objects() -> None:
    config = SalmonnConfig(
        speech_config=WhisperConfig(d_model=32),
        audio_config=BeatsConfig(hidden_size=24, num_attention_heads=2),
        qformer_config=SalmonnQFormerConfig(hidden_size=16, num_attention_heads=2),
        text_config=LlamaConfig(tie_word_embeddings=True),
    )
    assert config.qformer_config.encoder_hidden_size == 56
    assert config.tie_word_embeddings is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride_seconds": 0}, "stride_seconds must give at least one frame of 0.02 s, got 0"),
        ({"window_seconds": 0.001}, "window_seconds must give at least one frame of 0.02 s, got 0.001"),
        ({"window_seconds": 31}, "window_seconds 31 is longer than the shortest segment of 30.0 s"),
        ({"window_seconds": 3, "segment_seconds": [2, 30]}, "longer than the shortest segment of 2 s"),
        ({"segment_seconds": [5, 2]}, r"increasing lengths, got \[5, 2\]"),
        ({"segment_seconds": []}, r"increasing lengths, got \[\]"),
        ({"segment_seconds": 0.5}, "at least 1.0 .* got 0.5"),
        ({"segment_seconds": 40}, r"needs 2000 positions, but the speech encoder has 1500 \(30.0 s\)"),
        ({"lora_rank": 0}, "SalmonnConfig.lora_rank must be at least 1, got 0"),
        ({"lora_target_modules": []}, "lora_target_modules is empty"),
        ({"speech_config": {"model_type": "wav2vec2"}}, "speech_config has model_type 'wav2vec2', .* needs 'whisper'"),
        ({"audio_config": LlamaConfig()}, "audio_config has model_type 'llama', .* needs 'beats'"),
        ({"audio_config": 7}, "audio_config has model_type 'int', .* needs 'beats'"),
        ({"text_config": {"model_type": ["llama"]}}, r"unknown model_type \['llama'\]"),
        ({"text_config": {"model_type": "wav2vec2"}}, "'wav2vec2', which is no causal language model"),
        ({"text_config": {"model_type": "no-such-model"}}, "unknown model_type 'no-such-model'"),
        ({"text_config": "llama"}, "text_config must be a config or a dict, got str"),
        ({"text_config": {"model_type": "gemma2"}}, "final_logit_softcapping=30.0; .* not supported"),
        ({"qformer_config": {"encoder_hidden_size": 3}}, "is 3, but the encoders give"),
        ({"qformer_config": {"num_query_tokens": 0}}, "num_query_tokens must be at least 1, got 0"),
        ({"qformer_config": {"hidden_size": 10, "num_attention_heads": 3}}, "10 is not divisible by .* 3"),
        ({"audio_config": {"hidden_size": 10, "num_attention_heads": 3}}, "10 is not divisible by .* 3"),
        ({"audio_config": {"num_mel_bins": 100}}, "num_mel_bins 100 is not divisible by patch_size 16"),
    ],
)
def test_bad_value_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SalmonnConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": "8"}, r"SalmonnConfig\.lora_rank must be int, got '8' \(str\)"),
        ({"lora_rank": True}, r"lora_rank must be int, got True \(bool\)"),
        ({"lora_rank": 8.0}, r"lora_rank must be int, got 8\.0 \(float\)"),
        ({"lora_rank": 10**9}, "lora_rank must be at most 1048576, got 1000000000"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number above 0, got nan"),
        ({"lora_alpha": 0}, "lora_alpha must be a finite number above 0, got 0"),
        ({"lora_dropout": -0.1}, r"lora_dropout must be at least 0, got -0\.1"),
        ({"lora_dropout": float("nan")}, "lora_dropout must be at least 0, got nan"),
        ({"lora_target_modules": "q_proj"}, r"lora_target_modules must be list.*did you mean \['q_proj'\]\?"),
        ({"lora_target_modules": [1]}, r"lora_target_modules must be list\[str\] .*, got \[1\]"),
        ({"lora_target_modules": ["q_proj", ".*"]}, r"names of layers such as 'q_proj', no patterns; got '\.\*'"),
        ({"trim_audio_tokens": "yes"}, r"trim_audio_tokens must be bool, got 'yes' \(str\)"),
        ({"trim_audio_tokens": 1}, r"trim_audio_tokens must be bool, got 1 \(int\)"),
        ({"window_seconds": "0.3"}, r"window_seconds must be float \| int, got '0\.3' \(str\)"),
        ({"window_seconds": float("nan")}, "window_seconds must be finite, got nan"),
        ({"stride_seconds": -0.3}, "stride_seconds must give at least one frame"),
        ({"segment_seconds": float("inf")}, "segment_seconds must be finite, got inf"),
        ({"segment_seconds": [2, float("nan")]}, r"segment_seconds must be finite, got \[2, nan\]"),
        ({"segment_seconds": [2, "30"]}, r"segment_seconds must be .*, got \[2, '30'\]"),
        ({"segment_seconds": 1e12}, "segment_seconds must be at most 3600, got 1000000000000"),
        ({"audio_token_id": -1}, "audio_token_id must be at least 0, got -1"),
        ({"audio_token_id": None}, "audio_token_id must be int, got None"),
        ({"speech_model_id": 7}, r"speech_model_id must be str \| None, got 7"),
        ({"initializer_range": float("inf")}, "initializer_range must be a finite number above 0, got inf"),
        ({"dtype": "float33"}, "dtype must name a type of torch such as 'bfloat16', got 'float33'"),
        ({"id2label": 3}, "id2label must be a dict or None, got 3"),
        ({"num_labels": 10**9}, "num_labels must be from 0 to 1048576"),
        ({"lora_ranks": 8}, "SalmonnConfig has no field 'lora_ranks'; is 'lora_rank' meant"),
        ({"qformer_config": {"num_query_tokens": 10**9}}, "num_query_tokens must be from 0 to|must be at most 4096"),
        ({"qformer_config": {"hidden_size": 2**40}}, r"qformer_config\.hidden_size must be from 1 to 1048576"),
        ({"qformer_config": {"hiden_size": 768}}, "no field 'hiden_size'; is 'hidden_size' meant"),
        ({"audio_config": {"num_hidden_layers": 2**31}}, r"audio_config\.num_hidden_layers must be from 0 to 1024"),
        ({"audio_config": {"num_labels": 10**9}}, r"audio_config\.num_labels must be from 0 to 1048576"),
        ({"audio_config": {"hidden_act": "gulu"}}, "BeatsConfig.hidden_act must name an activation .* got 'gulu'"),
        ({"audio_config": {"deep_norm": 1}}, r"BeatsConfig\.deep_norm must be bool, got 1 \(int\)"),
        ({"audio_config": {"num_buckets": 2}}, "BeatsConfig.num_buckets 2 must be at least 4"),
        ({"speech_config": {"encoder_layers": 2**31}}, r"speech_config\.encoder_layers must be from 0 to 1024"),
        (
            {"speech_config": {"d_model": "wide"}},
            "speech_config does not make a WhisperConfig: .*'d_model' expected int",
        ),
        (
            {"text_config": {"model_type": "qwen2", "num_hidden_layers": 2**31}},
            "text_config.num_hidden_layers must be",
        ),
        (
            {"text_config": LlamaConfig(num_hidden_layers=2**31)},
            "text_config.num_hidden_layers must be from 0 to 1024",
        ),
        ({"text_config": {"vocab_size": -5}}, "text_config.vocab_size must be from 1 to 16777216, got -5"),
        ({"text_config": {"num_attention_heads": 0}}, "text_config.num_attention_heads must be from 1 to .*, got 0"),
        ({"text_config": {"head_dim": 0}}, "text_config.head_dim must be from 1 to 1048576, got 0"),
        ({"text_config": {"hidden_act": "gulu"}}, "text_config.hidden_act must name an activation .* got 'gulu'"),
        ({"text_config": {"pad_token_id": 32000}}, "pad_token_id is 32000, but vocab_size 32000 has embeddings for"),
        ({"speech_config": {"encoder_attention_heads": 0}}, "encoder_attention_heads must be from 1 to .*, got 0"),
        ({"speech_config": {"activation_function": "8"}}, "activation_function must name an activation .* got '8'"),
    ],
)
def test_value_of_wrong_type_or_range_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SalmonnConfig(**options)


def test_wrong_field_raises_what_the_library_raises_too() -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=r"SalmonnConfig\.lora_rank must be int, got '8'"):
        SalmonnConfig(lora_rank="8")


def test_wrong_value_raises_when_it_is_set_later() -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match=r"SalmonnConfig\.lora_rank must be at least 1, got 0"):
        config.lora_rank = 0
    with pytest.raises(ValueError, match=r"BeatsConfig\.hidden_size must be int, got '24'"):
        config.audio_config.hidden_size = "24"
    assert (config.lora_rank, config.audio_config.hidden_size) == (8, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": "4"}, "SalmonnConfig.lora_rank must be int, got '4'"),
        ({"window_seconds": 31}, "window_seconds 31 is longer than the shortest segment"),
        ({"audio_config": {"hidden_size": 48}}, "encoder_hidden_size is 40, but the encoders give 64"),
        ({"text_config": {"num_hidden_layers": 2**31}}, "text_config.num_hidden_layers must be from 0 to 1024"),
    ],
)
def test_wrong_value_beside_a_folder_raises(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        SalmonnConfig.from_pretrained(tmp_path, **options)


def test_values_beside_a_folder_win(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    config, unused = SalmonnConfig.from_pretrained(
        tmp_path, lora_rank=4, text_config={"attention_dropout": 0.5}, other=1, return_unused_kwargs=True
    )
    assert (config.lora_rank, config.text_config.attention_dropout, unused) == (4, 0.5, {"other": 1})


def test_parts_that_no_longer_fit_are_not_saved(tmp_path: Path) -> None:
    config = tiny_config()
    config.window_seconds = 31
    with pytest.raises(Exception, match="window_seconds 31 is longer than the shortest segment"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("text", ["[]", "null", "3", "[" * 100_000])
def test_file_without_an_object_raises(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json of {tmp_path} holds no object .*; save or download it again"):
        SalmonnConfig.from_pretrained(tmp_path)


CONFIGS = {
    None: SalmonnConfig,
    "audio_config": BeatsConfig,
    "qformer_config": SalmonnQFormerConfig,
    "speech_config": WhisperConfig,
    "text_config": LlamaConfig,
}
COMMON = {field.name for field in dataclasses.fields(PreTrainedConfig)}  # the library's own, of any type
FIELDS = [
    (part, field.name)
    for part, config_class in CONFIGS.items()
    for field in dataclasses.fields(config_class)
    if field.name not in COMMON
]
NUMBERS = st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, 2, 12, 768]) | st.floats()
VALUES = (
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4) | st.lists(NUMBERS | st.text(max_size=4), max_size=3)
)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.sampled_from(FIELDS), VALUES)
def test_any_value_is_refused_with_a_reason_or_survives_a_round_trip(
    field: tuple[str | None, str], value: Any
) -> None:
    part, name = field
    try:
        config = SalmonnConfig(**({name: value} if part is None else {part: {name: value}}))
    except ValueError:  # of any kind; the messages are compared above
        return
    assert config.audio_layout.num_audio_tokens(3000) > 0
    with tempfile.TemporaryDirectory() as folder:
        config.to_json_file(Path(folder) / "config.json", use_diff=False)
        loaded = SalmonnConfig.from_json_file(Path(folder) / "config.json")
    assert loaded.to_json_string(use_diff=False) == config.to_json_string(use_diff=False)
