"""Windows of long clips: they follow each other, are no longer than asked, and are cut in pauses."""

import numpy as np
import pytest
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn.data.windows import cut_at_silences


@pytest.mark.parametrize("seconds", [0.001, 9.9, 10.0, 10.1, 19.9, 47.3])
def test_windows_cover_a_clip_without_gaps(seconds: float) -> None:
    samples = make_clip(seconds)
    windows = cut_at_silences(samples, 10.0)
    assert [start for start, _ in windows] == [0, *(end for _, end in windows[:-1])]
    assert windows[-1][1] == len(samples)
    lengths = [(end - start) / SAMPLING_RATE for start, end in windows]
    assert max(lengths) <= 10.0
    assert all(length >= 5.0 for length in lengths[:-1])


def test_clip_is_cut_in_its_pauses() -> None:
    samples = 0.1 * np.random.default_rng(0).standard_normal(25 * SAMPLING_RATE).astype(np.float32)
    for pause in (7.0, 14.0):
        start = round(pause * SAMPLING_RATE)
        samples[start : start + SAMPLING_RATE // 2] = 0
    cuts = [end / SAMPLING_RATE for _, end in cut_at_silences(samples, 10.0)][:-1]
    assert 7.0 < cuts[0] < 7.5
    assert 14.0 < cuts[1] < 14.5


def test_short_click_is_no_end_of_a_pause() -> None:
    """The quietest stretch lasts as long as a pause: a single quiet frame among words is none."""
    samples = 0.1 * np.ones(15 * SAMPLING_RATE, dtype=np.float32)
    samples[6 * SAMPLING_RATE : 6 * SAMPLING_RATE + SAMPLING_RATE // 100] = 0
    samples[8 * SAMPLING_RATE : 8 * SAMPLING_RATE + SAMPLING_RATE // 2] = 0.001
    ((_, cut), _) = cut_at_silences(samples, 10.0)
    assert 8.0 < cut / SAMPLING_RATE < 8.5


def test_silence_gives_long_windows() -> None:
    windows = cut_at_silences(np.zeros(25 * SAMPLING_RATE, dtype=np.float32), 10.0)
    assert len(windows) == 3
    assert windows[0][1] > 9.5 * SAMPLING_RATE
