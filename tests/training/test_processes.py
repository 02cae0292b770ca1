"""Two processes are as good as one with twice the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from workspace import Workspace, config_without_dropout, make_workspace, write_jsonl

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.training.run import train


PATIENCE = 400  # seconds, after which processes wait for each other
SETTINGS: dict[str, Any] = {
    "max_steps": 3,
    "save_steps": 3,
    "adam_epsilon": 1e-3,  # so that rounding is not blown up to a whole step
    "gradient_accumulation_steps": 2,
    "overlap_examples": 2,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("processes"), config=config_without_dropout())


def launch(workspace: Workspace, output: Path, **changes: Any) -> None:
    settings = workspace.settings(output, per_device_train_batch_size=1, **SETTINGS | changes)
    stage = output.with_suffix(".yaml")
    stage.write_text(yaml.safe_dump(settings))
    # --cpu would start a single process where there is no MPI; gloo is chosen for lack of another device
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "modeling_salmonn", "train", str(stage)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=PATIENCE)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    assert (output / "checkpoint-3" / "rng_state_1.pth").is_file()


@torch.no_grad()
def assert_same_model(first: Path, second: Path, start: Path, tolerance: float = 1e-8) -> None:
    models = [SalmonnForConditionalGeneration.from_pretrained(path) for path in (first, second)]
    begun = dict(SalmonnForConditionalGeneration.from_pretrained(start).named_parameters())
    distance = difference = 0.0
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        difference += float((one - two).square().sum())
        distance += float((one - begun[name]).square().sum()) if name in begun else 0.0
    assert distance > 1e-3
    assert difference < tolerance * distance


def test_two_processes_equal_one_with_twice_the_batch(workspace: Workspace, tmp_path: Path) -> None:
    rows = read_rows(workspace)
    for row in rows[::3]:  # text alone, and so some batches of a process
        del row["path"], row["seconds"]
    data = str(write_jsonl(workspace.folder / "mixed.jsonl", rows))
    changes = {"train_data": data, "gradient_checkpointing": True}
    launch(workspace, tmp_path / "two", **changes)
    train(workspace.arguments(tmp_path / "one", **SETTINGS | changes | {"per_device_train_batch_size": 2}))
    assert_same_model(tmp_path / "two", tmp_path / "one", workspace.model)
    logs = [[entry["loss"] for entry in read_log(tmp_path / name) if "loss" in entry] for name in ("two", "one")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_two_processes_share_the_alignment_loss(workspace: Workspace, tmp_path: Path) -> None:
    rows = read_rows(workspace)
    for index, row in enumerate(rows):  # some clips without words, and so some batches
        row["alignment_text"] = "abcd"[: index % 4]
    data = str(write_jsonl(workspace.folder / "aligned.jsonl", rows))
    changes = {"train_data": data, "alignment_weight": 0.5, "overlap_examples": 0}
    launch(workspace, tmp_path / "two", **changes)
    train(workspace.arguments(tmp_path / "one", **SETTINGS | changes | {"per_device_train_batch_size": 2}))
    # almost: the words compete with those of their own batch and with random ones
    assert_same_model(tmp_path / "two", tmp_path / "one", workspace.model, tolerance=1e-3)


def read_rows(workspace: Workspace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in workspace.manifest.read_text().splitlines()]


def read_log(output: Path) -> list[dict[str, Any]]:
    return yaml.safe_load((output / "trainer_state.json").read_text())["log_history"]
