"""Windows of long clips, cut where it is quiet."""

import numpy as np

from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE


FRAME_SAMPLES = SAMPLING_RATE // 100  # the 10 ms whose level is measured
PAUSE_FRAMES = 30  # a pause between words lasts 0.3 s


def cut_at_silences(samples: np.ndarray, longest_seconds: float) -> list[tuple[int, int]]:
    """Cut a clip into windows that follow each other, at the quietest places.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): the clip at 16 kHz.
        longest_seconds: of a window; all but the last one are at least half as long.

    Returns:
        First sample of each window, and the one behind its last.
    """
    longest = round(longest_seconds * SAMPLING_RATE)
    windows = []
    start = 0
    while len(samples) - start > longest:
        earliest = start + longest // 2
        end = earliest + _quietest(samples[earliest : start + longest])
        windows.append((start, end))
        start = end
    return [*windows, (start, len(samples))]


def _quietest(samples: np.ndarray) -> int:
    """The middle of the quietest pause, the last one of several: windows are better long."""
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    if len(frames) < PAUSE_FRAMES:
        return len(samples)
    powers = np.square(frames, dtype=np.float64).mean(axis=1)
    pauses = np.convolve(powers, np.ones(PAUSE_FRAMES), mode="valid")
    last = len(pauses) - 1 - int(pauses[::-1].argmin())
    return (last + PAUSE_FRAMES // 2) * FRAME_SAMPLES
