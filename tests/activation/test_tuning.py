"""Activation tuning from end to end, in Python and by command, on a model that over-fits to transcripts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from overfitted import CLIPS, PROMPTS, STORY, TRANSCRIPT, Overfitted, overfitted_model
from typer.testing import CliRunner
from workspace import write_jsonl

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.activation.tuning import (
    ActivationReport,
    TuningSettings,
    finished_losses,
    run_activation,
    tune_on_answers,
    tuning_record,
)
from modeling_salmonn.activation.writing import WritingSettings
from modeling_salmonn.commands.app import app
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.comparison import ComparisonSettings
from modeling_salmonn.training.stages import part_of


WRITING = WritingSettings(answers=2, question_share=0.0, lora_scale=0.0, min_words=20, max_new_tokens=170)
TUNING = TuningSettings(steps=12, learning_rate=1e-2)
COMPARING = ComparisonSettings(max_new_tokens=170)
WRITE_OPTIONS = ["--answers", 2, "--question-share", 0, "--lora-scale", 0, "--min-words", 20, "--max-new-tokens", 170]


pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    return overfitted_model(tmp_path_factory.getbasetemp())


def activate(overfitted: Overfitted, output: Path) -> ActivationReport:
    return run_activation(
        overfitted.model,
        list(load_rows(overfitted.clips, needs=("path",))),
        output,
        PROMPTS,
        WRITING,
        TUNING,
        COMPARING,
    )


@pytest.fixture(scope="module")
def finished(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ActivationReport]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, activate(overfitted, folder)


@pytest.fixture(scope="module")
def answers(overfitted: Overfitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of one answer, as someone might write it."""
    row = {"path": str(overfitted.folder / "clip0.wav"), "task": "story", "prompt": "Tell a story.", "text": STORY}
    return write_jsonl(tmp_path_factory.mktemp("answers") / "mine.jsonl", [row])


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["activate", *(str(argument) for argument in arguments)])


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
    clips = list(load_rows(overfitted.clips, needs=("path",)))
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


@pytest.mark.parametrize("name", [(), ("run",)])
def test_command_does_all_three_steps(name: tuple[str, ...], overfitted: Overfitted, tmp_path: Path) -> None:
    result = run(
        *name, overfitted.model, "--clips", overfitted.clips, "--output", tmp_path, "--prompts", overfitted.prompts,
        "--steps", 12, "--learning-rate", 1e-2, "--compared-tokens", 170, "--limit", 2, *WRITE_OPTIONS,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    first, second, *table = result.stdout.splitlines()
    assert first == f"2 answers in {tmp_path / 'answers.jsonl'}; not kept: none."
    assert second.startswith("12 steps; loss of the first ")
    assert any("story" in line and "0.00 -> 1.00" in line for line in table)
    assert {path.name for path in tmp_path.iterdir()} >= {"answers.jsonl", "model", "comparison.md", "comparison.json"}
    assert {row["text"] for row in map(json.loads, (tmp_path / "answers.jsonl").open())} == {STORY}


def test_help_lists_the_commands() -> None:
    for arguments in ((), ("--help",)):
        output = run(*arguments).output
        assert all(name in output for name in ("MODEL", "run", "write", "train", "compare"))


def test_commands_do_one_step_each(overfitted: Overfitted, tmp_path: Path) -> None:
    prompts = ["--prompts", overfitted.prompts]
    written = run(
        "write", overfitted.model, "--clips", overfitted.clips, "--output", tmp_path, *prompts, *WRITE_OPTIONS
    )
    assert (written.exit_code, written.stdout) == (0, f"2 answers in {tmp_path / 'answers.jsonl'}; not kept: none.\n")
    model = tmp_path / "tuned"
    trained = run("train", overfitted.model, tmp_path / "answers.jsonl", "--output", model, "--steps", 2)
    assert trained.exit_code == 0, trained.output
    assert trained.stdout.startswith("2 steps; loss of the first ")
    assert trained.stdout.endswith(f"Wrote {model}.\n")
    compared = run(
        "compare", overfitted.model, model, "--data", overfitted.clips, "--limit", 1, "--max-new-tokens", 20, *prompts
    )
    assert compared.exit_code == 0, compared.output
    assert "before -> after" in compared.stdout
    assert json.loads((model / "comparison.json").read_text())["settings"]["limit"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["write", "./absent", "--clips", "CLIPS", "--output", "OUT"], "There is no folder ./absent"),
        (["write", "MODEL", "--clips", "/none.jsonl", "--output", "OUT"], "There is no manifest /none.jsonl"),
        (
            ["write", "MODEL", "--clips", "CLIPS", "--output", "OUT", "--temperature", 0],
            "temperature must be positive",
        ),
        (["write", "MODEL", "--clips", "CLIPS", "--output", "OUT", "--prompts", "/n.json"], "no prompt file /n.json"),
        (["train", "MODEL", "/none.jsonl", "--output", "OUT"], "There is no manifest /none.jsonl"),
        (["compare", "MODEL", "./absent", "--data", "CLIPS"], "There is no folder ./absent"),
        (["compare", "MODEL", "user/name", "--data", "CLIPS"], "user/name is no folder to write the comparison to"),
        (["run", "MODEL", "--clips", "CLIPS", "--output", "OUT", "--dtype", "int8"], "dtype is 'int8'"),
        (["--clips", "CLIPS", "--output", "OUT", "./absent"], "There is no folder ./absent"),
    ],
)
def test_mistake_is_told_in_a_line(arguments: list[Any], message: str, overfitted: Overfitted, tmp_path: Path) -> None:
    names = {"MODEL": overfitted.model, "CLIPS": overfitted.clips, "OUT": tmp_path / "out"}
    result = run(*(names.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


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
