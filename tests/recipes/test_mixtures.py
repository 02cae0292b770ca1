"""Clips made of clips."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip

from recipes.salmonn_smol.mixtures import MixtureMaker


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    made = []
    for index in range(8):
        path = tmp_path / f"voice{index}.wav"
        soundfile.write(path, make_clip(1.0 + 0.2 * index, seed=index), SAMPLING_RATE)
        speaker = {"speaker": f"queen:{'JOE' if index % 2 else 'FAYE'}"}
        made.append(
            {"path": str(path), "kind": "speech", "text": f"Line {'abcdefgh'[index]}.", "seconds": 1.5} | speaker
        )
    path = tmp_path / "rain.wav"
    soundfile.write(path, make_clip(5.0, seed=9), SAMPLING_RATE)
    made.append({"path": str(path), "kind": "event", "text": "Rain", "sound_class": "rain", "seconds": 5.0})
    return [row | {"source": "game", "licence": "free"} for row in made]


def test_overlap_holds_both_voices(rows: list[dict]) -> None:
    clip = MixtureMaker(rows)("overlapped_speech/000001.opus")
    first, second = clip.row["text"].split("\n")
    assert first != second
    assert clip.row["task"] == "overlapped_speech"
    assert len(clip.audio) >= SAMPLING_RATE
    assert np.abs(clip.audio).max() <= 1.0


def test_pairs_are_of_one_speaker_or_two(rows: list[dict]) -> None:
    maker = MixtureMaker(rows)
    clips = [maker(f"speaker_verification/{index}.opus") for index in range(12)]
    assert {clip.row["text"] for clip in clips} == {"Yes.", "No."}
    longest = 2.4 + 2.2 + 0.1
    assert all(2.0 <= len(clip.audio) / SAMPLING_RATE <= longest + 1e-3 for clip in clips)


def test_a_reader_of_one_long_clip_is_paired_with_himself(rows: list[dict], tmp_path: Path) -> None:
    path = tmp_path / "reader.wav"
    soundfile.write(path, make_clip(9.0, seed=20), SAMPLING_RATE)
    reader = {"path": str(path), "speaker": "reader", "seconds": 9.0, "text": "Two. Three."}
    short = {"path": rows[0]["path"], "speaker": "once"}  # a clip that is too short to be cut
    maker = MixtureMaker([rows[0] | reader, rows[0] | reader | {"speaker": "other"}, rows[0] | short])
    assert set(maker.speakers) == {"reader", "other"}
    lengths = {}
    for index in range(12):
        clip = maker(f"speaker_verification/{index}.opus")
        lengths[clip.row["text"]] = len(clip.audio) / SAMPLING_RATE
    assert lengths == pytest.approx({"Yes.": 9.1, "No.": 12.1}, abs=0.01), "halves, or 6 s of each"


def test_sound_lies_below_the_voice(rows: list[dict]) -> None:
    maker = MixtureMaker(rows)
    clips = [maker(f"speech_over_sound/{index}.opus") for index in range(8)]
    assert {clip.row["task"] for clip in clips} == {"asr", "audio_qa"}
    for clip in clips:
        if clip.row["task"] == "audio_qa":
            assert clip.row["text"] == "Rain."


def test_the_name_decides_the_clip(rows: list[dict]) -> None:
    name = "overlapped_speech/000003.opus"
    assert np.array_equal(MixtureMaker(rows)(name).audio, MixtureMaker(rows)(name).audio)
    assert MixtureMaker(rows, seed=1)(name).row["text"] != MixtureMaker(rows)(name).row["text"]


def test_clips_make_the_mixtures_that_they_have_parts_for(rows: list[dict]) -> None:
    voices, sounds = rows[:-1], rows[-1:]
    assert MixtureMaker(rows).tasks() == ["overlapped_speech", "speaker_verification", "speech_over_sound"]
    assert MixtureMaker(voices).tasks() == ["overlapped_speech", "speaker_verification"]
    assert MixtureMaker([voices[0], *sounds]).tasks() == ["speech_over_sound"]
    assert MixtureMaker(sounds).tasks() == MixtureMaker([]).tasks() == []


def test_one_speaker_alone_cannot_be_told_apart(rows: list[dict]) -> None:
    alone = [row for row in rows if row.get("speaker") != "queen:FAYE"]
    assert "speaker_verification" not in MixtureMaker(alone).tasks()
    assert "speaker_verification" in MixtureMaker(rows).tasks()
