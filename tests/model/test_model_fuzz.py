"""Processor, `generate` and pipeline with random texts, clips and options: answers, or an error raised on purpose.

The same inputs come in every run; `-m slow` draws thousands.
"""

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, make_clip
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.commands.errors import is_expected


def encoded(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, make_clip(seconds), SAMPLING_RATE, format="WAV")
    return file.getvalue()


def mostly(good: list[Any], bad: list[Any]) -> st.SearchStrategy[Any]:
    """Values of which every tenth is wrong."""
    return st.integers(0, 9).flatmap(lambda drawn: st.sampled_from(good if drawn else bad))


SECONDS = st.sampled_from([0.02, 0.3, 1.0, 2.4])
FORMS: dict[str, Callable[[float], Any]] = {
    "array": make_clip,
    "tensor": lambda seconds: torch.from_numpy(make_clip(seconds)),
    "int16": lambda seconds: (make_clip(seconds) * 32767).astype(np.int16),
    "rate first": lambda seconds: (22050, make_clip(seconds, 22050)),
    "rate last": lambda seconds: (make_clip(seconds, 8000), 8000),
    "dict": lambda seconds: {"array": make_clip(seconds), "sampling_rate": SAMPLING_RATE},
    "bytes": encoded,
    "bytearray": lambda seconds: bytearray(encoded(seconds)),
    "file": lambda seconds: io.BytesIO(encoded(seconds)),
    "base64": lambda seconds: base64.b64encode(encoded(seconds)).decode(),
    "data": lambda seconds: "data:audio/wav;base64," + base64.b64encode(encoded(seconds)).decode(),
    "numbers": lambda seconds: make_clip(seconds).tolist(),
}
CLIPS = st.tuples(st.sampled_from(list(FORMS)), SECONDS).map(lambda drawn: FORMS[drawn[0]](drawn[1]))
ODD = [None, 5, True, float("nan"), "", "none.wav", b"", b"RIFF", [], {}, [None], {"audio": 1}, object(), np.zeros(0)]
ODD += [
    np.full(9, np.nan),
    np.zeros((2, 2, 2)),
    (0, make_clip(0.1)),
    (10**400, make_clip(0.1)),
    ["x"],
    {"role": "user"},
]
ODD_VALUES = st.sampled_from(ODD)
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["What?", "<SpeechHere>", "<Speech><SpeechHere></Speech>", "</s>", "é\0"]
)
AUDIO = CLIPS | CLIPS | st.lists(CLIPS | st.lists(CLIPS, max_size=2), max_size=2) | st.none() | ODD_VALUES
READING = {
    "sampling_rate": mostly([SAMPLING_RATE, 8000], [0, -1, 1, float("nan"), float("inf"), 10**400, "16000"]),
    "allow_paths": mostly([True, False, None], [1]),
    "allow_urls": mostly([True, False], ["no"]),
}
GENERATION = {
    "lora_scale": mostly([0.0, 2, -1.0, None], [float("nan"), "1", True]),
    "num_beams": st.sampled_from([1, 2]),
    "num_return_sequences": st.sampled_from([1, 2]),
    "do_sample": st.booleans(),
    "repetition_penalty": mostly([1.2], [-1.0]),
    "encoder_repetition_penalty": st.sampled_from([1.3, 0.5]),
    "no_repeat_ngram_size": st.just(2),
    "encoder_no_repeat_ngram_size": st.just(2),
    "prompt_lookup_num_tokens": st.just(2),
    "bad_words_ids": mostly([[[5]]], [[], "x"]),
    "cache_implementation": mostly(["static"], ["x"]),
    "use_cache": st.just(False),
    "return_dict_in_generate": st.just(True),
    "speech": mostly([None], [1]),
}
PROMPTS = {
    "text": TEXTS | TEXTS | st.lists(TEXTS, max_size=3) | ODD_VALUES,
    "audio": AUDIO,
    "formatted": mostly([False, True], ["yes"]),
    "reading": st.fixed_dictionaries({}, optional=READING),
    "generation": st.fixed_dictionaries({}, optional=GENERATION),
}
ITEMS = {
    "items": st.lists(
        CLIPS | st.fixed_dictionaries({"audio": AUDIO}, optional={"text": TEXTS | ODD_VALUES, "other": ODD_VALUES}),
        min_size=1,
        max_size=3,
    )
    | AUDIO,
    "options": st.fixed_dictionaries(
        {},
        optional={"text": TEXTS, "batch_size": st.sampled_from([1, 2, 0, "2"]), "lora_scale": st.just(1.5), **READING},
    ),
}


