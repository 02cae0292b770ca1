"""The report of salmonn-smol and its curves."""

import json
from pathlib import Path

import pytest

from recipes.salmonn_smol.report import gather_report, plot_curves, read_log, write_report


def write_summary(folder: Path, value: float) -> None:
    folder.mkdir(parents=True)
    figure = {"value": value, "low": value / 2, "high": 2 * value}
    (folder / "summary.json").write_text(json.dumps({"asr": {"rows": 9, "unreadable": 0, "metrics": {"wer": figure}}}))


def test_report_gathers_columns_in_order_and_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for column, value in (("a", 0.1234567), ("b", 0.25)):
        write_summary(tmp_path / column / "test", value)
    write_summary(tmp_path / "b" / "validation", 0.5)
    report = gather_report(tmp_path, ["b", "a"])
    assert list(report) == ["test", "validation"]
    assert list(report["test"]) == ["b", "a"]
    assert report["test"]["a"]["asr"]["metrics"]["wer"]["value"] == 0.123457
    write_report(tmp_path, tmp_path / "report.json", ["b", "a"])
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert "| asr | wer | 9 | 25.0 % (12.5 to 50.0) | 12.3 % (6.2 to 24.7) |" in capsys.readouterr().out


def test_report_of_nothing_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no evaluation at all"):
        gather_report(tmp_path)
    write_summary(tmp_path / "a" / "test", 0.1)
    with pytest.raises(ValueError, match="no evaluation b;"):
        gather_report(tmp_path, ["a", "b"])


def test_curves_are_drawn_from_logs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_asr_loss": 1.5}]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    plot_curves(tmp_path / "curves.png", [tmp_path / "run"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"no trainer_state\.json"):
        plot_curves(tmp_path / "other.png", [tmp_path / "nothing"])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt is no name for a picture"):
        plot_curves(tmp_path / "notes.txt", [tmp_path / "run"])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("report.txt", "mine", r"report\.txt is no name for a report; give one that ends in \.json"),
        ("report.json", '{"lr": 1}', "holds something else than a report, which would be lost"),
        ("report.json", "[1]", "holds a list, but it needs an object .*; give another name, or delete it"),
    ],
)
def test_report_is_not_written_over_other_files(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    write_summary(tmp_path / "a" / "test", 0.1)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, tmp_path / name)
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"summary\.json is not JSON .*; delete it, and evaluate again"),
        ("[1]", r"summary\.json holds a list, but it needs an object .*; delete it, and evaluate again"),
        ('{"asr": 1}', r"summary\.json has no scores of 'asr' that can be read; delete it, and evaluate again"),
        ('{"asr": {"metrics": {"wer": {"value": "0.1"}}}}', r"has no scores of 'asr' that can be read"),
    ],
)
def test_damaged_summary_is_named(content: str, message: str, tmp_path: Path) -> None:
    write_summary(tmp_path / "a" / "test", 0.1)
    (tmp_path / "a" / "test" / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        gather_report(tmp_path)


@pytest.mark.parametrize("content", ['{"log_history": {}}', '{"log_history": [1]}', "{}", "[", "nothing"])
def test_log_of_another_form_raises(content: str, tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(ValueError, match=r"trainer_state\.json .*; give the folder of another run"):
        read_log(tmp_path)
