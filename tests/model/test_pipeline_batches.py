"""Batches of the pipeline: clips of like length share one, workers make their inputs, and no answer changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audible_pipeline import audible_pipeline, write_clips
from transformers import pipeline

from modeling_salmonn import AudioTextPipeline, SalmonnConfig, SalmonnProcessor
from modeling_salmonn.pipeline_batches_salmonn import BATCHES_SORTED_TOGETHER, LengthOrder


QUESTION = "What do you hear?"
CLIP_SECONDS = (4.5, 0.7, 4.1, 0.9, 3.8, 0.8, 1.1)


@pytest.fixture(scope="module")
def pipe(bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor) -> AudioTextPipeline:
    return audible_pipeline(bucket_config, bucket_processor, 6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_clips(tmp_path_factory.mktemp("clips"), CLIP_SECONDS)


@pytest.fixture(scope="module")
def answers(pipe: AudioTextPipeline, clips: list[str]) -> list[Any]:
    alone = [pipe(clip, text=QUESTION) for clip in clips]
    assert len({str(answer) for answer in alone}) > 3
    return alone


@pytest.fixture
def encoded(pipe: AudioTextPipeline, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Mel frames of the clips of each batch that the model answers."""
    batches: list[list[int]] = []
    generate = pipe.model.generate

    def note(**inputs: Any) -> Any:
        batches.append(inputs["input_features_mask"].sum(dim=1).tolist())
        return generate(**inputs)

    monkeypatch.setattr(pipe.model, "generate", note)
    return batches


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_answer_as_each_clip_alone_in_the_order_asked(
    batch_size: int, num_workers: int, pipe: AudioTextPipeline, clips: list[str], answers: list[Any]
) -> None:
    options = {"text": QUESTION, "batch_size": batch_size, "num_workers": num_workers}
    assert pipe(clips, **options) == answers
    assert list(pipe((clip for clip in clips), **options)) == answers


def test_clips_of_like_length_share_a_batch(
    pipe: AudioTextPipeline, clips: list[str], encoded: list[list[int]]
) -> None:
    pipe(clips, text=QUESTION, batch_size=3)
    assert encoded == [[450, 410, 380], [110, 90, 80], [70]]


@pytest.mark.parametrize("form", ["samples", "bytes", "rows", "chats"])
def test_every_form_of_a_clip_has_a_length(
    form: str, pipe: AudioTextPipeline, clips: list[str], answers: list[Any], encoded: list[list[int]]
) -> None:
    texts = None if form == "chats" else QUESTION
    assert pipe([in_form(form, clip) for clip in clips], text=texts, batch_size=3) == answers
    assert encoded == [[450, 410, 380], [110, 90, 80], [70]]


def in_form(form: str, clip: str) -> Any:
    if form == "samples":
        samples, rate = soundfile.read(clip, dtype="float32")
        return {"array": samples, "sampling_rate": rate}
    if form == "bytes":
        return Path(clip).read_bytes()
    if form == "rows":
        return {"audio": {"path": clip, "bytes": None}, "text": "of the row"}
    return [{"role": "user", "content": [{"type": "audio", "path": clip}, {"type": "text", "text": QUESTION}]}]


def test_generators_are_answered_as_they_come(
    pipe: AudioTextPipeline, clips: list[str], encoded: list[list[int]]
) -> None:
    list(pipe((clip for clip in clips), text=QUESTION, batch_size=3))
    assert encoded == [[450, 70, 410], [90, 380, 80], [110]]


def test_instructions_stay_with_their_clips(pipe: AudioTextPipeline, clips: list[str]) -> None:
    texts = [f"Question {index}?" for index in range(len(clips))]
    alone = [pipe(clip, text=text) for clip, text in zip(clips, texts, strict=True)]
    assert pipe(clips, text=texts, batch_size=3, num_workers=1) == alone


def test_several_answers_to_an_item_stay_with_it(pipe: AudioTextPipeline, clips: list[str]) -> None:
    options: dict[str, Any] = {"text": QUESTION, "num_beams": 2, "num_return_sequences": 2}
    assert pipe(clips, batch_size=3, **options) == [pipe(clip, **options) for clip in clips]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_names_the_items_of_its_batch(num_workers: int, pipe: AudioTextPipeline, clips: list[str]) -> None:
    items = [*clips, "absent.wav"]
    with pytest.raises(ValueError, match=r"^Items 1, 7: Conversation 1: .*no audio file absent\.wav"):
        pipe(items, text=QUESTION, batch_size=2, num_workers=num_workers)


def test_clip_that_no_worker_can_be_sent_raises(pipe: AudioTextPipeline, clips: list[str]) -> None:
    with open(clips[0], "rb") as file, pytest.raises(ValueError, match="give paths, bytes or samples, or leave num_w"):
        pipe([file, clips[1]], text=QUESTION, num_workers=1)


def test_pipeline_may_have_workers_by_default(pipe: AudioTextPipeline, clips: list[str], answers: list[Any]) -> None:
    own = pipeline("audio-text", model=pipe.model, processor=pipe.processor, batch_size=3, num_workers=1)
    assert own(clips, text=QUESTION) == answers


def test_stretches_of_a_long_list_are_sorted_one_by_one() -> None:
    read: list[int] = []
    numbers = np.random.default_rng(0).permutation(5 * BATCHES_SORTED_TOGETHER).tolist()
    order = LengthOrder((read.append(number) or number for number in numbers), 2, float)
    given = order.sorted_items()
    first = next(given)
    assert len(read) == 2 * BATCHES_SORTED_TOGETHER  # no more than a stretch is in memory
    assert first == max(read)
    rest = list(given)
    assert sorted([first, *rest]) == sorted(numbers)
    assert order.restore([first, *rest]) == numbers


def test_items_of_unknown_length_come_last() -> None:
    lengths = {"a": 1.0, "b": None, "c": 3.0}
    assert list(LengthOrder(lengths, 2, lengths.get).sorted_items()) == ["c", "a", "b"]
