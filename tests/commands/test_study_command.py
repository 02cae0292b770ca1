"""`salmonn study`: each study once, and what each refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from command_line import assert_one_line_error, run, run_whole
from conftest import SAMPLING_RATE, make_clip
from overfitted import Overfitted, overfitted_model
from workspace import write_jsonl


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TASKS = """
words: {rows: {task: asr}, instruction: Write., metrics: [wer, bleu], new_tokens: 6}
"""

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    return overfitted_model(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips with a word each, of which all studies find what they need; own tasks lie beside them."""
    folder = tmp_path_factory.mktemp("rows")
    rows = []
    for index, word in enumerate(("one", "two", "six")):
        soundfile.write(folder / f"{word}.wav", make_clip(0.8, seed=7 * index), SAMPLING_RATE)
        row = {"path": f"{word}.wav", "task": "asr", "text": word, "alignment_text": word}
        rows.append(row | {"transcript": word, "story": f"She said {word}, and he came."})
    (folder / "tasks.yaml").write_text(TASKS)
    return write_jsonl(folder / "rows.jsonl", rows)


def assert_study_is_written(name: str, output: Path, printed: str) -> None:
    assert printed.endswith(f"Wrote {name}.json, {name}.png and {name}.md to {output}.\n")
    assert (output / f"{name}.png").read_bytes().startswith(PNG_SIGNATURE)
    assert (output / f"{name}.md").read_text()


def test_sweep_measures_each_scale(saved_folder: Path, rows: Path, tmp_path: Path) -> None:
    printed = run_whole(
        "study", "sweep", saved_folder, "--data", rows, "--output", tmp_path, "--tasks", "words",
        "--include-path", rows.parent / "tasks.yaml", "--lora-scale", 4, "--lora-scale", 0.5, "--limit", 2,
    )  # fmt: skip
    assert_study_is_written("sweep", tmp_path, printed)
    points = json.loads((tmp_path / "sweep.json").read_text())["words"]["wer"]
    assert [point["scale"] for point in points] == [0.5, 4.0]


def test_perplexity_measures_two_models(saved_folder: Path, rows: Path, tmp_path: Path) -> None:
    printed = run_whole("study", "perplexity", saved_folder, saved_folder, "--probes", rows, "--output", tmp_path)
    assert_study_is_written("perplexity", tmp_path, printed)
    tables = json.loads((tmp_path / "perplexity.json").read_text())
    assert tables["before"] == tables["after"]
    assert tables["before"]["story"]["probes"] == 3


def test_activation_data_compares_what_is_tuned_on(overfitted: Overfitted, tmp_path: Path) -> None:
    result = run(
        "study", "activation-data", overfitted.model, "--clips", overfitted.clips, "--data", overfitted.clips,
        "--output", tmp_path, "--answers", 1, "--limit", 1, "--tries", 1, "--lora-scale", 0, "--min-words", 20,
        "--max-new-tokens", 170, "--steps", 1, "--learning-rate", 1e-4, "--prompts", overfitted.prompts, "--seed", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert_study_is_written("activation_data", tmp_path, result.stdout)
    assert "asr_long is left out: all 6 transcripts together" in result.stderr
    saved = json.loads((tmp_path / "activation_data.json").read_text())
    assert saved["model"] == overfitted.model
    assert (saved["settings"]["tuning"]["steps"], saved["settings"]["writing"]["seed"]) == (1, 3)


def test_windows_trains_each_length(saved_folder: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    printed = run_whole(
        "study", "windows", saved_folder, "--data", rows, "--eval-data", rows, "--feature-cache", tmp_path / "cache",
        "--output", output, "--window", 0.2, "--window", 0.06, "--steps", 2, "--batch-size", 3, "--seed", 4,
    )  # fmt: skip
    assert_study_is_written("windows", output, printed)
    saved = json.loads((output / "windows.json").read_text())
    assert saved["model"] == str(saved_folder)
    assert saved["settings"] == {"steps": 2, "batch_size": 3, "learning_rate": 1e-3, "seed": 4}
    assert [length["window_seconds"] for length in saved["windows"]] == [0.06, 0.2]


@pytest.mark.parametrize(
    ("study", "change", "message"),
    [
        ("sweep", {"--tasks": "level9"}, "no task 'level9'"),
        ("sweep", {"--tasks": "asr", "--dtype": "int8"}, "dtype is 'int8'"),
        ("sweep", {"--judge": "./nobody"}, "nobody"),
        ("sweep", {"--device": "abacus"}, "There is no device 'abacus' here"),
        ("perplexity", {"--probes": "./nothing.jsonl"}, "There is no manifest nothing.jsonl"),
        ("perplexity", {"after": "./nobody"}, "There is no folder ./nobody"),
        ("perplexity", {"--dtype": "int8"}, "dtype is 'int8'"),
        ("activation-data", {"model": "./absent"}, "There is no folder ./absent"),
        ("activation-data", {"--clips": "/none.jsonl"}, "There is no manifest /none.jsonl"),
        ("activation-data", {"--data": "/none.jsonl"}, "There is no manifest /none.jsonl"),
        ("activation-data", {"--prompts": "/none.json"}, "There is no prompt file /none.json"),
        ("activation-data", {"--temperature": 0}, "temperature must be positive"),
        ("activation-data", {"--dtype": "int8"}, "dtype is 'int8'"),
        ("windows", {"model": "./absent"}, "There is no folder ./absent"),
        ("windows", {"--data": "/none.jsonl"}, "There is no manifest /none.jsonl"),
        ("windows", {"--eval-data": "/none.jsonl"}, "There is no manifest /none.jsonl"),
        ("windows", {"--learning-rate": 0}, "learning_rate must be positive"),
        ("windows", {"--window": 5}, "longer than the shortest segment"),
    ],
)
def test_mistake_is_told_in_a_line(
    study: str, change: dict[str, Any], message: str, saved_folder: Path, rows: Path, tmp_path: Path
) -> None:
    needed = {
        "sweep": {"--data": rows},
        "perplexity": {"--probes": rows},
        "activation-data": {"--clips": rows, "--data": rows},
        "windows": {"--data": rows, "--eval-data": rows, "--feature-cache": tmp_path / "cache", "--window": 0.2},
    }
    options: dict[str, Any] = {"--output": tmp_path / "out"} | needed[study] | change
    models = [options.pop("model", saved_folder), *(options.pop(name) for name in ("after",) if name in options)]
    words = [word for option in options.items() for word in option]
    assert_one_line_error(run("study", study, *models, *words), message)
    assert not (tmp_path / "out").exists()


def test_negative_scale_is_a_usage_error(saved_folder: Path, rows: Path, tmp_path: Path) -> None:
    result = run("study", "sweep", saved_folder, "--data", rows, "--output", tmp_path, "--lora-scale", -1)
    assert result.exit_code == 2
    assert "--lora-scale" in result.stderr
