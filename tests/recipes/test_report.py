"""The report of salmonn-smol."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from modeling_salmonn.hub.build_smol import SHIPPED
from modeling_salmonn.hub.model_card import unstated_parts
from recipes.salmonn_smol.report import gather_report, write_report, write_scores


def write_summary(folder: Path, value: float) -> None:
    folder.mkdir(parents=True)
    figure = {"value": value, "low": value / 2, "high": 2 * value}
    (folder / "summary.json").write_text(json.dumps({"asr": {"rows": 9, "unreadable": 0, "metrics": {"wer": figure}}}))


def test_report_gathers_columns_and_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for column, value in (("a", 0.1234567), ("b", 0.25)):
        write_summary(tmp_path / column / "test", value)
    write_summary(tmp_path / "b" / "validation", 0.5)
    report = gather_report(tmp_path)
    assert list(report) == ["test", "validation"]
    assert list(report["test"]) == ["a", "b"]
    assert report["test"]["a"]["asr"]["metrics"]["wer"]["value"] == 0.123457
    write_report(tmp_path, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert "| asr | wer | 9 | 12.3 % (6.2 to 24.7) | 25.0 % (12.5 to 50.0) |" in capsys.readouterr().out


def test_card_beside_the_report_gets_the_scores_of_what_is_shipped(tmp_path: Path) -> None:
    for column, value in (("stage 1", 0.5), ("stage 2", 0.25)):
        write_summary(tmp_path / "evaluations" / column / "test", value)
    card = Path(shutil.copy(SHIPPED / "README.md", tmp_path))
    write_report(tmp_path / "evaluations", tmp_path / "report.json")
    scores = [(score.dataset_name, score.metric_value) for score in ModelCard.load(card).data.eval_results]
    assert scores == [("salmonn-smol test", 0.25)]  # and none of earlier weights
    assert "| salmonn-smol test | asr | wer | 9 | 0.25 | 0.125 to 0.5 |\n<!-- end -->" in card.read_text()


def test_shipped_card_has_the_scores_of_the_shipped_report(tmp_path: Path) -> None:
    card = Path(shutil.copy(SHIPPED / "README.md", tmp_path))
    write_scores(card, json.loads((SHIPPED / "report.json").read_text()))
    assert card.read_text() == (SHIPPED / "README.md").read_text()


def test_shipped_card_leaves_nothing_to_guess() -> None:
    card = ModelCard.load(SHIPPED / "README.md", ignore_metadata_errors=False)
    assert unstated_parts(card) == []
    assert card.data.base_model
    assert card.data.model_name == "salmonn-smol"


def test_report_of_nothing_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no evaluations; run salmonn evaluate"):
        gather_report(tmp_path)


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
