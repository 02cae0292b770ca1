"""Decoding of encoded audio in blocks, up to the end of the file whatever its header says."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
from transformers.utils import logging

from .audio_bytes_salmonn import EncodedFile, Stream
from .audio_samples_salmonn import Block, check_rate, check_seconds
from .audio_streams_salmonn import MAGIC_BYTES, find_streams, is_media


logger = logging.get_logger(__name__)

BLOCK_VALUES = 2**17  # samples of all channels that are decoded at once
MOST_FRAMES = 2**60  # a header with as many samples as this means that it does not know
SHOWN_SECONDS = 0.01  # a file that lacks less of what its header says is not worth a warning


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
    for stream in find_streams(source):
        try:
            sound = _SoundStream(stream, source.name)
        except (soundfile.SoundFileError, RuntimeError) as error:
            if decoded:
                raise ValueError(f"{source.name} cannot be decoded after {decoded:.2f} s: {error}") from error
            yield from _decode_otherwise(source, max_seconds, str(error).split(": ", 1)[-1])
            return
        with sound:
            check_seconds(decoded + (sound.header_seconds or 0.0), max_seconds, source.name)
            for block in sound.blocks():
                decoded += len(block.samples) / block.sampling_rate
                check_seconds(decoded, max_seconds, source.name)
                yield block


def encoded_seconds(source: EncodedFile) -> float | None:
    """Length of a file, by counting where its header does not know; `None` if it cannot be decoded."""
    total = 0.0
    for stream in find_streams(source) if source.size else []:
        try:
            with _SoundStream(stream, source.name) as sound:
                seconds = sound.header_seconds
                if seconds is None:
                    seconds = sum(len(block.samples) / block.sampling_rate for block in sound.blocks())
        except (soundfile.SoundFileError, RuntimeError, ValueError):
            return None
        total += seconds
    return total or None


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
        elif failure or self.stream.ends_openly:
            reason = failure or "the end of its stream is missing"
            logger.warning(f"{self.name} may have been cut after {found:.2f} s: {reason}")


def _count_filled(samples: np.ndarray) -> int:
    """How many rows were decoded before an error: the others are still NaN."""
    filled = np.flatnonzero(~np.isnan(samples[:, 0]))
    return int(filled[-1]) + 1 if len(filled) else 0


def _decode_otherwise(source: EncodedFile, max_seconds: float | None, failure: str) -> Iterator[Block]:
    decoders = (
        (("torchcodec", _decode_torchcodec), ("PyAV", _decode_av)) if is_media(source.at(0, MAGIC_BYTES)) else ()
    )
    for decoder, decode in decoders:
        blocks = decode(source, max_seconds)
        try:
            first = next(blocks, None)
        except Exception as error:  # each decoder has errors of its own
            failure += f"; {decoder}: {error}"
            continue
        if first is not None:
            logger.warning_once(f"libsndfile cannot decode {source.name}; decoded with {decoder} instead.")
            yield first
            yield from _checked(blocks, source.name, decoder, first, max_seconds)
            return
    raise ValueError(
        f"{source.name} cannot be decoded ({failure}). libsndfile rejects some valid Ogg/Opus files and does not know "
        "MP4/AAC: convert the file to WAV or FLAC, or install torchcodec or PyAV, which are tried next."
    )


def _checked(
    blocks: Iterator[Block], name: str, decoder: str, first: Block, max_seconds: float | None
) -> Iterator[Block]:
    """The blocks of a decoder; where it fails on the way, what it gave so far is kept."""
    decoded = len(first.samples) / first.sampling_rate
    check_seconds(decoded, max_seconds, name)
    while True:
        try:
            block = next(blocks, None)
        except Exception as error:
            logger.warning(f"{name} may have been cut after {decoded:.2f} s: {decoder}: {error}")
            return
        if block is None:
            return
        decoded += len(block.samples) / block.sampling_rate
        check_seconds(decoded, max_seconds, name)
        yield block


def _decode_torchcodec(source: EncodedFile, max_seconds: float | None) -> Iterator[Block]:
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, RuntimeError, OSError):  # also where it lacks the FFmpeg libraries it needs
        return
    source.file.seek(0)
    yield decode_all(AudioDecoder(source.file.read(source.size)), source.name, max_seconds)


def decode_all(decoder: Any, name: str, max_seconds: float | None) -> Block:
    """All that a decoder of torchcodec gives."""
    metadata = getattr(decoder, "metadata", None)
    check_seconds(getattr(metadata, "duration_seconds_from_header", None) or 0.0, max_seconds, name)
    decoded = decoder.get_all_samples()
    return Block(decoded.data.numpy().T, check_rate(decoded.sample_rate, name))


def _decode_av(source: EncodedFile, max_seconds: float | None) -> Iterator[Block]:
    try:
        import av
    except ImportError:
        return
    source.file.seek(0)
    content = io.BytesIO(source.file.read(source.size))
    options = {"protocol_whitelist": "none"}  # a container may name other files and addresses
    with av.open(content, mode="r", container_options=options) as container:
        stream = container.streams.audio[0]
        rate = check_rate(stream.rate, source.name)
        check_seconds((container.duration or 0) / av.time_base, max_seconds, source.name)
        resampler = av.AudioResampler(format="fltp")  # one row per channel, float32
        parts: list[np.ndarray] = []
        for frame in container.decode(stream):
            parts += [part.to_ndarray() for part in resampler.resample(frame)]
            if len(parts) * frame.samples * parts[0].shape[0] >= BLOCK_VALUES:
                yield Block(np.concatenate(parts, axis=1).T, rate)
                parts = []
        parts += [part.to_ndarray() for part in resampler.resample(None)]
        if parts:
            yield Block(np.concatenate(parts, axis=1).T, rate)


__all__ = ["decode_all", "decode_blocks", "encoded_seconds"]
