"""`salmonn compare`: one table of several evaluations."""

from pathlib import Path

import pytest
from command_line import assert_one_line_error, run, run_whole
from evaluated_clips import write_data


TASKS = "words: {rows: {task: asr}, instruction: Write., metrics: [wer], new_tokens: 5}"

pytestmark = pytest.mark.usefixtures("restored_logging")


def test_compare_shows_evaluations_side_by_side(saved_folder: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path, 2, (), TASKS)
    folders = [tmp_path / "trained", tmp_path / "without"]
    for folder, scale in zip(folders, (4, 0), strict=True):
        run_whole(
            "evaluate", saved_folder, "--data", data, "--output", folder, "--tasks", "words",
            "--include-path", tmp_path / "tasks.yaml", "--lora-scale", scale,
        )  # fmt: skip
    head, _, line, *_ = run_whole("compare", *folders).splitlines()
    assert head == "| task | metric | rows | trained | without |"
    assert line.startswith("| words | wer | 2 | ")
    assert line.count(" to ") == 2  # an interval for each


def test_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    assert_one_line_error(run("compare", tmp_path), "summary.json")
