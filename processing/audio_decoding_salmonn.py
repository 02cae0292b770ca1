"""Decoding of encoded audio in blocks, up to the end of the file whatever its header says.

libsndfile decodes what it knows; PyAV or torchcodec, where one is installed, the rest, such as MP4 and WebM.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import soundfile
from transformers.utils import logging

from .audio_bytes_salmonn import EncodedFile, Stream
from .audio_samples_salmonn import BLOCK_VALUES, AudioTooLongError, Block, check_rate, check_seconds
from .audio_streams_salmonn import MAGIC_BYTES, find_streams, is_media


logger = logging.get_logger(__name__)

MOST_FRAMES = 2**60  # a header with as many samples as this means that it does not know
SHOWN_SECONDS = 0.01  # a file that lacks less of what its header says is not worth a warning
# The same as a share of the length, for other decoders: some headers estimate, or count what encoders add at the ends.
SHOWN_SHARE = 0.05


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
    decoded = 0.0  # seconds
    is_told = False
    for stream in find_streams(source):
        try:
            sound = _SoundStream(stream, source.name)
        except (soundfile.SoundFileError, RuntimeError) as error:
            if not decoded:
                yield from _decode_otherwise(source, max_seconds, str(error).split(": ", 1)[-1])
                return
            if not is_told:
                logger.warning(f"{source.name} goes on after {decoded:.2f} s, but that cannot be decoded: {error}")
                is_told = True
            continue
        with sound:
            check_seconds(decoded + (sound.header_seconds or 0.0), max_seconds, source.name)
            for block in sound.blocks():
                decoded += block.seconds
                check_seconds(decoded, max_seconds, source.name)
                yield block


def encoded_seconds(source: EncodedFile) -> float | None:
    """Length of a file, by counting where its header does not know; `None` if it cannot be decoded."""
    if source.size == 0:
        return None
    seconds = sum(_stream_seconds(stream, source.name) for stream in find_streams(source))
    return seconds or _other_seconds(source)


def decode_all(decoder: Any, name: str, max_seconds: float | None) -> Block:
    """All samples of a decoder of torchcodec."""
    check_seconds(_stated_seconds(decoder) or 0.0, max_seconds, name)
    decoded = decoder.get_all_samples()
    return Block(decoded.data.numpy().T, check_rate(decoded.sample_rate, name))


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
        frames = self.file.frames if stream.frames is None else stream.frames
        self.frames = frames if frames < MOST_FRAMES else None
        self.header_seconds = None if self.frames is None else self.frames / self.rate

    def __enter__(self) -> "_SoundStream":
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()

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
                # libsndfile does not say how many it had decoded: the others are still NaN.
                failure = str(error)
                filled = np.flatnonzero(~np.isnan(samples[:, 0]))
                read = int(filled[-1]) + 1 if len(filled) else 0
            if read == 0:
                break
            decoded += read
            yield Block(samples[:read], self.rate)
        self._report(decoded, failure)

    def _report(self, decoded: int, failure: str) -> None:
        if not decoded and failure:
            raise ValueError(f"{self.name} cannot be decoded ({failure}); its samples are damaged.")
        found = decoded / self.rate
        stated = self.stream.stated_ratio * (found if self.header_seconds is None else self.header_seconds)
        if stated - found > SHOWN_SECONDS:
            _warn_of_early_end(self.name, stated, found)
        elif self.stream.unread_bytes:
            logger.warning(
                f"{self.name} goes on for {self.stream.unread_bytes} bytes behind the {stated:.2f} s that its header "
                "promises, which are not read; correct the header if they are sound."
            )
        elif failure or self.stream.ends_openly:
            _warn_of_cut(self.name, found, failure or "the end of its stream is missing")


def _stream_seconds(stream: Stream, name: str) -> float:
    """Length of one stream, 0 if libsndfile cannot decode it."""
    try:
        with _SoundStream(stream, name) as sound:
            if sound.header_seconds is not None and sound.has_last_sample():
                return sound.header_seconds
        with _SoundStream(stream, name) as sound:  # from its start again
            return sum(block.seconds for block in sound.blocks())
    except (soundfile.SoundFileError, RuntimeError, ValueError):
        return 0.0


def _warn_of_early_end(name: str, stated: float, found: float) -> None:
    logger.warning(f"{name} ends early: its header promises {stated:.2f} s, {found:.2f} s of them are there.")


def _warn_of_cut(name: str, found: float, reason: str) -> None:
    logger.warning(f"{name} may have been cut after {found:.2f} s: {reason}")


@dataclass(frozen=True)
class _Opened:
    """What another decoder makes of a file: its length in seconds by the header, if that tells, and its samples."""

    stated_seconds: float | None
    blocks: Iterator[Block]


_Open: TypeAlias = Callable[[EncodedFile], _Opened | None]  # `None` where the decoder is not installed


def _decode_otherwise(source: EncodedFile, max_seconds: float | None, failure: str) -> Iterator[Block]:
    """Decode a file that libsndfile cannot, by the first decoder that can; `failure` says why libsndfile cannot."""
    for decoder, open_decoder in _decoders(source):
        try:
            opened = open_decoder(source)
            if opened is None:
                continue
            check_seconds(opened.stated_seconds or 0.0, max_seconds, source.name)
            first = next(opened.blocks, None)
        except AudioTooLongError:
            raise
        except Exception as error:  # each decoder has errors of its own
            failure += f"; {decoder}: {error}"
            continue
        if first is not None:
            logger.warning_once(f"libsndfile cannot decode {source.name}; decoded with {decoder} instead.")
            yield from _checked(opened, first, source.name, decoder, max_seconds)
            return
    raise ValueError(
        f"{source.name} cannot be decoded ({failure}). libsndfile rejects some valid Ogg/Opus files and does not know "
        "MP4/AAC: convert the file to WAV or FLAC, or install torchcodec or PyAV, which are tried next."
    )


def _decoders(source: EncodedFile) -> list[tuple[str, _Open]]:
    return [("PyAV", _open_av), ("torchcodec", _open_torchcodec)] if is_media(source.at(0, MAGIC_BYTES)) else []


def _checked(opened: _Opened, first: Block, name: str, decoder: str, max_seconds: float | None) -> Iterator[Block]:
    """The blocks of a decoder; where it fails on the way, what it returned so far is kept."""
    seconds, failure = 0.0, ""
    try:
        for block in chain([first], opened.blocks):
            seconds += block.seconds
            check_seconds(seconds, max_seconds, name)
            yield block
    except AudioTooLongError:
        raise
    except Exception as error:
        failure = f"{decoder}: {error}"
    stated = opened.stated_seconds or 0.0
    if stated - seconds > SHOWN_SHARE * stated:
        _warn_of_early_end(name, stated, seconds)
    elif failure:
        _warn_of_cut(name, seconds, failure)


def _other_seconds(source: EncodedFile) -> float | None:
    """Length of a file by the header that these decoders read, else by counting; `None` if they cannot decode it."""
    for _, open_decoder in _decoders(source):
        with suppress(Exception):  # each decoder has errors of its own
            opened = open_decoder(source)
            if opened is None:
                continue
            seconds = opened.stated_seconds or sum(block.seconds for block in opened.blocks)
            if seconds:
                return seconds
    return None


def _open_av(source: EncodedFile) -> _Opened | None:
    try:
        import av
    except ImportError:
        return None
    # A container may name other files and addresses, which are not to be opened.
    container = av.open(io.BytesIO(_content(source)), mode="r", container_options={"protocol_whitelist": "none"})
    stated = container.duration / av.time_base if container.duration else None
    return _Opened(stated, _av_blocks(container, av.AudioResampler(format="fltp"), source.name))


def _av_blocks(container: Any, resampler: Any, name: str) -> Iterator[Block]:
    """Samples of the first stream with sound; what was decoded before an error comes before it is raised."""
    parts: list[np.ndarray] = []  # each (channels, samples)
    failure: Exception | None = None
    with container:
        rate = check_rate(container.streams.audio[0].rate, name)
        try:
            for frame in chain(container.decode(audio=0), [None]):  # the last one flushes the resampler
                parts += [part.to_ndarray() for part in resampler.resample(frame)]
                if sum(part.size for part in parts) >= BLOCK_VALUES:
                    yield Block(np.concatenate(parts, axis=1).T, rate)
                    parts = []
        except Exception as error:
            failure = error
        if parts:
            yield Block(np.concatenate(parts, axis=1).T, rate)
    if failure is not None:
        raise failure


def _open_torchcodec(source: EncodedFile) -> _Opened | None:
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, RuntimeError, OSError):  # also where it lacks the FFmpeg libraries it needs
        return None
    decoder = AudioDecoder(_content(source))
    return _Opened(_stated_seconds(decoder), _torchcodec_blocks(decoder, source.name))


def _torchcodec_blocks(decoder: Any, name: str) -> Iterator[Block]:
    yield decode_all(decoder, name, None)  # once its stated length has been checked


def _stated_seconds(decoder: Any) -> float | None:
    return getattr(getattr(decoder, "metadata", None), "duration_seconds_from_header", None)


def _content(source: EncodedFile) -> bytes:
    source.file.seek(0)
    return source.file.read(source.size)
