"""Items of the pipeline: rows of data sets, other forms of audio, where clips may come from, and errors."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from audible_pipeline import audible_pipeline, write_clips
from conftest import SAMPLING_RATE, make_clip
from datasets import Audio, Dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import pipeline

from modeling_salmonn import AudioTextPipeline, SalmonnConfig, SalmonnProcessor


QUESTION, TRANSCRIPT = "What do you hear?", "the transcript of the row"


@dataclass
class Message:
    role: str
    content: Any


@pytest.fixture(scope="module")
def pipe(bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor) -> AudioTextPipeline:
    return audible_pipeline(bucket_config, bucket_processor, 6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_clips(tmp_path_factory.mktemp("clips"), (0.6, 1.6))


@pytest.fixture(scope="module")
def answers(pipe: AudioTextPipeline, clips: list[str]) -> list[Any]:
    """Answers to the question, which differ from those to the transcript, or the tests would say nothing."""
    found = [pipe({"audio": clip, "text": QUESTION}) for clip in clips]
    heard = [pipe({"audio": clip, "text": TRANSCRIPT}) for clip in clips]
    assert len({str(answer) for answer in [*found, *heard]}) == 4
    return found


def rows_of(clips: list[str]) -> list[dict[str, Any]]:
    return [{"audio": clip, "text": TRANSCRIPT, "sentence": "x", "label": 3} for clip in clips]


def data_set(clips: list[str]) -> Any:
    return Dataset.from_list(rows_of(clips)).cast_column("audio", Audio(decode=False))


class MapStyle(TorchDataset):
    """Rows by index, without a method to iterate."""

    def __init__(self, rows: list[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("form", [list, tuple, data_set, MapStyle], ids=lambda form: form.__name__)
def test_explicit_instruction_wins_over_the_text_of_rows(
    form: Any, batch_size: int, pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    rows = form(clips if form is data_set else rows_of(clips))
    assert pipe(rows, text=QUESTION, batch_size=batch_size) == answers
    assert pipe(rows, text=[QUESTION] * 2, batch_size=batch_size) == answers
    own = pipeline("audio-text", model=pipe.model, processor=pipe.processor, text=QUESTION)
    assert own(rows, batch_size=batch_size) == answers
    assert pipe(rows) != answers


@pytest.mark.parametrize("form", [iter, lambda rows: map(dict, rows), lambda rows: (row for row in rows)])
def test_explicit_instruction_wins_in_iterators(
    form: Any, pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    result = pipe(form(rows_of(clips)), text=QUESTION)
    assert isinstance(result, Iterator)
    assert list(result) == answers
    streamed = data_set(clips).to_iterable_dataset()
    assert list(pipe(streamed, text=QUESTION)) == answers


def test_instruction_of_the_call_wins_over_that_of_the_pipeline(
    pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    own = pipeline("audio-text", model=pipe.model, processor=pipe.processor, text=TRANSCRIPT)
    assert own(clips, text=QUESTION) == answers
    assert own(clips, text=[QUESTION, QUESTION]) == answers
    assert own(clips) != answers


@pytest.mark.parametrize("key", ["path", "url"])
def test_rows_may_name_their_clip_beside_their_text(
    key: str, pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    rows = [{key: clip, "text": TRANSCRIPT, "audio": None} for clip in clips]
    assert pipe([{key: clip, "text": QUESTION} for clip in clips]) == answers
    assert pipe(rows, text=QUESTION) == answers


def wav_file(seed: int) -> io.BytesIO:
    buffer = io.BytesIO()
    soundfile.write(buffer, make_clip(0.6 + seed, seed=seed), SAMPLING_RATE, format="WAV")
    buffer.seek(0)
    return buffer


def samples(seed: int) -> np.ndarray:
    return soundfile.read(wav_file(seed), dtype="float32")[0]


@pytest.mark.parametrize(
    "form",
    [
        lambda seed: (SAMPLING_RATE, samples(seed)),
        lambda seed: (samples(seed), SAMPLING_RATE),
        wav_file,
        lambda seed: bytearray(wav_file(seed).getvalue()),
        lambda seed: {"audio": samples(seed), "sampling_rate": SAMPLING_RATE},
        lambda seed: {"audio": (SAMPLING_RATE, samples(seed)), "text": QUESTION},
        lambda seed: {"audio": [(samples(seed), SAMPLING_RATE)]},
        lambda seed: [(SAMPLING_RATE, samples(seed))],
    ],
    ids=["gradio", "librosa", "file", "bytearray", "rate in the item", "gradio in the item", "list", "list of clips"],
)
def test_other_forms_of_audio_are_one_clip(form: Any, pipe: AudioTextPipeline, answers: list) -> None:
    assert pipe([form(0), form(1)], text=QUESTION) == answers
    if not isinstance(form(0), list):
        assert pipe(form(0), text=QUESTION) == answers[0]
        assert "".join(pipe.stream(form(0), text=QUESTION)).strip() == answers[0][0]["generated_text"]


def test_list_of_numbers_is_one_clip(pipe: AudioTextPipeline, answers: list) -> None:
    numbers = samples(0).tolist()
    assert pipe(numbers, text=QUESTION, sampling_rate=SAMPLING_RATE) == answers[0]


def test_sampling_rate_is_that_of_every_array(pipe: AudioTextPipeline) -> None:
    arrays = [make_clip(0.5, 8000), make_clip(0.7, 8000, seed=1)]
    rated = [{"array": array, "sampling_rate": 8000} for array in arrays]
    expected = pipe({"audio": rated, "text": QUESTION})
    assert pipe({"audio": arrays, "text": QUESTION}, sampling_rate=8000) == expected
    assert pipe({"audio": [array.tolist() for array in arrays], "text": QUESTION}, sampling_rate=8000) == expected
    content = [*({"type": "audio", "audio": array} for array in arrays), {"type": "text", "text": QUESTION}]
    assert pipe([{"role": "user", "content": content}], sampling_rate=8000) == expected
    assert pipe({"audio": arrays, "text": QUESTION}, sampling_rate=16000) != expected


def test_items_of_several_clips_may_stand_beside_others(
    pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    both = pipe({"audio": clips, "text": QUESTION})
    assert pipe([clips, clips[0]], text=QUESTION) == [both, answers[0]]
    assert pipe([clips[0], clips, {"audio": clips[1]}], text=QUESTION) == [answers[0], both, answers[1]]


def test_messages_may_be_objects_or_in_a_row(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    content = [{"type": "audio", "path": clips[0]}, {"type": "text", "text": QUESTION}]
    assert pipe([Message("user", content)]) == answers[0]
    assert pipe([[Message("user", content)]]) == [answers[0]]
    assert pipe({"messages": [{"role": "user", "content": content}], "id": 5}) == answers[0]
    assert "".join(pipe.stream([Message("user", content)])).strip() == answers[0][0]["generated_text"]


def test_detailed_answers_of_generate_are_read(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    assert pipe(clips, text=QUESTION, return_dict_in_generate=True, output_scores=True) == answers


def as_content(path: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio", "path": path}, {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize(
    "form",
    [
        lambda path: path,
        Path,
        lambda path: {"audio": path, "text": QUESTION},
        lambda path: {"audio": [path]},
        lambda path: {"path": path},
        lambda path: [path],
        lambda path: [[path, path]],
        as_content,
        lambda path: [as_content(path)],
        lambda path: [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": path}}]}],
        lambda path: [{"role": "user", "content": {"type": "audio", "audio": {"path": path}}}],
        lambda path: [{"role": "user", "content": {"type": "audio", "url": f"file://{path}"}}],
    ],
    ids=range(12),
)
def test_paths_of_strangers_are_not_read(form: Any, pipe: AudioTextPipeline, clips: list[str]) -> None:
    with pytest.raises(ValueError, match="allow_paths"):
        pipe(form(clips[0]), allow_paths=False)
    with pytest.raises(ValueError, match="allow_paths"):
        list(pipe.stream(form(clips[0]), allow_paths=False))
    closed = pipeline("audio-text", model=pipe.model, processor=pipe.processor, allow_paths=False)
    with pytest.raises(ValueError, match="allow_paths"):
        closed(form(clips[0]))
    assert closed(form(clips[0]), allow_paths=True) == pipe(form(clips[0]))


def test_urls_can_be_refused(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    for url in ("http://127.0.0.1:9/a.wav", "HTTPS://localhost/a.wav"):
        for item in (url, {"audio": url}, {"url": url}, [{"role": "user", "content": {"type": "audio", "url": url}}]):
            with pytest.raises(ValueError, match="allow_urls"):
                pipe(item, allow_urls=False)
    assert pipe(clips, text=QUESTION, allow_urls=False) == answers


def test_strangers_may_send_content(pipe: AudioTextPipeline, answers: list) -> None:
    content = [{"type": "audio", "bytes": wav_file(0).getvalue()}, {"type": "text", "text": QUESTION}]
    restricted = {"allow_paths": False, "allow_urls": False}
    assert pipe([{"role": "user", "content": content}], **restricted) == answers[0]
    assert pipe(samples(0), text=QUESTION, sampling_rate=SAMPLING_RATE, **restricted) == answers[0]


@pytest.mark.parametrize(
    ("inputs", "options", "error"),
    [
        ({"speech": "a.wav", "text": "What?"}, {}, r"fields \['speech', 'text'\], but no 'audio'; rename the one"),
        ([{"file": "a.wav", "text": "x"}], {"text": "What?"}, r"Item 0: .*\['file', 'text'\], but no 'audio'"),
        ({"messages": [Message("user", "Hi")], "audio": "a.wav"}, {}, "both 'messages' and 'audio'"),
        ([Message("user", "Hi")], {"text": "What?"}, "Chat messages hold their own instructions; leave text out"),
        ([[Message("user", "Hi")]], {"text": ["What?"]}, "Chat messages hold their own instructions"),
        ([[]], {}, "Item 0: An item is an empty list of clips"),
        (None, {}, "An item is None instead of audio"),
        ([{"text": "Hi"}, None], {}, "Item 1: An item is None instead of audio"),
        ((item for item in [{"role": "user", "content": "Hi"}]), {}, "Item 0: An item is a single chat message"),
        ([{"role": "user"}], {}, r"needs 'role' and 'content', got \['role'\]"),
        ("a.wav", {"text": 5}, "text must be a string or a list of strings, got 5"),
        ("a.wav", {"text": {"a": "b"}}, "text must be a string or a list of strings, got {'a': 'b'}"),
        ("a.wav", {"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        (["a.wav"], {"batch_size": "2"}, "batch_size must be a whole number of at least 1, got '2'"),
        (["a.wav"], {"num_workers": -1}, "num_workers must be a whole number of at least 0, got -1"),
    ],
)
def test_item_that_cannot_be_used_raises(
    pipe: AudioTextPipeline, inputs: Any, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        list(pipe(inputs, **options))


@pytest.mark.parametrize(("batch_size", "name"), [(1, "Item 2: "), (2, "Items 3, 2: Conversation 1: ")])
def test_error_names_its_item(batch_size: int, name: str, pipe: AudioTextPipeline, clips: list[str]) -> None:
    empty = {"array": np.zeros(0), "sampling_rate": SAMPLING_RATE}
    with pytest.raises(ValueError, match=f"{name}.*is empty"):
        pipe([*clips, empty, clips[0]], text=QUESTION, batch_size=batch_size)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"txt": "What?"}, "unknown argument 'txt': did you mean 'text'"),
        ({"audio": "b.wav"}, "unknown argument 'audio': audio comes first"),
        ({"audios": ["b.wav"]}, "unknown argument 'audios': audio comes first"),
        ({"max_token": 5}, "unknown argument 'max_token': did you mean 'max_"),
        ({"generate_kwargs": {"lora_scal": 1.0}}, "unknown argument 'lora_scal': did you mean 'lora_scale'"),
        ({"batchsize": 2}, "unknown argument 'batchsize': did you mean 'batch_size'"),
        ({"xyzzy": 2}, "unknown argument 'xyzzy': leave it out"),
    ],
    ids=str,
)
def test_argument_that_is_not_known_raises_before_audio_is_read(
    pipe: AudioTextPipeline, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(TypeError, match=error):
        pipe("absent.wav", **options)
    with pytest.raises(TypeError, match=error):
        pipe.stream("absent.wav", **options)
    if "batchsize" not in options:
        with pytest.raises(TypeError, match=error):
            pipeline("audio-text", model=pipe.model, processor=pipe.processor, **options)


def test_stream_of_a_generator_raises(pipe: AudioTextPipeline, clips: list[str]) -> None:
    with pytest.raises(ValueError, match="Got any number of clips to stream about"):
        pipe.stream(clip for clip in clips)
    with pytest.raises(TypeError, match="stream makes a streamer of its own"):
        pipe.stream(clips[0], streamer=None)


@pytest.mark.parametrize("form", ["keywords", "dict", "chat"])
def test_any_to_any_pipeline_answers_as_the_model(
    form: str, pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    try:
        general = pipeline("any-to-any", model=pipe.model, processor=pipe.processor)
    except ImportError as error:  # older releases want librosa, which they do not use here
        pytest.skip(str(error))
    options = {"max_new_tokens": 6, "return_full_text": False}
    if form == "chat":
        answer = general(text=as_content(clips[0]), **options)
    elif form == "dict":
        answer = general({"audio": clips[0], "text": QUESTION}, **options)
    else:
        answer = general(text=QUESTION, audio=clips[0], **options)
    assert answer[0]["generated_text"].strip() == answers[0][0]["generated_text"]
