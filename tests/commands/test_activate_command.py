"""`salmonn activate`: all of it, and one step at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_one_line_error, run, run_whole
from overfitted import STORY, Overfitted, overfitted_model


WRITE_OPTIONS = ["--answers", 2, "--question-share", 0, "--lora-scale", 0, "--min-words", 20, "--max-new-tokens", 170]

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    return overfitted_model(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("name", [(), ("run",)])
def test_command_does_all_three_steps(name: tuple[str, ...], overfitted: Overfitted, tmp_path: Path) -> None:
    printed = run_whole(
        "activate", *name, overfitted.model, "--clips", overfitted.clips, "--output", tmp_path,
        "--prompts", overfitted.prompts, "--steps", 12, "--learning-rate", 1e-2, "--limit", 2, *WRITE_OPTIONS,
    )  # fmt: skip
    first, second, *table = printed.splitlines()
    assert first == f"2 answers in {tmp_path / 'answers.jsonl'}; not kept: none."
    assert second.startswith("12 steps; loss of the first ")
    assert "| story | following_rate | 2 | 0.0 % (0.0 to 0.0) | 100.0 % (100.0 to 100.0) |" in table
    assert {path.name for path in tmp_path.iterdir()} >= {"answers.jsonl", "model", "before", "after", "comparison.md"}
    assert {row["text"] for row in map(json.loads, (tmp_path / "answers.jsonl").open())} == {STORY}


def test_commands_do_one_step_each(overfitted: Overfitted, tmp_path: Path) -> None:
    prompts = ["--prompts", overfitted.prompts]
    written = run_whole(
        "activate", "write", overfitted.model, "--clips", overfitted.clips, "--output", tmp_path, *prompts,
        *WRITE_OPTIONS,
    )  # fmt: skip
    assert written == f"2 answers in {tmp_path / 'answers.jsonl'}; not kept: none.\n"
    model = tmp_path / "tuned"
    answers = tmp_path / "answers.jsonl"
    tuned = run_whole("activate", "tune", overfitted.model, answers, "--output", model, "--steps", 2)
    assert tuned.startswith("2 steps; loss of the first ")
    assert tuned.endswith(f"Wrote {model}.\n")


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
        (["tune", "MODEL", "/none.jsonl", "--output", "OUT"], "There is no manifest /none.jsonl"),
        (["run", "MODEL", "--clips", "CLIPS", "--output", "OUT", "--dtype", "int8"], "dtype is 'int8'"),
        (["--clips", "CLIPS", "--output", "OUT", "./absent"], "There is no folder ./absent"),
    ],
)
def test_mistake_is_told_in_a_line(arguments: list[Any], message: str, overfitted: Overfitted, tmp_path: Path) -> None:
    names = {"MODEL": overfitted.model, "CLIPS": overfitted.clips, "OUT": tmp_path / "out"}
    arguments = [names.get(argument, argument) for argument in arguments]
    assert_one_line_error(run("activate", *arguments), message)
