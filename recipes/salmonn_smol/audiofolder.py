"""Audio folders made clip by clip: 16 kHz mono Ogg/Opus or FLAC, by the names, and one `metadata.jsonl`.

- a clip is written under a temporary name, renamed, and then its row is noted: a kill loses one clip at most
- a second run makes only what is missing; rows come out in the order of the names
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import typer
from rich.progress import track

from modeling_salmonn.data.files import Journal, claim_folder, replaced_whole, write_rows
from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.waveforms import SAMPLING_RATE


METADATA_FILE, RECIPE_FILE = "metadata.jsonl", "recipe.json"
# FLAC takes ten times the room of Opus and a hundredth of the time to write
FORMATS = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".flac": {"format": "FLAC", "subtype": "PCM_16"}}
SILENCE_PEAK = 1e-3  # a clip that stays below has nothing to hear


@dataclass(frozen=True)
class MadeClip:
    """Audio of shape `(samples,)` at 16 kHz, and its row without `file_name` and `seconds`."""

    audio: np.ndarray
    row: Row


def write_audiofolder(
    folder: Path,
    names: Sequence[str],
    make: Callable[[str], MadeClip | None],
    recipe: Mapping[str, Any],
    jobs: int = 1,
) -> list[Row]:
    """Make the clips that a folder lacks.

    Args:
        folder: the folder.
        names: file names of the clips, relative to the folder.
        make: makes the clip of a name, or returns `None` if there is nothing to hear.
        recipe: what the clip of a name follows from, beside the name; kept in `recipe.json`.
        jobs: clips made at the same time, by threads: libsndfile, soxr and numpy let others run.

    Returns:
        The rows of `metadata.jsonl`, in the order of `names`.

    Raises:
        ValueError: if the folder has clips of another recipe, or of something else.
    """
    claim_folder(folder, RECIPE_FILE, recipe, [METADATA_FILE])  # two recipes are not mixed in one
    journal = _journal_of_files(folder)
    known = {row["file_name"] for row in journal.rows}
    missing = [name for name in names if name not in known]
    write = partial(_write_clip, folder, make)
    with ThreadPool(jobs) as pool:
        for row in track(pool.imap_unordered(write, missing), description=folder.name, total=len(missing)):
            if row is not None:
                journal.append(row)
    made = {row["file_name"]: row for row in journal.rows}
    rows = [made[name] for name in names if name in made]
    write_rows(folder / METADATA_FILE, rows)
    typer.echo(f"{len(rows)} clips in {folder}, of {len(names)} at most")
    return rows


def read_audiofolder(folder: Path) -> list[Row]:
    """Rows of an audio folder, with the absolute `path` of each clip.

    Raises:
        ValueError: If there is none, or one of its lines cannot be used.
    """
    file = folder / METADATA_FILE
    if not file.is_file():
        raise ValueError(f"There is no {file}; give an audiofolder.")
    rows = _open_journal(folder).rows
    return [row | {"path": str(folder.absolute() / row["file_name"])} for row in rows]


def read_audiofolders(folders: Iterable[Path]) -> list[Row]:
    """Rows of several audio folders, one after the other."""
    return [row for folder in folders for row in read_audiofolder(folder)]


def digest_rows(rows: Sequence[Row]) -> str:
    """A number for the clips of some rows, in their order."""
    return digest_texts([f"{row['file_name']} {row['seconds']} {row['text']}" for row in rows])


def digest_texts(texts: Sequence[str]) -> str:
    """A number for some texts, in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _open_journal(folder: Path) -> Journal:
    return Journal(folder / METADATA_FILE, ("file_name",), {"file_name": str})


def _journal_of_files(folder: Path) -> Journal:
    """The journal of a folder, without rows whose files are gone."""
    rows = [row for row in _open_journal(folder).rows if (folder / row["file_name"]).is_file()]
    write_rows(folder / METADATA_FILE, rows)
    return _open_journal(folder)


def _write_clip(folder: Path, make: Callable[[str], MadeClip | None], name: str) -> Row | None:
    """Make one clip and its file; `None` if there is nothing to hear."""
    clip = make(name)
    if clip is None or np.abs(clip.audio).max(initial=0.0) < SILENCE_PEAK:
        return None
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(path) as unfinished:
        soundfile.write(unfinished, clip.audio, SAMPLING_RATE, **FORMATS[path.suffix])
    return {"file_name": name, **clip.row, "seconds": round(len(clip.audio) / SAMPLING_RATE, 3)}
