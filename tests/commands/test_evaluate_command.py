"""`salmonn evaluate`: what it prints, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_one_line_error, run, run_whole
from evaluated_clips import write_data, write_jsonl


TASKS = "words: {rows: {task: asr}, instruction: Write., metrics: [wer, bleu], new_tokens: 5}"

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), 3, (), TASKS)


def test_command_prints_the_table_and_completes_the_card(saved_folder: Path, data: Path, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicence: apache-2.0\n---\n# A model\n")
    arguments = ["evaluate", saved_folder, "--data", data, "--output", tmp_path / "out"]
    arguments += ["--tasks", "words", "--include-path", data.parent / "tasks.yaml", "--limit", 2, "--card", card]
    printed = run_whole(*arguments)
    assert "| words | wer | 2 |" in printed
    assert run_whole(*arguments) == printed
    text = card.read_text()
    assert text.count("type: wer") == 1
    assert "model-index:" in text
    assert text.endswith("# A model\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "level9"], "no task 'level9'"),
        (["--include-path", "./nothing.yaml"], "nothing.yaml"),
        (["--lora-scale", 2, "--device", "abacus"], "There is no device 'abacus' here"),
        (["--data", "./nothing"], "no data at ./nothing"),
        (["--judge", "./nobody"], "nobody"),
        (["--card", "./nothing.md"], "There is no model card nothing.md"),
        (["--card", "weights.safetensors"], "weights.safetensors is no model card; give its README.md"),
        (["--output", "/dev/null"], "/dev/null is no folder; give one to write to"),
    ],
)
def test_command_tells_wrong_arguments(
    arguments: list[Any], message: str, saved_folder: Path, data: Path, tmp_path: Path
) -> None:
    base = ["evaluate", saved_folder]
    base += [] if "--data" in arguments else ["--data", data]
    base += [] if "--output" in arguments else ["--output", tmp_path]
    assert_one_line_error(run(*base, *arguments), message)


def test_command_fails_where_no_clip_can_be_read(saved_folder: Path, tmp_path: Path) -> None:
    rows = [{"path": f"moved{index}.wav", "task": "asr", "text": "words"} for index in range(3)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    arguments = ["evaluate", saved_folder, "--data", data, "--output", tmp_path / "out"]
    result = run(*arguments, "--tasks", "asr")
    assert result.exit_code == 1
    assert "No clip could be read; see" in result.stderr
    assert (tmp_path / "out" / "bad_clips.txt").read_text().count("\n") == 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["asr"]["unreadable"] == 3
