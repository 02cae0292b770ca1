"""Files and folders that are there as a whole or not at all, whoever else writes them, and never over those of others.

What is unfinished has a name that no other process gives, on this machine or on one that shares the folder.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replaced_whole(file: Path) -> Iterator[Path]:
    """Give a file to write to beside another, whose place it takes at the end; after an error it is deleted."""
    unfinished = file.with_name(f".{uuid4().hex}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file in one step: it has its old content or the new one at any time."""
    with replaced_whole(file) as unfinished:
        unfinished.write_bytes(content)


def rename_folder(unfinished: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was faster to make the same."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def make_output_folder(folder: Path, marker: str | None = None, written: Sequence[str] = ()) -> None:
    """Make a folder to write to; one that is there may be gone on with if it is ours.

    Args:
        folder: the folder.
        marker: file that tells that it is ours, which is written before all others.
        written: names, or patterns of names, that are written to it.

    Raises:
        ValueError: if it is no folder, or has files of these names but no marker: they would be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one to write to, or a new name.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"The folder {folder} cannot be made ({error.strerror}); give another one.") from error
    if marker is None or (folder / marker).exists():
        return
    taken = sorted(file.name for pattern in written for file in folder.glob(pattern))
    if taken:
        raise ValueError(
            f"{folder} has {', '.join(taken)}, but no {marker}: they are of something else, and would be overwritten; "
            "give another folder."
        )


__all__ = ["make_output_folder", "rename_folder", "replaced_whole", "write_bytes"]
