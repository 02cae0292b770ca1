"""Waveforms: 16 kHz mono audio as arrays of shape `(samples,)`."""

import os

import numpy as np

from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor


READER = SalmonnFeatureExtractor()
SAMPLING_RATE: int = READER.sampling_rate


def read_clip(path: str | os.PathLike) -> np.ndarray:
    """Samples of a clip, whatever its rate and its channels."""
    return READER.fetch_audio(os.fspath(path), allow_paths=True)


def fit_peak(audio: np.ndarray, peak: float) -> np.ndarray:
    """Scale audio so that its loudest sample has this magnitude."""
    return (audio * (peak / max(float(np.abs(audio).max(initial=0.0)), 1e-9))).astype(np.float32)
