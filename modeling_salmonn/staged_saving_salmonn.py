"""Files of a saved folder: writing over them, and reading their JSON. Shared by the model and the processor.

Wherever a save is killed, the folder holds the old files, the new ones, or says that it is mixed:
- new files are written beside the old ones, into a folder within the folder, and reach the disk before anything else
- a mark is set, each new file takes the place of the old one, and the mark is taken away
- loaders refuse a folder with the mark; what fails before it is set (a full disk, say) leaves the old files alone
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


STAGING_FOLDER = ".unfinished_save"
MARK_FILE = "unfinished_save.json"
# Which of them a save writes tells what it saves: a model, a processor, or both.
MAIN_FILES = ("config.json", "processor_config.json")
LFS_HEADER = b"version https://git-lfs.github.com/spec/v1"
MAX_JSON_BYTES = 2**28  # several times the largest tokenizer
MEND = "download or save it again"


@contextmanager
def replace_files(
    folder: str | os.PathLike, is_outdated: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Replace files of a folder by those that the body writes.

    Args:
        folder: created if it does not exist; files that are not written anew stay.
        is_outdated: tells by its name which file of the folder must go when it is not written anew.

    Yields:
        The folder to write the new files to.

    Raises:
        ValueError: if `folder` is a file.
        OSError: if the files cannot be written; until all of them are, the old ones stay as they are.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, but a folder to save to is needed.")
    is_new = not folder.exists()
    staging = folder / STAGING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if staging.exists():  # of a save that was killed
            shutil.rmtree(staging)
        staging.mkdir()
        yield staging
        written = [path for path in staging.rglob("*") if path.is_file()]
        names = sorted(str(path.relative_to(staging)) for path in written)
        outdated = [path.name for path in folder.iterdir() if is_outdated(path.name) and path.name not in names]
        _publish(staging, folder, names, outdated)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # holds files, as it should
                folder.rmdir()


def refuse_unfinished(folder: str | os.PathLike) -> None:
    """Refuse, by a `ValueError`, a folder that holds old and new files together since a save was killed."""
    if os.path.isfile(os.path.join(folder, MARK_FILE)):
        raise ValueError(
            f"{folder} was being saved to when the process ended (it has {MARK_FILE}), so that old and new files are "
            "mixed; save the model and its processor there again, or take another folder."
        )


def check_content(file: Path) -> None:
    """Refuse, by a `ValueError`, a file that is empty or a Git-LFS pointer."""
    with file.open("rb") as opened:
        start = opened.read(len(LFS_HEADER))
    if not start:
        raise ValueError(f"{file} is empty; {MEND}.")
    if start == LFS_HEADER:
        raise ValueError(f"{file} is a Git-LFS pointer, not the content; run `git lfs pull`, or {MEND}.")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        ValueError: if the file is missing, damaged, or holds anything else; names it.
    """
    if not file.is_file():
        raise ValueError(f"There is no file {file}; {MEND}.")
    check_content(file)
    if (size := file.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{file} has {size:,} bytes, more than any such file; {MEND}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}); {MEND}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, but an object is needed; {MEND}.")
    return content


def _publish(staging: Path, folder: Path, names: list[str], outdated: list[str]) -> None:
    for name in names:
        reach_disk(staging / name)
    still_mixed = [name for name in _marked_files(folder) if name in MAIN_FILES and name not in names]
    _mark(staging, folder, [*names, *still_mixed], outdated)
    for name in outdated:
        (folder / name).unlink()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, folder / name)
    for parent in {(folder / name).parent for name in names} | {folder}:
        reach_disk(parent)
    if still_mixed:  # a killed save of the model is not mended by one of the processor, nor the other way round
        _mark(staging, folder, still_mixed, [])
        return
    (folder / MARK_FILE).unlink()
    reach_disk(folder)


def _mark(staging: Path, folder: Path, written: list[str], removed: list[str]) -> None:
    unfinished = staging / MARK_FILE
    unfinished.write_text(json.dumps({"written": written, "removed": removed}, indent=1) + "\n")
    reach_disk(unfinished)
    os.replace(unfinished, folder / MARK_FILE)
    reach_disk(folder)


def _marked_files(folder: Path) -> list[str]:
    """What a save that was killed was about to write; nothing without such a save."""
    try:
        return list(json.loads((folder / MARK_FILE).read_text())["written"])
    except (OSError, ValueError, LookupError, TypeError):
        return []


def reach_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, has been written; some systems cannot for folders."""
    with suppress(PermissionError):  # Windows opens no folders
        number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(number)
        finally:
            os.close(number)
