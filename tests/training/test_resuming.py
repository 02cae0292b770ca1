"""Interrupted runs go on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from workspace import Workspace, make_workspace, write_jsonl

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.training.checkpoints import last_complete_checkpoint
from modeling_salmonn.training.run import train


STEPS = 8  # more than one epoch of 14 examples
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 1,
    "overlap_examples": 1,
    "verification_examples": 1,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "sample_new_tokens": 2,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With a clip that cannot be read, dropout everywhere, and two tasks to evaluate."""
    workspace = make_workspace(tmp_path_factory.mktemp("resuming"))
    (workspace.folder / "clip3.wav").write_bytes(b"RIFF")
    return workspace


@pytest.fixture(scope="module")
def whole_run(workspace: Workspace) -> Path:
    """The run that nothing interrupts, with a checkpoint at every step."""
    output = workspace.folder / "whole"
    train(workspace.arguments(output, eval_data=evaluation(workspace), **SETTINGS))
    return output


@pytest.fixture(scope="module")
def plain_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("finished"))


def evaluation(workspace: Workspace) -> str:
    rows = [
        {"path": "clip5.wav", "text": "five", "task": "asr"},
        {"path": "clip6.wav", "text": "six", "task": "story"},
    ]
    return str(write_jsonl(workspace.folder / "evaluation.jsonl", rows))


