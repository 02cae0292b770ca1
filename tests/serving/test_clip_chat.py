"""A conversation about a clip: what is answered, what is explained, and what is refused."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.serving.clip_chat import ClipChat, task_instructions


QUESTION = "What do you hear?"
CLIP = {"array": make_clip(1.5), "sampling_rate": SAMPLING_RATE}


def text(role: str, said: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": said}]}


@pytest.fixture(scope="module")
def chat(bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor) -> ClipChat:
    pipe = AudioTextPipeline(model=bucket_model, processor=bucket_processor)
    return ClipChat(pipe, max_seconds=3, max_bytes=200_000, max_new_tokens=6)


@pytest.fixture
def waveform(chat: ClipChat, wav_file: Path) -> np.ndarray:
    return chat.read_clip(str(wav_file))


def last(pieces: Iterator[str]) -> str:
    *_, answer = pieces
    return answer


def test_answer_grows_to_that_of_the_pipeline(chat: ClipChat, waveform: np.ndarray) -> None:
    said = list(chat.stream_answer(waveform, [], QUESTION))
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(said))
    assert said[-1] == chat.pipe(dict(CLIP), text=QUESTION, max_new_tokens=6)[0]["generated_text"]


def test_later_answers_have_the_conversation_and_its_clip_in_mind(chat: ClipChat, waveform: np.ndarray) -> None:
    first = {"role": "user", "content": [{"type": "audio", **CLIP}, {"type": "text", "text": QUESTION}]}
    messages = [first, text("assistant", "A duck."), text("user", "Where?")]
    expected = chat.pipe(messages, max_new_tokens=6)[0]["generated_text"]
    assert last(chat.stream_answer(waveform, [(QUESTION, "A duck.")], "Where?")) == expected
    assert last(chat.stream_answer(waveform, [(QUESTION, "A bee.")], "Where?")) != expected


def test_lora_scale_is_that_of_the_answer(chat: ClipChat, waveform: np.ndarray) -> None:
    expected = chat.pipe(dict(CLIP), text=QUESTION, max_new_tokens=6, lora_scale=0.0)[0]["generated_text"]
    assert last(chat.stream_answer(waveform, [], QUESTION, 0.0)) == expected
    assert last(chat.stream_answer(waveform, [], QUESTION, chat.trained_scale)) != expected


def test_explanation_is_of_the_last_answer(chat: ClipChat, waveform: np.ndarray) -> None:
    turns = [(QUESTION, "A duck."), ("Where?", last(chat.stream_answer(waveform, [(QUESTION, "A duck.")], "Where?")))]
    explanation = chat.explain_answer(waveform, turns)
    assert explanation.answer == turns[-1][1]
    assert explanation.seconds == pytest.approx(1.5)


def test_explanation_without_an_answer_raises(chat: ClipChat, waveform: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no answer to explain yet: ask something first"):
        chat.explain_answer(waveform, [])


@pytest.mark.parametrize("question", ["", " \n"])
def test_empty_question_raises(question: str, chat: ClipChat, waveform: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no question: write one, or choose a task"):
        chat.stream_answer(waveform, [], question)


def test_conversation_longer_than_the_model_can_read_raises(chat: ClipChat, waveform: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"conversation has \d+ tokens, .* more than the 2048 .*; clear it"):
        chat.stream_answer(waveform, [("word " * 500, "Yes.")], QUESTION)


def test_no_clip_raises(chat: ClipChat) -> None:
    with pytest.raises(ValueError, match="no clip yet: record one, upload a file, or take an example"):
        chat.read_clip(None)


def test_file_that_is_too_large_raises_before_it_is_read(chat: ClipChat, tmp_path: Path) -> None:
    large = tmp_path / "large.wav"
    large.write_bytes(b"no audio" * 2**14)
    with pytest.raises(ValueError, match=r"larger than 0\.0625 MB"):
        replace(chat, max_bytes=2**16).read_clip(str(large))


def test_clip_that_is_too_long_raises(chat: ClipChat, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", make_clip(3.5), SAMPLING_RATE)
    with pytest.raises(ValueError, match=r"longer than 3 s; cut it"):
        chat.read_clip(str(tmp_path / "long.flac"))
    assert chat.pipe.processor.feature_extractor.max_audio_seconds is None  # of others that use the pipeline


@pytest.mark.parametrize("content", [b"", b"no audio" * 100], ids=["empty", "text"])
def test_file_that_is_no_audio_raises(content: bytes, chat: ClipChat, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_bytes(content)
    with pytest.raises(ValueError, match="The clip cannot be read: audio "):
        chat.read_clip(str(tmp_path / "notes.wav"))


def test_a_model_without_adapter_has_no_trained_scale(chat: ClipChat, model: SalmonnForConditionalGeneration) -> None:
    plain = replace(chat, pipe=AudioTextPipeline(model=model, processor=chat.pipe.processor))
    assert plain.trained_scale is None
    assert chat.trained_scale == chat.pipe.model.config.lora_scaling


def test_instructions_of_tasks_ask_the_same_of_any_clip() -> None:
    instructions = dict(task_instructions())
    assert instructions["asr"] == "What does the speaker say? Reply with the words only."
    assert instructions["en2de"] == "Translate what you hear into German."
    assert not {"qa", "slot filling", "translation"} & instructions.keys()
    assert not any("{" in instruction for instruction in instructions.values())
