"""Reading audio: whatever a user has, as mono float32 at the rate that the encoders need."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import soxr
import torch

from .audio_bytes_salmonn import EncodedFile
from .audio_decoding_salmonn import decode_blocks, encoded_seconds
from .audio_other_decoders_salmonn import decode_all
from .audio_samples_salmonn import (
    Block,
    MonoMixer,
    Waveform,
    check_rate,
    check_seconds,
    resample,
    shorten,
    to_float,
    to_mono,
)
from .audio_sources_salmonn import AudioAccess, open_bytes, open_file_object, open_location


UNRESTRICTED = AudioAccess()

AudioSource: TypeAlias = str | os.PathLike | bytes | Waveform | Mapping[str, Any] | Any


@dataclass(frozen=True)
class Recording:
    """Decoded samples `(samples,)` or `(samples, channels)`, their rate in Hz, and a name for messages."""

    samples: Waveform
    sampling_rate: int
    name: str


def load_mono(
    audio: AudioSource,
    target_rate: int,
    sampling_rate: int | None = None,
    channel: int | None = None,
    name: str = "audio",
    access: AudioAccess = UNRESTRICTED,
) -> Waveform:
    """Read one clip as mono float32.

    Args:
        audio: path, `file:`, `http:`, `https:` or `data:` URL, base64, encoded bytes, an open file, samples (numpy or
            torch, float or integer PCM, `(samples,)` or 2-D with the shorter axis as channels), these with their rate
            in Hz as a pair in either order, a `datasets` audio value (dict or decoder), a decoder or its samples of
            torchcodec, a segment of pydub, or a list of numbers.
        target_rate: rate in Hz of the result; other rates are resampled by soxr at its high quality.
        sampling_rate: rate in Hz of bare samples; all that carry their own keep it.
        channel: take this channel; `None` averages all channels.
        name: what to call the clip in messages when it has no path.
        access: what may be read, and how long a clip may be.

    Returns:
        Samples `(samples,)` in float32, a torch tensor on its device if one came in, else numpy.

    Raises:
        ValueError: for audio that is empty, undecodable, too long, not finite, not allowed, out of the range of
            floats, or without a valid rate or channel.
    """
    rate = target_rate if sampling_rate is None else sampling_rate
    with _opened(audio, rate, name, access) as opened:
        if isinstance(opened, Recording):
            return _recording_to_mono(opened, target_rate, channel, access)
        mixer = MonoMixer(target_rate, channel, opened.name)
        is_empty = True
        for block in decode_blocks(opened, access.max_seconds):
            mixer.add(block)
            is_empty = False
        samples = mixer.result()
        _check_not_empty(samples, is_empty, opened.name, target_rate)
        return samples


def read_recording(
    audio: AudioSource, sampling_rate: int, name: str = "audio", access: AudioAccess = UNRESTRICTED
) -> Recording:
    """Decode audio without changing its rate or channels; `sampling_rate` is that of bare samples.

    Where streams with different rates or channels are joined, the later ones get those of the first.
    """
    with _opened(audio, sampling_rate, name, access) as opened:
        if isinstance(opened, Recording):
            return opened
        blocks = list(decode_blocks(opened, access.max_seconds))
        if not blocks:
            raise ValueError(f"{opened.name} is empty: it has no samples.")
        rate, channels = blocks[0].sampling_rate, blocks[0].samples.shape[1]
        parts = [_with_format(block, rate, channels, opened.name) for block in blocks]
        return Recording(parts[0] if len(parts) == 1 else np.concatenate(parts), rate, opened.name)


def audio_seconds(audio: AudioSource, access: AudioAccess = UNRESTRICTED) -> float | None:
    """Length of encoded audio in seconds, from headers where these can be trusted; `None` if it cannot be decoded.

    Args:
        audio: path, bytes, or a dict with one of these; URLs are not downloaded for it.
        access: what may be read.
    """
    try:
        with _opened(audio, 1, "audio", AudioAccess(access.allow_paths, allow_urls=False)) as opened:
            return None if isinstance(opened, Recording) else encoded_seconds(opened)
    except (ValueError, OSError):
        return None


def is_rated(audio: Any) -> bool:
    """Whether this is a pair of samples and their rate in Hz, in either order."""
    if not isinstance(audio, (tuple, list)) or len(audio) != 2:
        return False
    first, second = (_is_number(item) for item in audio)
    samples = audio[1] if first else audio[0]
    return first != second and (isinstance(samples, (np.ndarray, torch.Tensor)) or _is_numbers(samples))


@contextmanager
def _opened(
    audio: AudioSource, sampling_rate: int, name: str, access: AudioAccess
) -> Iterator[Recording | EncodedFile]:
    """Samples, or a file of encoded ones that is open meanwhile."""
    if isinstance(audio, Mapping):
        with _opened_mapping(audio, sampling_rate, name, access) as opened:
            yield opened
    elif isinstance(audio, (str, os.PathLike)):
        with open_location(os.fsdecode(audio), name, access) as file:
            yield file
    elif isinstance(audio, (bytes, bytearray, memoryview)):
        with open_bytes(audio, name) as file:
            yield file
    elif hasattr(audio, "read") and not hasattr(audio, "__array__"):
        with open_file_object(audio, name) as file:
            yield file
    else:
        yield _as_recording(audio, sampling_rate, name, access)


@contextmanager
def _opened_mapping(
    audio: Mapping[str, Any], sampling_rate: int, name: str, access: AudioAccess
) -> Iterator[Recording | EncodedFile]:
    path = audio.get("path")
    name = shorten(path) if isinstance(path, (str, os.PathLike)) and str(path) else name
    if audio.get("array") is not None:
        rate = audio.get("sampling_rate")
        yield _as_recording(audio["array"], sampling_rate if rate is None else rate, name, access)
        return
    for key in ("bytes", "path", "url"):
        source = audio.get(key)
        if source is not None:
            is_right = isinstance(source, (bytes, bytearray, memoryview) if key == "bytes" else (str, os.PathLike))
            if not is_right:
                raise ValueError(f"{name} is a dict whose {key!r} is of the type {type(source).__name__}.")
            with _opened(source, sampling_rate, name, access) as opened:
                yield opened
            return
    keys = sorted(str(key) for key in audio)
    raise ValueError(f"{name} is a dict with the keys {keys}; it needs 'array', 'bytes' or 'path'.")


def _as_recording(audio: Any, rate: Any, name: str, access: AudioAccess) -> Recording:
    """Samples that are decoded already, whatever holds them."""
    if hasattr(audio, "get_all_samples"):  # a decoder of torchcodec, which `datasets` gives too
        block = decode_all(audio, name, access.max_seconds)
        return Recording(block.samples, block.sampling_rate, name)
    if hasattr(audio, "sample_rate") and hasattr(audio, "data"):  # what such a decoder returns
        return _as_recording(audio.data, audio.sample_rate, name, access)
    if hasattr(audio, "get_array_of_samples"):  # pydub
        samples = np.array(audio.get_array_of_samples()).reshape(-1, audio.channels)
        return Recording(samples, check_rate(audio.frame_rate, name), name)
    if is_rated(audio):
        samples, rate = audio if _is_number(audio[1]) else reversed(audio)
        return _as_recording(samples, rate, name, access)
    if not isinstance(audio, (np.ndarray, torch.Tensor)):
        audio = _as_array(audio, name)
    if audio.ndim == 2 and audio.shape[0] < audio.shape[1]:
        audio = audio.T
    rate = check_rate(rate, name)
    check_seconds(len(audio) / rate if audio.ndim else 0.0, access.max_seconds, name)
    return Recording(audio, rate, name)


def _as_array(audio: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(audio)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{name} is of the type {type(audio).__name__} and cannot be read as samples ({error}); give a path, "
            "bytes, or samples with their sampling_rate."
        ) from error


def _recording_to_mono(recording: Recording, target_rate: int, channel: int | None, access: AudioAccess) -> Waveform:
    samples = to_float(recording.samples, recording.name)
    _check_not_empty(samples, 0 in samples.shape, recording.name, target_rate)
    samples = to_mono(samples, channel, recording.name)
    if recording.sampling_rate != target_rate:
        samples = resample(samples, recording.sampling_rate, target_rate)
    _check_not_empty(samples, False, recording.name, target_rate)
    return samples


def _check_not_empty(samples: Waveform, is_empty: bool, name: str, target_rate: int) -> None:
    if is_empty:
        raise ValueError(f"{name} is empty: it has no samples.")
    if len(samples) == 0:
        raise ValueError(f"{name} is too short to be resampled to {target_rate} Hz.")


def _with_format(block: Block, rate: int, channels: int, name: str) -> np.ndarray:
    samples = block.samples
    if samples.shape[1] != channels:
        samples = np.repeat(to_mono(samples, None, name)[:, None], channels, axis=1)
    if block.sampling_rate == rate:
        return samples
    return soxr.resample(np.ascontiguousarray(samples), block.sampling_rate, rate)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(_is_number(item) for item in value[:2])


__all__ = [
    "AudioAccess",
    "AudioSource",
    "Recording",
    "Waveform",
    "audio_seconds",
    "check_rate",
    "is_rated",
    "load_mono",
    "read_recording",
]