def losses(output: Path) -> dict[tuple[int, str], float]:
    """All losses of a run by step, from the log of its last checkpoint."""
    content = yaml.safe_load((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return {
        (entry["step"], name): value
        for entry in content["log_history"]
        for name, value in entry.items()
        if name.endswith("loss") or name == "grad_norm"
    }


def weights(output: Path) -> Iterator[torch.Tensor]:
    return iter(SalmonnForConditionalGeneration.from_pretrained(output).state_dict().values())


@pytest.mark.parametrize("step", [1, 5, 7])
def test_resumed_run_equals_the_whole_one(step: int, workspace: Workspace, whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    train(
        workspace.arguments(
            tmp_path, eval_data=evaluation(workspace), resume_from_checkpoint=True, save_steps=STEPS, **SETTINGS
        )
    )
    assert losses(tmp_path) == losses(whole_run)
    assert all(torch.equal(*pair) for pair in zip(weights(tmp_path), weights(whole_run), strict=True))


def test_resumed_run_reads_on_in_a_stream(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    source = {"path": str(workspace.manifest), "streaming": True}
    settings = {"train_data": source, "max_steps": STEPS, "per_device_train_batch_size": 2}
    train(workspace.arguments(tmp_path / "whole", **settings))
    for step in (3, 7):  # in the first pass over 11 readable rows, and in the second
        output = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", output / f"checkpoint-{step}")
        train(workspace.arguments(output, resume_from_checkpoint=True, **settings))
        assert losses(output) == losses(tmp_path / "whole")


def test_killed_run_goes_on_as_if_nothing_had_happened(workspace: Workspace, whole_run: Path) -> None:
    output = workspace.folder / "killed"
    settings = workspace.settings(output, eval_data=evaluation(workspace), resume_from_checkpoint=True, **SETTINGS)
    (workspace.folder / "stage.yaml").write_text(yaml.safe_dump(settings | {"save_steps": 2}))
    command = [sys.executable, "-m", "modeling_salmonn", "train", str(workspace.folder / "stage.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if sum("'loss':" in line for line in lines) == 5:  # the fifth step is logged
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "".join(lines)
    assert last_complete_checkpoint(output) in (output / "checkpoint-2", output / "checkpoint-4")
    train(workspace.arguments(**(settings | {"output": output, "save_steps": 2})))
    assert losses(output) == losses(whole_run)
    assert all(torch.equal(*pair) for pair in zip(weights(output), weights(whole_run), strict=True))


def test_new_run_does_not_mix_with_an_earlier_one(workspace: Workspace, whole_run: Path) -> None:
    with pytest.raises(
        ValueError, match=f"checkpoint-{STEPS} is of an earlier run; resume with resume_from_checkpoint"
    ):
        train(workspace.arguments(whole_run, **SETTINGS))


def test_new_run_does_not_mix_with_an_interrupted_warm_start(
    workspace: Workspace, whole_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole_run / "checkpoint-5", tmp_path / "alignment" / "checkpoint-5")
    with pytest.raises(ValueError, match="alignment/checkpoint-5 is of an earlier run"):
        train(workspace.arguments(tmp_path, **SETTINGS))


@pytest.mark.parametrize("damage", ["unmarked", "truncated"])
def test_incomplete_newest_checkpoint_is_passed_over(
    damage: str, workspace: Workspace, whole_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 6):
        shutil.copytree(whole_run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    if damage == "unmarked":
        (tmp_path / "checkpoint-6" / "complete.json").unlink()
        (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    else:
        optimizer = tmp_path / "checkpoint-6" / "optimizer.pt"
        optimizer.write_bytes(optimizer.read_bytes()[:100])
    with caplog.at_level("INFO", "modeling_salmonn"):
        train(
            workspace.arguments(
                tmp_path, eval_data=evaluation(workspace), resume_from_checkpoint=True, save_steps=STEPS, **SETTINGS
            )
        )
    assert f"Resuming from {tmp_path}/checkpoint-5." in caplog.text
    assert losses(tmp_path) == losses(whole_run)


def test_bad_clip_is_listed_once(whole_run: Path, workspace: Workspace) -> None:
    listed = (whole_run / "bad_clips.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == [str(workspace.folder / "clip3.wav")]


def test_resuming_without_a_checkpoint_starts_anew(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = train(workspace.arguments(tmp_path, resume_from_checkpoint=True, max_steps=1))
    assert output.global_step == 1
    assert "There is no complete checkpoint in" in caplog.text


def test_missing_checkpoint_raises(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no checkpoint /none/checkpoint-1"):
        train(workspace.arguments(tmp_path, resume_from_checkpoint="/none/checkpoint-1"))


def test_checkpoint_of_other_settings_raises(workspace: Workspace, whole_run: Path, tmp_path: Path) -> None:
    arguments = workspace.arguments(
        tmp_path, resume_from_checkpoint=str(whole_run / "checkpoint-1"), train_lora=False, max_steps=2
    )
    with pytest.raises(ValueError, match=r"The checkpoint does not fit the model: missing \[\], unexpected \['model"):
        train(arguments)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": 3}, 3),
        ({"max_steps": -1, "num_train_epochs": 1}, 6),
        ({"max_steps": -1, "num_train_epochs": 0.5}, 3),
    ],
    ids=["steps", "whole epochs", "part of an epoch"],
)
def test_finished_run_stays_as_it_is(
    changes: dict[str, Any],
    steps: int,
    plain_workspace: Workspace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings: dict[str, Any] = {"save_steps": 2, "resume_from_checkpoint": True} | changes
    assert train(plain_workspace.arguments(tmp_path, **settings)).global_step == steps
    expected = list(weights(tmp_path))
    checkpoints = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    for _ in range(2):
        caplog.clear()
        assert train(plain_workspace.arguments(tmp_path, **settings)).global_step == steps
        assert f"checkpoint is of step {steps}, and the run has {steps}; raise max_steps" in caplog.text
        assert all(torch.equal(*pair) for pair in zip(weights(tmp_path), expected, strict=True))
        assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == checkpoints


def test_finished_run_goes_on_when_it_is_given_more_steps(plain_workspace: Workspace, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"resume_from_checkpoint": True}
    train(plain_workspace.arguments(tmp_path, max_steps=2, **settings))
    output = train(plain_workspace.arguments(tmp_path, max_steps=3, **settings))
    assert output.global_step == 3
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_finished_stream_stays_as_it_is(
    plain_workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    source = {"path": str(plain_workspace.manifest), "streaming": True}
    settings: dict[str, Any] = {"train_data": source, "max_steps": 2, "resume_from_checkpoint": True}
    for _ in range(2):
        assert train(plain_workspace.arguments(tmp_path / "out", **settings)).global_step == 2
