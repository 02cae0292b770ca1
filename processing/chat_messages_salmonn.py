"""Chat messages: what clients send, as roles with texts and audio."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from .audio_io_salmonn import is_batch
from .prompt_texts_salmonn import is_list, require_readable


ROLES = ("system", "user", "assistant")
AUDIO_PART_KEYS = ("type", "audio", "array", "bytes", "path", "url", "sampling_rate")


@dataclass(frozen=True)
class AudioPart:
    """A clip in a message, and the rate in Hz of bare samples where its part tells it."""

    source: Any
    sampling_rate: int | None = None


def read_conversations(conversation: Any) -> tuple[list[Sequence[Any]], bool]:
    """The conversations of an argument that may be one or a list of them.

    Returns:
        Conversations, which are not empty, and whether a list of them came.

    Raises:
        ValueError: for anything else, naming what came.
    """
    if not is_list(conversation):
        raise ValueError(f"A conversation is a list of messages, got {_described(conversation)}.")
    batched = bool(conversation) and is_list(conversation[0])
    conversations = list(conversation) if batched else [conversation]
    for index, messages in enumerate(conversations):
        name = f"Conversation {index}" if batched else "The conversation"
        if not is_list(messages):
            raise ValueError(f"{name} must be a list of messages like the first, got {_described(messages)}.")
        if not messages:
            raise ValueError(f"{name} is empty; give at least one message.")
    return conversations, batched


def read_messages(
    messages: Sequence[Any], escape: Callable[[str], str]
) -> tuple[list[dict[str, Any]], list[AudioPart]]:
    """Messages as the templates take them, with placeholders for their clips.

    Args:
        messages: mappings, or objects with attributes, with `role` and `content`. Content is text, a part, a list
            of texts and parts, or `None` for no text. Parts are `{"type": "text", "text": ...}`,
            `{"type": "audio", "audio" | "path" | "url" | "bytes" | "array": ...}`, and the forms of OpenAI's
            clients, `{"type": "audio_url", "audio_url": {"url": ...}}` and
            `{"type": "input_audio", "input_audio": {"data": BASE64}}`.
        escape: takes the tokens out of a text.

    Returns:
        The messages, and the clips in the order of their placeholders.

    Raises:
        ValueError: for roles, fields and parts that are not known, naming what came.
    """
    cleaned: list[dict[str, Any]] = []
    clips: list[AudioPart] = []
    for message in messages:
        role, content = _read_message(message)
        if isinstance(content, str):
            cleaned.append({"role": role, "content": escape(content)})
            continue
        parts: list[dict[str, Any]] = []
        for part in content:
            if isinstance(part, str):
                parts.append({"type": "text", "text": escape(part)})
            else:
                parts.append({"type": "audio"})
                clips.append(part)
        cleaned.append({"role": role, "content": parts})
    return cleaned, clips


def _read_message(message: Any) -> tuple[str, str | list[str | AudioPart]]:
    """Role and content, where neighbouring texts are one: a token may be spelled across them."""
    given = _as_dict(message, "A message")
    for name in ("role", "content"):
        if name not in given:
            raise ValueError(f"A message needs 'role' and 'content', got {_names(given)}.")
    role, content = given.pop("role"), given.pop("content")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"The role of a message must be 'system', 'user' or 'assistant', got {role!r}.")
    role = ROLES[ROLES.index(role)]  # a plain string, also of an enumeration
    for name, value in given.items():  # clients send all fields, most of them empty
        if value is not None and not (isinstance(value, (str, Mapping, list, tuple)) and not value):
            _check_keys([name], ("role", "content"), "A message")
    if content is None or isinstance(content, str):
        require_readable(content or "", "the text of a message")
        return role, content or ""
    parts: list[str | AudioPart] = []
    for given_part in content if is_list(content) else [content]:
        for part in _read_part(given_part):
            if isinstance(part, str) and parts and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
    return role, parts


def _read_part(part: Any) -> Sequence[str | AudioPart]:
    if isinstance(part, str):
        require_readable(part, "the text of a message")
        return [part]
    # A column of structs has the fields of all kinds of parts, of which those of other kinds are None.
    filled = {name: value for name, value in _as_dict(part, "Content of a message").items() if value is not None}
    kind = filled.get("type")
    if kind == "text":
        _check_keys(filled, ("type", "text"), "A text part")
        if not isinstance(filled.get("text"), str):
            raise ValueError(f"the text of a message must be a string, got {filled.get('text')!r:.80}.")
        return _read_part(filled["text"])
    if kind == "audio":
        _check_keys(filled, AUDIO_PART_KEYS, "An audio part")
        source = filled.get("audio", filled)
        clips = source if is_batch(source) else [source]
        if not clips:
            raise ValueError("An audio part has an empty list of clips; leave it out.")
        return [AudioPart(clip, filled.get("sampling_rate")) for clip in clips]
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
    """Fields of a mapping, a dataclass or another object with attributes, such as pydantic's."""
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "__dict__") and (hasattr(value, "role") or hasattr(value, "type")):
        return {name: field for name, field in vars(value).items() if not name.startswith("_")}
    raise ValueError(f"{name} must be a dict or an object with its fields, got {_described(value)}.")


def _check_keys(given: Sequence[str] | Mapping[str, Any], known: Sequence[str], name: str) -> None:
    for field in given:
        if field not in known:
            raise ValueError(f"{name} has the field {field!r}, which SALMONN would drop; it knows {list(known)}.")


def _names(given: Mapping[Any, Any]) -> list[str]:
    return sorted(str(name) for name in given)


def _described(value: Any) -> str:
    return f"{value!r:.80} ({type(value).__name__})"
