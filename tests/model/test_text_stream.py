"""Streams: whoever stops reading stops the generation, and what a stream does stays with it."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from conftest import ROOT
from transformers import StoppingCriteria, pipeline

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor


ENDLESS = 100_000  # new tokens: minutes, where nothing stops them
MARK: ContextVar[str] = ContextVar("mark", default="unset")


class StepRecorder(StoppingCriteria):
    """Records the context of each step, and stops after `last` of them."""

    def __init__(self, last: int = ENDLESS):
        self.last = last
        self.marks: list[str] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.marks.append(MARK.get())
        return torch.full((len(input_ids),), len(self.marks) >= self.last)


@pytest.fixture(scope="module")
def pipe(bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor) -> AudioTextPipeline:
    return pipeline("audio-text", model=bucket_model, processor=bucket_processor)


def endless_stream(pipe: AudioTextPipeline, recorder: StepRecorder, **options: Any) -> Any:
    options = {"min_new_tokens": ENDLESS, "max_new_tokens": ENDLESS, **options}
    return pipe.stream({"text": "Sing."}, stopping_criteria=[recorder], **options)


def close(pieces: Any) -> None:
    next(pieces)
    pieces.close()


def leave(pieces: Iterator[str]) -> None:
    for _ in pieces:
        break


def fail(pieces: Iterator[str]) -> None:
    with suppress(RuntimeError):
        for _ in pieces:
            raise RuntimeError("The reader fails.")


def interrupt(pieces: Any) -> None:
    next(pieces)
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt)


def forget_in_a_cycle(pieces: Any) -> None:
    next(pieces)
    cycle: dict[str, Any] = {"pieces": pieces}
    cycle["self"] = cycle


@pytest.mark.parametrize("stop", [close, leave, fail, interrupt, forget_in_a_cycle])
def test_stream_that_nobody_reads_stops_generating(stop: Any, pipe: AudioTextPipeline) -> None:
    threads = threading.active_count()
    recorder = StepRecorder()
    stop(endless_stream(pipe, recorder))
    gc.collect()
    assert threading.active_count() == threads
    assert 0 < len(recorder.marks) < ENDLESS


def test_stream_that_is_never_read_starts_nothing(pipe: AudioTextPipeline) -> None:
    threads = threading.active_count()
    recorder = StepRecorder()
    pieces = endless_stream(pipe, recorder)
    assert threading.active_count() == threads
    pieces.close()
    assert recorder.marks == []


def test_stopped_stream_leaves_later_answers_as_they_are(pipe: AudioTextPipeline) -> None:
    before = pipe({"text": "Sing."}, max_new_tokens=8)
    close(endless_stream(pipe, StepRecorder(), lora_scale=0.0))
    assert pipe({"text": "Sing."}, max_new_tokens=8) == before
    assert pipe({"text": "Sing."}, max_new_tokens=8, lora_scale=0.0) != before


def test_stream_keeps_the_stopping_criteria_that_it_gets(pipe: AudioTextPipeline) -> None:
    recorder = StepRecorder(last=3)
    list(endless_stream(pipe, recorder))
    assert len(recorder.marks) == 3


def test_stream_has_the_context_of_its_call(pipe: AudioTextPipeline) -> None:
    recorder = StepRecorder(last=2)
    token = MARK.set("of the call")
    pieces = endless_stream(pipe, recorder)
    MARK.reset(token)
    list(pieces)
    assert recorder.marks == ["of the call"] * 2


def test_process_ends_beside_an_open_stream() -> None:
    """A thread that is not told would go on for ever."""
    program = """
import torch
from byte_tokenizer import byte_tokenizer
from modeling_salmonn.text_stream_salmonn import stream_text

tokenizer = byte_tokenizer()
line_end = torch.tensor([tokenizer.convert_tokens_to_ids("\u010a")])

def generate(streamer):
    while True:
        streamer.put(line_end)

pieces = stream_text(tokenizer, generate)
next(pieces)
"""
    paths = [str(ROOT), str(ROOT / "tests" / "helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
