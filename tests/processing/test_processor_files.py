"""Processors: a saved folder replaces an older one as a whole, and files that are missing or damaged are named."""

from pathlib import Path

import pytest

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.processing.staged_saving_salmonn import MARK_FILE, STAGING_FOLDER


FILES = ("processor_config.json", "tokenizer.json")


@pytest.fixture
def folder(bucket_processor: SalmonnProcessor, tmp_path: Path) -> Path:
    bucket_processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"saved has no {name}, which the processor needs; download it"):
        SalmonnProcessor.from_pretrained(folder)


@pytest.mark.parametrize("content", ['{"a": ', "[1]", "", "[" * 100_000])
@pytest.mark.parametrize("name", [*FILES, "tokenizer_config.json", "config.json"])
def test_damaged_file_is_named(name: str, content: str, folder: Path) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"saved/{name} (cannot be read as JSON|holds a list|is empty)"):
        SalmonnProcessor.from_pretrained(folder)


def test_files_that_were_saved_are_told(bucket_processor: SalmonnProcessor, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    files = bucket_processor.save_pretrained(str(tmp_path))
    assert str(tmp_path / "processor_config.json") in files
    assert all(Path(file).is_file() for file in files)
    assert (tmp_path / "notes.md").read_text() == "mine"
    assert not (tmp_path / STAGING_FOLDER).exists()
    assert not (tmp_path / MARK_FILE).exists()


def test_loaded_processor_is_saved_over_itself(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    SalmonnProcessor.from_pretrained(folder).save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == before
    SalmonnProcessor.from_pretrained(folder)
