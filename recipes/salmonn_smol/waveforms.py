"""Waveforms: 16 kHz mono audio as arrays of shape `(samples,)`."""

import os

import numpy as np
import soundfile
import soxr

from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE


FRAME_SAMPLES = 160  # the 10 ms over which `trim_to_words` judges silence
QUIET = 0.01  # of the loudest sample or frame: -40 dB


def read_clip(path: str | os.PathLike, dtype: str = "float32") -> np.ndarray:
    """Samples of a clip of an audio folder."""
    samples, rate = soundfile.read(path, dtype=dtype)
    assert rate == SAMPLING_RATE, path
    return samples


def read_any(path: str | os.PathLike) -> np.ndarray:
    """Samples of an audio file with any rate and number of channels."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, SAMPLING_RATE)


def tilt(audio: np.ndarray, amount: float) -> np.ndarray:
    """Make a sound brighter (amount above 0) or duller (below 0) by a first-order filter."""
    shifted = np.concatenate([audio[:1], audio[:-1]])
    return audio - amount * shifted


def fit_peak(audio: np.ndarray, peak: float) -> np.ndarray:
    """Scale audio so that its loudest sample has this magnitude."""
    return (audio * (peak / max(float(np.abs(audio).max(initial=0.0)), 1e-9))).astype(np.float32)


def trim_silence(audio: np.ndarray) -> np.ndarray:
    """Cut the quiet ends of a sound sample by sample."""
    loud = np.flatnonzero(np.abs(audio) > QUIET * np.abs(audio).max(initial=0.0))
    return audio[loud[0] : loud[-1] + 1] if len(loud) else audio[:0]


def trim_to_words(audio: np.ndarray, margin_seconds: float = 0.1) -> np.ndarray:
    """Cut the silence before and after speech but for a margin; single clicks in it do not count."""
    frames = audio[: len(audio) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    levels = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(levels > QUIET * levels.max(initial=0.0))
    if not len(loud):
        return audio[:0]
    margin = int(margin_seconds * SAMPLING_RATE)
    start, end = loud[0] * FRAME_SAMPLES, (loud[-1] + 1) * FRAME_SAMPLES
    return audio[max(0, start - margin) : end + margin]


def fade_out(audio: np.ndarray, seconds: float = 0.05) -> np.ndarray:
    """Let the end of a clip fade, so that a cut makes no click."""
    length = min(len(audio), round(seconds * SAMPLING_RATE))
    faded = audio.astype(np.float32)
    if length:
        faded[-length:] *= np.linspace(1.0, 0.0, length, dtype=np.float32)
    return faded
