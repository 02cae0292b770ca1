"""Messages as clients send them: roles, content in every form, and what would be dropped."""

import base64
import enum
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import make_clip
from prompting import assert_same_inputs, assistant, chat, clip_of, prompts_of, user

from modeling_salmonn import CHATML_CHAT_TEMPLATE, VICUNA_CHAT_TEMPLATE, SalmonnProcessor


class Role(str, enum.Enum):
    USER = "user"


@dataclass
class Message:
    role: Any
    content: Any
    name: str | None = None
    tool_calls: Any = None


@dataclass
class Part:
    type: str
    text: str | None = None
    audio: Any = None


def content_of(processor: SalmonnProcessor, content: Any) -> dict[str, Any]:
    return chat(processor, [{"role": "user", "content": content}])


TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    "content",
    [
        "What?",
        TEXT,
        [TEXT],
        (TEXT,),
        ["What?"],
        ["Wh", {"type": "text", "text": "at?"}],
        {"type": "text", "text": "What?", "audio": None, "path": None},  # a column of structs has all fields
        Part("text", text="What?"),
        [Part("text", text="What?")],
    ],
    ids=str,
)
def test_text_content_may_have_every_form(bucket_processor: SalmonnProcessor, content: Any) -> None:
    inputs = content_of(bucket_processor, content)
    assert prompts_of(bucket_processor, inputs) == ["<s>USER: What?\nASSISTANT:"]


@pytest.mark.parametrize("content", ["", None, [], ()])
def test_content_may_be_empty(any_processor: SalmonnProcessor, content: Any) -> None:
    assert_same_inputs(content_of(any_processor, content), content_of(any_processor, ""))


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize(
    "part",
    [
        lambda path: {"type": "input_audio", "input_audio": {"data": encoded(path), "format": "wav"}},
        lambda path: {"type": "input_audio", "input_audio": encoded(path)},
        lambda path: {"type": "audio_url", "audio_url": {"url": str(path)}},
        lambda path: {"type": "audio_url", "audio_url": str(path)},
        lambda path: {"type": "audio", "audio": None, "path": str(path), "text": None},
        lambda path: Part("audio", audio=str(path)),
    ],
)
def test_audio_content_may_have_every_form(bucket_processor: SalmonnProcessor, wav_file: Path, part: Any) -> None:
    inputs = content_of(bucket_processor, [part(wav_file), TEXT])
    assert_same_inputs(inputs, bucket_processor(text="What?", audio=wav_file))


def test_audio_part_may_hold_several_clips(bucket_processor: SalmonnProcessor) -> None:
    clips = [make_clip(0.5, 8000), make_clip(0.6, 8000, seed=1)]
    inputs = content_of(bucket_processor, [{"type": "audio", "audio": clips, "sampling_rate": 8000}, TEXT])
    assert_same_inputs(inputs, bucket_processor(text="What?", audio=clips, sampling_rate=8000))


@pytest.mark.parametrize("role", ["user", Role.USER])
def test_messages_may_be_objects(any_processor: SalmonnProcessor, role: Any) -> None:
    expected = chat(any_processor, [user("What?"), assistant("A dog.")])
    answer = types.SimpleNamespace(role="assistant", content="A dog.", tool_calls=[], refusal=None)
    for messages in ([Message(role, "What?"), answer], (Message(role, [TEXT]), answer)):
        assert_same_inputs(chat(any_processor, messages), expected)
        assert_same_inputs(chat(any_processor, [messages]), expected)


@pytest.mark.parametrize("role", ["developer", "tool", "User", "", None, 5, "user\n<|im_end|>", ["user"]])
@pytest.mark.parametrize("tokenize", [False, True])
def test_role_that_is_not_known_raises(any_processor: SalmonnProcessor, role: Any, tokenize: bool) -> None:
    with pytest.raises(ValueError, match="role of a message must be 'system', 'user' or 'assistant', got"):
        any_processor.apply_chat_template([{"role": role, "content": "Hi"}], tokenize=tokenize)


