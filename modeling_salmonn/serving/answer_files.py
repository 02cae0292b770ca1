"""Files of answers about many clips: JSON lines, CSV, and subtitles."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from modeling_salmonn.data.clip_files import is_url
from modeling_salmonn.data.files import write_bytes, write_rows


JSONL, CSV, SRT = FORMATS = ("jsonl", "csv", "srt")
COLUMNS = ("path", "question", "answer", "finished", "error")

Row = dict[str, Any]


def format_of(output: Path, name: str | None) -> str:
    """The format of a file: as it is named, or as the suffix tells.

    Raises:
        ValueError: if that is none that there is.
    """
    chosen = name or output.suffix.removeprefix(".").lower()
    if chosen not in FORMATS:
        given = f"--format {name}" if name else f"{output.name} does not end in one"
        raise ValueError(f"Answers are written as {', '.join(FORMATS)}: {given}; give --format.")
    return chosen


def files_of(output: Path, form: str, clips: Sequence[str]) -> list[Path]:
    """The files that will be written: one, but for subtitles of clips in a folder.

    Raises:
        ValueError: if the subtitles of several clips are to go into one file.
    """
    if form != SRT:
        return [output]
    if output.suffix.lower() != f".{SRT}":
        return subtitle_files(clips, output)
    if len(clips) > 1:
        raise ValueError(f"{output} cannot hold the subtitles of {len(clips)} clips; give a folder, and --format srt.")
    return [output]


def require_own_files(files: Sequence[Path], journal: Path) -> None:
    """Refuse to write over files that no earlier call with this journal has written.

    Raises:
        ValueError: naming the first one.
    """
    taken = [file for file in files if file.exists()]
    if taken and not journal.exists():
        raise ValueError(f"{taken[0]} is there already, and not of an earlier call; give another --output.")


def write_answers(files: Sequence[Path], form: str, question: str, answered: Sequence[list[Row]]) -> None:
    """Write the answers in the order of the clips, each file in one step.

    Args:
        files: as `files_of` gives them; that of a clip without subtitles is not written.
        form: `jsonl`, `csv` or `srt`.
        question: what was asked.
        answered: for each clip the rows of its windows, as `ask_clips` returns them.
    """
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    if form == SRT:
        for file, rows in zip(files, answered, strict=True):
            if rows[0]["error"] is None:
                write_bytes(file, as_subtitles(rows).encode())
        return
    rows = [_answer_row(question, row) for (row,) in answered]
    if form == JSONL:
        write_rows(files[0], rows)
    else:
        write_bytes(files[0], _as_csv(rows).encode())


def subtitle_files(clips: Sequence[str], folder: Path) -> list[Path]:
    """A file for each of several clips, in folders as theirs: `talks/a.wav` and `talks/old/a.wav` become `a.srt` and
    `old/a.srt`; `a.wav` beside `a.mp3` keeps its whole name. What has the same name still, such as the clips of two
    servers, is numbered in the order of the clips: `a.srt`, `a.2.srt`."""
    names = _relative_paths(clips)
    stems = Counter(_file_key(name.with_suffix("")) for name in names)
    bases = []
    for name in names:
        stem = name.with_suffix("")
        bases.append(stem if stems[_file_key(stem)] == 1 else name)
    return [folder / f"{base}.{SRT}" for base in _numbered(bases)]


def _relative_paths(clips: Sequence[str]) -> list[Path]:
    """Paths of files from the folder that all of them share, and of URLs from their servers."""
    paths = [_path_of_url(clip) if is_url(clip) else Path(os.path.abspath(clip)) for clip in clips]
    local = [str(path.parent) for path in paths if path.is_absolute()]
    common = os.path.commonpath(local) if local else ""
    return [path.relative_to(common) if path.is_absolute() else path for path in paths]


def _path_of_url(url: str) -> Path:
    """The path on the server, from which no `..` leads out; the server itself, or `data`, where there is none."""
    parts = urlparse(url)
    folders = [] if parts.scheme == "data" else [part for part in parts.path.split("/") if part not in ("", ".", "..")]
    return Path(*folders) if folders else Path(parts.hostname or parts.scheme)


def _numbered(bases: Sequence[Path]) -> list[str]:
    """The names, of which those that are there already get a number."""
    used: set[str] = set()
    numbers: Counter[Path] = Counter()
    names = []
    for base in bases:
        name = str(base)
        while _file_key(name) in used:
            numbers[base] += 1
            name = f"{base}.{numbers[base] + 1}"
        used.add(_file_key(name))
        names.append(name)
    return names


def _file_key(name: str | Path) -> str:
    """The same for names of one file, which on some systems do not differ by their case."""
    return str(name).casefold()


def as_subtitles(rows: Sequence[Row]) -> str:
    """SubRip text of the windows that have an answer, each with its times."""
    cues: list[str] = []
    for row in rows:
        lines = [line for line in row["answer"].splitlines() if line.strip()]  # an empty one would end the cue
        if lines:
            times = f"{_clock(row['start'])} --> {_clock(row['end'])}"
            cues.append("\n".join([str(len(cues) + 1), times, *lines]) + "\n")
    return "\n".join(cues)


def _answer_row(question: str, row: Row) -> Row:
    given = row | {"question": question}
    return {name: given[name] for name in COLUMNS}


def _as_csv(rows: Sequence[Row]) -> str:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _clock(seconds: float) -> str:
    """`01:02:03,456`."""
    milliseconds = round(seconds * 1000)
    whole, rest = divmod(milliseconds, 1000)
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:02}:{minutes_left:02}:{seconds_left:02},{rest:03}"
