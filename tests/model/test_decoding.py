"""A static cache changes no answer; tests/model/test_compile.py has the compiled steps that it is for."""

from typing import Any

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor


LOGITS = {"output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def batch(bucket_processor: SalmonnProcessor) -> dict[str, torch.Tensor]:
    """Two prompts of different length, the shorter one padded on the left."""
    clips = [[make_clip(1.0, seed=1), make_clip(3.0, seed=2)], [make_clip(2.0, seed=3)]]
    return dict(bucket_processor(text=["Two clips?", "One?"], audio=clips, sampling_rate=SAMPLING_RATE))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"num_beams": 2, "length_penalty": 0.5, "no_repeat_ngram_size": 3},
    ],
    ids=str,
)
def test_static_cache_answers_as_a_growing_one(
    options: dict[str, Any], bucket_model: SalmonnForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    expected = bucket_model.generate(**batch, max_new_tokens=8, **options)
    found = bucket_model.generate(**batch, max_new_tokens=8, cache_implementation="static", **options)
    assert found.tolist() == expected.tolist()


def test_static_cache_is_as_good_for_a_shorter_prompt_later(
    bucket_model: SalmonnForConditionalGeneration, batch: dict[str, torch.Tensor], bucket_processor: SalmonnProcessor
) -> None:
    """transformers keeps the size of the largest cache so far."""
    bucket_model.generate(**batch, max_new_tokens=20, cache_implementation="static")
    shorter = bucket_processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    expected = bucket_model.generate(**shorter, max_new_tokens=4, **LOGITS)
    found = bucket_model.generate(**shorter, max_new_tokens=4, cache_implementation="static", **LOGITS)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert torch.allclose(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-5)
