"""What the columns of a row may hold: told when rows are read, with file and line, not hours later in a batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from modeling_salmonn.data.text_files import kind_of, shown
from modeling_salmonn.processing.audio_segments_salmonn import LONGEST_CLIP_SECONDS
from modeling_salmonn.processing.prompt_texts_salmonn import LONGEST_TEXT


SECONDS_COLUMNS = ("seconds", "duration")
NUMBER_COLUMNS = ("weight", *SECONDS_COLUMNS)
CLIP_COLUMNS = ("path", "audio")
TEXT_COLUMNS = ("text", "task", "prompt", "alignment_text", "alignment_words")
FIELDS_OF_PROMPTS = ("question", "language", "slots", "transcript", "caption", "story", "qa")


def check_row(row: Mapping[str, Any], place: str, columns: Mapping[str, str] | None = None) -> None:
    """Refuse, by a `ValueError`, a row with a value that cannot be used: with place, column and what is needed.

    Args:
        row: as it was read; columns that are not ours may hold anything, and ours may be missing or `None`.
        place: where it is, for the message: `Line 3 of rows.jsonl`.
        columns: our name of a column to its name in the row.
    """
    for name in CHECKS:
        given = (columns or {}).get(name, name)
        key = given if given in row else name  # some rows may have our own name, and win less
        problem = field_problem(name, row.get(key))
        if problem is not None:
            raise ValueError(f"{place}: {key} is {shown(row[key])} ({kind_of(row[key])}), but {problem}.")


def field_problem(name: str, value: Any) -> str | None:
    """What a value of one of our columns needs to be instead; `None` if it can be used or there is none."""
    return None if value is None or name not in CHECKS else CHECKS[name](value)


def usable_seconds(seconds: Any) -> float | None:
    """A length that plans can be made with; `None` for one that is unknown, absurd or no number."""
    is_usable = seconds is not None and _seconds_problem(seconds) is None
    return float(seconds) if is_usable else None


def is_number(value: Any) -> bool:
    """Whether a value is a number; truth values are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number_problem(value: Any) -> str | None:
    if not is_number(value) or not math.isfinite(value) or value < 0:
        return "it needs a finite number that is not negative"
    return None


def _seconds_problem(value: Any) -> str | None:
    problem = _number_problem(value)
    if problem is not None:
        return f"{problem}, the length in seconds"
    if value > LONGEST_CLIP_SECONDS:
        return "it needs the length in seconds, of a day at most: no frames, samples or milliseconds"
    return None


def _text_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return "it needs text"
    if len(value) > LONGEST_TEXT:
        return f"it needs text of at most {LONGEST_TEXT:,} characters, and has {len(value):,}"
    return None if _is_encodable(value) else "it has half of a surrogate pair, which is no character; mend the text"


def _prompt_field_problem(value: Any) -> str | None:
    return _text_problem(value) if isinstance(value, str) else None  # of others, numbers alone are filled in


def _text_or_number_problem(value: Any) -> str | None:
    return None if is_number(value) else _text_problem(value)


def _clip_problem(value: Any) -> str | None:
    if isinstance(value, list):
        return "it needs one clip; name further clips, to be joined to it, in expand_wav"
    if isinstance(value, Mapping):
        return None  # audio of a table
    if not isinstance(value, str):
        return "it needs the path of a clip"
    if not value.strip() or "\0" in value or not _is_encodable(value):
        return "it needs the path of a clip; leave it out, or null, for text alone"
    return None


def _clips_problem(value: Any) -> str | None:
    clips = [value] if isinstance(value, str) else value
    if not isinstance(clips, list):
        return "it needs a list of paths"
    return next(filter(None, map(_clip_problem, clips)), None)


def _references_problem(value: Any) -> str | None:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        return "it needs text or a list of texts"
    return None


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Columns that are missing here, such as the fields of a task of the user's own, may hold anything.
CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    **dict.fromkeys(CLIP_COLUMNS, _clip_problem),
    "expand_wav": _clips_problem,
    **dict.fromkeys(TEXT_COLUMNS, _text_problem),
    **dict.fromkeys(FIELDS_OF_PROMPTS, _prompt_field_problem),
    "references": _references_problem,
    "Q": _text_or_number_problem,
    "speaker": _text_or_number_problem,
    "weight": _number_problem,
    **dict.fromkeys(SECONDS_COLUMNS, _seconds_problem),
}
