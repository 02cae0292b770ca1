"""Activation tuning from end to end, on a model that over-fits to transcripts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from overfitted import CAPTION, CLIPS, PROMPTS, STORY, TRANSCRIPT, Overfitted, overfitted_model
from workspace import write_jsonl

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.activation.tuning import (
    ActivationEvaluation,
    ActivationReport,
    TuningSettings,
    evaluation_rows,
    evaluation_tasks,
    finished_losses,
    run_activation,
    tune_on_answers,
    tuning_record,
)
from modeling_salmonn.activation.writing import WritingSettings
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.harness import read_answers
from modeling_salmonn.evaluation.run import EvaluationSettings
from modeling_salmonn.weight_names_salmonn import part_of


WRITING = WritingSettings(answers=2, question_share=0.0, lora_scale=0.0, min_words=20, max_new_tokens=170)
TUNING = TuningSettings(steps=12, learning_rate=1e-2)
EVALUATION = EvaluationSettings(batch_size=4)


pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    return overfitted_model(tmp_path_factory.getbasetemp())


def activate(overfitted: Overfitted, output: Path) -> ActivationReport:
    clips = list(load_rows(overfitted.clips, needs=("path",)))
    return run_activation(overfitted.model, clips, output, PROMPTS, WRITING, TUNING, EVALUATION)


@pytest.fixture(scope="module")
def finished(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ActivationReport]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, activate(overfitted, folder)


@pytest.fixture(scope="module")
def cured(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model as it was before its adapter over-fitted."""
    folder = tmp_path_factory.mktemp("cured")
    model = SalmonnForConditionalGeneration.from_pretrained(overfitted.model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    model.save_pretrained(folder)
    SalmonnProcessor.from_pretrained(overfitted.model).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def answers(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of one answer, as someone might write it."""
    row = {"path": str(overfitted.folder / "clip0.wav"), "task": "story", "prompt": "Tell a story.", "text": STORY}
    return write_jsonl(tmp_path_factory.mktemp("answers") / "mine.jsonl", [row])


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    return SalmonnForConditionalGeneration.from_pretrained(folder).state_dict()


def values(summary: dict[str, Any], task: str) -> dict[str, float]:
    return {name: score["value"] for name, score in summary[task]["metrics"].items()}


def test_activation_brings_stories_back(finished: tuple[Path, ActivationReport]) -> None:
    folder, report = finished
    assert report.written.kept == 2
    before, after = (values(report.summaries[name], "story") for name in ("before", "after"))
    assert (before["following_rate"], after["following_rate"]) == (0.0, 1.0)
    assert report.summaries["before"]["story"]["rows"] == CLIPS - 2  # no answer was written about these
    assert after["diversity"] > 20 > 5 > before["diversity"]
    assert values(report.summaries["before"], "asr")["wer"] == 0.0
    assert len(report.losses) == 12
    assert report.losses[-1] < 0.2 * report.losses[0]
    for name, summary in report.summaries.items():
        assert json.loads((folder / name / "summary.json").read_text()) == summary
    text = (folder / "comparison.md").read_text()
    assert text.startswith(f"`{report_model(folder)}` before and after activation tuning\n\n| task | metric | rows |")
    line = "| story | following_rate | 4 | 0.0 % (0.0 to 0.0) | 100.0 % (100.0 to 100.0) |\n"
    assert line in text
    assert line in report.summary()
    assert "- before: story: 4 copies the transcript\n" in text


def report_model(folder: Path) -> str:
    """The model before, as the evaluation of it has noted it."""
    return json.loads((folder / "before" / "settings.json").read_text())["model"]


def test_cure_is_seen_in_the_scores_and_its_cost_too(overfitted: Overfitted, cured: str, tmp_path: Path) -> None:
    clips = list(load_rows(overfitted.clips, needs=("path",)))
    tested = ActivationEvaluation([clips[0] | {"text": "Call me at two."}, *clips[1:]], PROMPTS, EVALUATION)
    before = tested.run(overfitted.model, tmp_path / "before")
    after = tested.run(cured, tmp_path / "after")
    assert (before["story"]["rows"], before["story"]["problems"]) == (CLIPS, {"copies the transcript": CLIPS})
    assert values(before, "story") == {"following_rate": 0.0, "diversity": 4.0, "repeat_rate": 0.0}
    words = len(set(STORY.lower().replace(".", "").split()))
    assert values(after, "story") == {"following_rate": 1.0, "diversity": words, "repeat_rate": 0.0}
    assert after["story"]["problems"] == {}
    assert values(before, "asr") == values(after, "asr") == {"wer": 1 / (4 * CLIPS), "repeat_rate": 0.0}
    answers = read_answers(tmp_path / "after")
    told = [answers["story", CLIPS, part] for part in ("answer", "transcript", "caption")]
    assert [row["answer"] for row in told] == [STORY, TRANSCRIPT, CAPTION]
    assert [row["instruction"] for row in told] == ["Tell a story.", "Write it down.", "Describe it."]


def test_tasks_are_those_with_a_rule_and_speech_recognition() -> None:
    tasks = {task.name: task for task in evaluation_tasks({"story": ["Tell.", "Narrate."]})}
    ruled = {task.rule for task in tasks.values() if task.rule}
    assert ruled == {"story", "speech_qa", "spoken_query", "slot_filling", "co_reasoning"}
    assert len(tasks) == 6
    assert (tasks["story"].instruction, tasks["asr"].metrics) == ("Tell.", ["wer", "repeat_rate"])
    assert not any("wer" in task.metrics for name, task in tasks.items() if name != "asr")


def test_story_is_asked_about_each_clip_where_no_row_does() -> None:
    rows = [
        {"path": "a.wav", "task": "asr", "text": "Words."},
        {"path": "a.wav", "task": "audio_caption", "text": "A voice."},
        {"path": "b.wav", "transcript": "Others."},
    ]
    assert evaluation_rows(rows) == [
        *rows,
        {"path": "a.wav", "task": "story", "transcript": "Words.", "caption": "A voice."},
        {"path": "b.wav", "task": "story", "transcript": "Others."},
    ]
    story = {"path": "c.wav", "task": "story"}
    assert evaluation_rows([*rows, story]) == [*rows, story]


def test_speech_without_words_is_left_out() -> None:
    rows = [{"path": "a.wav", "task": "asr", "text": text} for text in ("(laughs)", "Hello.", "", "uh")]
    assert [row["text"] for row in evaluation_rows(rows) if row["task"] == "asr"] == ["Hello."]


def test_rows_without_clips_raise() -> None:
    with pytest.raises(ValueError, match="no clips to compare the models on; give rows with a 'path'"):
        evaluation_rows([{"task": "story", "text": ""}])


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
    kept = [
        folder / "answers.jsonl",
        folder / "model" / "adapter_model.safetensors",
        *folder.glob("*/answers-0.jsonl"),
    ]
    assert len(kept) == 4
    times = [file.stat().st_mtime_ns for file in kept]
    assert activate(overfitted, folder) == report
    assert [file.stat().st_mtime_ns for file in kept] == times


def test_changed_answers_are_tuned_on_anew(overfitted: Overfitted, tmp_path: Path) -> None:
    settings = {"writing": WRITING, "tuning": TuningSettings(steps=1, learning_rate=1e-2)}
    clips = list(load_rows(overfitted.clips, needs=("path",)))
    settings["rows"] = [{"path": clips[5]["path"], "task": "story"}]
    first = run_activation(overfitted.model, clips, tmp_path, PROMPTS, **settings)
    before = (tmp_path / "before" / "answers-0.jsonl").stat().st_mtime_ns
    evaluated = json.loads((tmp_path / "after" / "settings.json").read_text())["weights"]
    weights = (tmp_path / "model" / "adapter_model.safetensors").read_bytes()
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text().replace("One day", "Once"))
    again = run_activation(overfitted.model, clips, tmp_path, PROMPTS, **settings)
    assert again.losses != first.losses
    assert (tmp_path / "model" / "adapter_model.safetensors").read_bytes() != weights
    assert json.loads((tmp_path / "after" / "settings.json").read_text())["weights"] != evaluated
    assert (tmp_path / "before" / "answers-0.jsonl").stat().st_mtime_ns == before


def test_nothing_to_compare_on_is_told(overfitted: Overfitted, tmp_path: Path) -> None:
    settings = {"writing": WRITING, "tuning": TuningSettings(steps=1)}
    clips = list(load_rows(overfitted.clips, needs=("path",)))[:2]
    report = run_activation(overfitted.model, clips, tmp_path, PROMPTS, **settings)
    assert report.summaries == {}
    assert "Nothing to compare on: all clips were written about" in report.summary()


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