def done_or_told(call: Callable[[], Any]) -> Any:
    """What the call gives, or `None` after an error that was raised on purpose, as the commands tell it."""
    told: Exception
    try:
        return call()
    except Exception as error:
        told = error
    assert is_expected(told), repr(told)
    assert str(told)
    return None


def check_answers(
    text: Any,
    audio: Any,
    formatted: Any,
    reading: dict[str, Any],
    generation: dict[str, Any],
    model: SalmonnForConditionalGeneration,
    processor: SalmonnProcessor,
) -> None:
    """Inputs are whole, and each answer follows its prompt."""
    inputs = done_or_told(lambda: processor(text=text, audio=audio, formatted=formatted, **reading))
    if inputs is None or "input_ids" not in inputs:
        return
    assert all(torch.isfinite(value).all() for value in inputs.values())
    prompts = inputs["input_ids"]
    if 0 in prompts.shape or prompts.shape[1] > 200:
        return
    output = done_or_told(lambda: model.generate(**inputs, **{"max_new_tokens": 3, **generation}))
    if output is None:
        return
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    expected = prompts.repeat_interleave(len(sequences) // len(prompts), 0)
    assert sequences[:, : prompts.shape[1]].tolist() == expected.tolist()
    assert sequences[:, prompts.shape[1] :].max() < model.config.text_config.vocab_size


def check_pipeline(items: Any, options: dict[str, Any], pipe: AudioTextPipeline) -> None:
    """As many answers as items, or one error."""
    answers = done_or_told(lambda: pipe(items, max_new_tokens=3, **options))
    if answers is None:
        return
    several = isinstance(items, list) and pipe.processor.is_batch(items)
    answers = answers if several else [answers]
    assert len(answers) == (len(items) if several else 1)
    assert all(isinstance(answer[0]["generated_text"], str) for answer in answers)


@pytest.fixture(scope="module")
def pipe(bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor) -> AudioTextPipeline:
    return AudioTextPipeline(model=bucket_model, processor=bucket_processor)


@fuzzed(150)
@given(**PROMPTS)
def test_prompts_are_answered_or_told(
    text: Any,
    audio: Any,
    formatted: Any,
    reading: Any,
    generation: Any,
    bucket_model: SalmonnForConditionalGeneration,
    bucket_processor: SalmonnProcessor,
) -> None:
    check_answers(text, audio, formatted, reading, generation, bucket_model, bucket_processor)


@fuzzed(100)
@given(**ITEMS)
def test_items_are_answered_or_told(items: Any, options: Any, pipe: AudioTextPipeline) -> None:
    check_pipeline(items, options, pipe)


@pytest.mark.slow
@fuzzed(3000)
@given(**PROMPTS)
def test_thousands_of_prompts_are_answered_or_told(
    text: Any,
    audio: Any,
    formatted: Any,
    reading: Any,
    generation: Any,
    bucket_model: SalmonnForConditionalGeneration,
    bucket_processor: SalmonnProcessor,
) -> None:
    check_answers(text, audio, formatted, reading, generation, bucket_model, bucket_processor)


@pytest.mark.slow
@fuzzed(2000)
@given(**ITEMS)
def test_thousands_of_items_are_answered_or_told(items: Any, options: Any, pipe: AudioTextPipeline) -> None:
    check_pipeline(items, options, pipe)
