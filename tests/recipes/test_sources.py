"""The corpus gathered from Hub data sets and audio folders."""

import json
from io import BytesIO
from pathlib import Path

import datasets
import pytest
import soundfile
from conftest import ROOT, SAMPLING_RATE, make_clip

from modeling_salmonn.data.rows import load_rows
from recipes.salmonn_smol.audiofolder import read_audiofolder
from recipes.salmonn_smol.mixtures import make_mixtures
from recipes.salmonn_smol.sources import ClipSource, collect, read_sources
from recipes.salmonn_smol.task_rows import write_manifests
from recipes.salmonn_smol.waveforms import read_clip


def make_table(file: Path, count: int = 6) -> Path:
    """A Parquet file as the Hub has them, with clips of 44.1 kHz within."""
    rows = []
    for index in range(count):
        content = BytesIO()
        soundfile.write(content, make_clip(1.0 + index / 10, seed=index), 44100, format="WAV")
        audio = {"bytes": content.getvalue(), "path": f"{index}.wav"}
        rows.append({"audio": audio, "category": f"crackling_fire{index}", "fold": index % 3})
    datasets.Dataset.from_list(rows).to_parquet(file)
    return file


def make_folder(folder: Path, **row: str) -> Path:
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.wav", make_clip(1.0), SAMPLING_RATE)
    rows = [{"file_name": "a.wav", "text": "Hello.", "licence": "free"} | row]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_sources(file: Path, **entries: dict) -> Path:
    file.write_text(json.dumps(entries))  # JSON is YAML
    return file


