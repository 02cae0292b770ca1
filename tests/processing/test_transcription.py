"""Requests for a transcript, as other audio models' processors have them, and token counts of clips."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_processor
from prompting import assert_same_inputs, clip_of, placeholders_of

from modeling_salmonn import SalmonnConfig, SalmonnProcessor


ASKED = "What does the speaker say? Reply with the words only."


def test_transcription_request_asks_about_each_clip(any_processor: SalmonnProcessor, wav_file: Path) -> None:
    clips = [str(wav_file), clip_of(2.5)]
    for audio in (clips, tuple(clips)):
        inputs = any_processor.apply_transcription_request(audio)
        assert_same_inputs(inputs, any_processor(text=[ASKED] * 2, audio=clips))
    alone = any_processor.apply_transcription_request(audio=wav_file)
    assert_same_inputs(alone, any_processor(text=ASKED, audio=wav_file))


def test_transcription_request_takes_options_of_the_processor(bucket_processor: SalmonnProcessor) -> None:
    samples = make_clip(1.0, 8000)
    inputs = bucket_processor.apply_transcription_request(samples, sampling_rate=8000, return_tensors="np")
    assert isinstance(inputs["input_ids"], np.ndarray)
    assert inputs["input_features_mask"].sum() == 100
    with pytest.raises(TypeError, match="unknown argument 'model_id'"):
        bucket_processor.apply_transcription_request(samples, model_id="a/b")


def test_transcription_request_takes_instructions(bucket_processor: SalmonnProcessor) -> None:
    clips = [clip_of(), clip_of(seed=1)]
    inputs = bucket_processor.apply_transcription_request(clips, prompt=["Write.", None])
    assert_same_inputs(inputs, bucket_processor(text=["Write.", ASKED], audio=clips))
    inputs = bucket_processor.apply_transcription_request(clips, prompt="Write.")
    assert_same_inputs(inputs, bucket_processor(text=["Write."] * 2, audio=clips))


def test_transcription_request_gives_prompts_that_the_processor_takes(any_processor: SalmonnProcessor) -> None:
    clips = [clip_of(), clip_of(seed=1)]
    prompts = any_processor.apply_transcription_request(clips, tokenize=False)
    assert_same_inputs(any_processor(text=prompts, audio=clips), any_processor.apply_transcription_request(clips))


def test_transcription_prompt_is_saved(bucket_config: SalmonnConfig, tmp_path: Path) -> None:
    parts = tiny_processor(bucket_config)
    own = SalmonnProcessor(parts.feature_extractor, parts.tokenizer, default_transcription_prompt="Write.")
    own.save_pretrained(tmp_path)
    loaded = SalmonnProcessor.from_pretrained(tmp_path)
    assert_same_inputs(loaded.apply_transcription_request(clip_of()), parts(text="Write.", audio=clip_of()))


@pytest.mark.parametrize(
    ("audio", "prompt", "error"),
    [
        ([], None, "There is no audio to transcribe"),
        (None, None, "There is no audio to transcribe"),
        ([None], None, "There is no audio to transcribe"),
        ([[]], None, "There is no audio to transcribe"),
        (2.5, None, "audio must be a clip or a list of clips, got the number 2.5"),
        ([1, 1], ["Write."], "Got 1 prompts for 2 clips; pass one, or one for each clip"),
        ([1], [5], "prompt must be a string or a list of strings, got 5"),
        ([1], 5, "prompt must be a string or a list of strings, got 5"),
    ],
)
def test_transcription_request_that_does_not_match_raises(
    bucket_processor: SalmonnProcessor, audio: Any, prompt: Any, error: str
) -> None:
    clips = [clip_of() for _ in audio] if isinstance(audio, list) and 1 in audio else audio
    with pytest.raises(ValueError, match=error):
        bucket_processor.apply_transcription_request(clips, prompt=prompt)


@pytest.mark.parametrize(
    "first",
    [
        make_clip(1.0),
        torch.from_numpy(make_clip(1.0)),
        [make_clip(1.0), make_clip(2.0)],
        {"array": make_clip(1.0), "sampling_rate": SAMPLING_RATE},
        (SAMPLING_RATE, make_clip(1.0)),
    ],
    ids=["array", "tensor", "list", "datasets", "tuple"],
)
def test_samples_in_the_first_place_are_transcribed(bucket_processor: SalmonnProcessor, first: Any) -> None:
    clips = first if isinstance(first, list) else [first]
    expected = bucket_processor.apply_transcription_request(clips, sampling_rate=SAMPLING_RATE)
    assert_same_inputs(bucket_processor(first, sampling_rate=SAMPLING_RATE), expected)
    assert_same_inputs(bucket_processor(text=first, sampling_rate=SAMPLING_RATE), expected)
    with pytest.raises(ValueError, match="Got audio both in the place of text and as audio"):
        bucket_processor(first, make_clip(1.0))


def test_file_in_the_first_place_is_transcribed(bucket_processor: SalmonnProcessor, wav_file: Path) -> None:
    assert_same_inputs(bucket_processor(wav_file), bucket_processor.apply_transcription_request(wav_file))
    with wav_file.open("rb") as file:
        assert_same_inputs(bucket_processor(file), bucket_processor.apply_transcription_request(wav_file))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_in_the_first_place_are_transcribed(
    bucket_processor: SalmonnProcessor, wav_file: Path, kind: Any
) -> None:
    expected = bucket_processor.apply_transcription_request(wav_file)
    assert_same_inputs(bucket_processor(kind(wav_file.read_bytes())), expected)
    assert_same_inputs(bucket_processor([kind(wav_file.read_bytes())]), expected)


def test_numbers_in_the_first_place_are_transcribed(bucket_processor: SalmonnProcessor) -> None:
    clip = make_clip(1.0)
    expected = bucket_processor.apply_transcription_request(clip, sampling_rate=SAMPLING_RATE)
    assert_same_inputs(bucket_processor(clip.tolist(), sampling_rate=SAMPLING_RATE), expected)
    assert_same_inputs(bucket_processor((SAMPLING_RATE, clip.tolist())), expected)


def test_samples_in_the_first_place_may_have_an_answer(bucket_processor: SalmonnProcessor) -> None:
    inputs = bucket_processor(make_clip(1.0), sampling_rate=SAMPLING_RATE, text_target="Yes.")
    expected = bucket_processor(text=ASKED, audio=make_clip(1.0), sampling_rate=SAMPLING_RATE, text_target="Yes.")
    assert_same_inputs(inputs, expected)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 4.2, 31.0])
def test_audio_tokens_are_counted_without_audio(processor: SalmonnProcessor, seconds: float) -> None:
    clip = make_clip(seconds)
    counted = processor._get_num_multimodal_tokens(audio_lengths=[len(clip), 16000])
    inputs = processor(text="What?", audio=clip, sampling_rate=SAMPLING_RATE)
    assert counted.num_audio_tokens == [*placeholders_of(processor, inputs), 88]
    assert processor._get_num_multimodal_tokens().num_audio_tokens is None


@pytest.mark.parametrize(
    ("lengths", "error"),
    [
        ([-1], "must be between 0 and 1382400000 samples, got -1"),
        ([1.5], "must be a whole number of samples, got 1.5"),
        (["x"], "must be a whole number of samples, got 'x'"),
        ([None], "must be a whole number of samples, got None"),
        ([10**400], "must be a whole number of samples, got 1000"),
        (16000, "audio_lengths must be a list of numbers of samples, got 16000"),
    ],
)
def test_lengths_that_no_clip_has_raise(bucket_processor: SalmonnProcessor, lengths: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        bucket_processor._get_num_multimodal_tokens(audio_lengths=lengths)
