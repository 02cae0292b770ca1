"""Clips made of clips."""

import random

import numpy as np
import pytest
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn.data.mixing import join_clips, overlap_clips


def level(samples: np.ndarray) -> float:
    return float(np.sqrt((samples.astype(np.float64) ** 2).mean()))


def test_joined_clips_have_silence_between() -> None:
    clips = [make_clip(0.5, seed=0), make_clip(0.25, seed=1)]
    joined = join_clips(clips)
    assert len(joined) == int(0.85 * SAMPLING_RATE)
    assert np.array_equal(joined[: len(clips[0])], clips[0])
    assert not joined[len(clips[0]) : -len(clips[1])].any()
    assert np.array_equal(joined[-len(clips[1]) :], clips[1])


def test_one_clip_is_joined_to_itself() -> None:
    clip = make_clip(0.5)
    assert np.array_equal(join_clips([clip]), clip)


def test_second_voice_sets_in_later_at_a_level_within_the_range() -> None:
    first, second = 0.2 * make_clip(3.0, seed=0), 0.01 * make_clip(2.0, seed=1)
    ratios, delays = [], []
    for seed in range(30):
        mixture = overlap_clips(first, second, 5.0, random.Random(seed))
        rest = mixture.copy()
        rest[: len(first)] -= first
        delay = int(np.flatnonzero(np.abs(rest) > 1e-6)[0])
        ratios.append(20 * np.log10(level(rest[delay : delay + len(second)]) / level(first)))
        delays.append(delay / SAMPLING_RATE)
    assert -5.0 <= min(ratios) < -2.0
    assert 2.0 < max(ratios) <= 5.01
    assert 0.19 <= min(delays) < max(delays) <= 1.51


def test_mixture_does_not_clip_and_holds_both_to_the_end() -> None:
    first, second = make_clip(1.0, seed=0), make_clip(2.0, seed=1)
    mixture = overlap_clips(first / np.abs(first).max(), second, 0.0, random.Random(0))
    assert np.abs(mixture).max() <= 1.0
    assert len(second) < len(mixture) <= len(second) + len(first) // 2
    assert mixture.dtype == np.float32


def test_silent_second_voice_adds_nothing() -> None:
    clip = 0.5 * make_clip(1.0)
    assert np.array_equal(overlap_clips(clip, np.zeros(100, np.float32), 5.0, random.Random(0)), clip)


def test_mixture_follows_from_the_generator() -> None:
    clips = make_clip(1.0, seed=0), make_clip(1.0, seed=1)
    mixtures = [overlap_clips(*clips, 5.0, random.Random(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(mixtures[0], mixtures[1])
    assert mixtures[0].shape != mixtures[2].shape or not np.array_equal(mixtures[0], mixtures[2])


@pytest.mark.parametrize("seconds", [0.05, 0.3])
def test_short_first_voice_is_still_overlapped(seconds: float) -> None:
    first = make_clip(seconds)
    mixture = overlap_clips(first, make_clip(1.0, seed=1), 5.0, random.Random(0))
    assert len(mixture) <= SAMPLING_RATE + len(first) // 2
