"""Batches of the pipeline: clips of like length together, and inputs made in worker processes beside the model."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset


BATCHES_SORTED_TOGETHER = 16  # enough to fill batches with like lengths; so many may wait in memory

Prepare = Callable[[Sequence[Any]], Any]


def split_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items, the last one maybe shorter; no item is read before its list is asked for."""
    remaining = iter(items)
    while True:
        batch = list(islice(remaining, size))
        if not batch:
            return
        yield batch


class LengthOrder:
    """Gives items sorted by their length, and puts what comes of them back into the order of the items.

    Args:
        items: in the order asked.
        batch_size: how many make a batch; items that all fit into one are left as they are.
        seconds: length of an item, `None` if it is not known.
    """

    def __init__(self, items: Iterable[Any], batch_size: int, seconds: Callable[[Any], float | None]):
        self.items = items
        self.batch_size = batch_size
        self.seconds = seconds
        self.places: list[int] = []  # of the items that were given, in the order asked

    def sorted_items(self) -> Iterator[Any]:
        """The items, the longest first within each stretch of so many batches."""
        start = 0
        for stretch in split_batches(self.items, self.batch_size * BATCHES_SORTED_TOGETHER):
            places = list(range(len(stretch)))
            if len(stretch) > self.batch_size > 1:
                lengths = [self.seconds(item) or 0.0 for item in stretch]  # those that are not known come last
                places.sort(key=lengths.__getitem__, reverse=True)
            self.places += [start + place for place in places]
            for place in places:
                yield stretch[place]
            start += len(stretch)

    def restore(self, results: Sequence[Any]) -> list[Any]:
        """What came of the items, in the order asked."""
        by_place = dict(zip(self.places, results, strict=True))
        return [by_place[place] for place in range(len(results))]


def prepare_batches(batches: Iterable[list[Any]], prepare: Prepare, num_workers: int) -> Iterator[tuple[int, Any]]:
    """How many items each batch has, and the model's inputs of them.

    Args:
        batches: lists of items; with workers, some are read ahead.
        prepare: makes the inputs of a list of items.
        num_workers: processes that do so; 0 for this one.

    Raises:
        ValueError: for items that cannot be sent to another process, and whatever `prepare` raises.
    """
    if num_workers == 0:
        for batch in batches:
            yield len(batch), prepare(batch)
        return
    loader = DataLoader(
        _Preparer(prepare),
        sampler=map(_pickled, batches),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
    )
    for count, inputs in loader:
        if isinstance(inputs, Exception):
            raise inputs
        yield count, inputs


class _Preparer(Dataset):
    """Runs in a worker: makes the inputs of the batch that it is sent in the place of an index."""

    def __init__(self, prepare: Prepare):
        self.prepare = prepare

    def __getitem__(self, pickled: Any) -> tuple[int, Any]:
        batch = pickle.loads(pickled)
        try:
            return len(batch), self.prepare(batch)
        except (ValueError, TypeError, OSError) as error:  # which are for the user, and not a fault of the worker
            return len(batch), error


def _pickled(batch: list[Any]) -> bytes:
    """A batch for a worker; here, since what fails in the queue to a worker is never told."""
    try:
        return pickle.dumps(batch)
    except Exception as error:  # pickle raises many kinds
        raise ValueError(
            f"A clip cannot be sent to a worker process ({error}); give paths, bytes or samples, or leave num_workers "
            "out."
        ) from error


def _as_it_is(value: Any) -> Any:
    return value
