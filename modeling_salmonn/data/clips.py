"""Reading clips for training: one that cannot be read is reported by its name and replaced, up to a limit."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from modeling_salmonn.data.mixing import JOIN_SECONDS
from modeling_salmonn.processing.audio_io_salmonn import audio_seconds
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, SalmonnFeatureExtractor


logger = logging.getLogger(__name__)

USUAL_SECONDS = 10.0  # of clips whose length is not known
HASH_DIGITS = 12  # of a clip's bytes, in its name


class UnreadableClipError(Exception):
    """A clip that has been reported and is to be replaced: it cannot be read, or is too long."""


class BadClips:
    """Names of the clips that could not be read, in a file that all processes and resumed runs share.

    The file has `name <tab> reason` in each line; without one, names are kept in memory.
    """

    def __init__(self, limit: int, file: Path | None = None):
        self.limit = limit  # of different clips
        self.file = file
        self.names: set[str] = set()  # that this process has met

    def report(self, name: str, reason: object) -> None:
        """Note a bad clip; a `ValueError` if there are more than the limit by now."""
        if name in self.names:
            return
        self.names.add(name)
        shown = [_printable(part) for part in (name, reason)]
        logger.warning("Skipping the clip %s: %s", *shown)
        known = self.names if self.file is None else self._list(self.file, *shown)
        if len(known) > self.limit:
            where = f" (listed in {self.file})" if self.file else ""
            raise ValueError(
                f"{len(known)} clips cannot be read{where}, more than max_bad_clips {self.limit}; the last one is "
                f"{shown[0]}: {shown[1]}. Repair or drop them, or raise the limit."
            )

    def _list(self, file: Path, name: str, reason: str) -> set[str]:
        """Add a clip to the file, and return the names in it."""
        file.parent.mkdir(parents=True, exist_ok=True)
        # Workers come upon the same clip at the same time: only one of them may find it missing here.
        with (
            FileLock(file.with_name(f".{file.name}.lock")),
            file.open("a+", encoding="utf-8", errors="replace") as lines,
        ):
            lines.seek(0)
            names = {line.split("\t")[0] for line in lines.read().splitlines()}
            if name not in names:
                lines.write(f"{name}\t{reason}\n")
        return names | {name}


def _printable(part: object) -> str:
    """On one line and in UTF-8: names of files may have any bytes and marks."""
    line = " ".join(str(part).split())
    return line.encode("utf-8", errors="backslashreplace").decode("utf-8")


class ClipReader:
    """Reads clips as mono samples at the encoders' rate; clips beyond `max_seconds` are left out, but not bad."""

    def __init__(self, extractor: SalmonnFeatureExtractor, bad_clips: BadClips, max_seconds: float | None = None):
        self.extractor = extractor
        self.bad_clips = bad_clips
        self.max_seconds = max_seconds
        self.too_long: set[str] = set()

    def read(self, clip: Any) -> np.ndarray:
        """Samples `(samples,)` of a path or of what `datasets` gives.

        Raises:
            UnreadableClipError: if it cannot be read, or is too long; it has been reported.
            ValueError: if it is one too many that cannot be read.
        """
        name = clip_name(clip)
        if name in self.bad_clips.names or name in self.too_long:
            raise UnreadableClipError(name)
        try:
            samples = self.extractor.fetch_audio(clip)
        except (ValueError, OSError) as error:  # damaged or missing, also on its way over the network
            self.bad_clips.report(name, error)
            raise UnreadableClipError(name) from error
        seconds = len(samples) / SAMPLING_RATE
        if self.max_seconds is not None and seconds > self.max_seconds:
            self.too_long.add(name)  # to be told once
            told = f"it lasts {seconds:.1f} s, more than max_audio_seconds {self.max_seconds:g}"
            logger.warning("Leaving out the clip %s: %s.", name, told)
            raise UnreadableClipError(name)
        return samples


class CachedClips:
    """Stands in for a `ClipReader` where a feature cache has the clips: knows the bad ones, and reads nothing."""

    def __init__(self, bad_clips: BadClips):
        self.bad_clips = bad_clips

    def read(self, clip: Any) -> None:
        """Nothing, or an `UnreadableClipError` if the cache could not read it either."""
        if clip_name(clip) in self.bad_clips.names:
            raise UnreadableClipError(clip_name(clip))


def clip_name(clip: Any) -> str:
    """What to call a clip: its path; one in memory also has a hash of its bytes, since paths in tables recur."""
    path, content = _path_and_bytes(clip)
    name = "a clip without a path" if path is None else str(path)
    return name if content is None else f"{name}#{hashlib.sha256(content).hexdigest()[:HASH_DIGITS]}"


def header_seconds(clip: Any) -> float | None:
    """Length of a clip in a file or in memory, `None` if it cannot be read.

    It comes from the header where this can be trusted, otherwise from its frames or samples; see `audio_seconds`.
    """
    path, content = _path_and_bytes(clip)
    if content is None and not isinstance(path, str):
        return None
    return audio_seconds(path if content is None else {"path": path, "bytes": content})


def joined_seconds(clips: Sequence[Any]) -> float | None:
    """Length of clips that are joined, `None` if there are none or one has no header that can be read."""
    total = JOIN_SECONDS * (len(clips) - 1)  # the silence between them
    for clip in clips:
        seconds = header_seconds(clip)
        if seconds is None:
            return None
        total += seconds
    return total if clips else None


def _path_and_bytes(clip: Any) -> tuple[Any, bytes | None]:
    """Both of what `datasets` gives; a path has no bytes."""
    if isinstance(clip, Mapping):
        return clip.get("path"), clip.get("bytes")
    return clip, None
