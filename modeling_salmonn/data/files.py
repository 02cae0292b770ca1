"""Files and folders that we write: whole or not there at all, and never over those of others."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from modeling_salmonn.data.text_files import kind_of, parse_json, read_json_object, shown


Kinds = Mapping[str, type | tuple[type, ...]]

MEND = "choose another folder, or delete this one"


@contextmanager
def replaced_whole(file: Path) -> Iterator[Path]:
    """A file to write to beside another, whose place it takes at the end; after an error it is deleted."""
    # A name that no other process takes, on this machine or on one that shares the folder.
    unfinished = file.with_name(f".{uuid4().hex}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, file)  # one step for whoever reads it
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file in one step: it has its old content or the new one at any time."""
    with replaced_whole(file) as unfinished:
        unfinished.write_bytes(content)


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    write_bytes(file, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines in one step."""
    write_bytes(file, b"".join(_line(row) for row in rows))


def rename_folder(unfinished: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was faster to make the same."""
    try:
        unfinished.rename(folder)
    except OSError:  # there is one of this name
        if not folder.is_dir():
            raise


def make_output_folder(folder: Path) -> None:
    """Make a folder to write to, unless there is one; a `ValueError` if it cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one to write to, or a new name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be made ({error.strerror}); give another one.") from error


def claim_folder(folder: Path, file: str, record: Mapping[str, Any], written: Sequence[str] = ()) -> dict[str, Any]:
    """Note in a folder, which is made if need be, what its files are made of; one with the same record is resumed.

    Args:
        folder: the folder.
        file: name of the record, such as `settings.json`.
        record: all that the files depend on, as JSON holds it.
        written: names, or patterns of names, of files that would be overwritten.

    Returns:
        The record as it was found or written; one that was found may have further fields.

    Raises:
        ValueError: if it is no folder, has another record, or has such files but no record.
    """
    make_output_folder(folder)
    if (folder / file).exists():
        found = read_json_object(folder / file, MEND)
        differing = _differences(found, record)
        if differing:
            raise ValueError(f"{folder} holds files of other settings: {', '.join(differing)}; {MEND}.")
        return found
    taken = sorted(path.name for pattern in written for path in folder.glob(pattern))
    if taken:
        raise ValueError(
            f"{folder} has {', '.join(taken)}, but no {file}: they are of something else, and would be overwritten; "
            "choose another folder."
        )
    write_json(folder / file, record)
    return dict(record)


def read_record(file: Path, record: Mapping[str, Any], mend: str) -> dict[str, Any] | None:
    """What an earlier call has noted in a file beside the same record; `None` if there is none, or another record.

    The record is all that the content depends on; `mend` tells what to do with a damaged file, in the `ValueError`.
    """
    if not file.exists():
        return None
    found = read_json_object(file, mend)
    return None if _differences(found, record) else found


def _differences(found: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """In which fields a record that was found differs, with both values; nested ones are compared one by one."""
    differing = []
    for name, value in json.loads(json.dumps(record)).items():  # tuples become lists, as in the file
        theirs = found.get(name)
        if isinstance(value, dict) and isinstance(theirs, dict):
            differing += _differences(theirs, value)
        elif theirs != value:
            differing.append(f"{name} {shown(theirs)} instead of {shown(value)}")
    return differing


class Journal:
    """Rows of a JSON-lines file, each of them on disk before `append` returns.

    A last line that a kill cut off is dropped; others may have been changed by hand, and are refused by a `ValueError`
    if they are no objects.

    Args:
        file: made by the first row, and left as it is before that.
        keys: names of the values that tell rows apart.
        needed: names that each row must have, with the types of their values.
    """

    def __init__(self, file: Path, keys: tuple[str, ...] = ("path", "attempt"), needed: Kinds | None = None):
        self.file = file
        self.keys = keys
        self.needed = needed or {}
        self.rows: list[dict[str, Any]] = []
        self._whole: bytes | None = None  # content that takes the place of one with a last line that is cut off
        if file.exists():
            self._read()
        self.by_key = {self._key(row): row for row in self.rows}

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, unless there is one with the same keys."""
        if self._key(row) in self.by_key:
            return
        if self._whole is not None:
            write_bytes(self.file, self._whole)
            self._whole = None
        with self.file.open("ab") as file:
            file.write(_line(row))  # one write: a line is there or not
            file.flush()
            os.fsync(file.fileno())  # an answer may have taken minutes
        self.rows.append(row)
        self.by_key[self._key(row)] = row

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in self.keys)

    def _read(self) -> None:
        *lines, last = self.file.read_bytes().split(b"\n")
        self.rows = [self._parse(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
        if not last.strip():  # the file ends with a line end, as `append` leaves it
            return
        whole = b"".join(line + b"\n" for line in lines)
        try:
            self.rows.append(self._parse(last, len(lines) + 1))
        except ValueError:
            self._whole = whole
        else:  # an editor took the last line end away
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
        wrong = [key for key, kinds in self.needed.items() if not _is_of(row.get(key), kinds)]
        wrong += [key for key in self.keys if isinstance(row.get(key), (dict, list))]  # which cannot be looked up
        if wrong:
            raise ValueError(f"{name} has {kind_of(row.get(wrong[0]))} as {wrong[0]!r}; mend or delete it.")
        return row


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _is_of(value: Any, kinds: type | tuple[type, ...]) -> bool:
    # To Python, true and false are numbers.
    return isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))
