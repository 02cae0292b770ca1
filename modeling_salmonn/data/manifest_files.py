"""Manifests as files: JSON lines, JSON lists, and CSV, checked line by line."""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow

from modeling_salmonn.data.row_checks import check_row
from modeling_salmonn.data.text_files import kind_of, parse_json, parse_json_rows, read_text, shown


Row: TypeAlias = dict[str, Any]

MOST_COLUMNS = 1000  # rows of like form have some ten


def read_manifest(path: str | os.PathLike) -> list[Row]:
    """Read `.jsonl` with one row a line, or `.json` with a list of rows or `{"annotation": [rows]}`.

    Returns:
        Rows that all have the same keys; `None` where one was not given.

    Raises:
        ValueError: if the file is missing or not of that form, or a row has a value that cannot be used, naming the
            line.
    """
    return [row for _, row in read_numbered(path)]


def read_numbered(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> list[tuple[int, Row]]:
    """The rows of a manifest, each with the line where it begins.

    Args:
        path: as for `read_manifest`.
        columns: our name of a column to its name in the rows.
    """
    file = Path(path).expanduser()
    content = read_text(path, "manifest")
    entries = _read_lines(content, file) if file.suffix == ".jsonl" else parse_json_rows(content, file)
    numbered = []
    for index, (line, row) in enumerate(entries):
        if not isinstance(row, dict):
            found = kind_of(row)
            raise ValueError(f"Row {index} of {file} is {found}; each row needs to be an object (line {line}).")
        check_row(row, f"Line {line} of {file}", columns)
        numbered.append((line, row))
    keys = list(dict.fromkeys(key for _, row in numbered for key in row))
    if len(keys) > MOST_COLUMNS:
        raise ValueError(f"The rows of {file} have {len(keys)} different keys; give all of them the same few.")
    return [(line, {key: row.get(key) for key in keys}) for line, row in numbered]


def as_table(numbered: list[tuple[int, Row]], path: str) -> datasets.Dataset:
    """The rows of a manifest as a table.

    Raises:
        ValueError: if there are none, or a column has values of several types.
    """
    if not numbered:
        raise ValueError(f"The manifest {path} has no rows.")
    try:
        return datasets.Dataset.from_list([row for _, row in numbered])
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path} has a column of several types ({_mixed_column(numbered) or error}); each column needs one."
        ) from error


def check_csv(path: str) -> None:
    """Make sure that a table can be read as it is meant.

    Raises:
        ValueError: if it is empty or in another encoding, has a column twice, or a line of another length.
    """
    text = read_text(path, "table")
    known_limit = csv.field_size_limit(max(len(text), 1))
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = next(reader, [])
        double = sorted(name for name, count in Counter(header).items() if count > 1)
        if not header or double:
            problem = f"{shown(double)} more than once" if double else "no columns"
            raise ValueError(f"Line 1 of {path} names {problem}; name each column once.")
        if len(header) > MOST_COLUMNS:
            raise ValueError(f"Line 1 of {path} names {len(header):,} columns; rows have some ten.")
        for fields in reader:
            if fields and len(fields) != len(header):
                raise ValueError(
                    f"Line {reader.line_num} of {path} has {len(fields)} fields, but the first line names "
                    f"{len(header)} columns; mend it, with quotes around fields that hold commas."
                )
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} of {path} is not CSV ({error}).") from error
    finally:
        csv.field_size_limit(known_limit)


def _read_lines(content: str, file: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(content.split("\n"), start=1):  # texts may hold other line ends
        if line.strip():
            yield number, parse_json(line, f"line {number} of {file}")


def _mixed_column(numbered: list[tuple[int, Row]]) -> str | None:
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


__all__ = ["Row", "as_table", "check_csv", "read_manifest", "read_numbered"]
