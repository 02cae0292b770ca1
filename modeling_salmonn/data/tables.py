"""The rows of one source as a table: manifests with the line of each row, and whatever else `datasets` reads."""

import csv
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import fsspec
import pyarrow
import pyarrow.compute as compute

from modeling_salmonn.data.clips import clip_name
from modeling_salmonn.data.row_checks import CHECKS, NUMBER_COLUMNS, check_row, field_problem
from modeling_salmonn.data.sources import DataSource
from modeling_salmonn.data.text_files import kind_of, parse_json, parse_json_rows, read_text, shown


Row: TypeAlias = dict[str, Any]

MANIFEST_SUFFIXES = (".json", ".jsonl", ".csv")
FILE_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
UNDECODED_AUDIO = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
AUDIO_COLUMNS = ("path", "audio", "expand_wav")  # of tables, not to be read before they are needed
TEXTS = ("text", "task")
MOST_COLUMNS = 1000  # rows of like form have some ten


class StreamedAudio(datasets.Audio):
    """Audio of a stream that is not decoded; that of audio folders comes as a path or an address on the Hub."""

    def encode_example(self, value: Any) -> Any:
        """`bytes` and `path` of what a row has."""
        if not isinstance(value, str):
            return value
        with fsspec.open(value, "rb") as file:
            return {"bytes": file.read(), "path": value}


@dataclass(frozen=True)
class RowTable:
    """The rows of one source, in Arrow, with columns of their own."""

    source: DataSource
    data: datasets.Dataset
    places: Sequence[int]  # of each row: a line of a manifest or a row of a table
    unit: str  # what the places count

    def __len__(self) -> int:
        return len(self.data)

    def column_of(self, name: str) -> str | None:
        """What the table calls one of our columns; `None` if it has none."""
        candidates = [self.source.columns.get(name)]
        if name not in self.source.columns.values():  # otherwise it holds another one of ours
            candidates.append(name)
        if name == "path":
            candidates.append("audio")
        return next((column for column in candidates if column in self.data.column_names), None)

    def values(self, name: str) -> list[Any]:
        """The values of one of our columns, `None` where there is none."""
        column = self.column_of(name)
        return [None] * len(self) if column is None else self.data[column][:]

    def require(self, needs: Sequence[str]) -> None:
        """Refuse, by a `ValueError`, a table that lacks a column, or has a row without its value."""
        needs = [name for name in needs if name != "task" or self.source.task is None]
        missing = sorted(name for name in needs if self.column_of(name) is None)
        if missing:
            raise ValueError(
                f"{self.source.path} has the columns {shown(sorted(self.data.column_names))} and lacks {missing}; "
                "name them in the source's columns, or give the source a task."
            )
        for name in needs:
            index = self._first_without(name)
            if index is not None:
                row = self.data[index]
                place = f" ({self.unit} {self.places[index]})"
                raise lacking(name, row[self.column_of(name)], row, self.source, place)

    def _first_without(self, name: str) -> int | None:
        """The first row without a value, or with one that is no text where it needs to be; audio is not read."""
        column = self.data.data.column(self.column_of(name))
        is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
        if name in TEXTS and not is_text:  # a column of Arrow has one type
            return 0
        index = compute.index(column.is_null(), True).as_py()
        return None if index < 0 else index


def load_table(source: DataSource) -> RowTable:
    """All rows of a source; a `ValueError` if it cannot be read, or has no rows or a value that cannot be used."""
    if source.path.endswith(MANIFEST_SUFFIXES):  # read here, for the sake of the lines in messages
        numbered = read_numbered(source.path, source.columns)
        return RowTable(source, as_table(numbered, source.path), [line for line, _ in numbered], "line")
    data = load_dataset(source)
    table = RowTable(source, data, range(1, len(data) + 1), "row")
    for name in CHECKS:
        if name not in AUDIO_COLUMNS:
            _check_column(table, name)
    return table


def read_manifest(path: str | os.PathLike) -> list[Row]:
    """Read `.jsonl` with one row a line, `.json` with a list of rows or `{"annotation": [rows]}`, or `.csv`.

    Returns:
        Rows that all have the same keys; `None` where one was not given.

    Raises:
        ValueError: for another form, or a value that cannot be used, naming the line.
    """
    return [row for _, row in read_numbered(path)]


def read_numbered(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> list[tuple[int, Row]]:
    """The rows of a manifest, each with its line; see `read_manifest`. `columns` are as of `check_row`."""
    file = Path(path).expanduser()
    numbered = []
    for index, (line, row) in enumerate(_read_entries(file, columns or {})):
        if not isinstance(row, dict):
            found = kind_of(row)
            raise ValueError(f"Row {index} of {file} is {found}; each row needs to be an object (line {line}).")
        check_row(row, f"Line {line} of {file}", columns)
        numbered.append((line, row))
    keys: dict[str, None] = {}  # a set in the order in which they come
    for _, row in numbered:
        keys |= dict.fromkeys(row)
    if len(keys) > MOST_COLUMNS:
        raise ValueError(f"The rows of {file} have {len(keys)} different keys; give all of them the same few.")
    return [(line, dict.fromkeys(keys) | row) for line, row in numbered]


def as_table(numbered: Sequence[tuple[int, Row]], path: str) -> datasets.Dataset:
    """The rows of a manifest as a table; a column of texts and lists of texts becomes one of lists."""
    if not numbered:
        raise ValueError(f"The manifest {path} has no rows.")
    rows = [dict(row) for _, row in numbered]
    for name in rows[0]:  # all rows have the same keys
        kinds = {type(row[name]) for row in rows} - {type(None)}
        if kinds == {str, list}:  # which Arrow would refuse
            for row in rows:
                row[name] = [row[name]] if isinstance(row[name], str) else row[name]
    try:
        return datasets.Dataset.from_list(rows)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path} has a column of several types ({_mixed_column(numbered) or error}); each column needs one."
        ) from error


