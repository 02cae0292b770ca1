"""Varied copies of clips."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip

from recipes.salmonn_smol.audiofolder import read_audiofolder
from recipes.salmonn_smol.variants import COPIES, MUSIC_SECONDS, SPEEDS, VariantMaker, make_variants, vary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    kinds = ("speech", "event", "music")
    rows = [{"file_name": f"{kind}.wav", "kind": kind, "text": f"A {kind}.", "source": "game"} for kind in kinds]
    for index, row in enumerate(rows):
        soundfile.write(tmp_path / row["file_name"], make_clip(6.0, seed=index), SAMPLING_RATE)
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row | {"seconds": 6.0}) + "\n" for row in rows))
    return tmp_path


def test_copies_keep_their_text_and_have_other_lengths(folder: Path, tmp_path: Path) -> None:
    rows = make_variants(tmp_path / "variants", [folder], jobs=2)
    assert [row["kind"] for row in rows] == [kind for kind, count in COPIES.items() for _ in range(count)]
    for row in rows:
        assert row["text"] == f"A {row['kind']}."
        slowest, fastest = SPEEDS[row["kind"]]
        longest = MUSIC_SECONDS[1] if row["kind"] == "music" else 6.0
        assert longest / fastest / 2 < row["seconds"] <= longest / slowest
    for row in read_audiofolder(tmp_path / "variants"):
        samples, rate = soundfile.read(row["path"])
        assert rate == SAMPLING_RATE
        assert len(samples) == pytest.approx(row["seconds"] * SAMPLING_RATE, abs=8)
        assert 0.1 < np.abs(samples).max() < 1.0


def test_the_name_decides_how_a_clip_is_varied(folder: Path) -> None:
    rows = read_audiofolder(folder)
    first, again, other = (VariantMaker(rows, seed)("event/000001_0.flac").audio for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert len(first) != len(other)
    one, two = (VariantMaker(rows)(f"music/000002_{copy}.flac").audio for copy in range(2))
    assert len(one) != len(two)


def test_folder_is_of_one_recipe(folder: Path, tmp_path: Path) -> None:
    rows = make_variants(tmp_path / "variants", [folder])
    assert make_variants(tmp_path / "variants", [folder]) == rows
    with pytest.raises(ValueError, match=r"files of other settings: seed 0 instead of 1"):
        make_variants(tmp_path / "variants", [folder], seed=1)
    with pytest.raises(ValueError, match="other settings: clips "):  # a name is a place among the clips
        make_variants(tmp_path / "variants", [folder, folder])


def test_speed_moves_the_pitch() -> None:
    seconds = np.arange(SAMPLING_RATE) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * 440 * seconds).astype(np.float32)
    varied = vary(tone, (1.25, 1.25), random.Random(0))
    assert len(varied) == pytest.approx(SAMPLING_RATE / 1.25, abs=1)
    spectrum = np.abs(np.fft.rfft(varied))
    loudest = np.fft.rfftfreq(len(varied), 1 / SAMPLING_RATE)[spectrum.argmax()]
    assert loudest == pytest.approx(550, abs=3)
