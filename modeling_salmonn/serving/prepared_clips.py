"""Clips that are read, cut into windows and made the model's inputs, in worker processes beside the model too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from modeling_salmonn.data.collator import SalmonnCollator
from modeling_salmonn.data.windows import cut_at_silences
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


@dataclass(frozen=True)
class Window:
    """A stretch of a clip that is asked about.

    Args:
        clip: path or URL.
        index: its number among the windows of the clip, of which there are `count`.
        start, end: in seconds.
    """

    clip: str
    index: int
    count: int
    start: float
    end: float


@dataclass(frozen=True)
class PreparedBatch:
    """Windows that the model can answer.

    Args:
        windows: of one clip or several.
        inputs: the model's inputs of them; `None` if there are none.
        failures: clips that cannot be read, with the reasons.
    """

    windows: list[Window]
    inputs: Any
    failures: list[tuple[str, str]]


class PreparedClips(IterableDataset):
    """Batches of windows, unit by unit.

    Args:
        units: clips that are read together, in their order.
        processor: the model's.
        question: what is asked about each window.
        batch_size: most windows in a batch.
        window_seconds: most seconds of a window; `None` for whole clips.
        answered: clips and numbers of windows that have their answers.
    """

    def __init__(
        self,
        units: Sequence[Sequence[str]],
        processor: SalmonnProcessor,
        question: str,
        batch_size: int,
        window_seconds: float | None,
        answered: set[tuple[str, int]],
    ):
        self.units = units
        self.collator = SalmonnCollator(processor)
        self.question = question
        self.batch_size = batch_size
        self.window_seconds = window_seconds
        self.answered = answered

    def __iter__(self) -> Iterator[PreparedBatch]:
        worker = get_worker_info()
        units = self.units if worker is None else self.units[worker.id :: worker.num_workers]
        for unit in units:
            yield from self._batches(unit)

    def _batches(self, clips: Sequence[str]) -> Iterator[PreparedBatch]:
        windows: list[tuple[Window, np.ndarray]] = []
        failures: list[tuple[str, str]] = []
        for clip in clips:
            windows += self._read(clip, failures)
        if failures:
            yield PreparedBatch([], None, failures)
        for start in range(0, len(windows), self.batch_size):
            yield self._prepare(windows[start : start + self.batch_size])

    def _read(self, clip: str, failures: list[tuple[str, str]]) -> list[tuple[Window, np.ndarray]]:
        """The windows of a clip; if it cannot be read, none and a failure more."""
        try:
            samples = self.collator.processor.feature_extractor.load_clip(clip).samples
        except (ValueError, OSError) as error:
            failures.append((clip, str(error)))
            return []
        return self._windows(clip, samples)

    def _windows(self, clip: str, samples: np.ndarray) -> list[tuple[Window, np.ndarray]]:
        """The windows of a clip without an answer, with their samples."""
        spans = [(0, len(samples))]
        if self.window_seconds is not None:
            spans = cut_at_silences(samples, self.window_seconds)
        windows = []
        for index, (start, end) in enumerate(spans):
            window = Window(clip, index, len(spans), start / SAMPLING_RATE, end / SAMPLING_RATE)
            if (clip, index) not in self.answered:
                windows.append((window, samples[start:end]))
        return windows

    def _prepare(self, pairs: Sequence[tuple[Window, np.ndarray]]) -> PreparedBatch:
        examples = [{"instruction": self.question, "audio": samples} for _, samples in pairs]
        return PreparedBatch([window for window, _ in pairs], self.collator.prepare(examples), [])
