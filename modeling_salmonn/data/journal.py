"""JSON files that survive an interruption: lines that are appended whole, and objects that are replaced whole."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modeling_salmonn.data.text_files import kind_of, parse_json
from modeling_salmonn.data.whole_files import write_bytes


Kinds = Mapping[str, type | tuple[type, ...]]


class Journal:
    """Rows of a JSON-lines file, each of them on disk before `append` returns.

    A last line that a kill cut off is dropped; others may have been changed by hand.

    Args:
        file: the file; made by the first row, and left as it is before that.
        keys: names of the values that tell rows apart.
        needed: names that each row must have, with the types of their values.

    Raises:
        ValueError: if a whole line is no JSON object, or lacks what is needed, naming it.
    """

    def __init__(self, file: Path, keys: tuple[str, ...] = ("path", "attempt"), needed: Kinds | None = None):
        self.file = file
        self.keys = keys
        self.needed = needed or {}
        self.rows: list[dict[str, Any]] = []
        self._whole: bytes | None = None  # content that takes the place of one with a last line that is cut off
        if file.exists():
            self._read()
        self._known = {self._key(row) for row in self.rows}

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, unless there is one with the same keys."""
        if self._key(row) in self._known:
            return
        if self._whole is not None:
            write_bytes(self.file, self._whole)
            self._whole = None
        with self.file.open("ab") as file:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")  # one write: a line is there or not
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)
        self._known.add(self._key(row))

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in self.keys)

    def _read(self) -> None:
        *lines, last = self.file.read_bytes().split(b"\n")
        self.rows = [self._parse(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
        if not last.strip():
            return
        whole = b"".join(line + b"\n" for line in lines)
        try:
            self.rows.append(self._parse(last, len(lines) + 1))
        except ValueError:
            self._whole = whole
        else:
            self._whole = whole + last + b"\n"

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        name = f"Line {number} of {self.file}"
        try:
            row = parse_json(line.decode("utf-8-sig"), name, strict=False)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8; mend or delete it.") from error
        except ValueError as error:
            raise ValueError(f"{str(error).rstrip('.')}; mend or delete it.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{name} is {kind_of(row)}; it needs to be an object.")
        for key, kinds in self.needed.items():
            if not _is_of(row.get(key), kinds):
                raise ValueError(f"{name} has {kind_of(row.get(key))} as {key!r}; mend or delete it.")
        for key in self.keys:
            if isinstance(row.get(key), (dict, list)):
                raise ValueError(f"{name} has {kind_of(row[key])} as {key!r}; mend or delete it.")
        return row


def _is_of(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not (isinstance(value, bool) and kinds is not bool)


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    write_bytes(file, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines in one step."""
    write_bytes(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


__all__ = ["Journal", "Kinds", "write_bytes", "write_json", "write_rows"]
