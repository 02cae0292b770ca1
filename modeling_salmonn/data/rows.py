"""Rows of training data: our manifests, the research code's annotation files, and whatever `datasets` reads.

A row has `path` (one clip), `text` (the answer) and `task`, and may have `Q` (a question or the value of a field of
the instruction), `prompt` (an explicit instruction), `expand_wav` (clips to join behind the first), `weight`,
`alignment_text`, `alignment_words`, `seconds`, `speaker`, and fields that instructions name, such as `language`.
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, compress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from modeling_salmonn.data.clips import clip_name, joined_seconds
from modeling_salmonn.data.manifest_files import Row, as_table, check_csv, read_manifest, read_numbered
from modeling_salmonn.data.row_checks import CHECKS, SECONDS_COLUMNS, check_row, field_problem, usable_seconds
from modeling_salmonn.data.sources import DataSource
from modeling_salmonn.data.text_files import kind_of, shown


logger = logging.getLogger(__name__)

MANIFEST_SUFFIXES = (".json", ".jsonl")
FILE_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an audio folder
UNDECODED_AUDIO = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
SHUFFLE_BUFFER = 1000  # rows of a stream
AUDIO_COLUMNS = ("path", "audio", "expand_wav")  # of tables, not to be read before they are needed


class Rows(Sequence[Row]):
    """Rows of several sources one after the other; each source stays in Arrow, with columns of its own."""

    def __init__(self, parts: Sequence[tuple[DataSource, datasets.Dataset]]):
        self.parts = list(parts)
        self.known_seconds: list[float | None] | None = None  # of each row, once they have been asked for
        self.ends = list(accumulate(len(table) for _, table in self.parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"There is no row {index} among {len(self)}.")
        part = bisect_right(self.ends, position)
        source, table = self.parts[part]
        return normalise_row(table[position - self.ends[part] + len(table)], source)

    def column(self, name: str, default: Any = None) -> list[Any]:
        """One value of every row, without reading the others."""
        values: list[Any] = []
        for source, table in self.parts:
            given = _column(source, name, table)
            fallback = source.task if name == "task" else default
            found = table[given][:] if given in table.column_names else [None] * len(table)
            values += [fallback if value is None else value for value in found]
        return values

    def seconds(self) -> list[float | None]:
        """Length of each row's audio: from a column, else from the headers of its clips; `None` if neither tells one
        that can be true."""
        if self.known_seconds is None:
            columns = [self.column(name) for name in SECONDS_COLUMNS]
            known = []
            for index, values in enumerate(tqdm(list(zip(*columns, strict=True)), desc="Clip lengths", leave=False)):
                # A row is read, with audio that it may hold, only if no column tells its length.
                told = any(value is not None for value in values)
                known.append(row_seconds(dict(zip(SECONDS_COLUMNS, values, strict=True)) if told else self[index]))
            self.known_seconds = known
        return self.known_seconds

    def select(self, keep: Sequence[bool] | np.ndarray) -> "Rows":
        """The rows that a mask keeps."""
        starts = [0, *self.ends]
        selected = Rows(
            [
                (source, table.select(np.flatnonzero(np.asarray(keep[start:end]))))
                for (source, table), start, end in zip(self.parts, starts, self.ends, strict=False)
            ]
        )
        if self.known_seconds is not None:
            selected.known_seconds = list(compress(self.known_seconds, keep))
        return selected


def load_rows(sources: Sequence[DataSource], max_seconds: float | None = None) -> Rows:
    """Read all rows of the sources.

    Args:
        sources: where they come from; none of them streaming.
        max_seconds: leave out rows that are longer, as `seconds`, `duration` or the headers of their clips say.

    Raises:
        ValueError: if a source is missing, streaming, cannot be read, has no rows, or lacks `text` or `task`.
    """
    streaming = [source.path for source in sources if source.streaming]
    if streaming:
        raise ValueError(f"{streaming} cannot be streamed here, where all rows are needed; set streaming to false.")
    opened = [_open_folder(source) for source in sources]
    rows = Rows([(source, _load_table(source)) for source in opened])
    if max_seconds is not None:
        keep = [seconds is None or seconds <= max_seconds for seconds in rows.seconds()]
        if not all(keep):
            logger.warning("Leaving out %d rows longer than %g s.", keep.count(False), max_seconds)
        rows = rows.select(keep)
    if not len(rows):
        raise ValueError(f"There are no rows in {[source.path for source in sources]}; give data to train on.")
    return rows


def load_stream(source: DataSource, seed: int, epoch: int) -> Iterator[Row]:
    """Rows of a streaming source as they come, shuffled a little and anew in each epoch.

    Raises:
        ValueError: if the source cannot be read, or once a row has a weight or a value that cannot be used.
    """
    source = _open_folder(source)
    table = _load_dataset(source).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    table.set_epoch(epoch)
    return (_without_weight(_checked_row(row, source), source) for row in _streamed(table, source))


def row_clips(row: Mapping[str, Any]) -> list[Any]:
    """The clips of a row that are joined, in their order; none for a row of text alone."""
    return ([row["path"]] if row.get("path") else []) + list(row.get("expand_wav") or [])


def row_seconds(row: Mapping[str, Any]) -> float | None:
    """Length of a row's audio: from a column, else from the headers of its clips; `None` if neither tells one that can
    be true."""
    for name in SECONDS_COLUMNS:
        if row.get(name) is not None:
            return usable_seconds(row[name])
    return usable_seconds(joined_seconds(row_clips(row)))


def normalise_row(row: Mapping[str, Any], source: DataSource) -> Row:
    """A row under our column names, without empty fields, and with paths that can be opened.

    Raises:
        ValueError: if it has no `text` or no `task`.
    """
    renames = {ours: theirs for ours, theirs in source.columns.items() if theirs in row}
    clean = {name: value for name, value in row.items() if name not in {*renames, *renames.values()}}
    clean |= {ours: row[theirs] for ours, theirs in renames.items()}
    clean = {name: value for name, value in clean.items() if value is not None}
    if "path" not in clean and "audio" in clean:
        clean["path"] = clean.pop("audio")
    if source.task is not None:
        clean.setdefault("task", source.task)
    for name in ("text", "task"):
        if not isinstance(clean.get(name), str):
            raise _lacking(name, clean.get(name), clean, source)
    if isinstance(clean.get("expand_wav"), str):  # tables such as CSV hold no lists
        clean["expand_wav"] = [clean["expand_wav"]]
    for name in ("path", "expand_wav"):
        if clean.get(name):
            clean[name] = _locate(clean[name], source)
    return clean


def _streamed(table: Any, source: DataSource) -> Iterator[Row]:
    """The rows of a stream; what goes wrong while they are read is told with the source."""
    rows = iter(table)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # datasets raises many kinds
            raise ValueError(f"{source.path} cannot be read to its end: {_reason(error)}") from error
        yield row


def _checked_row(row: Row, source: DataSource) -> Row:
    check_row(row, f"A row of {source.path}", source.columns)
    return normalise_row(row, source)


def _reason(error: Exception) -> str:
    """What went wrong, where `datasets` says no more than that something did."""
    return " ".join(str(error.__cause__ or error).split())


def _without_weight(row: Row, source: DataSource) -> Row:
    if row.get("weight", 1) != 1:
        raise ValueError(
            f"A row of {source.path} has the weight {row['weight']}, but streamed rows come once each; drop the "
            "weights, or set streaming to false."
        )
    return row


def _lacking(name: str, value: Any, row: Mapping[str, Any], source: DataSource, place: str = "") -> ValueError:
    """What is wrong with a row without a text or a task; its audio is named, not shown."""
    named = {key: clip_name(given) if isinstance(given, Mapping) else given for key, given in row.items()}
    return ValueError(
        f"A row of {source.path} has {name}={shown(value)}: {shown(named)}. Give each row a {name}, or name its "
        "column in the source's columns" + (", or the source a task" if name == "task" else "") + f"{place}."
    )


def _locate(path: Any, source: DataSource) -> Any:
    if isinstance(path, list):
        return [_locate(item, source) for item in path]
    if isinstance(path, Mapping) and path.get("bytes") is None and path.get("path"):
        path = path["path"]  # audio of a table that names a file
    if not isinstance(path, str) or "://" in path or os.path.isabs(path):
        return path
    folder = source.audio_root or (Path(source.path).parent if os.path.isfile(source.path) else ".")
    return os.path.join(folder, path)


def _open_folder(source: DataSource) -> DataSource:
    """The metadata file of an audio folder; other sources as they are."""
    if not os.path.isdir(source.path):
        return source
    folders = (Path(source.path), Path(source.path) / source.split)
    found = [folder / name for folder in folders for name in METADATA_FILES if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{source.path} is no audio folder: it has none of {METADATA_FILES}, which name its clips.")
    return replace(source, path=str(found[0]), columns={"path": "file_name"} | source.columns)


def _load_table(source: DataSource) -> datasets.Dataset:
    if not source.path.endswith(MANIFEST_SUFFIXES):
        table = _load_dataset(source)
        _require_columns(table, source)
        _check_columns(table, source)
        _require_values(table, source, [f"row {index + 1}" for index in range(len(table))])
        return table
    numbered = read_numbered(source.path, source.columns)
    table = as_table(numbered, source.path)
    _require_columns(table, source)
    _require_values(table, source, [f"line {line}" for line, _ in numbered])
    return table


def _needed(source: DataSource) -> list[str]:
    return ["text"] if source.task is not None else ["task", "text"]


def _require_columns(table: datasets.Dataset, source: DataSource) -> None:
    missing = {name for name in _needed(source) if _column(source, name, table) not in table.column_names}
    if missing:
        raise ValueError(
            f"{source.path} has the columns {shown(sorted(table.column_names))} and lacks {sorted(missing)}; name "
            "them in the source's columns, or give the source a task."
        )


def _require_values(table: datasets.Dataset, source: DataSource, places: Sequence[str]) -> None:
    for name in _needed(source):
        values = table[_column(source, name, table)][:]
        first = next((index for index, value in enumerate(values) if not isinstance(value, str)), None)
        if first is not None:
            raise _lacking(name, values[first], table[first], source, f" ({places[first]})")


def _check_columns(table: datasets.Dataset, source: DataSource) -> None:
    """What `check_row` does, column by column: audio within the table is not read for it."""
    for name in [name for name in CHECKS if name not in AUDIO_COLUMNS]:
        given = _column(source, name, table)
        for index, value in enumerate(table[given][:] if given in table.column_names else ()):
            if (problem := field_problem(name, value)) is not None:
                raise ValueError(
                    f"Row {index + 1} of {source.path}: {given} is {shown(value)} ({kind_of(value)}), but {problem}."
                )


def _column(source: DataSource, name: str, table: datasets.Dataset) -> str:
    """What a table calls one of our columns."""
    given = source.columns.get(name, name)
    return given if given in table.column_names else name


def _load_dataset(source: DataSource) -> Any:
    """A file or a Hub data set, with its audio not yet decoded."""
    where: dict[str, Any] = {"path": source.path, "name": source.name}
    if os.path.isfile(source.path):
        suffix = Path(source.path).suffix
        if suffix not in FILE_READERS:
            raise ValueError(f"{source.path} is none of {sorted(FILE_READERS)}; give data in one of these forms.")
        if suffix == ".csv":
            check_csv(source.path)
        where = {"path": FILE_READERS[suffix], "data_files": {source.split: source.path}}
    elif source.path.startswith((".", "/", "~")):
        raise ValueError(f"There is no data at {source.path}; give a manifest, a folder or a Hub id.")
    try:
        table = datasets.load_dataset(**where, split=source.split, streaming=source.streaming)
    except Exception as error:  # datasets raises many kinds
        raise ValueError(f"{source.path} cannot be read as a data set: {_reason(error)}") from error
    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Audio):
            table = table.cast_column(name, UNDECODED_AUDIO)  # its own type wants a decoder even for encoding
    return table


__all__ = ["Row", "Rows", "load_rows", "load_stream", "read_manifest", "row_clips", "row_seconds"]
