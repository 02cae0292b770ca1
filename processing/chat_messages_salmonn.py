"""Chat messages: what clients send, as roles with texts and audio."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from typing import Any, TypeAlias

from .feature_extraction_salmonn import is_batch
from .prompt_texts_salmonn import require_readable


ROLES = ("system", "user", "assistant")
CLIP_KEYS = ("array", "bytes", "path", "url")
AUDIO_PART_KEYS = ("type", "audio", *CLIP_KEYS, "sampling_rate")


@dataclass(frozen=True)
class AudioPart:
    """Audio in a message: a clip or a list of clips, and the rate in Hz of bare samples where the part tells it."""

    source: Any
    sampling_rate: int | None = None


Content: TypeAlias = str | list[str | AudioPart]


def read_conversations(conversation: Any) -> tuple[list[Sequence[Any]], bool]:
    """The conversations of an argument that may be one or a list of them.

    Returns:
        Conversations, which are not empty, and whether a list of them came.

    Raises:
        ValueError: for anything else, naming what came.
    """
    if not _is_list(conversation):
        raise ValueError(f"A conversation is a list of messages, got {_described(conversation)}.")
    batched = bool(conversation) and _is_list(conversation[0])
    conversations = list(conversation) if batched else [conversation]
    for index, messages in enumerate(conversations):
        name = f"Conversation {index}" if batched else "The conversation"
        if not _is_list(messages):
            raise ValueError(f"{name} must be a list of messages like the first, got {_described(messages)}.")
        if not messages:
            raise ValueError(f"{name} is empty; give at least one message.")
    return conversations, batched


def read_message(message: Any) -> tuple[str, Content]:
    """Role and content of a message.

    Args:
        message: a mapping, or an object with attributes, with `role` and `content`. Content is text, a part, a list
            of texts and parts, or `None` for no text. Parts are `{"type": "text", "text": ...}`,
            `{"type": "audio", "audio" | "path" | "url" | "bytes" | "array": ...}`, and the forms of OpenAI's
            clients, `{"type": "audio_url", "audio_url": {"url": ...}}` and
            `{"type": "input_audio", "input_audio": {"data": BASE64}}`.

    Returns:
        Role and text, or role and parts, where neighbouring texts are one.

    Raises:
        ValueError: for roles, fields and parts that are not known, naming what came.
    """
    given = _as_dict(message, "A message")
    for name in ("role", "content"):
        if name not in given:
            raise ValueError(f"A message needs 'role' and 'content', got {_names(given)}.")
    role, content = given["role"], given["content"]
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"The role of a message must be 'system', 'user' or 'assistant', got {role!r}.")
    filled = {name: value for name, value in given.items() if name in ("role", "content") or not _is_empty(value)}
    _check_keys(filled, ("role", "content"), "A message")
    role = ROLES[ROLES.index(role)]  # a plain string, also of an enumeration
    if content is None or isinstance(content, str):
        require_readable(content or "", "the text of a message")
        return role, content or ""
    parts = [part for given in (content if _is_list(content) else [content]) for part in _read_part(given)]
    joined: list[str | AudioPart] = []
    for is_text, group in groupby(parts, key=lambda part: isinstance(part, str)):
        members = list(group)
        joined += ["".join(str(text) for text in members)] if is_text else members
    return role, joined


def clean_messages(
    messages: Sequence[Any], escape: Callable[[str], str], read: Callable[..., Any] | None, name: str
) -> list[dict[str, Any]]:
    """Messages as the templates and the library take them.

    Args:
        messages: see `read_message`.
        escape: takes the tokens out of a text.
        read: gives the samples of a clip, with `own_rate`, the rate in Hz that its part tells; `None` for placeholders
            alone.
        name: of the conversation, at the start of errors.

    Raises:
        ValueError: see `read_message`, and for audio that cannot be used.
    """
    try:
        return [_clean_message(message, escape, read) for message in messages]
    except ValueError as error:
        raise ValueError(f"{name}{error}") from error


def _clean_message(message: Any, escape: Callable[[str], str], read: Callable[..., Any] | None) -> dict[str, Any]:
    role, content = read_message(message)
    if isinstance(content, str):
        return {"role": role, "content": escape(content)}
    parts: list[dict[str, Any]] = []
    for part in content:
        if isinstance(part, str):
            parts.append({"type": "text", "text": escape(part)})
            continue
        clips = part.source if is_batch(part.source) else [part.source]
        if not clips:
            raise ValueError("An audio part has an empty list of clips; leave it out.")
        for clip in clips:
            samples = {} if read is None else {"audio": read(clip, own_rate=part.sampling_rate)}
            parts.append({"type": "audio", **samples})
    return {"role": role, "content": parts}


def _read_part(part: Any) -> list[str | AudioPart]:
    if isinstance(part, str):
        require_readable(part, "the text of a message")
        return [part]
    filled = {name: value for name, value in _as_dict(part, "Content of a message").items() if value is not None}
    kind = filled.get("type")
    if kind == "text":
        _check_keys(filled, ("type", "text"), "A text part")
        if not isinstance(filled.get("text"), str):
            raise ValueError(f"the text of a message must be a string, got {filled.get('text')!r:.80}.")
        return _read_part(filled["text"])
    if kind == "audio":
        _check_keys(filled, AUDIO_PART_KEYS, "An audio part")
        return [AudioPart(filled.get("audio", filled), filled.get("sampling_rate"))]
    if kind in ("audio_url", "input_audio") and kind in filled:
        return [AudioPart(_openai_source(kind, filled[kind]))]
    raise ValueError(f"SALMONN takes 'audio' and 'text' content, not '{kind}' with the fields {_names(filled)}.")


def _openai_source(kind: str, value: Any) -> str | bytes:
    key = "url" if kind == "audio_url" else "data"
    source = value.get(key) if isinstance(value, Mapping) else value
    if not isinstance(source, str):
        raise ValueError(f"'{kind}' needs a string as '{key}', got {_described(source)}.")
    if kind == "audio_url" or source.startswith("data:"):
        return source
    try:
        return base64.b64decode(source, validate=True)
    except binascii.Error as error:
        raise ValueError(f"The data of 'input_audio' is not base64: {error}.") from error


def _as_dict(value: Any, name: str) -> dict[str, Any]:
    """Fields of a mapping, a dataclass or another object with attributes."""
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "__dict__") and (hasattr(value, "role") or hasattr(value, "type")):
        return {name: field for name, field in vars(value).items() if not name.startswith("_")}
    raise ValueError(f"{name} must be a dict or an object with its fields, got {_described(value)}.")


def _check_keys(given: Mapping[str, Any], known: Sequence[str], name: str) -> None:
    unknown = [field for field in given if field not in known]
    if unknown:
        raise ValueError(f"{name} has the field {unknown[0]!r}, which SALMONN would drop; it knows {list(known)}.")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, Mapping, list, tuple)) and not value)


def _names(given: Mapping[Any, Any]) -> list[str]:
    return sorted(str(name) for name in given)


def _described(value: Any) -> str:
    return f"{value!r:.80} ({type(value).__name__})"


__all__ = ["CLIP_KEYS", "AudioPart", "Content", "clean_messages", "read_conversations", "read_message"]
