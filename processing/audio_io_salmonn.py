"""Reading audio: whatever a user has, as mono float32 at the rate that the encoders need."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeAlias
from urllib.request import Request, urlopen

import numpy as np
import soundfile
import soxr
import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

Waveform: TypeAlias = np.ndarray | torch.Tensor
AudioSource: TypeAlias = str | os.PathLike | bytes | Waveform | Mapping[str, Any] | Any

URL_TIMEOUT_SECONDS = 30


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
) -> Waveform:
    """Read one clip as mono float32.

    Args:
        audio: path, `http(s)` URL, encoded bytes, samples (numpy or torch, float or integer PCM, `(samples,)` or 2-D
            with the shorter axis as channels), a `datasets` audio value (dict or decoder), or a list of numbers.
        target_rate: rate in Hz of the result; other rates are resampled by soxr at its high quality.
        sampling_rate: rate in Hz of bare samples; files and `datasets` values carry their own.
        channel: take this channel; `None` averages all channels.
        name: what to call the clip in messages when it has no path.

    Returns:
        Samples `(samples,)` in float32, a torch tensor on its device if one came in, else numpy.

    Raises:
        ValueError: for audio that is empty, undecodable, not finite, or without a valid rate or channel.
    """
    recording = read_recording(audio, target_rate if sampling_rate is None else sampling_rate, name)
    if recording.sampling_rate <= 0:
        raise ValueError(f"{recording.name} has a sampling rate of {recording.sampling_rate} Hz; give a positive one.")
    samples = _to_float(recording)
    if 0 in samples.shape:
        raise ValueError(f"{recording.name} is empty: it has no samples.")
    samples = _to_mono(samples, channel, recording.name)
    if recording.sampling_rate != target_rate:
        samples = _resample(samples, recording.sampling_rate, target_rate)
        if len(samples) == 0:
            raise ValueError(f"{recording.name} is too short to be resampled to {target_rate} Hz.")
    finite = torch.isfinite(samples).all() if isinstance(samples, torch.Tensor) else np.isfinite(samples).all()
    if not finite:
        raise ValueError(f"{recording.name} contains NaN or infinite samples; repair or drop the clip.")
    return samples


def read_recording(audio: AudioSource, sampling_rate: int, name: str = "audio") -> Recording:
    """Decode audio without changing its rate or channels; `sampling_rate` is that of bare samples."""
    if isinstance(audio, (str, os.PathLike)):
        return _read_location(os.fspath(audio))
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return _decode(bytes(audio), name)
    if hasattr(audio, "get_all_samples"):  # the decoder that `datasets` gives
        decoded = audio.get_all_samples()
        return Recording(decoded.data.numpy().T, decoded.sample_rate, name)
    if isinstance(audio, Mapping):
        return _read_mapping(audio, sampling_rate, name)
    samples = audio if isinstance(audio, (np.ndarray, torch.Tensor)) else np.asarray(audio)
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T
    return Recording(samples, sampling_rate, name)


def _read_mapping(audio: Mapping[str, Any], sampling_rate: int, name: str) -> Recording:
    name = str(audio.get("path") or name)
    if audio.get("array") is not None:
        rate = audio.get("sampling_rate")
        return read_recording(audio["array"], sampling_rate if rate is None else int(rate), name)
    if audio.get("bytes") is not None:
        return _decode(audio["bytes"], name)
    for key in ("path", "url"):
        if audio.get(key) is not None:
            return _read_location(os.fspath(audio[key]))
    raise ValueError(f"{name} is a dict with the keys {sorted(audio)}; it needs 'array', 'bytes' or 'path'.")


def _read_location(location: str) -> Recording:
    if location.startswith(("http://", "https://")):
        return _decode(_download(location), location)
    path = Path(location).expanduser()
    if path.is_dir():
        raise ValueError(f"{location} is a folder; give an audio file.")
    if not path.is_file():
        raise ValueError(f"There is no audio file {location}.")
    return _decode(path.read_bytes(), location)


def _download(url: str) -> bytes:
    try:
        request = Request(url, headers={"User-Agent": "modeling-salmonn"})
        with urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            return response.read()
    except (OSError, HTTPException) as error:
        raise ValueError(f"{url} cannot be downloaded: {error}") from error


def _decode(content: bytes, name: str) -> Recording:
    """Decode a file's bytes: libsndfile first, then another decoder if one is installed."""
    if not content:
        raise ValueError(f"{name} is empty: it has no bytes.")
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        return Recording(samples, rate, name)
    except (soundfile.SoundFileError, RuntimeError) as error:
        failure = str(error).split(": ", 1)[-1]
    for decoder, decode in (("torchcodec", _decode_torchcodec), ("PyAV", _decode_av)):
        try:
            recording = decode(content, name)
        except Exception as error:  # each decoder has errors of its own
            failure += f"; {decoder}: {error}"
            continue
        if recording is not None:
            logger.warning_once(f"libsndfile cannot decode {name}; decoded with {decoder} instead.")
            return recording
    raise ValueError(
        f"{name} cannot be decoded ({failure}). libsndfile rejects some valid Ogg/Opus files and does not know "
        "MP4/AAC: convert the file to WAV or FLAC, or install torchcodec or PyAV, which are tried next."
    )


