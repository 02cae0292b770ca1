"""Checkpoints count only when they are complete."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_salmonn.training.checkpoints import (
    is_complete,
    last_complete_checkpoint,
    mark_complete,
    mark_incomplete,
    read_weights,
)


def write_checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "inner").mkdir(parents=True)
    (checkpoint / "weights.bin").write_bytes(b"12345")
    (checkpoint / "inner" / "state.json").write_text("{}")
    if complete:
        mark_complete(checkpoint)
    return checkpoint


def test_checkpoint_is_complete_once_it_is_marked(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 1, complete=False)
    assert not is_complete(checkpoint)
    mark_complete(checkpoint)
    assert is_complete(checkpoint)
    mark_incomplete(checkpoint)
    assert not is_complete(checkpoint)


@pytest.mark.parametrize("damage", ["truncated", "missing", "marker"])
def test_damaged_checkpoint_is_not_complete(damage: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 1)
    if damage == "truncated":
        (checkpoint / "weights.bin").write_bytes(b"123")
    elif damage == "missing":
        (checkpoint / "inner" / "state.json").unlink()
    else:
        (checkpoint / "complete.json").write_text('{"weights.bin": ')
    assert not is_complete(checkpoint)


def test_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
    for step, complete in ((2, True), (9, True), (10, True), (11, False)):
        write_checkpoint(tmp_path, step, complete)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_output_folder_that_does_not_exist_has_none(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path / "none") is None


def test_weights_of_all_files_are_read(tmp_path: Path) -> None:
    names = ("connector", "adapter_model", "model-00001-of-00002", "model-00002-of-00002")
    for index, name in enumerate(names):
        save_file({name: torch.tensor([index])}, tmp_path / f"{name}.safetensors")
    save_file({"head": torch.ones(1)}, tmp_path / "alignment_head.safetensors")
    assert {name: int(value) for name, value in read_weights(tmp_path).items()} == {
        name: index for index, name in enumerate(names)
    }


def test_folder_without_weights_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are no weights in"):
        read_weights(tmp_path)
