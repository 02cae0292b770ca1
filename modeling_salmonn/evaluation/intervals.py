"""Intervals of metrics by the bootstrap: how far a score would move if other rows of the same kind had been drawn."""

import numpy as np

from modeling_salmonn.evaluation.metrics import Metric


CELLS = 2**22  # of the table of draws that is held at once: 32 MB


def bootstrap_interval(
    metric: Metric, statistics: np.ndarray, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap over rows: as many rows are drawn with replacement, again and again.

    Args:
        metric: what the statistics are of.
        statistics: `metric.statistics` of the set, of shape `(rows, k)`.
        samples: how often the rows are drawn.
        seed: of the draws; the same seed gives the same interval.
        level: share of the drawn scores that lie in the interval.

    Returns:
        Its two ends. Draws with nothing to divide by, such as of silent clips alone, are left out.
    """
    if statistics.ndim != 2 or not len(statistics):
        raise ValueError(f"Statistics have the shape {statistics.shape}; they need rows and columns.")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"Got samples={samples} and level={level}; they need to be at least 1, and between 0 and 1.")
    metric.combine(statistics.sum(axis=0))  # raises if there is no score
    scores = metric.combine(_drawn_sums(statistics, samples, np.random.default_rng(seed)))
    low, high = np.nanquantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _drawn_sums(statistics: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Sums over drawn rows, of shape `(samples, k)`: how often each row came, times its statistics."""
    rows = len(statistics)
    at_once = max(1, CELLS // rows)
    sizes = [min(at_once, samples - start) for start in range(0, samples, at_once)]
    return np.concatenate([_counts(rows, size, rng) @ statistics for size in sizes])


def _counts(rows: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row comes in as many draws as there are rows: multinomial, of shape `(size, rows)`."""
    draws = rng.integers(rows, size=(size, rows)) + rows * np.arange(size)[:, None]  # each sample has its own bins
    return np.bincount(draws.ravel(), minlength=size * rows).reshape(size, rows)
