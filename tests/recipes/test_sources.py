"""The corpus gathered from Hub data sets and audio folders."""

import json
from io import BytesIO
from pathlib import Path

import datasets
import pytest
import soundfile
from conftest import ROOT, SAMPLING_RATE, make_clip

from recipes.salmonn_smol.audiofolder import read_audiofolder
from recipes.salmonn_smol.sources import ClipSource, collect, read_sources
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
    rows = [{"file_name": "a.wav", "text": "Hello.", "seconds": 1.0, "source": "game"} | row]
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
    assert voice["path"] == str(folder / "a.wav")
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
