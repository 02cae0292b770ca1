"""What libsndfile does not know, such as MP4 and WebM, decoded by torchcodec or PyAV where one is installed."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging

from .audio_bytes_salmonn import EncodedFile
from .audio_samples_salmonn import BLOCK_VALUES, AudioTooLongError, Block, check_rate, check_seconds
from .audio_streams_salmonn import MAGIC_BYTES, is_media


logger = logging.get_logger(__name__)

SHOWN_SHARE = 0.05  # of its length that a file lacks: some headers estimate, or count what encoders add at both ends


@dataclass(frozen=True)
class _Opened:
    """What a decoder makes of a file: its length in seconds by the header, if that tells, and its samples."""

    stated_seconds: float | None
    blocks: Iterator[Block]


def decode_otherwise(source: EncodedFile, max_seconds: float | None, failure: str) -> Iterator[Block]:
    """Decode a file by the first decoder that can.

    Args:
        source: the file.
        max_seconds: longer ones are an error.
        failure: why libsndfile cannot.

    Yields:
        Samples `(samples, channels)` in float32 with their rate in Hz.

    Raises:
        ValueError: if none of them can, or it is too long.
    """
    for decoder, open_decoder in _decoders(source):
        try:
            opened = open_decoder(source)
            first = None
            if opened is not None:
                check_seconds(opened.stated_seconds or 0.0, max_seconds, source.name)
                first = next(opened.blocks, None)
        except AudioTooLongError:
            raise
        except Exception as error:  # each decoder has errors of its own
            failure += f"; {decoder}: {error}"
            continue
        if opened is not None and first is not None:
            logger.warning_once(f"libsndfile cannot decode {source.name}; decoded with {decoder} instead.")
            yield from _checked(opened, first, source.name, decoder, max_seconds)
            return
    raise ValueError(
        f"{source.name} cannot be decoded ({failure}). libsndfile rejects some valid Ogg/Opus files and does not know "
        "MP4/AAC: convert the file to WAV or FLAC, or install torchcodec or PyAV, which are tried next."
    )


def other_seconds(source: EncodedFile) -> float | None:
    """Length of a file by the header that these decoders read, else by counting; `None` if they cannot decode it."""
    lengths = (_seconds(open_decoder, source) for _, open_decoder in _decoders(source))
    return next((seconds for seconds in lengths if seconds), None)


def decode_all(decoder: Any, name: str, max_seconds: float | None) -> Block:
    """All that a decoder of torchcodec gives."""
    check_seconds(_stated_seconds(decoder) or 0.0, max_seconds, name)
    decoded = decoder.get_all_samples()
    return Block(decoded.data.numpy().T, check_rate(decoded.sample_rate, name))


def _decoders(source: EncodedFile) -> list[tuple[str, Callable[[EncodedFile], _Opened | None]]]:
    return [("PyAV", _open_av), ("torchcodec", _open_torchcodec)] if is_media(source.at(0, MAGIC_BYTES)) else []


def _seconds(open_decoder: Callable[[EncodedFile], _Opened | None], source: EncodedFile) -> float | None:
    try:
        opened = open_decoder(source)
        if opened is None:
            return None
        counted = (len(block.samples) / block.sampling_rate for block in opened.blocks)
        return opened.stated_seconds or sum(counted)
    except Exception:  # each decoder has errors of its own
        return None


def _checked(opened: _Opened, first: Block, name: str, decoder: str, max_seconds: float | None) -> Iterator[Block]:
    """The blocks of a decoder; where it fails on the way, what it gave so far is kept."""
    block: Block | None = first
    seconds, failure = 0.0, ""
    while block is not None:
        seconds += len(block.samples) / block.sampling_rate
        check_seconds(seconds, max_seconds, name)
        yield block
        try:
            block = next(opened.blocks, None)
        except Exception as error:
            block, failure = None, f"{decoder}: {error}"
    stated = opened.stated_seconds or 0.0
    if stated - seconds > SHOWN_SHARE * stated:
        logger.warning(f"{name} ends early: its header promises {stated:.2f} s, {seconds:.2f} s of them are there.")
    elif failure:
        logger.warning(f"{name} may have been cut after {seconds:.2f} s: {failure}")


def _open_torchcodec(source: EncodedFile) -> _Opened | None:
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, RuntimeError, OSError):  # also where it lacks the FFmpeg libraries it needs
        return None
    decoder = AudioDecoder(_content(source))
    return _Opened(_stated_seconds(decoder), (decode_all(each, source.name, None) for each in [decoder]))


def _stated_seconds(decoder: Any) -> float | None:
    return getattr(getattr(decoder, "metadata", None), "duration_seconds_from_header", None)


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
    count = 0
    failure: Exception | None = None
    with container:
        rate = check_rate(container.streams.audio[0].rate, name)
        frames = container.decode(audio=0)
        while failure is None:
            try:
                frame = next(frames, None)
                new = [part.to_ndarray() for part in resampler.resample(frame)]  # None flushes it
            except Exception as error:
                frame, new, failure = None, [], error
            parts += new
            count += sum(part.size for part in new)
            if parts and (frame is None or count >= BLOCK_VALUES):
                yield Block(np.concatenate(parts, axis=1).T, rate)
                parts, count = [], 0
            if frame is None:
                break
    if failure is not None:
        raise failure


def _content(source: EncodedFile) -> bytes:
    source.file.seek(0)
    return source.file.read(source.size)


__all__ = ["decode_all", "decode_otherwise", "other_seconds"]