@pytest.mark.parametrize("streaming", [False, True])
def test_clips_of_tables_are_written_and_those_of_folders_stay(
    tmp_path: Path, streaming: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    table, folder = make_table(tmp_path / "table.parquet"), make_folder(tmp_path / "games", kind="speech")
    sounds = {"path": str(table), "into": "train", "kind": "event", "streaming": streaming, "limit": 9}
    sounds |= {"keep": {"fold": [1, 2]}, "columns": {"text": "category", "sound_class": "category"}}
    sounds["row"] = {"licence": "CC0", "weight": 2.0}
    games = {"path": str(folder), "into": "train"}
    corpus = tmp_path / "corpus"
    collect(write_sources(tmp_path / "sources.yaml", sounds=sounds, games=games), corpus)
    *fires, voice = read_audiofolder(corpus / "train")
    assert [row["sound_class"] for row in fires] == [f"crackling fire{index}" for index in (1, 2, 4, 5)]
    assert {(row["kind"], row["licence"], row["weight"], row["source"]) for row in fires} == {
        ("event", "CC0", 2.0, str(table))
    }
    samples = [read_clip(row["path"]) for row in fires]
    assert [len(one) for one in samples] == pytest.approx([row["seconds"] * SAMPLING_RATE for row in fires], abs=16)
    assert fires[0]["seconds"] == pytest.approx((1.1 * SAMPLING_RATE) / 44100, abs=0.01)
    assert (voice["path"], voice["seconds"], voice["source"]) == (str(folder / "a.wav"), 1.0, str(folder))
    assert read_audiofolder(corpus / "test") == []
    assert "train: 5 clips, 0.0 h" in capsys.readouterr().out
    before = [Path(row["path"]).stat().st_mtime_ns for row in fires]
    collect(tmp_path / "sources.yaml", corpus)
    assert [Path(row["path"]).stat().st_mtime_ns for row in fires] == before, "clips that are there stay"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "a/b"}, "one in .* needs `path` and `into`"),
        ({"path": "a/b", "into": "train", "task": "asr"}, "one in .* may have"),
        ({"path": "a/b", "into": "dev", "kind": "speech", "limit": 1}, "`into` is one of"),
        ({"path": "a/b", "into": "train", "limit": 1}, "needs `kind` and `limit`"),
        ({"path": "a/b", "into": "train", "kind": "speech", "limit": "all"}, "limit of one in .* is 'all'"),
    ],
)
def test_entries_that_cannot_be_used(entry: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_sources(write_sources(tmp_path / "sources.yaml", one=entry))


def test_rows_that_do_not_say_what_they_are(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "clips")
    file = write_sources(tmp_path / "sources.yaml", clips={"path": str(folder), "into": "train"})
    with pytest.raises(ValueError, match=r"a\.wav has the kind None; give its source a `kind`"):
        collect(file, tmp_path / "corpus")


def test_rows_that_lack_what_later_commands_need(tmp_path: Path) -> None:
    tune = make_folder(tmp_path / "clips", kind="music", licence="")
    for row, message in [
        ({}, r"a\.wav has no instrument; add it"),
        ({"instrument": "lute", "text": None}, "has no text"),
    ]:
        file = write_sources(tmp_path / "sources.yaml", clips={"path": str(tune), "into": "train", "row": row})
        with pytest.raises(ValueError, match=message):
            collect(file, tmp_path / "corpus")


def make_readers(file: Path) -> Path:
    """A Parquet file of speech with the columns of LibriSpeech on the Hub, sorted by speaker."""
    rows = []
    for index, text in enumerate(["HE SAID NO", "SHE WENT HOME", "WE KNOW", "THEY RAN", "IT FELL", "YOU WON"]):
        content = BytesIO()
        soundfile.write(content, make_clip(1.5, seed=index), SAMPLING_RATE, format="FLAC")
        audio = {"bytes": content.getvalue(), "path": f"{index}.flac"}
        rows.append(
            {"audio": audio, "text": text, "speaker_id": 1 + index // 2, "chapter_id": 7, "id": f"1-7-{index}"}
        )
    datasets.Dataset.from_list(rows).to_parquet(file)
    return file


def reader_source(path: Path, **entry: object) -> dict:
    source = {"path": str(path), "into": "train", "kind": "speech", "limit": 9, "columns": {"speaker": "speaker_id"}}
    return source | {"row": {"licence": "CC-BY-4.0"}} | entry


def test_readers_that_have_numbers_become_rows_of_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.salmonn_smol.mixtures.COUNTS", {"train": 3, "validation": 2, "test": 2})
    readers, game = make_readers(tmp_path / "readers.parquet"), make_folder(tmp_path / "game", speaker="1")
    entries = {"game": {"path": str(game), "into": "train", "kind": "speech"}, "readers": reader_source(readers)}
    corpus = tmp_path / "corpus"
    collect(write_sources(tmp_path / "sources.yaml", **entries), corpus)
    make_mixtures(corpus, tmp_path / "mixtures")  # of no clips for validation and test
    write_manifests(corpus, tmp_path / "data", mixtures=tmp_path / "mixtures")
    rows = load_rows(str(tmp_path / "data" / "train.jsonl"))
    speakers = {row["speaker"] for row in rows if row["task"] == "asr" and "speaker" in row}
    assert speakers == {"1", *(f"{readers}:{number}" for number in (1, 2, 3))}, "two people are called 1"
    assert "keyword_extraction" not in {row["task"] for row in rows}, (
        "capitals stress nothing where all is in capitals"
    )
    assert {"overlapped_speech", "speaker_verification"} <= {row["task"] for row in rows}
    assert (tmp_path / "data" / "test.jsonl").read_text() == ""


def test_every_nth_row_is_taken_of_data_that_are_sorted(tmp_path: Path) -> None:
    readers = make_readers(tmp_path / "readers.parquet")
    file = write_sources(tmp_path / "sources.yaml", readers=reader_source(readers, every=2, limit=3))
    collect(file, tmp_path / "corpus")
    assert [row["text"] for row in read_audiofolder(tmp_path / "corpus" / "train")] == [
        "HE SAID NO",
        "WE KNOW",
        "IT FELL",
    ]
    write_sources(file, readers=reader_source(readers, every=3))
    with pytest.raises(ValueError, match=r"has been begun with .*every 2|every"):
        collect(file, tmp_path / "corpus")


def test_the_list_of_the_recipe_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("corpus", "corpus_more"):
        for split in ("train", "validation", "test"):
            (tmp_path / "CORPORA" / name / split).mkdir(parents=True)
    sources = read_sources(ROOT / "recipes" / "salmonn_smol" / "sources.yaml")
    assert {source.into for source in sources.values()} == {"train", "validation", "test"}
    assert sources["esc50_test"] == ClipSource(
        path="ashraq/esc50", into="test", kind="event", limit=400, keep={"fold": [4]}, row=sources["esc50"].row,
        columns={"text": "category", "sound_class": "category"},
    )  # fmt: skip
