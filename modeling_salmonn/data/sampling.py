"""Which rows an epoch is made of, and in which batches.

Everything follows from the seed and the epoch, so that a resumed run, and one with another number of processes, draws
the same examples in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Sampler

from modeling_salmonn.data.tasks import canonical_name


BATCHES_SORTED_TOGETHER = 50  # enough to fill batches with like lengths, few enough to keep them random


def task_shares(
    counts: Mapping[str, int], weights: Mapping[str, float] | None = None, temperature: float = 1.0
) -> dict[str, float]:
    """Share of each task: `p ~ weight * n ** (1 / temperature)` of its `n` rows.

    Args:
        counts: rows of each task.
        weights: factors, 1 for tasks without one; a task may go by any of its names.
        temperature: 1 keeps the sizes' proportions, larger ones favour small tasks.

    Raises:
        ValueError: for weights of tasks that do not occur or below zero, or if nothing is left.
    """
    weights = weights or {}
    by_name = {canonical_name(task): weight for task, weight in weights.items()}
    unknown = sorted(by_name.keys() - {canonical_name(task) for task in counts})
    if unknown:
        raise ValueError(f"There are weights for the tasks {unknown}, but the data have {sorted(counts)}.")
    if any(weight < 0 for weight in weights.values()):
        raise ValueError(f"Weights of tasks must not be negative, got {dict(weights)}.")
    shares = {}
    for task, count in counts.items():
        weight = weights.get(task, by_name.get(canonical_name(task), 1.0))
        shares[task] = weight * count ** (1 / temperature)
    total = sum(shares.values())
    if total <= 0:
        raise ValueError(f"The task weights {dict(weights)} leave no task to draw.")
    return {task: share / total for task, share in shares.items()}


def split_count(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in the proportion of the shares that sum to `total` (largest remainders)."""
    counts, missed = {}, {}
    for task, share in shares.items():
        counts[task] = int(total * share)
        missed[task] = total * share - counts[task]
    # What is left goes to the tasks that lost most by rounding down.
    by_remainder = sorted(missed, key=missed.__getitem__, reverse=True)
    for task in by_remainder[: total - sum(counts.values())]:
        counts[task] += 1
    return counts


def draw_rows(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` positions, each as near to its fair number of times as can be (systematic sampling).

    With equal weights none comes again before all others have come as often.
    """
    order = rng.permutation(len(weights))
    # Rows lie on a line, each as long as its expected count, and are drawn at steps of 1 from a random start.
    expected = np.cumsum(weights[order] * (count / weights.sum()))
    expected[-1] = count  # not a rounding error less
    reached = np.floor(expected + rng.random()).astype(np.int64)
    return np.repeat(order, np.diff(reached, prepend=0))[:count]


class MixtureSampler(Sampler):
    """Draws an epoch's rows by the shares of their tasks, in batches of about the same length.

    Yields pairs `(row, draw)`: `draw` numbers the examples over all epochs, so that each can seed its own choices.

    Args:
        tasks: task of each row.
        shares: share of each task, as `task_shares` gives them.
        batch_size: examples of one optimiser step, over all processes; epochs are rounded up to whole ones.
        row_weights: how often each row is drawn, relative to the others of its task.
        lengths: in any unit; `None` leaves the order random.
        examples: examples in an epoch; as many as there are rows if not given.
        seed: of everything that is drawn.

    Raises:
        ValueError: if the row weights of a task are not positive in sum.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        shares: Mapping[str, float],
        batch_size: int,
        row_weights: Sequence[float] | None = None,
        lengths: Sequence[float] | None = None,
        examples: int | None = None,
        seed: int = 0,
    ):
        weights = np.ones(len(tasks)) if row_weights is None else np.asarray(row_weights, dtype=np.float64)
        names = np.asarray(tasks)
        self.members: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.shares: dict[str, float] = {}
        for task in dict.fromkeys(tasks):
            if shares.get(task, 0) <= 0:
                continue
            rows = np.flatnonzero(names == task)
            own = weights[rows]
            if (own < 0).any() or own.sum() <= 0:
                raise ValueError(f"The rows of task {task!r} have weights that are negative or all zero.")
            self.members[task], self.weights[task], self.shares[task] = rows, own, shares[task]
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.batch_size = batch_size
        self.num_batches = -(-(examples or len(tasks)) // batch_size)  # rounded up
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for draw, row in enumerate(self.epoch_rows(), start=self.epoch * len(self)):
            yield int(row), draw

    def epoch_rows(self) -> np.ndarray:
        """The rows of the epoch in their order."""
        rng = np.random.default_rng([self.seed, self.epoch])
        drawn = []
        for task, count in split_count(len(self), self.shares).items():
            positions = draw_rows(self.weights[task], count, rng)
            drawn.append(self.members[task][positions])
        rows = rng.permutation(np.concatenate(drawn))
        if self.lengths is None:
            return rows
        chunk = BATCHES_SORTED_TOGETHER * self.batch_size
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            rows[start : start + chunk] = part[np.argsort(self.lengths[part], kind="stable")]
        batches = rows.reshape(self.num_batches, self.batch_size)
        return rng.permutation(batches).ravel()  # or each chunk would go from short to long
