"""Music clips: captions state what was rendered, all instruments come up, a second run completes the first."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from recipes.salmonn_smol import music
from recipes.salmonn_smol.music import INSTRUMENTS, SCORES_FILE, SPEEDS, caption, plan_piece, render_music
from recipes.salmonn_smol.music_phrases import TONICS, Phrase, compose
from recipes.salmonn_smol.soundfonts import (
    SOUNDFONTS,
    Note,
    Preset,
    SoundFont,
    midi_file,
    refuse_reserved,
    render,
    require_soundfonts,
)


FONT = "TimGM6mb"
try:
    require_soundfonts([FONT])
    MISSING = ""
except FileNotFoundError as error:
    MISSING = str(error)
needs_soundfont = pytest.mark.skipif(bool(MISSING), reason=MISSING or "present")
SCALE = Phrase([[(float(i), 0.9, 60 + i) for i in range(16)]], "C", "major", "bach")


@pytest.fixture
def music_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one excerpt, to be filled with the smallest soundfont."""
    monkeypatch.setattr(music, "FONT_WEIGHTS", {FONT: 1.0})
    folder = tmp_path / "music"
    folder.mkdir()
    (folder / SCORES_FILE).write_text(json.dumps([asdict(SCALE)]), encoding="utf-8")
    return folder


@needs_soundfont
def test_render_music_writes_clips_that_its_rows_describe(music_folder: Path) -> None:
    rows = render_music(music_folder, limit=3)

    assert [json.loads(line) for line in (music_folder / "metadata.jsonl").read_text().splitlines()] == rows
    for row in rows:
        audio, rate = soundfile.read(music_folder / row["file_name"])
        assert rate == 16_000
        assert len(audio) / rate == pytest.approx(row["seconds"], abs=0.01)
        assert np.abs(audio).max() > 0.2
        assert row["tags"]["instruments"][0] in row["text"].lower()
        assert row["tags"]["mode"] in row["text"]


@needs_soundfont
def test_render_music_completes_an_interrupted_run_with_the_same_clips(music_folder: Path) -> None:
    rows = render_music(music_folder, limit=2)
    kept, lost = (music_folder / row["file_name"] for row in rows)
    before, written = soundfile.read(lost)[0], kept.stat().st_mtime_ns
    lost.unlink()

    assert render_music(music_folder, limit=2) == rows
    assert kept.stat().st_mtime_ns == written
    np.testing.assert_array_equal(soundfile.read(lost)[0], before)


def test_plan_takes_every_instrument_first_equally_often() -> None:
    plans = [plan_piece(random.Random(index), [SCALE], index) for index in range(2 * len(INSTRUMENTS))]

    firsts = [clip.instruments[0] for clip in plans]
    assert {firsts.count(name) for name in INSTRUMENTS} == {2}
    assert all(clip.tempo in SPEEDS[clip.speed] for clip in plans)
    assert all(len(clip.instruments) <= len(clip.phrase.voices) for clip in plans)
    assert len({clip.font.name for clip in plans}) >= 4


def test_caption_has_the_sentences_of_the_corpus() -> None:
    clip = plan_piece(random.Random(0), [], 0)
    captions = {caption(random.Random(seed), clip) for seed in range(30)}

    voices = "piece in several voices" if len(clip.phrase.voices) > 1 else "melody"
    assert len(captions) == 3
    for text in captions:
        assert all(word in text.lower() for word in (*clip.instruments, clip.speed, clip.phrase.mode, voices))


@pytest.mark.parametrize("voices", [1, 2, 3, 4])
def test_compose_stays_in_its_key(voices: int) -> None:
    phrase = compose(random.Random(voices), voices, beats=16)
    tonic = TONICS.index(phrase.key)
    steps = {0, 2, 4, 5, 7, 9, 11} if phrase.mode == "major" else {0, 2, 3, 5, 7, 8, 10, 11}

    assert len(phrase.voices) == voices
    assert {(pitch - tonic) % 12 for voice in phrase.voices for _, _, pitch in voice} <= steps
    assert all(0 <= start < 16 for voice in phrase.voices for start, _, _ in voice)


def test_transposed_phrase_names_its_new_key() -> None:
    assert SCALE.transposed(3).key == "E-"


@needs_soundfont
def test_render_plays_a_note_at_its_pitch() -> None:
    audio = render([Note(0.0, 1.0, 69)], [Preset(0, 73)], SOUNDFONTS[FONT], reverb=0.0)
    spectrum = np.abs(np.fft.rfft(audio[:16_000]))

    assert spectrum.argmax() == pytest.approx(440, abs=6)


def test_midi_file_keeps_drums_on_their_channel() -> None:
    notes = [Note(0.0, 1.0, 60, channel=0), Note(0.0, 1.0, 36, channel=1)]
    data = midi_file(notes, [Preset(0, 0), Preset(128, 0)], 120, 0.0)

    started = {(event.channel, event.note) for event in data.tracks[0] if event.type == "note_on"}
    assert started == {(0, 60), (9, 36)}


def test_midi_file_ends_a_note_before_the_same_begins_again() -> None:
    data = midi_file([Note(0.0, 1.0, 60), Note(1.0, 1.0, 60)], [Preset(0, 0)], 120, 0.0)

    played = [event.type for event in data.tracks[0] if event.type.startswith("note")]
    assert played == ["note_on", "note_off", "note_on", "note_off"]
    assert data.length == pytest.approx(1.0)


def test_require_soundfonts_missing_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SOUNDFONTS, "none", SoundFont("none", "no-such-soundfont", tmp_path / "none.sf2", "MIT"))

    with pytest.raises(FileNotFoundError, match=r"apt-get install .*no-such-soundfont"):
        require_soundfonts(["none"])


def test_refuse_reserved_follows_links(tmp_path: Path) -> None:
    (tmp_path / "MuseScore_General.sf3").touch()
    link = tmp_path / "innocent.sf3"
    link.symlink_to(tmp_path / "MuseScore_General.sf3")

    with pytest.raises(ValueError, match="kept for testing"):
        refuse_reserved(link)
