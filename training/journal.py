"""JSON files that survive an interruption: lines that are appended whole, and objects that are replaced whole."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """Rows of a JSON-lines file, each of them on disk before `append` returns.

    A last line that a kill cut off is dropped; others may have been changed by hand.

    Args:
        file: the file; made by the first row.
        keys: names of the values that tell rows apart.

    Raises:
        ValueError: if a whole line is no JSON object, naming it.
    """

    def __init__(self, file: Path, keys: tuple[str, ...] = ("path", "attempt")):
        self.file = file
        self.keys = keys
        self.rows: list[dict[str, Any]] = []
        if file.exists():
            self._read()
        self._known = {self._key(row) for row in self.rows}

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, unless there is one with the same keys."""
        if self._key(row) in self._known:
            return
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
            write_bytes(self.file, whole)
        else:
            write_bytes(self.file, whole + last + b"\n")

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"Line {number} of {self.file} is not JSON ({error}); mend or delete it.") from error
        if not isinstance(row, dict):
            raise ValueError(f"Line {number} of {self.file} is a {type(row).__name__}; it needs to be an object.")
        return row


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    write_bytes(file, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines in one step."""
    write_bytes(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file in one step: it has its old content or the new one at any time."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_bytes(content)
    os.replace(unfinished, file)


__all__ = ["Journal", "write_bytes", "write_json", "write_rows"]
