"""The demo as its page asks it: answers, scales of several users, and files that it must not read."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor


pytest.importorskip("gradio", reason="the extra demo is not installed")

import httpx
from demo_server import served_demo
from gradio_client import Client, handle_file

from modeling_salmonn.serving.clip_chat import ClipChat
from modeling_salmonn.serving.demo import DemoPage, finished_turns, own_uploads


QUESTION = "What do you hear?"
CLIP = {"array": make_clip(1.5), "sampling_rate": SAMPLING_RATE}
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def pipe(bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor) -> AudioTextPipeline:
    return AudioTextPipeline(model=bucket_model, processor=bucket_processor)


@pytest.fixture(scope="module")
def url(pipe: AudioTextPipeline) -> Iterator[str]:
    with served_demo(pipe, "tiny", NEW_TOKENS) as url:
        yield url


def visit(url: str) -> Client:
    """A visitor who waits: a busy machine does not answer eight at once within the 5 s that are usual."""
    return Client(url, verbose=False, httpx_kwargs={"timeout": 300})


def ask(url: str, clip: Path | str, scale: float) -> str:
    """The text of the last message, after a question that is the first."""
    messages, _ = visit(url).predict(QUESTION, [], handle_file(clip), scale, api_name="/answer")
    assert [message["role"] for message in messages] == ["user", "assistant"]
    return messages[-1]["content"][0]["text"]


def test_each_user_is_answered_at_the_scale_that_was_asked_for(
    url: str, pipe: AudioTextPipeline, wav_file: Path
) -> None:
    scales = [0.0, 1.0, 2.0, 4.0] * 2
    with ThreadPoolExecutor(len(scales)) as users:
        answers = list(users.map(lambda scale: ask(url, wav_file, scale), scales))
    options = {"text": QUESTION, "max_new_tokens": NEW_TOKENS}
    expected = [pipe(dict(CLIP), lora_scale=scale, **options)[0]["generated_text"] for scale in scales]
    assert answers == expected
    assert len(set(answers)) > 1


def test_demos_keep_their_files_apart(pipe: AudioTextPipeline) -> None:
    folders = []
    for _ in range(2):
        with own_uploads():
            folders.append(DemoPage(ClipChat(pipe, 20, 2**20), "tiny").clip.GRADIO_CACHE)
    assert len(set(folders)) == 2
    assert not any(Path(folder).exists() for folder in folders)


def test_question_is_shown_before_its_answer(url: str, wav_file: Path) -> None:
    job = visit(url).submit(QUESTION, [], handle_file(wav_file), 4.0, api_name="/answer")
    lengths = [len(messages) for messages, _ in job]
    assert lengths[0] == 1
    assert set(lengths[1:]) == {2}


def test_file_of_the_machine_is_not_read(url: str, wav_file: Path) -> None:
    clip = {"path": str(wav_file), "meta": {"_type": "gradio.FileData"}}  # as if it had been uploaded
    call = f"{url}gradio_api/call/answer"
    event = httpx.post(call, json={"data": [QUESTION, [], clip, 4.0]}).json()["event_id"]
    assert "event: error" in httpx.get(f"{call}/{event}", timeout=60).text


def test_turns_are_questions_with_their_answers() -> None:
    def message(role: str, *texts: str) -> dict:
        return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}

    messages = [
        message("user", "One?"),
        message("user", "Two?"),
        message("assistant", "2", "."),
        message("user", "3?"),
    ]
    assert finished_turns(messages) == [("Two?", "2.")]
    assert finished_turns([]) == []
    assert finished_turns([{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]) == [
        ("A?", "B.")
    ]
