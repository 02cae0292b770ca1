"""Rooms, noise and levels."""

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip

from recipes.salmonn_smol.recordings import PEAKS, add_room, coloured_noise, noise_rows, record_elsewhere


def test_a_click_in_a_room_is_followed_by_echoes_that_decay() -> None:
    click = np.zeros(SAMPLING_RATE, np.float32)
    click[0] = 1
    echoed = add_room(click, random.Random(0))
    assert len(echoed) == len(click)
    assert echoed[0] == pytest.approx(1, abs=1e-4)
    assert np.abs(echoed[1:100]).max() < 1e-3, "the first echo comes later"
    early, late = (np.abs(echoed[part]).mean() for part in (slice(500, 1500), slice(8000, 9000)))
    assert early > 10 * late
    assert np.square(echoed[1:]).sum() < 10**-0.3


def test_noise_is_white_to_brown() -> None:
    slopes = []
    for seed in range(20):
        spectrum = np.abs(np.fft.rfft(coloured_noise(SAMPLING_RATE, random.Random(seed))))
        slopes.append(np.log10(spectrum[100:200].mean() / spectrum[4000:8000].mean()))
    assert min(slopes) > -0.1
    assert max(slopes) > 1.0


def test_clips_keep_their_length_and_differ(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "rain.wav", make_clip(3.0, seed=1), SAMPLING_RATE)
    rows = [
        {"path": str(tmp_path / "rain.wav"), "kind": "event", "seconds": 3.0},
        {"path": "short.wav", "kind": "event", "seconds": 1.0},
        {"path": "voice.wav", "kind": "speech", "seconds": 3.0},
    ]
    noises = noise_rows(rows)
    assert noises == rows[:1]
    clip = make_clip(5.0)
    recorded = [record_elsewhere(clip, noises, random.Random(seed)) for seed in range(12)]
    assert all(len(one) == len(clip) for one in recorded)
    assert all(PEAKS[0] - 1e-3 < np.abs(one).max() < PEAKS[1] + 1e-3 for one in recorded)
    assert np.array_equal(recorded[3], record_elsewhere(clip, noises, random.Random(3)))
    assert len({float(np.abs(one).mean()) for one in recorded}) == len(recorded)
