"""Waveforms: 16 kHz mono audio as arrays of shape `(samples,)`."""

from typing import Any

import numpy as np

from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor


READER = SalmonnFeatureExtractor()
SAMPLING_RATE: int = READER.sampling_rate


def read_clip(clip: Any) -> np.ndarray:
    """Samples of a clip in a file or in a table, whatever its rate and its channels."""
    return READER.fetch_audio(clip)


def fit_peak(audio: np.ndarray, peak: float) -> np.ndarray:
    """Scale audio so that its loudest sample has this magnitude."""
    return (audio * (peak / max(float(np.abs(audio).max(initial=0.0)), 1e-9))).astype(np.float32)