def _decode_torchcodec(content: bytes, name: str) -> Recording | None:
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, RuntimeError, OSError):  # also where it lacks the FFmpeg libraries it needs
        return None
    decoded = AudioDecoder(content).get_all_samples()
    return Recording(decoded.data.numpy().T, decoded.sample_rate, name)


def _decode_av(content: bytes, name: str) -> Recording | None:
    try:
        import av
    except ImportError:
        return None
    resampler = av.AudioResampler(format="fltp")  # one row per channel, float32
    with av.open(io.BytesIO(content), mode="r") as container:
        decoded = [*container.decode(audio=0), None]  # None flushes the resampler
        frames = [part.to_ndarray() for frame in decoded for part in resampler.resample(frame)]
        rate = container.streams.audio[0].rate
    if not frames:
        raise ValueError("no audio frames")
    return Recording(np.concatenate(frames, axis=1).T, rate, name)


def _to_float(recording: Recording) -> Waveform:
    """Float32 samples; integer PCM is scaled to [-1, 1)."""
    samples, name = recording.samples, recording.name
    if samples.ndim not in (1, 2):
        raise ValueError(f"{name} has the shape {tuple(samples.shape)}; give (samples,) or (samples, channels).")
    if isinstance(samples, torch.Tensor):
        if samples.is_floating_point():
            return samples.detach().float()
        return torch.from_numpy(_pcm_to_float(samples.cpu().numpy(), name)).to(samples.device)
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32, copy=False)
    return _pcm_to_float(samples, name)


def _pcm_to_float(samples: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(samples.dtype, np.integer) or samples.dtype.itemsize > 4:
        raise ValueError(
            f"{name} has the dtype {samples.dtype}; give float or integer PCM samples, the latter of 8 to 32 bits."
        )
    limits = np.iinfo(samples.dtype)
    middle = (limits.max + limits.min + 1) // 2  # 128 for unsigned bytes, else 0
    half = (limits.max - limits.min + 1) // 2
    return ((samples.astype(np.float64) - middle) / half).astype(np.float32)


def _to_mono(samples: Waveform, channel: int | None, name: str) -> Waveform:
    if samples.ndim == 1:
        samples = samples[:, None]
    if channel is not None:
        if not 0 <= channel < samples.shape[1]:
            raise ValueError(f"{name} has {samples.shape[1]} channels; there is no channel {channel}.")
        return samples[:, channel]
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(1)


def _resample(samples: Waveform, rate: int, target_rate: int) -> Waveform:
    if isinstance(samples, torch.Tensor):
        resampled = soxr.resample(samples.detach().cpu().numpy(), rate, target_rate)
        return torch.from_numpy(resampled).to(samples.device)
    return soxr.resample(np.ascontiguousarray(samples), rate, target_rate)


__all__ = ["AudioSource", "Recording", "load_mono", "read_recording"]
