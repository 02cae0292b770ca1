"""Sample answers while training."""

import logging
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from workspace import Workspace, make_workspace

from modeling_salmonn.training.run import build_trainer


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("samples"), lora=True)


def settings(workspace: Workspace) -> dict[str, Any]:
    return {
        "eval_data": str(workspace.manifest),
        "eval_strategy": "steps",
        "eval_steps": 1,
        "max_steps": 2,
        "save_strategy": "no",
        "sample_new_tokens": 6,
    }


def test_each_evaluation_logs_an_answer_per_task(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build_trainer(workspace.arguments(tmp_path, report_to="tensorboard", **settings(workspace)))
    with caplog.at_level(logging.INFO, "modeling_salmonn"):
        trainer.train()
    messages = [record.getMessage() for record in caplog.records if "sample of" in record.getMessage()]
    places = [message.split(":")[0] for message in messages]
    assert places == [f"Step {step}, sample of {task}" for step in (1, 2) for task in ("audio_caption", "asr")]
    assert all("| reference: text number" in message for message in messages)
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert {f"samples/{task}/text_summary" for task in ("asr", "audio_caption")} <= set(events.Tags()["tensors"])
    assert {"train/loss", "eval/loss", "eval/asr_loss"} <= set(events.Tags()["scalars"])


def test_answers_are_those_of_generate_and_leave_training_as_it_was(workspace: Workspace, tmp_path: Path) -> None:
    trainer = build_trainer(workspace.arguments(tmp_path, **settings(workspace)))
    (callback,) = (entry for entry in trainer.callback_handler.callbacks if type(entry).__name__ == "SampleCallback")
    trainer.model.train()
    answers = callback.answer()
    assert trainer.model.training
    processor = trainer.processing_class
    example = callback.examples[0]
    inputs = processor(text=[example["instruction"]], audio=[[example["path"]]])
    output = trainer.model.eval().generate(**inputs, max_new_tokens=6)
    expected = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert answers[0] == expected.strip()