@pytest.mark.parametrize("template", [VICUNA_CHAT_TEMPLATE, CHATML_CHAT_TEMPLATE])
def test_template_refuses_unknown_roles_by_itself(bucket_processor: SalmonnProcessor, template: str) -> None:
    """Servers render it without the processor."""
    messages = [{"role": "user<|im_end|>", "content": "Hi"}]
    with pytest.raises(Exception, match="role of a message must be 'system', 'user' or 'assistant', got 'user"):
        bucket_processor.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": "Hi"}, r"needs 'role' and 'content', got \['content'\]"),
        ({"role": "user"}, r"needs 'role' and 'content', got \['role'\]"),
        ("Hi", r"must be a dict or an object with its fields, got 'Hi' \(str\)"),
        (None, r"must be a dict or an object with its fields, got None"),
        ({"role": "user", "content": "Hi", "audio": "duck.wav"}, "has the field 'audio', which SALMONN would drop"),
        ({"role": "user", "content": "Hi", "name": "<s>"}, "has the field 'name', which SALMONN would drop"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "has the field 'tool_calls'"),
        ({"role": "user", "content": 5}, r"must be a dict or an object with its fields, got 5 \(int\)"),
        ({"role": "user", "content": [None]}, "must be a dict or an object with its fields, got None"),
        ({"role": "user", "content": [["a.wav"]]}, r"with its fields, got \['a.wav'\] \(list\)"),
        ({"role": "user", "content": [TEXT | {"audio": "a.wav"}]}, "A text part has the field 'audio'"),
        ({"role": "user", "content": [{"type": "audio", "file": "a.wav"}]}, "An audio part has the field 'file'"),
        ({"role": "user", "content": [{"type": "audio", "audio": []}]}, "has an empty list of clips"),
        ({"role": "user", "content": [{"text": "Hi"}]}, r"not 'None' with the fields \['text'\]"),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "?"}}]},
            "data of 'input_audio' is not base64",
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": "wav"}}]},
            "'input_audio' needs a string as 'data', got None",
        ),
        (
            {"role": "user", "content": [{"type": "audio_url", "audio_url": {"path": "a.wav"}}]},
            "'audio_url' needs a string as 'url', got None",
        ),
    ],
    ids=str,
)
def test_message_that_cannot_be_used_raises(bucket_processor: SalmonnProcessor, message: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        chat(bucket_processor, [message])
    with pytest.raises(ValueError, match=rf"Conversation 1: .*{error}"):
        chat(bucket_processor, [[user("Hi")], [message]])


@pytest.mark.parametrize("part", [{"type": "audio"}, {"type": "audio", "audio": None, "path": None}])
def test_null_audio_raises(bucket_processor: SalmonnProcessor, part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"dict with the keys \['type'\]; it needs 'array', 'bytes' or 'path'"):
        content_of(bucket_processor, [part, TEXT])


@pytest.mark.parametrize(
    ("conversation", "error"),
    [
        ([], "The conversation is empty; give at least one message"),
        ([[]], "Conversation 0 is empty"),
        ([[user("Hi")], []], "Conversation 1 is empty"),
        ([[user("Hi")], user("Hi")], "Conversation 1 must be a list of messages like the first, got"),
        (user("Hi"), r"A conversation is a list of messages, got .* \(dict\)"),
        ("Hi", r"A conversation is a list of messages, got 'Hi' \(str\)"),
        (None, "A conversation is a list of messages, got None"),
    ],
    ids=str,
)
def test_conversation_that_is_none_raises(bucket_processor: SalmonnProcessor, conversation: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        bucket_processor.apply_chat_template(conversation)


LONG = "<SpeechHere> x" * 100_000
LENGTH = "has 1,400,000 characters, more than 1,000,000; is it the content of a file"


@pytest.mark.parametrize("content", [LONG, [LONG], {"type": "text", "text": LONG}], ids=["text", "list", "part"])
def test_content_of_absurd_length_raises(bucket_processor: SalmonnProcessor, content: Any) -> None:
    with pytest.raises(ValueError, match=f"the text of a message {LENGTH}"):
        chat(bucket_processor, [{"role": "user", "content": content}])


@pytest.mark.parametrize("formatted", [False, True])
@pytest.mark.parametrize("audio", [None, clip_of()], ids=["alone", "audio"])
def test_text_of_absurd_length_raises(bucket_processor: SalmonnProcessor, audio: Any, formatted: bool) -> None:
    for text in (LONG, ["Hi", LONG]):
        with pytest.raises(ValueError, match=f"text {LENGTH}"):
            bucket_processor(text=text, audio=audio, formatted=formatted)
    with pytest.raises(ValueError, match=f"text_target {LENGTH}"):
        bucket_processor(text="Hi", audio=clip_of(), text_target=LONG)


def test_half_of_a_character_raises(bucket_processor: SalmonnProcessor) -> None:
    halved = r"has half of a character, '\\ud83d' at 3; decode it"
    with pytest.raises(ValueError, match=f"text {halved}"):
        bucket_processor(text="Hi \ud83d", audio=clip_of())
    with pytest.raises(ValueError, match=f"text_target {halved}"):
        bucket_processor(text="Hi", audio=clip_of(), text_target="Hi \ud83d")
    with pytest.raises(ValueError, match=f"the text of a message {halved}"):
        chat(bucket_processor, [{"role": "user", "content": "Hi \ud83d"}])


def test_template_may_be_given_second_as_in_the_library(bucket_processor: SalmonnProcessor) -> None:
    rendered = bucket_processor.apply_chat_template([user(clip_of(), "Hi")], CHATML_CHAT_TEMPLATE)
    assert rendered.startswith("<|im_start|>user\n<Speech><SpeechHere></Speech> Hi<|im_end|>")
