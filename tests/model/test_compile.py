"""What is said to compile as one graph does: decoding, text, and each encoder on its own."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from torch import nn
from torch._dynamo.utils import counters
from transformers import CompileConfig

from modeling_salmonn import (
    BeatsForAudioClassification,
    BeatsModel,
    SalmonnForConditionalGeneration,
    SalmonnModel,
    SalmonnProcessor,
    SalmonnQFormerModel,
)


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@torch.no_grad()
def assert_one_graph(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(*args, **kwargs)[0], module(*args, **kwargs)[0], atol=1e-5)


def test_decoding_is_one_graph() -> None:
    config = tiny_config(segment_seconds=2, trim_audio_tokens=True)
    model, processor = tiny_model(config), tiny_processor(config)
    clips = [[make_clip(1.0), make_clip(1.5, seed=1)], [make_clip(1.2, seed=2)]]
    inputs = processor(text=["Two?", "One?"], audio=clips, sampling_rate=SAMPLING_RATE)
    expected = model.generate(**inputs, max_new_tokens=6)
    compiled = CompileConfig(fullgraph=True, dynamic=False, backend="eager", mode=None)
    compiled._compile_all_devices = True  # without it, a CPU decodes as ever
    found = model.generate(**inputs, max_new_tokens=6, cache_implementation="static", compile_config=compiled)
    assert found.tolist() == expected.tolist()
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="steps for a CPU are compiled by g++")
def test_products_as_sums_answer_as_ever(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    """docs/speed.md has these options."""
    inputs = bucket_processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    options = {"max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    expected = bucket_model.generate(**inputs, **options)
    sums = {"decompose_mm_pass": {"cpu_max_other_dimension_decomposition": 2**20}}
    compiled = CompileConfig(fullgraph=True, dynamic=False, mode=None, options={"post_grad_fusion_options": sums})
    compiled._compile_all_devices = True
    found = bucket_model.generate(**inputs, **options, cache_implementation="static", compile_config=compiled)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert torch.allclose(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_text_is_one_graph(bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor) -> None:
    ids = bucket_processor(text="Say hello.")["input_ids"]
    assert_one_graph(bucket_model, ids)
    with pytest.raises(RuntimeError, match="has audio placeholders, but there is no audio"):
        torch.compile(bucket_model, fullgraph=True, backend="eager")(ids.fill_(bucket_model.config.audio_token_id))


def test_encoders_are_one_graph_each(bucket_model: SalmonnForConditionalGeneration) -> None:
    parts, config = bucket_model.model, bucket_model.config
    fbank, mask = torch.randn(2, 200, config.audio_config.num_mel_bins), torch.ones(2, 200)
    mask[1, 150:] = 0
    assert_one_graph(BeatsForAudioClassification(config.audio_config).eval(), fbank, mask)
    assert_one_graph(parts.speech_encoder, torch.randn(2, config.speech_config.num_mel_bins, 200))
    assert_one_graph(parts.qformer, torch.randn(3, 17, config.qformer_config.encoder_hidden_size))


def test_classes_say_so() -> None:
    classes = (SalmonnForConditionalGeneration, SalmonnModel, BeatsModel, BeatsForAudioClassification)
    assert all(model_class._can_compile_fullgraph for model_class in (*classes, SalmonnQFormerModel))
