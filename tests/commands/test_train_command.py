"""`salmonn train`: a stage, its mistakes, and several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import assert_one_line_error, run, run_whole
from conftest import ROOT
from workspace import Workspace, make_workspace, write_jsonl

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("train"))


def stage_file(workspace: Workspace, folder: Path, **changes: Any) -> str:
    file = folder / "stage.yaml"
    file.write_text(yaml.safe_dump(workspace.settings(folder / "out", **({"max_steps": 1} | changes))))
    return str(file)


def test_command_trains_and_saves_a_model(workspace: Workspace, tmp_path: Path) -> None:
    run_whole("train", stage_file(workspace, tmp_path), "max_steps=2")
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    SalmonnForConditionalGeneration.from_pretrained(tmp_path / "out")
    SalmonnProcessor.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rte=1"], "did you mean 'learning_rate'?"),
        (["train_data=/none.jsonl"], "There is no manifest /none.jsonl."),
        (["train_data=[]"], "There is nothing to train on; set train_data"),
        (["model=null"], "Give model, a SALMONN to start from, or config"),
        (["model=null", "dry_run=true"], "Give model, a SALMONN to start from, or config"),
        (["prompts=/none.json"], "There is no prompt file /none.json"),
    ],
)
def test_mistake_is_told_in_a_line(words: list[str], message: str, workspace: Workspace, tmp_path: Path) -> None:
    assert_one_line_error(run("train", stage_file(workspace, tmp_path), *words), message)


def test_faults_of_the_code_keep_their_traceback(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stage_file(workspace, tmp_path)
    monkeypatch.setattr("modeling_salmonn.training.run.prepare", lambda words: int("number"))
    assert "invalid literal for int" in str(run("train", file).exception)


def test_debugging_shows_tracebacks_of_mistakes_too(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stage_file(workspace, tmp_path)
    assert isinstance(run("train", file, "--debug", "prompts=/none.json").exception, ValueError)
    monkeypatch.setenv("SALMONN_DEBUG", "1")
    assert isinstance(run("train", file, "prompts=/none.json").exception, ValueError)


def test_dry_run_prints_sizes_and_trains_nothing(workspace: Workspace, tmp_path: Path) -> None:
    printed = run_whole("train", stage_file(workspace, tmp_path), "dry_run=true")
    assert "parameters" in printed
    assert not (tmp_path / "out").exists()


def test_mistake_that_shows_amid_training_is_told(workspace: Workspace, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in workspace.manifest.read_text().splitlines()]
    rows = [row | {"path": f"/none/{row['path']}"} for row in rows]
    manifest = write_jsonl(tmp_path / "moved.jsonl", rows)
    result = run("train", stage_file(workspace, tmp_path), f"train_data={manifest}", "max_bad_clips=2")
    assert result.exit_code == 1
    assert "more than max_bad_clips 2" in result.stderr.splitlines()[-1]


def test_mistake_with_several_processes_has_no_traceback_of_ours(tmp_path: Path) -> None:
    stage = tmp_path / "stage.yaml"
    stage.write_text("learning_rte: 1")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "modeling_salmonn", "train", str(stage)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert "Error: Unknown key 'learning_rte'" in result.stderr
    assert str(ROOT / "modeling_salmonn") not in result.stderr  # the traceback is of the launcher alone
