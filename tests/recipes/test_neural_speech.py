"""Speech of a neural voice by many speakers."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE
from recipes.salmonn_smol.audiofolder import read_audiofolder
from recipes.salmonn_smol.neural_speech import (
    NeuralSpeechMaker,
    NeuralVoice,
    Speaker,
    change_pitch,
    make_neural_speech,
    move_formants,
    read_texts,
)
from recipes.salmonn_smol.waveforms import read_clip


TEXT = "the old man walked along the river"


@pytest.fixture(scope="module")
def voice() -> NeuralVoice:
    pytest.importorskip("hibari")
    return NeuralVoice()


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(pitch=1.0, formants=1.0, melody=1.0, tilt=0.0, pace=1.0, british=False)


def middle_pitch(samples: np.ndarray) -> float:
    """The pitch that most stretches of 50 ms have, by autocorrelation."""
    length = SAMPLING_RATE // 20
    found = []
    for start in range(0, len(samples) - length, length):
        part = samples[start : start + length]
        correlation = np.correlate(part, part, "full")[length - 1 :]
        lags = correlation[SAMPLING_RATE // 400 : SAMPLING_RATE // 60]
        if correlation[0] > 0.5 and lags.max() > 0.5 * correlation[0]:
            found.append(SAMPLING_RATE / (SAMPLING_RATE // 400 + int(lags.argmax())))
    return float(np.median(found))


def test_pitch_and_pace_are_those_of_the_speaker(voice: NeuralVoice, speaker: Speaker) -> None:
    own, low = (voice.speak(TEXT, one, seed=0) for one in (speaker, replace(speaker, pitch=0.6)))
    assert len(low) == len(own)
    assert middle_pitch(low) == pytest.approx(0.6 * middle_pitch(own), rel=0.2)
    slow = voice.speak(TEXT, replace(speaker, pace=0.8), seed=0)
    assert len(slow) > 1.1 * len(own)


def test_british_speakers_say_other_vowels(voice: NeuralVoice, speaker: Speaker) -> None:
    american, british = (voice.speak("a path to the car", replace(speaker, british=one), 0) for one in (False, True))
    assert len(american) != len(british) or not np.allclose(american, british)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(ValueError, match=r"There is no hibari, .* pip install hibari-tts"):
        NeuralVoice()


def test_what_cannot_be_said_is_empty(voice: NeuralVoice, speaker: Speaker) -> None:
    assert len(voice.speak("", speaker, seed=0)) == 0


def test_formants_move_by_the_factor() -> None:
    spectrum = np.zeros((100, 2), np.float32)
    spectrum[40] = 1
    for factor in (0.8, 1.0, 1.2):
        assert move_formants(spectrum, factor)[:, 0].argmax() == pytest.approx(40 * factor, abs=1)


def test_melody_is_widened_around_the_middle(speaker: Speaker) -> None:
    pitch = np.array([0.0, 100.0, 400.0])
    changed = change_pitch(pitch, replace(speaker, pitch=0.5, melody=2.0))
    assert changed == pytest.approx([0.0, 25.0, 400.0])  # 200 Hz in the middle, two octaves become four
    assert change_pitch(pitch[:1], speaker) == pytest.approx([0.0])


def test_speakers_differ_and_stay_within_limits() -> None:
    speakers = [Speaker.draw(random.Random(seed)) for seed in range(200)]
    assert len({one.pitch for one in speakers}) > 150
    assert min(one.pitch for one in speakers) >= 0.4
    assert all(0.75 <= one.pace <= 1.4 and 0.78 <= one.formants <= 1.18 for one in speakers)
    assert 20 < sum(one.british for one in speakers) < 80


def test_texts_with_figures_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "in 1999", "...")))
    assert read_texts(file) == [TEXT]


def test_folder_has_a_clip_for_each_text_and_is_resumed(voice: NeuralVoice, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in (TEXT, "IT IS I", "word " * 100)))
    rows = make_neural_speech(file, tmp_path / "speech")
    assert [row["text"] for row in rows] == [TEXT, "IT IS I"], "a clip that gets too long is left out"
    assert rows[0]["manner"] != rows[1]["manner"]
    first = read_clip(read_audiofolder(tmp_path / "speech")[0]["path"])
    again = NeuralSpeechMaker([TEXT])("000/000000.flac")
    assert again is not None
    assert np.abs(again.audio - first).max() < 1e-3
    assert make_neural_speech(file, tmp_path / "speech") == rows
    with pytest.raises(ValueError, match="other settings: seed 0 instead of 1"):
        make_neural_speech(file, tmp_path / "speech", seed=1)
