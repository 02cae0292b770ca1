"""Rows for training, evaluation and activation: our manifests, the research code's annotation files, audio folders,
tables, and Hub data sets.

A row has `path` (one clip), `text` (the answer) and `task`, and may have `Q` (a question or the value of a field of
the instruction), `prompt` (an explicit instruction), `expand_wav` (clips to join behind the first), `references` (all
accepted answers), `weight`, `alignment_text`, `alignment_words`, `seconds`, `speaker`, and fields that instructions
name, such as `language`.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, compress
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from modeling_salmonn.data.clips import joined_seconds
from modeling_salmonn.data.row_checks import SECONDS_COLUMNS, check_row, usable_seconds
from modeling_salmonn.data.sources import DataSource, locate_clip, open_folder, parse_sources
from modeling_salmonn.data.tables import (
    TEXTS,
    Row,
    RowTable,
    lacking,
    load_dataset,
    load_table,
    reason_of,
)


logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 1000  # rows of a stream


class Rows(Sequence[Row]):
    """Rows of several sources one after the other."""

    def __init__(self, tables: Sequence[RowTable]):
        self.tables = list(tables)
        self.known_seconds: list[float | None] | None = None  # of each row, once they have been asked for
        self.ends = list(accumulate(map(len, self.tables)))  # index behind the last row of each table

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        table, position = self._find(index)
        return normalise_row(table.data[position], table.source)

    def place(self, index: int) -> str:
        """Where a row is, for messages."""
        table, position = self._find(index)
        return f"{table.unit} {table.places[position]} of {table.source.path}"

    def column(self, name: str, default: Any = None) -> list[Any]:
        """One value of every row, as it is in its source, without reading the others."""
        values: list[Any] = []
        for table in self.tables:
            fallback = table.source.task if name == "task" else default
            values += [fallback if value is None else value for value in table.values(name)]
        return values

    def seconds(self) -> list[float | None]:
        """The length of each row's audio; see `row_seconds`."""
        if self.known_seconds is None:
            columns = [self.column(name) for name in SECONDS_COLUMNS]
            known = []
            for index in tqdm(range(len(self)), desc="Clip lengths", leave=False):
                told = [column[index] for column in columns if column[index] is not None]
                # A row is read, with audio that it may hold, only if no column tells its length.
                known.append(usable_seconds(told[0]) if told else row_seconds(self[index]))
            self.known_seconds = known
        return self.known_seconds

    def select(self, keep: Sequence[bool] | np.ndarray) -> "Rows":
        """The rows that a mask keeps."""
        tables = []
        start = 0
        for table, end in zip(self.tables, self.ends, strict=True):
            kept = np.flatnonzero(np.asarray(keep[start:end]))
            places = [table.places[index] for index in kept.tolist()]
            tables.append(replace(table, data=table.data.select(kept), places=places))
            start = end
        selected = Rows(tables)
        if self.known_seconds is not None:
            selected.known_seconds = list(compress(self.known_seconds, keep))
        return selected

    def _find(self, index: int) -> tuple[RowTable, int]:
        """The table of a row, and its place in it."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"There is no row {index} among {len(self)}.")
        number = bisect_right(self.ends, position)
        table = self.tables[number]
        return table, position - self.ends[number] + len(table)


def load_rows(sources: Any, needs: Sequence[str] = TEXTS, max_seconds: float | None = None) -> Rows:
    """Read all rows of one or several sources.

    Args:
        sources: as `parse_sources` takes them; none of them streaming.
        needs: columns that every row must have: `text` and `task` to train on, `path` to listen to.
        max_seconds: leave out rows that are longer, as `seconds`, `duration` or the headers of their clips say.

    Raises:
        ValueError: if a source is streaming, cannot be read, has no rows, or lacks what is needed.
    """
    parsed = parse_sources(sources)
    tables = []
    for source in parsed:
        if source.streaming:
            problem = f"{source.path} cannot be streamed here, where all rows are needed"
            raise ValueError(f"{problem}; set streaming to false.")
        table = load_table(open_folder(source))
        table.require(needs)
        tables.append(table)
    rows = Rows(tables)
    if max_seconds is not None:
        keep = [seconds is None or seconds <= max_seconds for seconds in rows.seconds()]
        if not all(keep):
            logger.warning("Leaving out %d rows longer than %g s.", keep.count(False), max_seconds)
        rows = rows.select(keep)
    if not len(rows):
        raise ValueError(f"There are no rows in {[source.path for source in parsed]}; give data.")
    return rows


def load_stream(source: DataSource, seed: int, epoch: int) -> Iterator[Row]:
    """Rows of a streaming source as they come, shuffled a little and anew in each epoch.

    What cannot be used is a `ValueError`, of a row when its turn comes.
    """
    source = open_folder(source)
    if source.path.endswith(".csv"):  # of which datasets would guess types, and accept lines that are cut off
        table: Any = load_table(source).data.to_iterable_dataset()
    else:
        table = load_dataset(source)
    table = table.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    table.set_epoch(epoch)
    return _streamed(iter(table), source)


def row_clips(row: Mapping[str, Any]) -> list[Any]:
    """The clips of a row that are joined, in their order; none for a row of text alone."""
    first = [row["path"]] if row.get("path") else []
    return first + list(row.get("expand_wav") or [])


def row_seconds(row: Mapping[str, Any]) -> float | None:
    """Length of a row's audio: from a column, else from the headers of its clips; `None` if neither tells one that can
    be true."""
    for name in SECONDS_COLUMNS:
        if row.get(name) is not None:
            return usable_seconds(row[name])
    return usable_seconds(joined_seconds(row_clips(row)))


def normalise_row(row: Mapping[str, Any], source: DataSource) -> Row:
    """A row under our column names, without empty fields, and with paths that can be opened."""
    clean = dict(row)
    renames = {ours: theirs for ours, theirs in source.columns.items() if theirs in row}
    for theirs in renames.values():
        clean.pop(theirs, None)
    for ours, theirs in renames.items():  # once all are out of the way: names may have been swapped
        clean[ours] = row[theirs]
    clean = {name: value for name, value in clean.items() if value is not None}
    if "path" not in clean and "audio" in clean:  # as tables call it
        clean["path"] = clean.pop("audio")
    if source.task is not None:
        clean.setdefault("task", source.task)
    if clean.get("path"):
        clean["path"] = _locate(clean["path"], source)
    joined = clean.get("expand_wav")
    if joined:
        clips = [joined] if isinstance(joined, str) else joined  # tables such as CSV hold no lists
        clean["expand_wav"] = [_locate(clip, source) for clip in clips]
    return clean


def _streamed(rows: Iterator[Row], source: DataSource) -> Iterator[Row]:
    """The rows of a stream, each checked; what goes wrong while they are read is told with the source."""
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # datasets raises many kinds
            raise ValueError(f"{source.path} cannot be read to its end: {reason_of(error)}") from error
        check_row(row, f"A row of {source.path}", source.columns)
        clean = normalise_row(row, source)
        for name in TEXTS:
            if not isinstance(clean.get(name), str):
                raise lacking(name, clean.get(name), clean, source)
        if clean.get("weight", 1) != 1:
            raise ValueError(
                f"A row of {source.path} has the weight {clean['weight']}, but streamed rows come once each; drop "
                "the weights, or set streaming to false."
            )
        yield clean


def _locate(clip: Any, source: DataSource) -> Any:
    if isinstance(clip, Mapping) and clip.get("bytes") is None and clip.get("path"):
        clip = clip["path"]  # audio of a table that names a file
    return locate_clip(clip, source.clip_folder) if isinstance(clip, str) else clip
