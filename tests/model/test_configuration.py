"""Configurations: official defaults, round trips, and errors at construction."""

from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_config
from transformers import LlamaConfig, WhisperConfig

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
