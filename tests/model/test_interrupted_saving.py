"""A save that is killed, or fails, never leaves a mixture of old and new files that loads."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from saved_folders import ADAPTER, ADAPTER_CONFIG, WEIGHTS, assert_loads_equal

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.staged_saving_salmonn import MARK_FILE, STAGING_FOLDER, replace_files


TESTS = Path(__file__).resolve().parent.parent
FORMS = ("full", "shards", "plain", "adapter", "trainer")


def outcomes_of_killed_saves(folder: Path, stride: int, pair: str) -> dict[str, int]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "helpers" / "killed_saves.py"), str(folder), str(stride), *pair.split("-")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk, a write fails in the middle."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_killed_save_leaves_the_old_folder_the_new_one_or_one_that_is_refused(tmp_path: Path) -> None:
    found = outcomes_of_killed_saves(tmp_path, 9, "adapter-shards")
    assert found.keys() == {"old", "refused", "new"}


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["-".join(pair) for pair in product(FORMS, FORMS)])
def test_save_killed_anywhere_leaves_no_mixture(pair: str, tmp_path: Path) -> None:
    found = outcomes_of_killed_saves(tmp_path, 1, pair)
    assert found.keys() == {"old", "refused", "new"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_save_that_fails_in_the_middle_leaves_the_old_folder(saved_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(saved_folder, folder)
    (folder / WEIGHTS).unlink()
    tiny_model(SalmonnConfig.from_pretrained(folder), lora=True).save_pretrained(folder, max_shard_size="20KB")
    before = contents(folder)
    model = SalmonnForConditionalGeneration.from_pretrained(saved_folder)
    with largest_file(20_000), pytest.raises(Exception, match="File too large"):
        model.save_pretrained(folder)
    assert contents(folder) == before


def test_failed_save_into_a_new_folder_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_files(tmp_path / "new") as staging:
        shutil.copyfile(tmp_path / "missing", staging / "a.txt")
    assert not (tmp_path / "new").exists()


def test_files_that_are_not_written_anew_stay(tmp_path: Path) -> None:
    for name in ("kept.txt", "replaced.txt", "outdated.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / STAGING_FOLDER).mkdir()
    (tmp_path / STAGING_FOLDER / "kept.txt").write_text("of a save that was killed")
    with replace_files(tmp_path, lambda name: name == "outdated.txt") as staging:
        (staging / "replaced.txt").write_text("new")
        (staging / "inner").mkdir()
        (staging / "inner" / "added.txt").write_text("new")
        assert (tmp_path / "replaced.txt").read_text() == "old"
    assert contents(tmp_path) == {"kept.txt": b"old", "replaced.txt": b"new", "inner/added.txt": b"new"}
    assert not (tmp_path / STAGING_FOLDER).exists()


def test_save_to_a_file_raises(bucket_model: SalmonnForConditionalGeneration, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file, but a folder to save to is needed"):
        bucket_model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("loaded", [SalmonnForConditionalGeneration, SalmonnProcessor])
def test_folder_whose_save_was_not_finished_is_refused(loaded: Any, saved_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(saved_folder, tmp_path / "copy")
    (tmp_path / "copy" / MARK_FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"was being saved to when the process ended .* mixed; save .* again"):
        loaded.from_pretrained(tmp_path / "copy")


def test_killed_save_of_the_model_is_not_mended_by_one_of_the_processor(
    bucket_config: SalmonnConfig, saved_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(saved_folder, tmp_path / "copy"))
    model, processor = tiny_model(bucket_config, lora=True), SalmonnProcessor.from_pretrained(folder)
    torch.nn.init.normal_(model.model.projector.weight)
    replace = os.replace

    def end_at_weights(source: Path, target: Path) -> None:
        if target.name == WEIGHTS:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", end_at_weights)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(folder)
    monkeypatch.undo()
    processor.save_pretrained(folder)
    for loaded in (SalmonnForConditionalGeneration, SalmonnProcessor):
        with pytest.raises(ValueError, match="old and new files are mixed"):
            loaded.from_pretrained(folder)
    model.save_pretrained(folder)
    assert not (folder / MARK_FILE).exists()
    assert_loads_equal(folder, model)


@pytest.mark.parametrize("adapter_only", [False, True], ids=["full", "adapter"])
def test_save_deletes_only_what_the_library_writes(
    adapter_only: bool, based_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    own = [
        "model_backup.safetensors",
        "model.safetensors.bak",
        "model-best.safetensors",
        "model_notes.safetensors.txt",
    ]
    own += ["my_adapter_model.safetensors", "connector.safetensors.old", "model.fp16.safetensors", "notes.md"]
    for name in own:
        (tmp_path / name).write_text("mine")
    outdated = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    for name in outdated:
        (tmp_path / name).write_text("outdated")
    based_model.save_pretrained(tmp_path, adapter_only=adapter_only)
    assert {name: (tmp_path / name).read_text() for name in own} == dict.fromkeys(own, "mine")
    assert [name for name in outdated if (tmp_path / name).exists()] == []
    assert_loads_equal(tmp_path, based_model)


def test_variant_is_saved_beside_the_plain_weights(bucket_config: SalmonnConfig, tmp_path: Path) -> None:
    model = tiny_model(bucket_config)
    model.save_pretrained(tmp_path)
    torch.nn.init.ones_(model.model.projector.bias)
    model.save_pretrained(tmp_path, variant="other", max_shard_size="20KB")
    loaded = SalmonnForConditionalGeneration.from_pretrained(tmp_path, variant="other")
    assert torch.equal(loaded.model.projector.bias, model.model.projector.bias)
    assert not SalmonnForConditionalGeneration.from_pretrained(tmp_path).model.projector.bias.eq(1).any()


def test_hashes_of_all_weights_are_saved(saved_folder: Path, adapter_folder: Path) -> None:
    for folder in (saved_folder, adapter_folder):
        hashes = json.loads((folder / "hashes.json").read_text())
        assert hashes == {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")
        }


def test_save_without_adapter_removes_its_files(bucket_config: SalmonnConfig, tmp_path: Path) -> None:
    tiny_model(bucket_config, lora=True).save_pretrained(tmp_path)
    tiny_model(bucket_config).save_pretrained(tmp_path)
    assert not {ADAPTER, ADAPTER_CONFIG} & {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "hashes.json").read_text()).keys() == {WEIGHTS}
