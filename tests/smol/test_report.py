"""The report of salmonn-smol and the scores in it."""

import json
from pathlib import Path

import pytest

from modeling_salmonn.smol.curves import plot_curves
from modeling_salmonn.smol.report import add_scores, report_table
from modeling_salmonn.smol.scoring import score_rows


def test_report_keeps_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    add_scores(file, "stage 1", "test", {"asr": {"wer": 0.5, "rows": 10}})
    add_scores(file, "stage 2", "test", {"asr": {"wer": 0.25, "rows": 10}})
    add_scores(file, "stage 2", "test", {"translation": {"bleu_german": 3.21, "rows": 4}})
    table = report_table(json.loads(file.read_text()))
    assert table.splitlines()[0] == "| split | task | metric | clips | stage 1 | stage 2 |"
    assert "| test | asr | wer | 10 | 50.0 % | 25.0 % |" in table
    assert "| test | translation | bleu_german | 4 |  | 3.2 |" in table


def test_report_table_has_the_columns_that_are_asked_for() -> None:
    content = {"a": {"test": {"asr": {"wer": 1.0, "rows": 1}}}, "b": {"test": {"asr": {"wer": 0.0, "rows": 1}}}}
    assert report_table(content, ["b"]).splitlines()[-1] == "| test | asr | wer | 1 | 0.0 % |"


def test_scores_of_sounds_count_nouns_of_label_and_class() -> None:
    rows = [
        {"text": "A sheep bleats.", "sound_class": "sheep or goat"},
        {"text": "A door.", "sound_class": ""},
        {"text": "A cow.", "sound_class": "cow"},
    ]
    scores = score_rows("audio_caption", rows, ["A goat cries.", "A door slams.", "A dog barks."])
    assert scores == {"named": pytest.approx(2 / 3), "class_named": pytest.approx(1 / 2)}


def test_curves_are_drawn_from_logs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_asr_loss": 1.5}]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    plot_curves([tmp_path / "run"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"no trainer_state\.json"):
        plot_curves([tmp_path / "nothing"], tmp_path / "other.png")
