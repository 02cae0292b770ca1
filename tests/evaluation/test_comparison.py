"""Comparing a model before and after activation tuning."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from overfitted import CAPTION, CLIPS, PROMPTS, STORY, TRANSCRIPT, Overfitted, overfitted_model
from rich.console import Console

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.evaluation.answering import Answerer
from modeling_salmonn.evaluation.comparison import (
    Comparison,
    ComparisonSettings,
    Figures,
    answer_rows,
    choose_rows,
    compare_models,
    figures_by_task,
)


LONG = ComparisonSettings(max_new_tokens=170, batch_size=4)


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    return overfitted_model(tmp_path_factory.getbasetemp())


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
def rows(overfitted: Overfitted) -> list[dict[str, Any]]:
    return list(load_rows(overfitted.clips, needs=("path",)))


def figures(clips: int = 1, **values: Any) -> Figures:
    return Figures(clips, **({"following_rate": None, "diversity": None, "word_error_rate": None} | values))


def test_cure_is_seen_in_the_figures_and_its_cost_too(
    overfitted: Overfitted, cured: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    wrong = [rows[0] | {"text": "Call me at two."}, *rows[1:]]
    comparison = compare_models(overfitted.model, cured, wrong, tmp_path, PROMPTS, LONG)
    story, speech = comparison.before["story"], comparison.before["asr"]
    assert story == figures(CLIPS, following_rate=0.0, diversity=4.0, repeat_rate=0.0, problems=story.problems)
    assert story.problems == {"copies the transcript": CLIPS}
    assert speech == figures(CLIPS, repeat_rate=0.0, word_error_rate=1 / (4 * CLIPS))
    words = len(set(STORY.lower().replace(".", "").split()))
    assert comparison.after["story"] == figures(CLIPS, following_rate=1.0, diversity=words, repeat_rate=0.0)
    assert comparison.after["asr"] == speech


def test_comparison_is_saved_with_all_answers(
    overfitted: Overfitted, cured: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    comparison = compare_models(overfitted.model, cured, rows[:2], tmp_path / "new", PROMPTS, LONG)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "comparison.json",
        "comparison.md",
        "before.jsonl",
        "after.jsonl",
    }
    saved = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert saved["models"] == [overfitted.model, cured]
    assert Figures(**saved["before"]["story"]) == comparison.before["story"]
    text = (tmp_path / "new" / "comparison.md").read_text()
    assert text.startswith(f"`{overfitted.model}` -> `{cured}`\n\n| task | clips | following rate |")
    assert "| story | 2 | 0.00 -> 1.00 | 4.0 -> 29.0 | 0.00 -> 0.00 |  |\n" in text
    assert "- story, before: 2 copies the transcript\n" in text
    answers = [json.loads(line) for line in (tmp_path / "new" / "after.jsonl").read_text().splitlines()]
    assert [(row["task"], row["answer"]) for row in answers] == [("story", STORY)] * 2 + [("asr", TRANSCRIPT)] * 2
    assert (answers[0]["transcript"], answers[0]["caption"], answers[0]["problem"]) == (TRANSCRIPT, CAPTION, None)
    assert answers[0]["instruction"] == "Tell a story."


def test_reference_transcript_also_unmasks_a_copy(overfitted: Overfitted, rows: list[dict[str, Any]]) -> None:
    answerer = Answerer.from_pretrained(overfitted.model)
    row = {"path": rows[0]["path"], "task": "spoken_query", "text": ""}
    prompts = PROMPTS | {"spoken_query": PROMPTS["story"], "asr": PROMPTS["audio_caption"]}  # its transcript is wrong
    for extra, problem in (({}, None), ({"transcript": TRANSCRIPT}, "repeats the question")):
        (judged,) = answer_rows(answerer, [row | extra], prompts, ComparisonSettings(max_new_tokens=30))
        assert (judged["answer"], judged["transcript"], judged["problem"]) == (TRANSCRIPT, CAPTION, problem)


def test_judged_rows_become_figures_of_their_task() -> None:
    rows = [
        {"task": "story", "answer": "a b c", "problem": None},
        {"task": "story", "answer": "a " * 9, "problem": "loops"},
        {"task": "story", "answer": "a a b", "problem": "too short"},
        {"task": "asr", "answer": "go on", "text": "go on now"},
    ]
    found = figures_by_task(rows)
    assert found["story"] == Figures(3, pytest.approx(1 / 3), 2.0, 1 / 3, None, {"loops": 1, "too short": 1})
    assert found["asr"] == Figures(1, None, None, 0.0, 1 / 3)


def test_table_shows_changes_and_leaves_out_what_does_not_apply() -> None:
    before = {"story": Figures(3, 0.0, 7.77, 0.0, None, {"empty": 3}), "asr": Figures(9, None, None, 0.0, 0.021)}
    after = {"story": Figures(3, 1.0, 82.57, 0.25, None), "asr": Figures(9, None, None, 0.0, 0.0229)}
    comparison = Comparison(before, after)
    assert comparison.lines() == [
        ["task", "clips", "following rate", "diversity", "repeat rate", "word error rate"],
        ["story", "3", "0.00 -> 1.00", "7.8 -> 82.6", "0.00 -> 0.25", ""],
        ["asr", "9", "", "", "0.00 -> 0.00", "2.1% -> 2.3%"],
    ]
    assert comparison.markdown().count("\n|") == 3


def test_table_fits_into_80_columns() -> None:
    widest = Figures(100, 1.0, 82.57, 1.0, 1.0)
    comparison = Comparison({"spoken_query": widest}, {"spoken_query": widest})
    console = Console(width=80, file=StringIO())
    console.print(comparison.table())
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().splitlines()[-1].split() == " ".join(comparison.lines()[1]).split()


def test_rows_are_limited_by_task_and_drawn_by_the_seed() -> None:
    rows = [{"path": f"{n}.wav", "task": task, "text": "x"} for n in range(9) for task in ("asr", "story", "other")]
    chosen = choose_rows(rows, ComparisonSettings(limit=4))
    assert [row["task"] for row in chosen] == ["story"] * 4 + ["asr"] * 4
    assert chosen == choose_rows(rows, ComparisonSettings(limit=4))
    assert chosen != choose_rows(rows, ComparisonSettings(limit=4, seed=1))


def test_story_is_asked_about_each_clip_where_no_row_does() -> None:
    rows = [
        {"path": "a.wav", "task": "asr", "text": "Words."},
        {"path": "a.wav", "task": "audio_caption", "text": "A voice."},
        {"path": "b.wav", "transcript": "Others."},
    ]
    made = {row["path"]: row for row in choose_rows(rows, ComparisonSettings()) if row["task"] == "story"}
    base = {"task": "story", "text": ""}
    assert made["a.wav"] == base | {"path": "a.wav", "transcript": "Words.", "caption": "A voice."}
    assert made["b.wav"] == base | {"path": "b.wav", "transcript": "Others."}


def test_speech_without_words_is_left_out() -> None:
    rows = [{"path": "a.wav", "task": "asr", "text": text} for text in ("(laughs)", "Hello.", "", "uh")]
    chosen = choose_rows(rows, ComparisonSettings())
    assert [row["text"] for row in chosen if row["task"] == "asr"] == ["Hello."]


def test_no_rows_of_use_raise() -> None:
    with pytest.raises(ValueError, match="no clips to compare the models on; give rows with a 'path'"):
        choose_rows([{"task": "story", "text": ""}], ComparisonSettings())


def test_clips_that_cannot_be_read_are_left_out(overfitted: Overfitted, rows: list[dict[str, Any]]) -> None:
    answerer = Answerer.from_pretrained(overfitted.model)
    absent = rows[0] | {"path": "/none.wav"}
    judged = answer_rows(answerer, [absent, rows[1]], PROMPTS, ComparisonSettings(max_new_tokens=30))
    assert [row["path"] for row in judged] == [rows[1]["path"]]
    with pytest.raises(ValueError, match="None of the 1 clips to compare the models on can be read"):
        answer_rows(answerer, [absent], PROMPTS, ComparisonSettings())


@pytest.mark.parametrize("name", ["limit", "max_new_tokens", "batch_size"])
def test_settings_out_of_range_raise(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        ComparisonSettings(**{name: 0})
