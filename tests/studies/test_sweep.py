"""Figures against the LoRA scale: the command, going on after a stop, the curves, the figure."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from conftest import tiny_model, tiny_processor
from counted_segments import counted_segments
from evaluated_clips import write_data

from modeling_salmonn import SalmonnConfig
from modeling_salmonn.data.tasks import choose_tasks, load_tasks
from modeling_salmonn.evaluation.harness import read_answers
from modeling_salmonn.evaluation.judges import RuleJudge
from modeling_salmonn.evaluation.run import EvaluationSettings, evaluate, read_data
from modeling_salmonn.studies.sweep import curves_of, draw_curves, sweep_scales


TASKS = """
words: {rows: {task: asr}, instruction: Write., metrics: [wer, bleu], new_tokens: 6}
tale: {rows: {task: story}, instruction: Tell., metrics: [diversity, repeat_rate], rule: story, new_tokens: 9}
"""
SCALES = (0.0, 2.0, 4.0)  # the adapter is trained at 4

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), 4, (0, 3), TASKS)


def run_sweep(folder: Path, data: Path, output: Path, *more: str) -> Any:
    tasks = data.parent / "tasks.yaml"
    return run("study", "sweep", folder, "--data", data, "--output", output, "--include-path", tasks, *more)


def sweep_all(folder: Path, data: Path, output: Path) -> dict[str, Any]:
    scales = [word for scale in reversed(SCALES) for word in ("--lora-scale", f"{scale:g}")]
    result = run_sweep(folder, data, output, "--tasks", "words", "--tasks", "tale", *scales)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Wrote sweep.json, sweep.png and sweep.md to {output}.\n"
    return json.loads((output / "sweep.json").read_text())


def journals(output: Path) -> dict[Path, tuple[bytes, int]]:
    files = [*output.glob("*/answers-*.jsonl"), *output.glob("*/verdicts.jsonl")]
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.fixture(scope="module")
def swept(saved_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sweep")
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["words", "tale"])
    sweep_scales(str(saved_folder), tasks, read_data([str(data)]), output, RuleJudge(), SCALES)
    return output


def test_every_metric_has_a_figure_at_every_scale(swept: Path) -> None:
    curves = json.loads((swept / "sweep.json").read_text())
    assert {task: set(metrics) for task, metrics in curves.items()} == {
        "words": {"wer", "bleu"},
        "tale": {"diversity", "repeat_rate", "following_rate"},
    }
    for points in [points for metrics in curves.values() for points in metrics.values()]:
        assert [point["scale"] for point in points] == list(SCALES)
        assert all(point["low"] <= point["value"] <= point["high"] for point in points)


def test_figures_at_the_trained_scale_are_those_of_a_plain_evaluation(
    swept: Path, saved_folder: Path, data: Path, tmp_path: Path
) -> None:
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["words", "tale"])
    plain = evaluate(str(saved_folder), tasks, read_data([str(data)]), tmp_path, RuleJudge())
    curves = json.loads((swept / "sweep.json").read_text())
    for task, entry in plain.items():
        for name, figure in entry["metrics"].items():
            assert curves[task][name][-1] == {"scale": 4.0} | figure
    assert read_answers(swept / "scale-4") == read_answers(tmp_path)


def test_every_scale_has_answers_of_its_own(swept: Path) -> None:
    folders = sorted(folder.name for folder in swept.iterdir() if folder.is_dir())
    assert folders == ["scale-0", "scale-2", "scale-4"]
    said = [{key: row["answer"] for key, row in read_answers(swept / name).items()} for name in folders]
    assert said[0] != said[1] != said[2] != said[0]


def test_clips_are_encoded_once_for_all_scales_tasks_and_fallbacks(
    saved_folder: Path, data: Path, tmp_path: Path
) -> None:
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["words", "tale"])
    with counted_segments() as counts:
        sweep_scales(str(saved_folder), tasks, read_data([str(data)]), tmp_path, RuleJudge(), SCALES)
    assert counts == {"speech": 4, "audio": 4}  # of four clips, asked 10 times at each of three scales


def test_finished_sweep_answers_nothing(swept: Path, saved_folder: Path, data: Path) -> None:
    before, curves = journals(swept), (swept / "sweep.json").read_text()
    sweep_all(saved_folder, data, swept)
    assert journals(swept) == before
    assert len(before) == 2 * len(SCALES)
    assert (swept / "sweep.json").read_text() == curves


def test_stopped_sweep_answers_only_what_is_left(swept: Path, saved_folder: Path, data: Path, tmp_path: Path) -> None:
    first = tmp_path / "scale-0"
    first.mkdir()
    for name in ("answers-0.jsonl", "verdicts.jsonl", "settings.json"):
        (first / name).write_bytes((swept / "scale-0" / name).read_bytes())
    before = journals(tmp_path)
    assert sweep_all(saved_folder, data, tmp_path) == json.loads((swept / "sweep.json").read_text())
    assert {file: kept for file, kept in journals(tmp_path).items() if file in before} == before


def test_report_explains_and_marks_the_trained_scale(swept: Path) -> None:
    heading, paragraph, table = (swept / "sweep.md").read_text().strip().split("\n\n")
    assert heading.startswith("# ")
    assert "the scaling that the model was trained at (4)" in " ".join(paragraph.split())
    head, _, *lines = table.splitlines()
    assert head == "| task | metric | rows | 0 | 2 | 4 (trained) |"
    assert [line.split(" | ")[:3] for line in lines[:2]] == [["| words", "wer", "4"], ["| words", "bleu", "4"]]


def test_picture_is_a_png_of_two_rows_of_panels(swept: Path) -> None:
    content = (swept / "sweep.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (round(4 * 3.2 * 130), round(2 * 2.4 * 130))  # five panels


def test_panels_show_curve_band_and_trained_scale() -> None:
    points = [
        {"scale": 1.0, "value": 0.2, "low": 0.1, "high": 0.4},
        {"scale": 2.0, "value": 0.3, "low": 0.3, "high": 0.5},
    ]
    figure = draw_curves(
        {"asr": {"wer": points}, "tale": {"diversity": points, "following_rate": points}}, trained=3.5
    )
    assert [(panel.get_title("left"), panel.get_ylabel()) for panel in figure.axes] == [
        ("asr: wer", "%, lower is better"),
        ("tale: diversity", "higher is better"),
        ("tale: following_rate", "%, higher is better"),
    ]
    for panel, unit in zip(figure.axes, (100, 1, 100), strict=True):
        line, curve = panel.get_lines()
        assert set(line.get_xdata()) == {3.5}
        assert curve.get_xydata().tolist() == [[1.0, unit * 0.2], [2.0, unit * 0.3]]
        corners = panel.collections[0].get_paths()[0].vertices
        assert (corners[:, 1].min(), corners[:, 1].max()) == (unit * 0.1, unit * 0.5)


def test_scales_come_in_order_and_once(saved_folder: Path, data: Path, tmp_path: Path) -> None:
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["tale"])
    settings = EvaluationSettings(limit=1)
    rows = read_data([str(data)])
    summaries = sweep_scales(str(saved_folder), tasks, rows, tmp_path, RuleJudge(), (1.5, 0.25, 1.5), settings)
    assert list(summaries) == [0.25, 1.5]
    assert all(summary["tale"]["rows"] == 1 for summary in summaries.values())
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"scale-0.25", "scale-1.5"}


def test_nothing_to_draw_raises() -> None:
    with pytest.raises(ValueError, match=r"no clip of any task could be read; see bad_clips\.txt"):
        curves_of({1.0: {"asr": {"rows": 0, "unreadable": 2, "metrics": {}}}})


def test_model_without_adapter_raises(data: Path, tmp_path: Path, bucket_config: SalmonnConfig) -> None:
    tiny_model(bucket_config).save_pretrained(tmp_path / "bare")
    tiny_processor(bucket_config).save_pretrained(tmp_path / "bare")
    result = run_sweep(tmp_path / "bare", data, tmp_path / "out", "--tasks", "words")
    assert result.exit_code == 1
    assert "bare has no LoRA adapter, so there is no scale to change" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_answers_of_other_data_raise(swept: Path, saved_folder: Path, data: Path) -> None:
    fewer = data.with_name("fewer.jsonl")
    fewer.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    result = run_sweep(saved_folder, fewer, swept, "--tasks", "words", "--lora-scale", "0")
    assert result.exit_code == 1
    assert "other settings: data " in result.stderr


def test_missing_matplotlib_is_told_before_anything_is_answered(
    saved_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["words"])
    with pytest.raises(ImportError, match="Figures need matplotlib; install it: pip install matplotlib"):
        sweep_scales(str(saved_folder), tasks, read_data([str(data)]), tmp_path, RuleJudge())
    assert list(tmp_path.iterdir()) == []
