"""Activation tuning from end to end, on a model that over-fits to transcripts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from overfitted import CLIPS, PROMPTS, STORY, TRANSCRIPT, Overfitted, overfitted_model
from workspace import write_jsonl

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.activation.clips import read_clips
from modeling_salmonn.activation.tuning import (
    ActivationReport,
    TuningSettings,
    finished_losses,
    run_activation,
    tune_on_answers,
    tuning_record,
)
from modeling_salmonn.activation.writing import WritingSettings
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.comparison import ComparisonSettings
from modeling_salmonn.training.stages import part_of


WRITING = WritingSettings(answers=2, question_share=0.0, lora_scale=0.0, min_words=20, max_new_tokens=170)
TUNING = TuningSettings(steps=12, learning_rate=1e-2)
COMPARING = ComparisonSettings(max_new_tokens=170)


pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    return overfitted_model(tmp_path_factory.getbasetemp())


def activate(overfitted: Overfitted, output: Path) -> ActivationReport:
    return run_activation(overfitted.model, read_clips(overfitted.clips), output, PROMPTS, WRITING, TUNING, COMPARING)


@pytest.fixture(scope="module")
def finished(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ActivationReport]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, activate(overfitted, folder)


@pytest.fixture(scope="module")
def answers(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of one answer, as someone might write it."""
    row = {"path": str(overfitted.folder / "clip0.wav"), "task": "story", "prompt": "Tell a story.", "text": STORY}
    return write_jsonl(tmp_path_factory.mktemp("answers") / "mine.jsonl", [row])


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    return SalmonnForConditionalGeneration.from_pretrained(folder).state_dict()


def test_activation_brings_stories_back(finished: tuple[Path, ActivationReport]) -> None:
    folder, report = finished
    assert report.written.kept == 2
    assert report.comparison is not None
    before, after = report.comparison.before["story"], report.comparison.after["story"]
    assert (before.following_rate, after.following_rate) == (0.0, 1.0)
    assert before.clips == CLIPS - 2  # no answer was written about these
    assert after.diversity > 20 > 5 > before.diversity
    assert report.comparison.before["asr"].word_error_rate == 0.0
    assert len(report.losses) == 12
    assert report.losses[-1] < 0.2 * report.losses[0]
    assert (folder / "comparison.md").is_file()


def test_activated_model_tells_stories_at_full_scale(
    finished: tuple[Path, ActivationReport], overfitted: Overfitted
) -> None:
    answerer = Answerer.from_pretrained(str(finished[0] / "model"))
    example = {"instruction": "Tell a story.", "audio": str(overfitted.folder / "clip5.wav")}
    (answer,) = answerer.answer([example], Decoding(170))
    assert answer.text[:40] == STORY[:40]
    (before,) = Answerer.from_pretrained(overfitted.model).answer([example], Decoding(170))
    assert before.text == TRANSCRIPT


def test_activation_changes_connector_and_adapter_alone(
    finished: tuple[Path, ActivationReport], overfitted: Overfitted
) -> None:
    before, after = state(overfitted.model), state(finished[0] / "model")
    assert before.keys() == after.keys()
    changed = {part_of(name) for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"connector", "lora"}


def test_finished_steps_are_not_done_again(finished: tuple[Path, ActivationReport], overfitted: Overfitted) -> None:
    folder, report = finished
    kept = [folder / "answers.jsonl", folder / "model" / "adapter_model.safetensors"]
    times = [file.stat().st_mtime_ns for file in kept]
    assert activate(overfitted, folder) == report
    assert [file.stat().st_mtime_ns for file in kept] == times


def test_changed_answers_are_tuned_on_anew(overfitted: Overfitted, tmp_path: Path) -> None:
    settings = {"writing": WRITING, "tuning": TuningSettings(steps=1, learning_rate=1e-2), "rows": []}
    clips = read_clips(overfitted.clips)
    first = run_activation(overfitted.model, clips, tmp_path, PROMPTS, **settings)
    assert first.comparison is None
    weights = (tmp_path / "model" / "adapter_model.safetensors").read_bytes()
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text().replace("One day", "Once"))
    again = run_activation(overfitted.model, clips, tmp_path, PROMPTS, **settings)
    assert again.losses != first.losses
    assert (tmp_path / "model" / "adapter_model.safetensors").read_bytes() != weights


def test_tuning_follows_the_seed(overfitted: Overfitted, answers: Path, tmp_path: Path) -> None:
    losses = [
        tune_on_answers(overfitted.model, answers, tmp_path / name, TuningSettings(2, 1e-2, seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert losses[0] == losses[1] != losses[2]
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_tuning_sees_the_full_scale(overfitted: Overfitted, answers: Path, tmp_path: Path) -> None:
    (loss,) = tune_on_answers(overfitted.model, answers, tmp_path, TuningSettings(steps=1, learning_rate=1e-9))
    assert loss > 0.5  # without its adapter the model knows this story by heart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps and learning_rate must be positive, got 0 and"),
        ({"learning_rate": 0.0}, "must be positive, got 12 and 0.0"),
        ({"dtype": "float8"}, "dtype is 'float8', but it needs one of float32"),
    ],
)
def test_settings_out_of_range_raise(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuningSettings(**change)


@pytest.mark.parametrize("content", ["[1]", "{", "null", '{"losses": '])
def test_damaged_record_of_a_tuning_raises(content: str, tmp_path: Path) -> None:
    answers = write_jsonl(tmp_path / "answers.jsonl", [{"path": "a.wav", "text": "A story."}])
    (tmp_path / "activation.json").write_text(content)
    with pytest.raises(ValueError, match=r"activation\.json .*; delete it to tune the model anew"):
        finished_losses("model", answers, tmp_path, TUNING)


@pytest.mark.parametrize("losses", [None, [], "0.5", ["0.5"]])
def test_record_without_losses_is_of_no_finished_tuning(losses: Any, tmp_path: Path) -> None:
    answers = write_jsonl(tmp_path / "answers.jsonl", [{"path": "a.wav", "text": "A story."}])
    record = tuning_record("model", answers, TUNING)
    (tmp_path / "activation.json").write_text(json.dumps(record | {"losses": losses}))
    assert finished_losses("model", answers, tmp_path, TUNING) is None
    (tmp_path / "activation.json").write_text(json.dumps(record | {"losses": [0.5]}))
    assert finished_losses("model", answers, tmp_path, TUNING) == [0.5]
