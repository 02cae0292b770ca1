"""Audio folders written clip by clip: 16 kHz mono Ogg/Opus or FLAC, by the names, and one `metadata.jsonl`.

- a clip is written under a temporary name, renamed, and then its row is noted: a kill loses one clip at most
- a second run makes only what is missing; rows come out in the order of the names
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.progress import track

from modeling_salmonn.data.files import claim_folder, replaced_whole, write_rows


SAMPLING_RATE = 16_000
METADATA_FILE, UNFINISHED_FILE = "metadata.jsonl", "metadata.jsonl.unfinished"
RECIPE_FILE = "recipe.json"
# FLAC takes ten times the room of Opus and a hundredth of the time to write
FORMATS = {".opus": {"format": "OGG", "subtype": "OPUS"}, ".flac": {"format": "FLAC", "subtype": "PCM_16"}}
SILENCE_PEAK = 1e-3  # a clip that stays below has nothing to hear

Row = dict[str, Any]
_kept_maker: Callable[[str], Row | None] | None = None


@dataclass(frozen=True)
class Clip:
    """Audio of shape `(samples,)` at 16 kHz, and its row without `file_name` and `seconds`."""

    audio: np.ndarray
    row: Row


def write_audiofolder(
    folder: Path,
    names: Sequence[str],
    make: Callable[[str], Clip | None],
    recipe: Mapping[str, Any],
    jobs: int = 1,
    title: str = "Clips",
) -> list[Row]:
    """Make the clips that a folder lacks.

    Args:
        folder (`Path`): The folder.
        names (`Sequence[str]`): File names of the clips, relative to the folder.
        make (`Callable`): Makes the clip of a name, or returns `None` if there is nothing to hear. It must be
            picklable: with several jobs it runs in other processes.
        recipe (`Mapping`): What the clip of a name follows from, beside the name; kept in `recipe.json`.
        jobs (`int`): Processes.
        title (`str`): Label of the progress bar.

    Returns:
        `list[dict]`: The rows of `metadata.jsonl`, in the order of `names`.

    Raises:
        ValueError: If the folder has clips of another recipe.
    """
    keep_recipe(folder, recipe)
    rows = read_rows(folder)
    missing = [name for name in names if name not in rows]
    with (
        (folder / UNFINISHED_FILE).open("a", encoding="utf-8") as notes,
        made_clips(partial(make_clip, folder, make), missing, jobs) as made,
    ):
        for row in track(made, description=title, total=len(missing)):
            if row is not None:
                rows[row["file_name"]] = row
                notes.write(json.dumps(row, ensure_ascii=False) + "\n")
                notes.flush()
    ordered = [rows[name] for name in names if name in rows]
    write_metadata(folder, ordered)
    (folder / UNFINISHED_FILE).unlink(missing_ok=True)  # another process may have finished the same
    return ordered


def keep_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Note what a folder is made of, and refuse to mix two recipes in it.

    Raises:
        ValueError: If the folder has clips of another recipe.
    """
    claim_folder(folder, RECIPE_FILE, recipe, [METADATA_FILE])


def digest_rows(rows: Sequence[Row]) -> str:
    """A number for the clips of some rows, in their order."""
    lines = (f"{row['file_name']} {row['seconds']} {row['text']}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@contextmanager
def made_clips(make: Callable[[str], Row | None], names: Sequence[str], jobs: int) -> Iterator[Iterator[Row | None]]:
    """The rows of clips as they are made, one by one or in several processes."""
    if jobs == 1:
        yield map(make, names)
        return
    with multiprocessing.Pool(jobs, _keep_maker, (make,)) as pool:
        yield pool.imap_unordered(_call_kept_maker, names, chunksize=4)


def _keep_maker(make: Callable[[str], Row | None]) -> None:
    """Hand a process its maker once: with each name it would be pickled anew, and makers hold all rows."""
    global _kept_maker
    _kept_maker = make


def _call_kept_maker(name: str) -> Row | None:
    assert _kept_maker is not None
    return _kept_maker(name)


def make_clip(folder: Path, make: Callable[[str], Clip | None], name: str) -> Row | None:
    """Make one clip and its file; `None` if there is nothing to hear."""
    clip = make(name)
    if clip is None or np.abs(clip.audio).max(initial=0.0) < SILENCE_PEAK:
        return None
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_whole(path) as unfinished:
        soundfile.write(unfinished, clip.audio, SAMPLING_RATE, **FORMATS[path.suffix])
    row = {"file_name": name, **clip.row, "seconds": round(len(clip.audio) / SAMPLING_RATE, 3)}
    first = ("file_name", "kind", "text", "seconds")
    return {key: row[key] for key in (*first, *(key for key in row if key not in first))}


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows that a folder has, finished or not, of clips whose files are there."""
    rows: dict[str, Row] = {}
    for file in (folder / METADATA_FILE, folder / UNFINISHED_FILE):
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill cut off
                continue
            if isinstance(row, dict) and (folder / str(row.get("file_name"))).is_file():
                rows[row["file_name"]] = row
    return rows


def write_metadata(folder: Path, rows: Sequence[Row]) -> None:
    """Write `metadata.jsonl` in one step."""
    write_rows(folder / METADATA_FILE, rows)


def read_clip(path: str, dtype: str = "float32") -> np.ndarray:
    """Samples `(samples,)` of a clip of an audio folder."""
    samples, rate = soundfile.read(path, dtype=dtype)
    assert rate == SAMPLING_RATE, path
    return samples


def tilt(audio: np.ndarray, amount: float) -> np.ndarray:
    """Make a sound brighter (amount above 0) or duller (below 0) by a first-order filter."""
    shifted = np.concatenate([audio[:1], audio[:-1]])
    return audio - amount * shifted


def fit_peak(audio: np.ndarray, peak: float) -> np.ndarray:
    """Scale audio so that its loudest sample has this magnitude."""
    return (audio * (peak / max(float(np.abs(audio).max(initial=0.0)), 1e-9))).astype(np.float32)


def trim_silence(audio: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Cut the quiet ends of a clip: what stays below a fraction of the loudest sample."""
    loud = np.flatnonzero(np.abs(audio) > threshold * np.abs(audio).max(initial=0.0))
    return audio[loud[0] : loud[-1] + 1] if len(loud) else audio[:0]


def fade_out(audio: np.ndarray, seconds: float = 0.05) -> np.ndarray:
    """Let the end of a clip fade, so that a cut makes no click."""
    length = min(len(audio), round(seconds * SAMPLING_RATE))
    faded = audio.astype(np.float32)
    if length:
        faded[-length:] *= np.linspace(1.0, 0.0, length, dtype=np.float32)
    return faded
