"""Decoding of encoded audio in blocks, up to the end of the file whatever its header says."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
from transformers.utils import logging

from .audio_bytes_salmonn import EncodedFile, Stream
from .audio_other_decoders_salmonn import decode_otherwise, other_seconds
from .audio_samples_salmonn import BLOCK_VALUES, SHOWN_SECONDS, Block, check_rate, check_seconds
from .audio_streams_salmonn import find_streams


logger = logging.get_logger(__name__)

MOST_FRAMES = 2**60  # a header with as many samples as this means that it does not know


def decode_blocks(source: EncodedFile, max_seconds: float | None = None) -> Iterator[Block]:
    """Decode a file: libsndfile first, then another decoder if one is installed.

    Args:
        source: the file.
        max_seconds: longer ones are an error, found by the header where it tells, else on the way.

    Yields:
        Samples `(samples, channels)` in float32 with their rate in Hz, which may change where streams are joined.

    Raises:
        ValueError: if it is empty, too long, or none of the decoders knows it.
    """
    if source.size == 0:
        raise ValueError(f"{source.name} is empty: it has no bytes.")
    decoded = 0.0
    is_told = False
    for stream in find_streams(source):
        try:
            sound = _SoundStream(stream, source.name)
        except (soundfile.SoundFileError, RuntimeError) as error:
            if decoded:
                if not is_told:
                    logger.warning(f"{source.name} goes on after {decoded:.2f} s, but that cannot be decoded: {error}")
                is_told = True
                continue
            failure = str(error).split(": ", 1)[-1]
            yield from decode_otherwise(source, max_seconds, failure)
            return
        with sound:
            check_seconds(decoded + (sound.header_seconds or 0.0), max_seconds, source.name)
            for block in sound.blocks():
                decoded += len(block.samples) / block.sampling_rate
                check_seconds(decoded, max_seconds, source.name)
                yield block


def encoded_seconds(source: EncodedFile) -> float | None:
    """Length of a file, by counting where its header does not know; `None` if it cannot be decoded."""
    if source.size == 0:
        return None
    return sum(_stream_seconds(stream, source.name) for stream in find_streams(source)) or other_seconds(source)


def _stream_seconds(stream: Stream, name: str) -> float:
    """Length of one stream, 0 if libsndfile cannot decode it."""
    try:
        with _SoundStream(stream, name) as sound:
            if sound.header_seconds is not None and sound.has_last_sample():
                return sound.header_seconds
        with _SoundStream(stream, name) as sound:
            return sum(len(block.samples) / block.sampling_rate for block in sound.blocks())
    except (soundfile.SoundFileError, RuntimeError, ValueError):
        return 0.0


class _UnseekableFile(soundfile.SoundFile):
    """A file that is read from start to end: soundfile seeks after each block else, which blurs MP3 at the seams."""

    def seekable(self) -> bool:
        return False


class _SoundStream:
    """One stream that libsndfile decodes."""

    def __init__(self, stream: Stream, name: str):
        self.stream = stream
        self.name = name
        stream.content.seek(0)
        self.file = _UnseekableFile(stream.content)
        self.rate = check_rate(self.file.samplerate, name)
        frames = stream.frames if stream.frames is not None else self.file.frames
        self.frames = frames if frames < MOST_FRAMES else None

    def __enter__(self) -> "_SoundStream":
        return self

    def __exit__(self, *args: Any) -> None:
        self.file.close()

    @property
    def header_seconds(self) -> float | None:
        return None if self.frames is None else self.frames / self.rate

    def has_last_sample(self) -> bool:
        """Whether the samples are there that the header promises; of the other formats they are counted already."""
        if self.file.format != "FLAC" or not self.frames:
            return True
        try:
            self.file.seek(self.frames - 1)
            return len(self.file.read(1)) == 1
        except soundfile.SoundFileError:
            return False

    def blocks(self) -> Iterator[Block]:
        """All blocks; what is missing of what the header says is logged."""
        block_frames = max(1, BLOCK_VALUES // self.file.channels)
        decoded, failure = 0, ""
        while not failure and (self.frames is None or decoded < self.frames):
            count = block_frames if self.frames is None else min(block_frames, self.frames - decoded)
            samples = np.full((count, self.file.channels), np.nan, np.float32)
            try:
                read = len(self.file.read(out=samples))
            except soundfile.SoundFileError as error:
                failure = str(error)
                read = _count_filled(samples)
            if read == 0:
                break
            decoded += read
            yield Block(samples[:read], self.rate)
        self._report(decoded, failure)

    def _report(self, decoded: int, failure: str) -> None:
        if not decoded and failure:
            raise ValueError(f"{self.name} cannot be decoded ({failure}); its samples are damaged.")
        found = decoded / self.rate
        stated = self.stream.stated_ratio * (decoded if self.frames is None else self.frames) / self.rate
        if stated - found > SHOWN_SECONDS:
            logger.warning(
                f"{self.name} ends early: its header promises {stated:.2f} s, {found:.2f} s of them are there."
            )
        elif self.stream.unread_bytes:
            logger.warning(
                f"{self.name} goes on for {self.stream.unread_bytes} bytes behind the {stated:.2f} s that its header "
                "promises, which are not read; correct the header if they are sound."
            )
        elif failure or self.stream.ends_openly:
            reason = failure or "the end of its stream is missing"
            logger.warning(f"{self.name} may have been cut after {found:.2f} s: {reason}")


def _count_filled(samples: np.ndarray) -> int:
    """How many rows were decoded before an error: the others are still NaN."""
    filled = np.flatnonzero(~np.isnan(samples[:, 0]))
    return int(filled[-1]) + 1 if len(filled) else 0


__all__ = ["decode_blocks", "encoded_seconds"]
