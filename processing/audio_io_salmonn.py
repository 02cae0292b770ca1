"""Reading audio: whatever a user has, as mono float32 at the rate that the encoders need."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import soxr
import torch

from .audio_bytes_salmonn import EncodedFile
from .audio_decoding_salmonn import decode_all, decode_blocks, encoded_seconds
from .audio_samples_salmonn import MonoMixer, check_rate, check_seconds, check_shape, shorten, to_float, to_mono
from .audio_sources_salmonn import AudioAccess, open_bytes, open_file_object, open_location


UNRESTRICTED = AudioAccess()

Waveform: TypeAlias = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class _Recording:
    """Samples `(samples,)` or `(samples, channels)` that are decoded already, their rate in Hz, and a name."""

    samples: Waveform
    sampling_rate: int
    name: str


def load_mono(
    audio: Any,
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
    source = _open(audio, target_rate if sampling_rate is None else sampling_rate, name, access)
    if isinstance(source, _Recording):
        samples = _recording_to_mono(source, target_rate, channel)
    else:
        with source:
            mixer = MonoMixer(target_rate, channel, source.name)
            for block in decode_blocks(source, access.max_seconds):
                mixer.add(block)
            samples = mixer.result()
    if len(samples) == 0:
        raise ValueError(f"{source.name} is too short to be resampled to {target_rate} Hz.")
    return samples


def audio_seconds(audio: Any, access: AudioAccess = UNRESTRICTED, sampling_rate: int | None = None) -> float | None:
    """Length of a clip in seconds, from headers where these can be trusted; `None` if it is not to be known so.

    Args:
        audio: path, bytes, samples, or a dict with one of these. URLs are not downloaded for it, open files not read
            and decoders not run.
        access: what may be read.
        sampling_rate: rate in Hz of bare samples.
    """
    if hasattr(audio, "get_all_samples") or hasattr(audio, "read"):
        return None
    try:
        source = _open(audio, sampling_rate, "audio", AudioAccess(access.allow_paths, allow_urls=False))
        if isinstance(source, _Recording):
            return len(source.samples) / source.sampling_rate
        with source:
            return encoded_seconds(source)
    except (ValueError, OSError):
        return None


def is_rated(audio: Any) -> bool:
    """Whether this is a pair of samples and their rate in Hz, in either order."""
    if not isinstance(audio, (tuple, list)) or len(audio) != 2:
        return False
    first, second = (_is_number(item) for item in audio)
    samples = audio[1] if first else audio[0]
    return first != second and (isinstance(samples, (np.ndarray, torch.Tensor)) or _is_numbers(samples))


def is_batch(audio: Any) -> bool:
    """Whether this is a list or a column of clips, rather than one clip: a list of numbers, or samples and rate."""
    if not isinstance(audio, Sequence) or isinstance(audio, (str, bytes, bytearray, memoryview)):
        return False
    return not (len(audio) > 0 and isinstance(audio[0], Real)) and not is_rated(audio)


def _open(audio: Any, rate: Any, name: str, access: AudioAccess) -> _Recording | EncodedFile:
    """Samples, or a file of encoded ones; `rate` is that of samples which do not tell theirs."""
    if isinstance(audio, Mapping):
        return _open_mapping(audio, rate, name, access)
    if isinstance(audio, (str, os.PathLike)):
        return open_location(os.fsdecode(audio), name, access)
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return open_bytes(audio, name)
    if hasattr(audio, "read") and not hasattr(audio, "__array__"):
        return open_file_object(audio, name)
    return _as_recording(audio, rate, name, access)


def _open_mapping(audio: Mapping[str, Any], rate: Any, name: str, access: AudioAccess) -> _Recording | EncodedFile:
    path = audio.get("path")
    name = shorten(path) if isinstance(path, (str, os.PathLike)) and str(path) else name
    if audio.get("array") is not None:
        own_rate = audio.get("sampling_rate")
        return _as_recording(audio["array"], rate if own_rate is None else own_rate, name, access)
    for key in ("bytes", "path", "url"):
        source = audio.get(key)
        if source is None:
            continue
        if not isinstance(source, (bytes, bytearray, memoryview) if key == "bytes" else (str, os.PathLike)):
            raise ValueError(f"{name} is a dict whose {key!r} is of the type {type(source).__name__}.")
        return _open(source, rate, name, access)
    keys = sorted(str(key) for key in audio)
    raise ValueError(f"{name} is a dict with the keys {keys}; it needs 'array', 'bytes' or 'path'.")


def _as_recording(audio: Any, rate: Any, name: str, access: AudioAccess) -> _Recording:
    """Samples that are decoded already, whatever holds them."""
    if hasattr(audio, "get_all_samples"):  # a decoder of torchcodec, which `datasets` gives too
        block = decode_all(audio, name, access.max_seconds)
        return _Recording(block.samples, block.sampling_rate, name)
    if hasattr(audio, "sample_rate") and hasattr(audio, "data"):  # what such a decoder returns
        return _as_recording(audio.data, audio.sample_rate, name, access)
    if hasattr(audio, "get_array_of_samples"):  # pydub, whose channels alternate
        samples = np.array(audio.get_array_of_samples()).reshape(-1, audio.channels)
        return _Recording(samples, check_rate(audio.frame_rate, name), name)
    if is_rated(audio):
        samples, rate = audio if _is_number(audio[1]) else reversed(audio)
        return _as_recording(samples, rate, name, access)
    if not isinstance(audio, (np.ndarray, torch.Tensor)):
        try:
            audio = np.asarray(audio)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{name} is of the type {type(audio).__name__} and cannot be read as samples ({error}); give a path, "
                "bytes, or samples with their sampling_rate."
            ) from error
    if audio.ndim == 2 and audio.shape[0] < audio.shape[1]:
        audio = audio.T  # (channels, samples), as torchaudio has it
    rate = check_rate(rate, name)
    check_seconds(len(audio) / rate if audio.ndim else 0.0, access.max_seconds, name)
    return _Recording(audio, rate, name)


def _recording_to_mono(recording: _Recording, target_rate: int, channel: int | None) -> Waveform:
    samples, name = recording.samples, recording.name
    check_shape(tuple(samples.shape), name)  # before anything is copied
    device = None
    if isinstance(samples, torch.Tensor):
        device = samples.device
        samples = samples.detach().cpu()
        if samples.is_floating_point() and samples.itemsize < 4:  # numpy has no bfloat16
            samples = samples.float()
        samples = samples.numpy()
    samples = to_float(samples, name)
    if samples.size == 0:
        raise ValueError(f"{name} is empty: it has no samples.")
    samples = to_mono(samples, channel, name)
    if recording.sampling_rate != target_rate:
        samples = soxr.resample(np.ascontiguousarray(samples), recording.sampling_rate, target_rate)
    return samples if device is None else torch.from_numpy(samples).to(device)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(_is_number(item) for item in value[:2])
