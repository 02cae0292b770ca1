"""Which texts are whole prompts, which are instructions, and which clips belong to each."""

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from .audio_streams_salmonn import MAGIC_BYTES, is_media
from .feature_extraction_salmonn import is_batch


LONGEST_TEXT = 1_000_000  # characters, more than any language model reads; tokenizers take seconds for them


class FormattedPrompt(str):
    """A whole prompt that `apply_chat_template` rendered, so that `__call__` need not be told; a string otherwise."""

    __slots__ = ()


def is_formatted(text: str) -> bool:
    """Whether this came from `apply_chat_template`, unchanged."""
    return isinstance(text, FormattedPrompt)


def as_texts(value: Any, name: str) -> list[str]:
    """A list of strings; a single string makes a list of one.

    Raises:
        ValueError: for anything else, and for texts that are absurdly long or no Unicode.
    """
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
    texts = list(value) if is_list else [value]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{name} must be a string or a list of strings, got {text!r:.80}.")
        require_readable(text, name)
    return texts


def require_readable(text: str, name: str) -> None:
    """Check that tokenizers can read a text, and that no language model would be too short for it anyway.

    Raises:
        ValueError: with the number of its characters, or the one that no tokenizer reads.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(
            f"{name} has {len(text):,} characters, more than {LONGEST_TEXT:,}; is it the content of a file?"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has half of a character, {text[error.start]!a} at {error.start}; decode it with the encoding "
            "that it was written in."
        ) from error


def as_clips(audio: Any) -> list[Any] | None:
    """A list of clips, or of lists of clips; `None` if there is no audio.

    Raises:
        ValueError: for a number, which would pass for a clip of one sample.
    """
    if audio is None:
        return None
    if isinstance(audio, Real):
        raise ValueError(f"audio must be a clip or a list of clips, got the number {audio!r}.")
    clips = list(audio) if is_batch(audio) else [audio]
    return [flatten(clip) if is_batch(clip) else ([] if clip is None else clip) for clip in clips]


def flatten(clips: Sequence[Any]) -> list[Any]:
    """The clips of all texts in order."""
    return [clip for item in clips for clip in (item if is_batch(item) else [item])]


def assign_clips(clips: Sequence[Any], placeholders: Sequence[int | None], audio_token: str) -> list[int]:
    """How many clips each text has.

    Args:
        clips: one list for each text, or all in a row.
        placeholders: of each whole prompt; `None` for an instruction, whose audio goes in front.
        audio_token: the placeholder, for messages.

    Raises:
        ValueError: if clips and texts or placeholders are not equally many, naming both counts.
    """
    rule = f"the number of {audio_token} tokens in the prompts should be the same as the number of clips"
    if any(is_batch(clip) for clip in clips):
        if len(clips) != len(placeholders):
            raise ValueError(f"Got {len(clips)} lists of clips for {len(placeholders)} texts; pass one list for each.")
        owned = [len(clip) if is_batch(clip) else 1 for clip in clips]
    elif len(placeholders) == 1:
        owned = [len(clips)]
    else:
        owned = [1 if count is None else count for count in placeholders]
        if sum(owned) != len(clips):
            found = sum(count or 0 for count in placeholders)
            raise ValueError(
                f"Cannot tell which of {len(clips)} clips belong to which of {len(placeholders)} texts with {found} "
                f"placeholders: {rule}; or pass one clip or one list of clips for each text."
            )
    for index, (own, count) in enumerate(zip(owned, placeholders, strict=True)):
        if count is not None and own != count:
            raise ValueError(f"Text {index} has {count} audio placeholders but {own} clips: {rule}.")
    return owned


def expand_placeholders(prompts: Sequence[str], counts: Sequence[int], audio_token: str) -> list[str]:
    """Prompts whose placeholders, in order, are repeated once per audio token of their clip."""
    remaining = iter(counts)
    pieces = [prompt.split(audio_token) for prompt in prompts]
    return [first + "".join(audio_token * next(remaining) + piece for piece in others) for first, *others in pieces]


def is_audio(value: Any) -> bool:
    """Whether this, in the place of text, is audio: samples, bytes, a `datasets` value, a file, or a list with such.

    Strings are text, whatever they say.
    """
    if isinstance(value, (list, tuple)):
        is_samples = len(value) > 1 and isinstance(value[0], Real)
        return is_samples or any(is_audio(item) for item in value)
    if isinstance(value, np.ndarray):
        return np.issubdtype(value.dtype, np.number)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return is_media(bytes(value[:MAGIC_BYTES]))  # others are text that was not decoded
    if isinstance(value, (torch.Tensor, Mapping, os.PathLike)):
        return True
    return hasattr(value, "get_all_samples") or hasattr(value, "read")


__all__ = [
    "LONGEST_TEXT",
    "FormattedPrompt",
    "as_clips",
    "as_texts",
    "assign_clips",
    "expand_placeholders",
    "flatten",
    "is_audio",
    "is_formatted",
    "require_readable",
]
