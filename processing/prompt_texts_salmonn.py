"""Which texts are whole prompts, which are instructions, and which clips belong to each."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from .audio_io_salmonn import is_batch
from .audio_streams_salmonn import MAGIC_BYTES, is_media


LONGEST_TEXT = 1_000_000  # characters, more than any language model reads; tokenizers take seconds for them
# Written into text from users where it spells a token of the vocabulary: invisible, and no longer that token.
ZERO_WIDTH_SPACE = "\u200b"


class FormattedPrompt(str):
    """A whole prompt that `apply_chat_template` rendered, so that `__call__` need not be told; a string otherwise."""

    __slots__ = ()


def is_formatted(text: str) -> bool:
    """Whether this came from `apply_chat_template`, unchanged."""
    return isinstance(text, FormattedPrompt)


def is_list(value: Any) -> bool:
    """Whether this is a sequence of values, and neither text nor bytes."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def as_texts(value: Any, name: str) -> list[str]:
    """A list of strings; a single string makes a list of one.

    Raises:
        ValueError: for anything else, and for texts that are absurdly long or no Unicode.
    """
    texts = list(value) if is_list(value) else [value]
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


def escape_tokens(text: str, tokens: Iterable[str]) -> str:
    """Text in which none of the tokens is spelled out.

    Args:
        text: of a user.
        tokens: those that must not come from it; white space among them is taken as it is, since it means no more.
    """
    for token in sorted(tokens, key=len, reverse=True):  # the longest first: a shorter one may be a part of it
        is_white_space = token.replace("▁", " ").isspace()  # SentencePiece writes blanks so
        if len(token) > 1 and not is_white_space:
            text = text.replace(token, token[0] + ZERO_WIDTH_SPACE + token[1:])
    return text


def as_clips(audio: Any) -> tuple[list[Any], list[int] | None]:
    """Clips in a row, and how many each text has where there is a list for each (see `as_row`).

    Raises:
        ValueError: for a number, which would pass for a clip of one sample.
    """
    if isinstance(audio, Real):
        raise ValueError(f"audio must be a clip or a list of clips, got the number {audio!r}.")
    return as_row([] if audio is None else audio, is_batch)


def as_row(values: Any, is_several: Callable[[Any], bool]) -> tuple[list[Any], list[int] | None]:
    """Values in a row, which came one for each text or, for some of them, in a list for each.

    Args:
        values: one, a list of them, or a list of lists, in which `None` is an empty one.
        is_several: tells a list of values from one.

    Returns:
        The values, and how many of them each text has; `None` if there was no list, so that this is open.
    """
    row: list[Any] = []
    owned: list[int] = []
    has_lists = False
    for item in values if is_several(values) else [values]:
        if item is None or is_several(item):
            has_lists = True
            before = len(row)
            for member in item or []:  # which may be lists again, as columns of data sets have them
                row += member if is_several(member) else [member]
            owned.append(len(row) - before)
        else:
            row.append(item)
            owned.append(1)
    return row, owned if has_lists else None


def assign_clips(
    num_clips: int, owned: Sequence[int] | None, placeholders: Sequence[int | None], audio_token: str
) -> Sequence[int]:
    """How many clips each text has.

    Args:
        num_clips: of all texts.
        owned: of each text, if there was a list for each.
        placeholders: of each whole prompt; `None` for an instruction, whose audio goes in front.
        audio_token: the placeholder, for messages.

    Raises:
        ValueError: if clips and texts or placeholders are not equally many, naming both counts.
    """
    rule = f"the number of {audio_token} tokens in the prompts should be the same as the number of clips"
    if owned is not None:
        if len(owned) != len(placeholders):
            raise ValueError(f"Got {len(owned)} lists of clips for {len(placeholders)} texts; pass one list for each.")
    elif len(placeholders) == 1:
        owned = [num_clips]
    else:
        owned = [1 if count is None else count for count in placeholders]  # an instruction asks about one clip
        if sum(owned) != num_clips:
            found = sum(count or 0 for count in placeholders)
            raise ValueError(
                f"Cannot tell which of {num_clips} clips belong to which of {len(placeholders)} texts with {found} "
                f"placeholders: {rule}; or pass one clip or one list of clips for each text."
            )
    for index, (own, count) in enumerate(zip(owned, placeholders, strict=True)):
        if count is not None and own != count:
            raise ValueError(f"Text {index} has {count} audio placeholders but {own} clips: {rule}.")
    return owned


def is_audio(value: Any) -> bool:
    """Whether this, in the place of text, is audio: samples, bytes, a `datasets` value, a file, or a list with such.

    Strings are text, whatever they say.
    """
    if isinstance(value, (list, tuple)):
        is_samples = len(value) > 1 and isinstance(value[0], Real)  # one number is a text that is none
        return is_samples or any(is_audio(item) for item in value)
    if isinstance(value, np.ndarray):
        return np.issubdtype(value.dtype, np.number)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return is_media(bytes(value[:MAGIC_BYTES]))  # others are text that was not decoded
    if isinstance(value, (torch.Tensor, Mapping, os.PathLike)):
        return True
    return hasattr(value, "get_all_samples") or hasattr(value, "read")
