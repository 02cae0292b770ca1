"""Rows of all tasks out of audiofolders."""

import json
import random
from pathlib import Path

import pytest

from recipes.salmonn_smol.task_rows import (
    event_question,
    event_rows,
    music_caption,
    music_rows,
    pronounce,
    speech_question,
    speech_rows,
    write_manifests,
)


SPEECH = {"kind": "speech", "text": "I had to INSPECT the door.", "seconds": 2.0, "source": "game", "path": "a.opus"}
EVENT = {"kind": "event", "text": "Dog 02 bark", "sound_class": "dog or wolf", "seconds": 1.0, "source": "game"}
MUSIC = {
    "kind": "music",
    "text": "A slow piece for piano in minor.",
    "seconds": 9.0,
    "source": "scores",
    "tags": {"instruments": ["piano"], "tempo_bpm": 60, "mode": "minor"},
}


def by_task(rows: list[dict]) -> dict[str, list[dict]]:
    tasks: dict[str, list[dict]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    return tasks


def test_speech_gives_one_row_for_each_label() -> None:
    tasks = by_task(list(speech_rows([SPEECH | {"gender": "f", "weight": 2.0}], random.Random(0))))
    assert {row["weight"] for rows in tasks.values() for row in rows} == {2.0}
    assert tasks["asr"][0]["text"] == "I had to inspect the door."
    assert tasks["asr"][0]["alignment_text"] == "i had to inspect the door"
    assert tasks["keyword_extraction"][0]["text"] == "inspect"
    assert tasks["gender_recognition"][0]["text"] == "A woman."
    assert tasks["phone_recognition"][0]["text"].startswith("AY HH AE D T UW IH N S P EH K T")
    assert tasks["speech_qa"][0]["question"].endswith("?")


def test_speech_without_a_usable_text_gives_nothing() -> None:
    assert list(speech_rows([SPEECH | {"text": "(sigh)"}], random.Random(0))) == []


@pytest.mark.parametrize("seed", range(20))
def test_speech_question_is_answered_by_the_words(seed: int) -> None:
    words = "the cat sat on the mat"
    question, answer = speech_question(words, ["dog", "the"], random.Random(seed))
    if "How many" in question:
        assert answer == "6"
    elif "first" in question or "last" in question:
        assert answer == ("the" if "first" in question else "mat")
    else:
        asked = question.split('"')[1]
        assert answer == ("Yes." if asked in words.split() else "No.")


def test_the_words_asked_for_do_not_tell_the_answer() -> None:
    texts = ["the cat sat", "the dog ran", "a cat ran", "a dog sat"]
    rows = [SPEECH | {"text": texts[index % 4], "path": f"{index}.opus"} for index in range(800)]
    asked: dict[str, list[str]] = {}
    for row in speech_rows(rows, random.Random(0)):
        if row["task"] == "speech_qa" and '"' in row["question"]:
            asked.setdefault(row["question"].split('"')[1], []).append(row["text"])
    assert asked.keys() == {"the", "a", "cat", "dog", "sat", "ran"}
    for word, answers in asked.items():
        assert 0.3 < answers.count("Yes.") / len(answers) < 0.7, word


@pytest.mark.parametrize("seed", range(10))
def test_event_question_names_the_class_or_denies_another(seed: int) -> None:
    question, answer = event_question("rain", ["rain", "wind"], random.Random(seed))
    if "wind" in question:
        assert answer == "No, it is rain."
    else:
        assert answer in ("Yes.", "Rain.")


def test_event_and_music_rows_describe_what_is_heard() -> None:
    events = by_task(list(event_rows([EVENT | {"path": "e"}], random.Random(0))))
    assert "dog" in events["audio_caption"][0]["text"].lower()
    assert "dog" in events["audio_caption"][0]["alignment_words"].split()
    assert events["audio_caption"][0]["nouns"][:2] == ["dog", "wolf"]
    opened = EVENT | {"text": "You can hear a can being opened.", "sound_class": "can opening"}
    assert next(event_rows([opened], random.Random(0)))["nouns"] == ["opening", "opened"], "most captions have `can`"
    music = by_task(list(music_rows([MUSIC | {"path": "m"}], random.Random(0))))
    assert music["music_caption"][0]["text"] == MUSIC["text"]
    assert music["music_caption"][0]["alignment_words"] == music["music_caption"][0]["first_instrument"] == "piano"


def test_a_real_instrument_is_the_only_one_of_its_clip() -> None:
    note = {"kind": "music", "text": "a single note on flute", "instrument": "flute", "seconds": 3.0, "path": "n"}
    rows = by_task(list(music_rows([note], random.Random(0))))
    assert rows["music_caption"][0]["text"] == "A single note on flute."
    assert rows["music_caption"][0]["first_instrument"] == "flute"
    assert (rows["music_qa"][0]["question"], rows["music_qa"][0]["text"]) == ("Which instruments play?", "Flute.")
    assert music_caption("A slow piece.") == "A slow piece."


def test_pronunciation_needs_every_word() -> None:
    assert pronounce("hello world") == "HH AH L OW W ER L D"
    assert pronounce("hello xqzzy") is None
    assert pronounce(None) is None


def test_test_lines_that_were_trained_on_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = {"train": ["Hello there!"], "validation": ["Hello there."], "test": ["HELLO there.", "Goodbye."]}
    for split, texts in lines.items():
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True)
        rows = [SPEECH | {"text": text, "file_name": f"{index}.opus"} for index, text in enumerate(texts)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifests(tmp_path / "corpus", tmp_path / "manifests", extra=[tmp_path / "corpus" / "test"])
    assert (tmp_path / "manifests" / "test.jsonl").read_text() == "", "lines of further clips count too"
    capsys.readouterr()
    write_manifests(tmp_path / "corpus", tmp_path / "manifests")
    rows = [json.loads(line) for line in (tmp_path / "manifests" / "test.jsonl").read_text().splitlines()]
    assert f"test: {len(rows)} rows" in capsys.readouterr().out
    assert [row["text"] for row in rows if row["task"] == "asr"] == ["Goodbye."]
    assert {Path(row["path"]).name for row in rows} == {"1.opus"}, "the other tasks of a line go with it"
    mixed = tmp_path / "mixtures"
    for split in lines:
        (mixed / split).mkdir(parents=True)
        texts = ["Goodbye.\nHello there.", "Goodbye.\nWell."]
        base = {"kind": "mixture", "task": "overlapped_speech"}
        made = [base | {"file_name": f"{index}.flac", "text": text} for index, text in enumerate(texts)]
        (mixed / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    write_manifests(tmp_path / "corpus", tmp_path / "manifests", mixtures=mixed)
    rows = [json.loads(line) for line in (tmp_path / "manifests" / "test.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows if row["task"] == "overlapped_speech"] == ["Goodbye.\nWell."]
    assert all(Path(row["path"]).is_absolute() for row in rows)
