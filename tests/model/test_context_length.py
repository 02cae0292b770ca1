"""A prompt that is longer than the language model's positions is said to be."""

import logging
from typing import Any

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.context_length_salmonn import logger, max_positions


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is said once in a process has not been said yet."""
    type(logger).warning_once.cache_clear()
    caplog.set_level(logging.WARNING, logger=logger.name)
    return caplog


def model_with(positions: int) -> tuple[SalmonnForConditionalGeneration, SalmonnProcessor]:
    config = tiny_config(segment_seconds=2, trim_audio_tokens=True)
    config.text_config.max_position_embeddings = positions
    return tiny_model(config), tiny_processor(config)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == logger.name]


def test_long_prompt_is_told_once_with_both_numbers(warned: pytest.LogCaptureFixture) -> None:
    model, processor = model_with(40)
    inputs = processor(text="How long is this?", audio=make_clip(6.0), sampling_rate=SAMPLING_RATE)
    tokens = inputs["input_ids"].shape[1]
    assert tokens > 40
    for _ in range(2):
        model.generate(**inputs, max_new_tokens=5)
    (message,) = warnings_of(warned)
    assert f"has {tokens} tokens, audio tokens included, but the language model has 40 positions" in message


def test_long_answer_is_told_with_its_length(warned: pytest.LogCaptureFixture) -> None:
    model, processor = model_with(100)
    inputs = processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    tokens = inputs["input_ids"].shape[1]
    model.generate(**inputs, max_new_tokens=100 - tokens)
    assert warnings_of(warned) == []
    model.generate(**inputs, max_new_tokens=101 - tokens)
    (message,) = warnings_of(warned)
    assert f"has {tokens} tokens, 101 with {101 - tokens} new ones, but the language model has 100 pos" in message


def test_long_training_example_is_told(warned: pytest.LogCaptureFixture) -> None:
    model, processor = model_with(40)
    row = {"text": "How long is it?", "audio": make_clip(2.0), "text_target": "x" * 30}
    inputs = processor(**row, sampling_rate=SAMPLING_RATE)
    for _ in range(2):
        model(**inputs)
    (message,) = warnings_of(warned)
    assert f"has {inputs['input_ids'].shape[1]} tokens" in message
    assert "40 positions" in message


def test_padding_is_no_prompt(warned: pytest.LogCaptureFixture) -> None:
    model, processor = model_with(50)
    inputs = processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.nn.functional.pad(inputs[name], (30, 0), value=0)
    assert inputs["input_ids"].shape[1] > 50
    model.generate(**inputs, max_new_tokens=3)
    model(**inputs)
    assert warnings_of(warned) == []


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (LlamaConfig(max_position_embeddings=4096, rope_scaling={"rope_type": "linear", "factor": 4.0}), 16384),
        (LlamaConfig(max_position_embeddings=4096, rope_scaling={"rope_type": "dynamic", "factor": 2.0}), 8192),
        (
            Qwen3Config(
                max_position_embeddings=32768,
                rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            ),
            131072,
        ),
        (
            LlamaConfig(
                max_position_embeddings=131072,
                rope_scaling={
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                },
            ),
            131072,
        ),
        (PreTrainedConfig(), None),
    ],
    ids=["plain", "linear", "dynamic", "yarn", "llama3", "endless"],
)
def test_stretched_positions_count(config: Any, positions: int | None) -> None:
    assert max_positions(config) == positions
