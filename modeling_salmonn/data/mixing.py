"""Clips made of clips: joined one after the other, or two voices at once."""

import random
from collections.abc import Sequence

import numpy as np

from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE


JOIN_SECONDS = 0.1  # silence between joined clips, as in the research code
LONGEST_DELAY_SECONDS = 1.5


def join_clips(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips `(samples,)` one after the other, with a short silence in between."""
    silence = np.zeros(int(JOIN_SECONDS * SAMPLING_RATE), dtype=np.float32)
    pieces = [piece for clip in clips for piece in (silence, clip)][1:]
    return np.concatenate(pieces)


def overlap_clips(first: np.ndarray, second: np.ndarray, level_db: float, rng: random.Random) -> np.ndarray:
    """Two voices at once: the second sets in a little later, at another level.

    Args:
        first, second: samples `(samples,)`.
        level_db: the levels differ by up to as much, in either direction.
        rng: source of the level and the delay.

    Returns:
        Samples `(samples,)` without clipping.
    """
    delay = int(min(rng.uniform(0.2, LONGEST_DELAY_SECONDS) * SAMPLING_RATE, len(first) / 2))
    difference = rng.uniform(-level_db, level_db)
    gain = relative_gain(second, first, difference)
    mixture = np.zeros(max(len(first), delay + len(second)), dtype=np.float32)
    mixture[: len(first)] = first
    mixture[delay : delay + len(second)] += gain * second
    return mixture / max(1.0, float(np.abs(mixture).max()))


def relative_gain(samples: np.ndarray, reference: np.ndarray, decibels: float) -> float:
    """The factor that brings samples to a level so many decibels above that of a reference."""
    return _level(reference) / max(_level(samples), 1e-6) * 10 ** (decibels / 20)


def _level(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
