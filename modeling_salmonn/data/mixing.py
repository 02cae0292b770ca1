"""Clips made of clips: joined one after the other, or two voices at once."""

import random
from collections.abc import Sequence

import numpy as np

from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE


JOIN_SECONDS = 0.1  # silence between joined clips, as in the research code
DELAY_SECONDS = (0.2, 1.5)  # of a second voice: late enough to hear who speaks first


def join_clips(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips `(samples,)` one after the other, with a short silence in between."""
    silence = np.zeros(int(JOIN_SECONDS * SAMPLING_RATE), dtype=np.float32)
    pieces = [clips[0]]
    for clip in clips[1:]:
        pieces += [silence, clip]
    return np.concatenate(pieces)


def overlap_clips(first: np.ndarray, second: np.ndarray, level_db: float, rng: random.Random) -> np.ndarray:
    """Two voices `(samples,)` at once, without clipping: the second sets in later, and is up to `level_db` off."""
    delay = int(min(rng.uniform(*DELAY_SECONDS) * SAMPLING_RATE, len(first) / 2))  # they always overlap
    gain = relative_gain(second, first, rng.uniform(-level_db, level_db))
    mixture = np.zeros(max(len(first), delay + len(second)), dtype=np.float32)
    mixture[: len(first)] = first
    mixture[delay : delay + len(second)] += gain * second
    return mixture / max(1.0, float(np.abs(mixture).max()))


def relative_gain(samples: np.ndarray, reference: np.ndarray, decibels: float) -> float:
    """The factor that brings samples to a level so many decibels above that of a reference."""
    return _level(reference) / max(_level(samples), 1e-6) * 10 ** (decibels / 20)  # silence stays silent


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