def load_dataset(source: DataSource) -> Any:
    """What `datasets` makes of a file or a Hub data set, streaming or not, with its audio not yet decoded."""
    where: dict[str, Any] = {"path": source.path, "name": source.name}
    if os.path.isfile(source.path):
        suffix = Path(source.path).suffix
        if suffix not in FILE_READERS:
            raise ValueError(f"{source.path} is none of {sorted(FILE_READERS)}; give data in one of these forms.")
        where = {"path": FILE_READERS[suffix], "data_files": {source.split: source.path}}
    elif source.path.startswith((".", "/", "~")):
        raise ValueError(f"There is no data at {source.path}; give a manifest, a folder or a Hub id.")
    try:
        table = datasets.load_dataset(**where, split=source.split, streaming=source.streaming)
    except Exception as error:  # datasets raises many kinds
        raise ValueError(f"{source.path} cannot be read as a data set: {reason_of(error)}") from error
    return leave_undecoded(table)


def leave_undecoded(table: Any) -> Any:
    """What `datasets` has loaded, with audio as `bytes` and `path`: its own type needs a decoder even for encoding."""
    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Audio):
            streamed = isinstance(table, datasets.IterableDataset)
            table = table.cast_column(name, StreamedAudio(decode=False) if streamed else UNDECODED_AUDIO)
    return table


def lacking(name: str, value: Any, row: Mapping[str, Any], source: DataSource, place: str = "") -> ValueError:
    """What is wrong with a row without a column that is needed; its audio is named, not shown."""
    named = dict(row)
    for key, given in row.items():
        if isinstance(given, Mapping):
            named[key] = clip_name(given)
    or_task = ", or the source a task" if name == "task" else ""
    return ValueError(
        f"A row of {source.path} has {name}={shown(value)}: {shown(named)}. Give each row a {name}, or name its "
        f"column in the source's columns{or_task}{place}."
    )


def reason_of(error: Exception) -> str:
    """What went wrong, where `datasets` says no more than that something did."""
    return " ".join(str(error.__cause__ or error).split())


def _read_entries(file: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, Any]]:
    """The entries of a manifest, each with its line."""
    content = read_text(file, "manifest")
    if file.suffix == ".csv":
        numbers = {columns.get(name, name) for name in NUMBER_COLUMNS}
        yield from _read_csv(content, file, numbers | set(NUMBER_COLUMNS))
    elif file.suffix == ".jsonl":
        for line, text in enumerate(content.split("\n"), start=1):  # texts may hold other line ends
            if text.strip():
                yield line, parse_json(text, f"line {line} of {file}")
    else:
        yield from parse_json_rows(content, file)


def _read_csv(content: str, file: Path, numbers: Collection[str]) -> list[tuple[int, Row]]:
    """Rows of text; nothing where a field is empty, and numbers in the columns that need them."""
    known_limit = csv.field_size_limit(max(len(content), 1))  # the module's own, 128 KB, is of all readers at once
    reader = csv.DictReader(StringIO(content, newline=""), strict=True)
    numbered = []
    try:
        header = reader.fieldnames or []
        _check_header(header, file)
        for row in reader:
            # DictReader puts what is too much under None, and None for what is missing.
            if None in row or None in row.values():
                raise ValueError(
                    f"Line {reader.line_num} of {file} has not as many fields as the first line has columns, "
                    f"{len(header)}; mend it, with quotes around fields that hold commas."
                )
            values = {name: _csv_value(text, name in numbers) for name, text in row.items()}
            numbered.append((reader.line_num, values))
    except csv.Error as error:
        raise ValueError(f"Line {reader.reader.line_num} of {file} is not CSV ({error}).") from error
    finally:
        csv.field_size_limit(known_limit)
    return numbered


def _check_header(header: Sequence[str], file: Path) -> None:
    double = sorted(name for name, count in Counter(header).items() if count > 1)
    if not header or double:
        problem = f"{shown(double)} more than once" if double else "no columns"
        raise ValueError(f"Line 1 of {file} names {problem}; name each column once.")
    if len(header) > MOST_COLUMNS:
        raise ValueError(f"Line 1 of {file} names {len(header):,} columns; rows have some ten.")


def _csv_value(text: str, is_number: bool) -> str | float | None:
    if not text:
        return None
    if is_number:
        try:
            return float(text)
        except ValueError:
            return text  # which is told when the row is checked
    return text


def _check_column(table: RowTable, name: str) -> None:
    """What `check_row` does, for one column of all rows: audio within the table is not read for it."""
    for number, value in enumerate(table.values(name), start=1):
        problem = field_problem(name, value)
        if problem is not None:
            place = f"Row {number} of {table.source.path}: {table.column_of(name)}"
            raise ValueError(f"{place} is {shown(value)} ({kind_of(value)}), but {problem}.")


def _mixed_column(numbered: Sequence[tuple[int, Row]]) -> str | None:
    """The first value that is of another kind than those before it in its column."""
    first: dict[str, tuple[str, int]] = {}
    for line, row in numbered:
        for name, value in row.items():
            if value is None:
                continue
            kind, known_line = first.setdefault(name, (kind_of(value), line))
            if kind != kind_of(value):
                return f"{name!r} is {kind_of(value)} in line {line}, and {kind} in line {known_line}"
    return None
