"""The catalogue of public data sets: its entries, where it looks for files, and what it says without them."""

from pathlib import Path

import pytest
from public_files import audio, hub_file, read, text_of, write_clips, write_csv, write_librispeech, write_parquet

from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.evaluation.public_data import PUBLIC_DATA, READERS, load_public


TASKS_OF_THE_PAPER = {
    "asr",
    "overlapped_speech",
    "translation",
    "audio_caption",
    "emotion_recognition",
    "music_caption",
    "speaker_verification",
    "keyword_extraction",
    "spoken_query",
    "slot_filling",
}

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.mark.parametrize("name", PUBLIC_DATA)
def test_entries_have_readers_tasks_and_access(name: str) -> None:
    entry = PUBLIC_DATA[name]
    assert entry.reader in READERS
    assert entry.task in TASKS_OF_THE_PAPER & load_prompts().keys()
    assert entry.licence
    assert entry.access.endswith(".")
    assert entry.hub or entry.clip
    assert entry.clip or "path" in entry.columns
    assert (entry.task == "translation") == (entry.language is not None)


def test_every_reader_and_every_task_is_in_use() -> None:
    assert {entry.reader for entry in PUBLIC_DATA.values()} == READERS.keys()
    assert {entry.task for entry in PUBLIC_DATA.values()} == TASKS_OF_THE_PAPER


def test_hub_is_read_without_a_folder(tmp_path: Path) -> None:
    write_librispeech(hub_file(tmp_path, "openslr/librispeech_asr", "all/test.other/0000.parquet"), "FROM THE HUB")
    assert [row["text"] for row in read("librispeech_other")] == ["FROM THE HUB"]


def test_unknown_name_raises() -> None:
    with pytest.raises(ValueError, match="no public data set 'librispeech'; there are librispeech_clean, libri"):
        load_public("librispeech")


@pytest.mark.parametrize("name", ["clotho", "audiocaps", "wiki_qa"])
def test_missing_folder_is_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs a folder. (Download|Annotation only|Text only)"):
        load_public(name)


@pytest.mark.parametrize("name", ["librispeech_clean", "gigaspeech", "clotho"])
def test_folder_without_the_files_raises(name: str, folder: Path, tmp_path: Path) -> None:
    write_librispeech(hub_file(tmp_path, "openslr/librispeech_asr", "all/test.clean/0000.parquet"), "NOT ASKED FOR")
    write_clips(folder, "a.wav")
    with pytest.raises(ValueError, match=rf"There is no .* of {name} in {folder}. (Open|Gated|Download)"):
        load_public(name, folder)


def test_folder_that_is_not_there_raises() -> None:
    with pytest.raises(ValueError, match=r"There is no data/test-\*.parquet of audiocaps in /none/clips"):
        load_public("audiocaps", "/none/clips")


def test_unreachable_hub_raises() -> None:
    with pytest.raises(ValueError, match=r"gigaspeech cannot be downloaded from speechcolab/gigaspeech .* Gated."):
        load_public("gigaspeech")


@pytest.mark.parametrize("renamed", ["audio", "text"])
def test_other_columns_of_a_parquet_file_raise(renamed: str, folder: Path) -> None:
    row = {"audio": audio("a.flac"), "text": "HELLO"}
    found = {("sentence" if name == renamed else name): value for name, value in row.items()}
    write_parquet(folder / "all/test.clean/0000.parquet", [found])
    with pytest.raises(ValueError, match=r"sentence") as raised:
        load_public("librispeech_clean", folder)
    assert "librispeech_clean needs" in str(raised.value)
    assert "['audio', 'text']" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "covost2_en_de",
            "covost_v2.en_de.test.tsv",
            "path\tsplit\na\ttest\n",
            r"\['path', 'split'\], but covost2_en_de",
        ),
        ("covost2_en_de", "covost_v2.en_de.test.tsv", "", r"has the columns \[\], but covost2_en_de needs"),
        ("inspec", "test.jsonl", '{"id": 1, "title": "T"}\n', r"\['id', 'title'\], but inspec needs \['abstractive"),
        ("clotho", "clotho_captions_evaluation.csv", "file_name,caption_1\na,b\n", "but clotho needs .*'caption_5'"),
    ],
)
def test_other_columns_of_a_table_raise(name: str, file: str, content: str, message: str, folder: Path) -> None:
    text_of(folder / file, content)
    with pytest.raises(ValueError, match=message):
        load_public(name, folder)


def test_nothing_left_raises(folder: Path) -> None:
    write_csv(
        folder / "clotho_captions_evaluation.csv",
        [{"file_name": "a.wav"} | {f"caption_{n}": "b" for n in range(1, 6)}],
    )
    with pytest.raises(
        ValueError, match=r"No rows of clotho are left. Left out: 1 whose clips are not in .*evaluation/a"
    ):
        load_public("clotho", folder)
