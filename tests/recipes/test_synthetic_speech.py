"""Synthetic speech: what a run makes, how it continues, and what it refuses."""

import json
import multiprocessing
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.salmonn_smol import synthetic_speech
from recipes.salmonn_smol.spoken_texts import SHARES, Text
from recipes.salmonn_smol.synthetic_speech import (
    COMMANDS,
    VOICES,
    Utterance,
    Voice,
    finish_audio,
    plan_utterances,
    require_synthesisers,
    synthesise_speech,
)
from recipes.salmonn_smol.waveforms import SAMPLING_RATE, trim_to_words


try:
    require_synthesisers()
    missing = ""
except OSError as error:
    missing = str(error)

with_synthesisers = pytest.mark.skipif(bool(missing), reason=missing)
SENSES = """\
00000001 13 n 01 harbour 0 000 | a sheltered port; "the ship left the harbour"; "a busy harbour"
00000002 13 n 01 owl 0 000 | a bird that hunts at night; "owls' eyes are large"; "we heard an owl"
00000003 13 n 01 fire 0 000 | a burning fuel; "a dying fire"; "they sat by the fire and sang"
"""
RESERVED = re.compile(r"awb|joe")


def clip_of(voice: Voice, words: str = "A dying fire.", **variation: float) -> Utterance:
    """A clip without variation, but for what is given."""
    return Utterance(
        7,
        Text(words, "phrase", "none"),
        voice,
        **{"stretch": 1.0, "pitch": 0.0, "speed": 1.0, "peak": 0.5} | variation,
    )


def rows_of(folder: Path) -> list[dict[str, str | float]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return level * np.sin(np.arange(int(seconds * SAMPLING_RATE)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def small_wordnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let runs take their texts from a WordNet of three senses, which is read in no time."""
    folder = tmp_path_factory.mktemp("wordnet")
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text(SENSES if part == "noun" else "")
    (folder / "cntlist.rev").write_text("harbour%1:13:00:: 1 12\nowl%1:13:00:: 1 2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_speech, "plan_utterances", partial(plan_utterances, wordnet=folder))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 clips made in one go."""
    folder = tmp_path_factory.mktemp("finished")
    synthesise_speech(folder, limit=14, jobs=2)
    return folder


def test_voices_exclude_those_reserved_for_scoring() -> None:
    assert not [voice.label for voice in VOICES if RESERVED.search(voice.label)]
    assert sum(voice.share for voice in VOICES) == pytest.approx(100)


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.label)
def test_commands_name_the_voice_and_the_text(voice: Voice, tmp_path: Path) -> None:
    clip = clip_of(voice)
    command = " ".join(COMMANDS[voice.engine](clip, tmp_path))
    assert clip.text.words in command
    assert not RESERVED.search(command.replace(str(tmp_path), ""))


def test_trim_to_words_leaves_a_tenth_of_a_second() -> None:
    silence = np.zeros(SAMPLING_RATE, dtype=np.float32)
    trimmed = trim_to_words(np.concatenate([silence, tone(0.5), silence]))
    assert len(trimmed) / SAMPLING_RATE == pytest.approx(0.7, abs=0.02)


def test_finish_audio_is_empty_when_nothing_was_said() -> None:
    assert len(finish_audio(np.zeros(8000, dtype=np.float32), 8000, clip_of(VOICES[0]))) == 0
    assert len(finish_audio(np.zeros(0, dtype=np.float32), 8000, clip_of(VOICES[0]))) == 0


def test_finish_audio_applies_speed_and_peak() -> None:
    fast = finish_audio(tone(1.0), SAMPLING_RATE, clip_of(VOICES[0], speed=1.1, peak=0.7))
    assert len(fast) == pytest.approx(SAMPLING_RATE / 1.1, rel=0.01)
    assert np.abs(fast).max() == pytest.approx(0.7, abs=1e-3)


@with_synthesisers  # with the whole of WordNet
def test_plan_utterances_extends_the_same_beginning() -> None:
    plan = plan_utterances(3000)
    assert plan[:100] == plan_utterances(100)
    best = {"flite-slt", "flite-rms", "festival-ked"}
    assert np.mean([clip.voice.label in best for clip in plan]) > 0.6
    assert not [clip for clip in plan if RESERVED.search(clip.voice.label)]
    assert {clip.text.source for clip in plan[:200]} == set(SHARES)


@with_synthesisers
def test_synthesise_speech_makes_an_audiofolder(finished: Path) -> None:
    rows = rows_of(finished)
    assert len(rows) == 14
    for row, clip in zip(rows, synthetic_speech.plan_utterances(14), strict=True):
        audio, rate = soundfile.read(finished / clip.file_name)
        assert (row["file_name"], row["text"], row["voice"]) == (clip.file_name, clip.text.words, clip.voice.label)
        assert (rate, audio.ndim) == (SAMPLING_RATE, 1)
        assert len(audio) / rate == pytest.approx(row["seconds"], abs=0.001)
        assert 0.25 <= row["seconds"] <= 14
        assert np.abs(audio).max() == pytest.approx(clip.peak, rel=0.35)  # Opus does not keep a peak exactly


@with_synthesisers
def test_synthesise_speech_continues_to_the_same_clips_after_a_kill(finished: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=synthesise_speech, args=(tmp_path, 14))
    process.start()
    while process.is_alive() and len(list(tmp_path.glob("clips/*/*.opus"))) < 5:
        time.sleep(0.01)
    process.kill()
    process.join()
    early = {path: path.stat().st_mtime_ns for path in tmp_path.glob("clips/*/*.opus")}
    assert 5 <= len(early) < 14

    synthesise_speech(tmp_path, limit=14)

    assert rows_of(tmp_path) == rows_of(finished)
    assert {path: path.stat().st_mtime_ns for path in early} == early
    for row in rows_of(finished):
        once, twice = (soundfile.read(folder / str(row["file_name"]))[0] for folder in (finished, tmp_path))
        np.testing.assert_array_equal(once, twice)


@with_synthesisers
def test_synthesise_speech_leaves_out_clips_that_are_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic_speech, "LONGEST_SECONDS", 0.3)
    synthesise_speech(tmp_path, limit=2)
    assert rows_of(tmp_path) == []
    assert "2 had nothing to hear" in capsys.readouterr().out


@with_synthesisers
def test_synthesise_speech_with_another_seed_raises(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"files of other settings: seed 0 instead of 1"):
        synthesise_speech(finished, limit=14, seed=1)


def test_require_synthesisers_names_the_packages_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"apt-get install flite espeak-ng festival .*festvox-us-slt-hts wordnet-base"):
        require_synthesisers(tmp_path)
