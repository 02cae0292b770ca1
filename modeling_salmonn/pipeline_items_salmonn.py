"""What the pipeline is called with: one item or many, and the conversation that each item becomes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import Chat


DEFAULT_INSTRUCTION = "Please describe the audio."
CLIP_KEYS = ("array", "bytes", "path", "url")
# One item, although they can be iterated over.
SINGLE_TYPES = (str, bytes, bytearray, memoryview, Mapping, Chat)


@dataclass(frozen=True)
class PipelineItem:
    """One question to the model.

    Args:
        messages: a whole conversation, or `None`.
        audio: otherwise, one clip or a list of clips; `None` for text alone.
        sampling_rate: rate in Hz that came with bare samples.
        text: the instruction that came with the item, such as a column of a data set.
        instruction: the one that the caller gave for this item; goes before `text`.
    """

    messages: Sequence[Any] | None = None
    audio: Any = None
    sampling_rate: int | None = None
    text: str | None = None
    instruction: str | None = None

    def conversation(self, is_batch: Any, instruction: str | None = None) -> Sequence[Any]:
        """Messages that ask it.

        Args:
            is_batch: tells lists of clips from one clip.
            instruction: for all items that have none of their own from the caller.
        """
        if self.messages is not None:
            return self.messages
        clips = list(self.audio) if is_batch(self.audio) else [] if self.audio is None else [self.audio]
        rate = {} if self.sampling_rate is None else {"sampling_rate": self.sampling_rate}
        given = [text for text in (self.instruction, instruction, self.text) if not _is_empty(text)]
        asked = given[0] if given else DEFAULT_INSTRUCTION
        content = [{"type": "audio", "audio": clip, **rate} for clip in clips]
        return [{"role": "user", "content": [*content, {"type": "text", "text": asked}]}]


def as_item(value: Any, instruction: str | None = None) -> PipelineItem:
    """Read an item in any of its forms.

    Args:
        value: a clip or a list of clips; a mapping with `audio` or what makes a clip (`path`, `url`, `bytes` or
            `array`), and maybe `text` and other columns; chat messages, or a mapping with `messages`.
        instruction: given by the caller for this item.

    Raises:
        ValueError: for messages with an instruction besides, and for items whose audio would be missing or dropped.
    """
    if isinstance(value, PipelineItem):
        return value
    if value is None:
        raise ValueError("An item is None instead of audio; pass {'audio': None, 'text': ...} to ask without a clip.")
    if _is_message(value):
        raise ValueError("An item is a single chat message; pass a conversation as a list of messages.")
    messages = _messages_of(value)
    if messages is not None:
        if instruction is not None:
            raise ValueError("Chat messages hold their own instructions; leave text out, or put it into the messages.")
        if isinstance(value, Mapping) and value.get("audio") is not None:
            raise ValueError(
                "An item has both 'messages' and 'audio'; put the clips into the content of the messages."
            )
        return PipelineItem(messages)
    if not isinstance(value, Mapping):
        if isinstance(value, (list, tuple)) and not value:
            raise ValueError(
                "An item is an empty list of clips; pass {'audio': None, 'text': ...} to ask without one."
            )
        return PipelineItem(audio=value, instruction=instruction)
    given = {name: field for name, field in value.items() if field is not None}
    columns = {"text": given.pop("text", None), "instruction": instruction}
    if "audio" in given:
        return PipelineItem(audio=given["audio"], sampling_rate=given.get("sampling_rate"), **columns)
    has_clip = any(name in given for name in CLIP_KEYS)
    if not has_clip and ("audio" in value or set(value) == {"text"}):
        return PipelineItem(**columns)
    if "text" in value and not has_clip:
        raise ValueError(
            f"An item has the fields {sorted(map(str, value))}, but no 'audio'; rename the one that holds the clip, "
            "or pass 'audio': None to ask without a clip."
        )
    return PipelineItem(audio=given, **columns)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which item an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def read_items(inputs: Any, instructions: Iterable[str | None]) -> Iterator[PipelineItem]:
    """Items one after the other, also those of a map-style `torch` data set.

    Raises:
        ValueError: see `as_item`; with the number of the item.
    """
    values = inputs if isinstance(inputs, Iterable) else (inputs[index] for index in range(len(inputs)))
    for index, (value, instruction) in enumerate(zip(values, instructions, strict=False)):
        with naming(f"Item {index}"):
            item = as_item(value, instruction)
        yield item


def is_single(inputs: Any, is_batch: Any) -> bool:
    """Whether the pipeline is called with one item, and gives one answer."""
    if _messages_of(inputs) is not None or isinstance(inputs, SINGLE_TYPES):
        return True
    if isinstance(inputs, Sequence):
        return not is_batch(inputs)
    is_clip = hasattr(inputs, "dtype") or hasattr(inputs, "read") or hasattr(inputs, "get_all_samples")
    return is_clip or not (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"))


def _messages_of(value: Any) -> Sequence[Any] | None:
    if isinstance(value, Chat):
        return value.messages
    if isinstance(value, Mapping):
        return value.get("messages")
    is_conversation = isinstance(value, (list, tuple)) and len(value) > 0 and _is_message(value[0])
    return value if is_conversation else None


def _is_message(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "role" in value
    return hasattr(value, "role") and hasattr(value, "content")


def _is_empty(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text)
