"""Samples of audio: checked, scaled to [-1, 1), mixed to mono and resampled, in blocks or all at once."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import soxr
from transformers.utils import logging


logger = logging.get_logger(__name__)

LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000  # Hz
# 18 dB over full scale: decoders of lossy audio overshoot by far less, mistaken scales by far more.
LARGEST_FLOAT = 8.0
LARGEST_INT16 = 32767
MOST_CHANNELS = 1024  # as many as libsndfile reads
LONGEST_SECONDS = 6 * 3600  # where no limit is set: 1.4 GB of samples at 16 kHz
BLOCK_VALUES = 2**17  # samples of all channels that are decoded at once
SHOWN_CHARACTERS = 120  # of a name in a message


@dataclass(frozen=True)
class Block:
    """Decoded samples `(samples, channels)` and their rate in Hz."""

    samples: np.ndarray
    sampling_rate: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.sampling_rate


class AudioTooLongError(ValueError):
    """A clip is longer than the limit."""


def check_rate(rate: Any, name: str) -> int:
    """A sampling rate in Hz as a whole number.

    Raises:
        ValueError: if it is none, or none that audio has.
    """
    is_number = isinstance(rate, Real) and not isinstance(rate, (bool, np.bool_))
    # Compared before it is made a float, which very large whole numbers do not become.
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


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Make sure that this is the shape of one clip.

    Raises:
        ValueError: if not; a batch, or a clip with its axes swapped, has more channels than any recording.
    """
    if len(shape) not in (1, 2):
        raise ValueError(f"{name} has the shape {shape}; give (samples,) or (samples, channels).")
    if len(shape) == 2 and shape[1] > MOST_CHANNELS:
        raise ValueError(
            f"{name} has {shape[1]} channels by its shape {shape}, more than {MOST_CHANNELS}; "
            "give (samples, channels), and several clips as a list."
        )


def check_level(samples: np.ndarray, name: str) -> None:
    """Make sure that floats are finite and can be meant as [-1, 1]; those of decoders go somewhat beyond.

    Raises:
        ValueError: if not.
    """
    if samples.size == 0:
        return
    peak = max(float(samples.max()), -float(samples.min()))  # NaN if one of the samples is
    if not math.isfinite(peak):
        raise ValueError(f"{name} contains NaN or infinite samples; repair or drop the clip.")
    if peak > LARGEST_FLOAT:
        raise ValueError(
            f"{name} has float samples up to {peak:.6g}, but floats are read as [-1, 1]. "
            "Divide them by the full scale (32768 if they are 16-bit values), or pass them as int16."
        )


def to_float(samples: np.ndarray, name: str) -> np.ndarray:
    """Float32 samples; integer PCM is scaled to [-1, 1).

    Raises:
        ValueError: for another type, and for floats that are not finite or out of range.
    """
    if np.issubdtype(samples.dtype, np.floating):
        check_level(samples, name)
        return samples.astype(np.float32, copy=False)
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
    # Through float64, since float32 has no room for the 32 bits before they are scaled.
    return ((samples.astype(np.float64) - middle) / half).astype(np.float32)


def to_mono(samples: np.ndarray, channel: int | None, name: str) -> np.ndarray:
    """One channel, or the mean of all, of samples `(samples,)` or `(samples, channels)`."""
    if samples.ndim == 1:
        samples = samples[:, None]
    if channel is None:
        return samples[:, 0] if samples.shape[1] == 1 else samples.mean(1)
    if not 0 <= channel < samples.shape[1]:
        raise ValueError(f"{name} has {samples.shape[1]} channels; there is no channel {channel}.")
    return samples[:, channel]


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
        self._rate: int | None = None  # of the last block
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
        """All samples `(samples,)` in float32.

        Raises:
            ValueError: if there was no block.
        """
        if self._rate is None:
            raise ValueError(f"{self.name} is empty: it has no samples.")
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
