"""Kinds of data for activation tuning: what is made, left out and kept, and what the comparison shows."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_model, tiny_processor
from matplotlib.container import BarContainer
from overfitted import PROMPTS, STORY, TRANSCRIPT, Overfitted, overfitted_model

from modeling_salmonn import SalmonnConfig
from modeling_salmonn.activation.tuning import TuningSettings
from modeling_salmonn.activation.writing import WritingSettings
from modeling_salmonn.evaluation.harness import read_answers
from modeling_salmonn.studies.activation_data import (
    ActivationData,
    Kind,
    activation_data_report,
    compare_activation_data,
    draw_activation_data,
)
from modeling_salmonn.studies.activation_kinds import join_transcripts, speech_rows


KINDS = ["story", "qa", "asr_long", "text_story"]
# All that the model knows is a story, and questions have its instruction: it tells the same one about everything.
QUESTIONS = PROMPTS | {"audio_qa": ["Tell a story."]}
SPEECH = "the quick brown fox jumps over the lazy dog while all of us just stand there and watch them go"
WRITING = WritingSettings(answers=2, lora_scale=0.0, min_words=20, max_new_tokens=170)
TUNING = TuningSettings(steps=12, learning_rate=1e-2)

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Overfitted:
    return overfitted_model(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def clips(overfitted: Overfitted) -> list[dict[str, Any]]:
    """Four clips with transcripts, two of which together are a little longer than a story."""
    return [{"path": str(overfitted.folder / f"clip{n}.wav"), "task": "asr", "text": SPEECH} for n in range(4)]


@pytest.fixture(scope="module")
def rows(overfitted: Overfitted) -> list[dict[str, Any]]:
    """Rows of two other clips, and one of a clip that is tuned on."""
    return [{"path": str(overfitted.folder / f"clip{n}.wav"), "task": "asr", "text": TRANSCRIPT} for n in (4, 5, 0)]


def compare(model: str, clips: Any, rows: Any, output: Path, **changes: Any) -> ActivationData:
    settings = {"prompts": QUESTIONS, "writing": WRITING, "tuning": TUNING} | changes
    return compare_activation_data(model, clips, rows, output, **settings)


@pytest.fixture(scope="module")
def finished(
    overfitted: Overfitted,
    clips: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, ActivationData]:
    output = tmp_path_factory.mktemp("activation data")
    return output, compare(overfitted.model, clips, rows, output)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def times(output: Path) -> dict[Path, int]:
    made = [*output.glob("*/model/*.safetensors"), *output.glob("**/answers-0.jsonl")]
    return {file: file.stat().st_mtime_ns for file in made}


def value_of(summary: Any, task: str, metric: str) -> float:
    return summary[task]["metrics"][metric]["value"]


def test_stories_cure_the_model_and_long_transcripts_do_not(finished: tuple[Path, ActivationData]) -> None:
    found = finished[1]
    assert list(found.kinds) == KINDS
    assert found.left_out == {}
    rates = {kind: value_of(summary, "story", "following_rate") for kind, summary in found.summaries.items()}
    assert (rates["before"], rates["story"], rates["asr_long"]) == (0.0, 1.0, 0.0)
    assert all(len(result.losses) == 12 for result in found.kinds.values())
    assert found.kinds["story"].losses[-1] < 0.2 * found.kinds["story"].losses[0]


def test_each_kind_is_what_it_is_called(finished: tuple[Path, ActivationData], clips: list[dict[str, Any]]) -> None:
    output, found = finished
    made = {kind: lines_of(output / kind / "answers.jsonl") for kind in KINDS}
    assert [(row["task"], row["text"]) for row in made["story"]] == [("story", STORY)] * 2
    assert [(row["task"], row["text"]) for row in made["qa"]] == [("audio_qa", STORY)] * 2
    assert all(row["Q"] for row in made["qa"])
    assert [row["path"] for row in made["qa"]] == [row["path"] for row in made["story"]]
    assert made["text_story"] == [{"task": "story", "prompt": "Tell a story.", "text": STORY}] * 2
    paths = [row["path"] for row in clips]
    joined = {"task": "asr", "text": f"{SPEECH} {SPEECH}", "prompt": "Write it down."}
    assert made["asr_long"] == [
        joined | {"path": paths[0], "expand_wav": [paths[1]]},
        joined | {"path": paths[2], "expand_wav": [paths[3]]},
    ]
    words = len(STORY.split())
    assert {kind: result.words for kind, result in found.kinds.items()} == {
        "story": words, "qa": words, "asr_long": 2 * len(SPEECH.split()), "text_story": words,
    }  # fmt: skip


def test_models_answer_the_same_rows_of_clips_that_none_is_tuned_on(
    finished: tuple[Path, ActivationData], rows: list[dict[str, Any]]
) -> None:
    output, found = finished
    folders = [output / "before", *(output / kind / "after" for kind in KINDS)]
    asked = [{key: row["path"] for key, row in read_answers(folder).items()} for folder in folders]
    answered = {(task, path) for (task, _, part), path in asked[0].items() if part == "answer"}
    assert answered == {(task, row["path"]) for task in ("story", "asr") for row in rows[:2]}
    assert all(others == asked[0] for others in asked)
    assert value_of(found.summaries["before"], "asr", "wer") == 0.0


def test_finished_comparison_is_read(
    finished: tuple[Path, ActivationData],
    overfitted: Overfitted,
    clips: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> None:
    output, found = finished
    before = times(output)
    assert len(before) == 1 + 3 * len(KINDS)  # answers; weights of model and adapter
    assert compare(overfitted.model, clips, rows, output) == found
    assert times(output) == before


def test_stopped_comparison_does_only_what_is_left(
    finished: tuple[Path, ActivationData],
    overfitted: Overfitted,
    clips: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> None:
    output, found = finished
    before = times(output)
    (output / "qa" / "model" / "activation.json").unlink()  # tuning was stopped
    journal = output / "asr_long" / "after" / "answers-0.jsonl"
    journal.write_text(journal.read_text().split("\n", 1)[1])  # answering was
    assert compare(overfitted.model, clips, rows, output) == found
    changed = {str(file.relative_to(output)) for file, time in times(output).items() if time != before[file]}
    tuned = {f"qa/model/{name}.safetensors" for name in ("model", "adapter_model")}
    assert changed == tuned | {"qa/after/answers-0.jsonl", "asr_long/after/answers-0.jsonl"}


def test_kinds_that_cannot_be_made_are_left_out_with_the_reason(
    overfitted: Overfitted, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    clips = [{"path": str(overfitted.folder / f"clip{n}.wav")} for n in range(3)]
    found = compare(overfitted.model, clips, rows, tmp_path, tuning=TuningSettings(steps=1))
    assert list(found.kinds) == ["story", "qa", "text_story"]
    short = "all 3 transcripts together have fewer words than one story (35); give more."
    assert found.left_out == {"asr_long": short}
    saved = json.loads((tmp_path / "activation_data.json").read_text())
    assert saved["left_out"] == found.left_out
    assert list(saved["kinds"]) == ["story", "qa", "text_story"]
    assert "- asr_long is left out: all 3 transcripts" in (tmp_path / "activation_data.md").read_text()


def test_kinds_that_the_model_does_not_write_are_left_out(
    overfitted: Overfitted, clips: list[dict[str, Any]], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    writing = WritingSettings(answers=1, tries=1, min_words=30, lora_scale=0.0, max_new_tokens=20)
    found = compare(overfitted.model, clips, rows, tmp_path, writing=writing, tuning=TuningSettings(steps=1))
    assert list(found.kinds) == ["asr_long"]  # of as many words as an answer needs
    assert found.left_out["story"].startswith("No answer about 4 clips was kept: 4 too short")
    assert found.left_out["qa"].startswith("No answer about 4 clips was kept: 4 too short")
    assert found.left_out["text_story"] == "there are no stories; see why story is left out."


def test_nothing_to_tune_on_raises(overfitted: Overfitted, tmp_path: Path) -> None:
    clips = [{"path": str(overfitted.folder / "clip0.wav")}]
    writing = WritingSettings(answers=1, tries=1, lora_scale=0.0, max_new_tokens=5)
    with pytest.raises(
        ValueError, match=r"no kind of data to tune on\. story: No answer .* asr_long: neither the clip"
    ):
        compare(overfitted.model, clips, [], tmp_path, writing=writing)


def test_nothing_left_to_compare_on_raises(
    overfitted: Overfitted, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="All 4 rows to compare on have clips that are tuned on; give others"):
        compare(overfitted.model, clips, clips, tmp_path)


def test_answers_of_other_settings_raise(
    finished: tuple[Path, ActivationData],
    overfitted: Overfitted,
    clips: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> None:
    other = WritingSettings(answers=1, lora_scale=0.0, min_words=20, max_new_tokens=170)
    with pytest.raises(ValueError, match="answers 2 instead of 1; choose another folder"):
        compare(overfitted.model, clips, rows, finished[0], writing=other)


def test_model_without_adapter_raises(
    bucket_config: SalmonnConfig, clips: list[dict[str, Any]], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    tiny_model(bucket_config).save_pretrained(tmp_path / "bare")
    tiny_processor(bucket_config).save_pretrained(tmp_path / "bare")
    half = WritingSettings(answers=1)
    with pytest.raises(ValueError, match="needs a LoRA adapter, but this model has none"):
        compare(str(tmp_path / "bare"), clips, rows, tmp_path / "out", writing=half)


def test_longest_transcripts_are_joined_until_they_are_long() -> None:
    speech = [{"path": f"/{words}.wav", "text": "word " * words} for words in (2, 5, 1, 4)]
    assert [row["path"] for row in join_transcripts(speech, 9, words=1)] == ["/5.wav", "/4.wav", "/2.wav", "/1.wav"]
    (joined,) = join_transcripts(speech, 9, words=7)  # what is left would not be long enough
    assert (joined["path"], joined["expand_wav"], len(joined["text"].split())) == ("/5.wav", ["/4.wav"], 9)
    assert [row["path"] for row in join_transcripts(speech, 2, words=4)] == ["/5.wav", "/4.wav"]
    assert join_transcripts(speech, 9, words=13) == []


def test_transcript_of_joined_clips_keeps_them() -> None:
    speech = [{"path": "/a.wav", "expand_wav": ["/b.wav"], "text": "one two"}, {"path": "/c.wav", "text": "three"}]
    assert join_transcripts(speech, 1, words=3) == [
        {"path": "/a.wav", "expand_wav": ["/b.wav", "/c.wav"], "task": "asr", "text": "one two three"}
    ]


def test_speech_rows_are_transcripts_of_files() -> None:
    good = {"path": "/a.wav", "task": "asr", "text": "Yes."}
    others = [
        good | change for change in ({"task": "audio_qa"}, {"text": " . "}, {"text": None}, {"path": {"bytes": 1}})
    ]
    assert speech_rows([*others, good, good]) == [good]


def score(value: float) -> dict[str, float]:
    return {"value": value, "low": value / 2, "high": 1.5 * value}


@pytest.fixture
def made_up() -> ActivationData:
    story = {"following_rate": score(0.125), "diversity": score(9.5), "repeat_rate": score(0.0)}
    slots = {"following_rate": score(0.5), "repeat_rate": score(0.25)}
    before = {
        "story": {"rows": 8, "metrics": story, "problems": {"empty": 7}},
        "slot_filling": {"rows": 4, "metrics": slots},
        "asr": {"rows": 9, "metrics": {"wer": score(0.02), "repeat_rate": score(0.0)}},
    }
    told = {"following_rate": score(1.0), "diversity": score(80.0), "repeat_rate": score(0.5)}
    after = before | {"story": {"rows": 8, "metrics": told}}
    kinds = {"story": Kind(12, 61.4, [2.0, 0.5])}
    return ActivationData({"before": before, "story": after}, kinds, {"qa": "no questions."})


def test_report_has_scores_data_reasons_and_how_to_read_them(made_up: ActivationData) -> None:
    title, scores, _, problems, data, left_out, reading = (
        activation_data_report("m", made_up, 12).strip().split("\n\n")
    )
    assert title == "`m`, tuned on different data"
    assert scores.splitlines()[:3] == [
        "| task | metric | rows | before | story |",
        "|---|---|---|---|---|",
        "| story | following_rate | 8 | 12.5 % (6.2 to 18.8) | 100.0 % (50.0 to 150.0) |",
    ]
    assert scores.splitlines()[-2] == "| asr | wer | 9 | 2.0 % (1.0 to 3.0) | 2.0 % (1.0 to 3.0) |"
    assert problems == "- before: story: 7 empty"
    assert data.splitlines()[-1] == "| story | 12 | 61 | 2.000 | 0.500 |"
    assert left_out == "- qa is left out: no questions."
    assert reading.startswith("Each column behind `before` is the same model after 12 steps")


def test_bars_are_the_scores_of_each_kind(made_up: ActivationData) -> None:
    figure = draw_activation_data(made_up.summaries)
    assert [panel.get_title("left") for panel in figure.axes] == ["following rate", "repeat rate", "wer"]
    drawn = [[bars for bars in panel.containers if isinstance(bars, BarContainer)] for panel in figure.axes]
    heights = [[[bar.get_height() for bar in bars] for bars in panel] for panel in drawn]
    assert heights == [[[0.125, 0.5], [1.0, 0.5]], [[0.0, 0.25, 0.0], [0.5, 0.25, 0.0]], [[0.02], [0.02]]]
    ends = [[tuple(line[:, 1]) for line in bars.errorbar.lines[2][0].get_segments()] for bars in drawn[0]]
    assert ends == [[(0.0625, 0.1875), (0.25, 0.75)], [(0.5, 1.5), (0.25, 0.75)]]
    labels = [[label.get_text() for label in panel.get_xticklabels()] for panel in figure.axes]
    assert labels == [["story", "slot_filling"], ["story", "slot_filling", "asr"], ["asr"]]


def test_missing_matplotlib_is_told_before_anything_is_written(
    overfitted: Overfitted, clips: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(ImportError, match="Figures need matplotlib; install it"):
        compare(overfitted.model, clips, clips, tmp_path / "out")
    assert not (tmp_path / "out").exists()
