"""Samples of audio: checked, scaled to [-1, 1), mixed to mono and resampled, in blocks or all at once."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import soxr
import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

Waveform: TypeAlias = np.ndarray | torch.Tensor

LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000  # Hz
LARGEST_FLOAT = (
    8.0  # 18 dB over full scale: decoders of lossy audio overshoot by far less, mistaken scales by far more
)
LARGEST_INT16 = 32767
MOST_CHANNELS = 1024  # as many as libsndfile reads
LONGEST_SECONDS = 6 * 3600  # where no limit is set: 1.4 GB of samples at 16 kHz
BLOCK_VALUES = 2**17  # samples of all channels that are decoded at once
SHOWN_SECONDS = 0.01  # a file that lacks less of what its header says is not worth a warning
SHOWN_CHARACTERS = 120  # of a name in a message


@dataclass(frozen=True)
class Block:
    """Decoded samples `(samples, channels)` and their rate in Hz."""

    samples: np.ndarray
    sampling_rate: int


class AudioTooLongError(ValueError):
    """A clip is longer than the limit."""


def check_rate(rate: Any, name: str) -> int:
    """A sampling rate in Hz as a whole number.

    Raises:
        ValueError: if it is none, or none that audio has.
    """
    is_number = isinstance(rate, Real) and not isinstance(rate, (bool, np.bool_))
    # compared before it is made a float, which very large whole numbers do not become
    if not is_number or rate != rate or abs(rate) == math.inf or rate != int(rate):
        raise ValueError(f"{name} has a sampling rate of {rate!r}; give a whole number of Hz, such as 16000.")
    if rate <= 0:
        raise ValueError(f"{name} has a sampling rate of {rate} Hz; give a positive one.")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(
            f"{name} has a sampling rate of {rate} Hz; audio has one between {LOWEST_RATE} and {HIGHEST_RATE} Hz."
        )
    return int(rate)


def check_seconds(seconds: float, max_seconds: float | None, name: str) -> None:
    """Compare the length of a clip with the limit, or with what is sensible if there is none.

    Raises:
        AudioTooLongError: if it is longer.
    """
    limit = LONGEST_SECONDS if max_seconds is None else max_seconds
    if seconds > limit:
        raise AudioTooLongError(
            f"{name} lasts {seconds:.1f} s, more than max_audio_seconds {limit}; cut it or raise the limit."
        )


def shorten(name: object) -> str:
    """A name that fits into a message."""
    text = str(name)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def to_float(samples: Waveform, name: str) -> Waveform:
    """Float32 samples; integer PCM is scaled to [-1, 1).

    Raises:
        ValueError: for samples of another shape or type, and for floats that are not finite or out of range.
    """
    if samples.ndim not in (1, 2):
        raise ValueError(f"{name} has the shape {tuple(samples.shape)}; give (samples,) or (samples, channels).")
    if samples.ndim == 2 and samples.shape[1] > MOST_CHANNELS:
        raise ValueError(
            f"{name} has {samples.shape[1]} channels by its shape {tuple(samples.shape)}, more than {MOST_CHANNELS}; "
            "give (samples, channels), and several clips as a list."
        )
    if isinstance(samples, torch.Tensor):
        if samples.is_floating_point():
            check_level(samples.detach(), name)
            return samples.detach().float()
        return torch.from_numpy(_pcm_to_float(samples.cpu().numpy(), name)).to(samples.device)
    if np.issubdtype(samples.dtype, np.floating):
        check_level(samples, name)
        return samples.astype(np.float32, copy=False)
    return _pcm_to_float(samples, name)


def check_level(samples: Waveform, name: str) -> None:
    """Check that samples are finite and can be meant as [-1, 1]; those of decoders go somewhat beyond.

    Raises:
        ValueError: if not.
    """
    if 0 in samples.shape:
        return
    peak = max(float(samples.max()), -float(samples.min()))
    if not math.isfinite(peak):
        raise ValueError(f"{name} contains NaN or infinite samples; repair or drop the clip.")
    if peak > LARGEST_FLOAT:
        raise ValueError(
            f"{name} has float samples up to {peak:.6g}, but floats are read as [-1, 1]. "
            "Divide them by the full scale (32768 if they are 16-bit values), or pass them as int16."
        )


def to_mono(samples: Waveform, channel: int | None, name: str) -> Waveform:
    """One channel, or the mean of all, of samples `(samples,)` or `(samples, channels)`."""
    if samples.ndim == 1:
        samples = samples[:, None]
    if channel is not None:
        if not 0 <= channel < samples.shape[1]:
            raise ValueError(f"{name} has {samples.shape[1]} channels; there is no channel {channel}.")
        return samples[:, channel]
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(1)


def resample(samples: Waveform, rate: int, target_rate: int) -> Waveform:
    """Mono samples at another rate, by soxr at its high quality."""
    if isinstance(samples, torch.Tensor):
        resampled = soxr.resample(samples.detach().cpu().numpy(), rate, target_rate)
        return torch.from_numpy(resampled).to(samples.device)
    return soxr.resample(np.ascontiguousarray(samples), rate, target_rate)


class MonoMixer:
    """Puts blocks together to mono samples at one rate; holds no more than the result.

    Args:
        target_rate: rate in Hz of the result.
        channel: take this channel; `None` averages all.
        name: of the clip, for messages.
    """

    def __init__(self, target_rate: int, channel: int | None, name: str):
        self.target_rate = target_rate
        self.channel = channel
        self.name = name
        self._samples = np.empty(0, np.float32)
        self._count = 0  # of them that are in place; the others are room for more
        self._rate = target_rate
        self._resampler: soxr.ResampleStream | None = None

    def add(self, block: Block) -> None:
        """Append a block.

        Raises:
            ValueError: for samples that are not finite or out of range, and for a channel that is not there.
        """
        if block.sampling_rate != self._rate:
            self._flush()
            self._rate = block.sampling_rate
            if self._rate != self.target_rate:
                self._resampler = soxr.ResampleStream(self._rate, self.target_rate, 1, dtype="float32")
        check_level(block.samples, self.name)
        mono = to_mono(block.samples, self.channel, self.name)
        mono = np.ascontiguousarray(mono, np.float32)  # a view would keep the other channels
        self._append(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def result(self) -> np.ndarray:
        """All samples `(samples,)` in float32."""
        self._flush()
        self._samples.resize(self._count, refcheck=False)
        return self._samples

    def _flush(self) -> None:
        """End of what has one rate: the resampler holds the last samples back."""
        if self._resampler is not None:
            self._append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            self._resampler = None

    def _append(self, samples: np.ndarray) -> None:
        count = self._count + len(samples)
        if count > len(self._samples):  # in place, where parts that are joined later would need twice the memory
            self._samples.resize(max(count, len(self._samples) * 5 // 4), refcheck=False)
        self._samples[self._count : count] = samples
        self._count = count


def _pcm_to_float(samples: np.ndarray, name: str) -> np.ndarray:
    if not np.issubdtype(samples.dtype, np.integer) or samples.dtype.itemsize > 4:
        raise ValueError(
            f"{name} has the dtype {samples.dtype}; give float or integer PCM samples, the latter of 8 to 32 bits."
        )
    limits = np.iinfo(samples.dtype)
    is_int32 = limits.min < 0 and samples.dtype.itemsize == 4
    if is_int32 and samples.size and 0 < np.abs(samples, dtype=np.int64).max() <= LARGEST_INT16:
        logger.warning(
            f"{name} has {samples.dtype} samples that fit into 16 bits, which makes it almost silent; "
            "if they are 16-bit values, pass them as int16."
        )
    middle = (limits.max + limits.min + 1) // 2  # 128 for unsigned bytes, else 0
    half = (limits.max - limits.min + 1) // 2
    return ((samples.astype(np.float64) - middle) / half).astype(np.float32)


__all__ = [
    "BLOCK_VALUES",
    "SHOWN_SECONDS",
    "AudioTooLongError",
    "Block",
    "MonoMixer",
    "Waveform",
    "check_level",
    "check_rate",
    "check_seconds",
    "resample",
    "shorten",
    "to_float",
    "to_mono",
]
