"""Waveforms: 16 kHz mono audio as arrays of shape `(samples,)`."""

import os

import numpy as np
import soundfile

from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE


def read_clip(path: str | os.PathLike) -> np.ndarray:
    """Samples of a clip of an audio folder."""
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == SAMPLING_RATE, path
    return samples


def fit_peak(audio: np.ndarray, peak: float) -> np.ndarray:
    """Scale audio so that its loudest sample has this magnitude."""
    return (audio * (peak / max(float(np.abs(audio).max(initial=0.0)), 1e-9))).astype(np.float32)
