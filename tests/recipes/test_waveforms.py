"""Clips of any form as 16 kHz mono."""

from pathlib import Path

import numpy as np
import soundfile
from conftest import SAMPLING_RATE, make_clip

from recipes.salmonn_smol.waveforms import read_clip


def test_other_rates_and_channels_are_read(tmp_path: Path) -> None:
    left, right = make_clip(1.0, seed=1), make_clip(1.0, seed=2)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), SAMPLING_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_clip(tmp_path / "stereo.wav"), (left + right) / 2, atol=1e-6)
    soundfile.write(tmp_path / "fast.wav", left, 44100)
    assert len(read_clip(tmp_path / "fast.wav")) == round(len(left) * SAMPLING_RATE / 44100)
