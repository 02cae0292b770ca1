"""Scores of answers: judged and unjudged, missing metrics, tables, cards."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from modeling_salmonn.data.tasks import Task, choose_tasks, load_tasks
from modeling_salmonn.evaluation.harness import Job, make_jobs
from modeling_salmonn.evaluation.instruction_following import Context
from modeling_salmonn.evaluation.judges import RuleJudge, UnclearVerdictError
from modeling_salmonn.evaluation.summary import (
    compare,
    comparison,
    judge_answers,
    missing_lines,
    summarise,
    table,
    write_model_index,
)
from modeling_salmonn.hub.model_card import eval_results_yaml


class Stern:
    """Finds fault with short answers, and cannot tell of empty ones."""

    name = "stern"

    def judge(self, task: str, instruction: str, answer: str, context: Context) -> str | None:
        if not answer:
            raise UnclearVerdictError("no idea")
        return "short" if len(answer) < 5 else None


def answered_jobs(answers: list[str]) -> tuple[list[Job], list[dict]]:
    rows = [{"task": "story", "path": f"{index}.wav"} for index in range(len(answers))]
    jobs = make_jobs(choose_tasks(load_tasks(), ["story"]), rows)
    parts = {"answer": answers, "transcript": ["t"] * len(answers), "caption": ["c"] * len(answers)}
    made = [
        {
            "task": "story",
            "row": job.index,
            "part": job.part,
            "instruction": "Tell.",
            "answer": parts[job.part][job.index],
        }
        for job in jobs
    ]
    return jobs, made


def asr_answers(rows: list[dict[str, Any]], answers: list[str]) -> tuple[list[Job], list[dict[str, Any]]]:
    jobs = make_jobs(choose_tasks(load_tasks(), ["asr"]), [{"task": "asr", "path": "a.wav"} | row for row in rows])
    made = [
        {"task": "asr", "row": job.index, "part": "answer", "instruction": "Write.", "answer": answers[job.index]}
        for job in jobs
    ]
    return jobs, made


def test_following_rate_is_of_the_answers_that_were_judged(tmp_path: Path) -> None:
    jobs, answered = answered_jobs(["a long story", "no", "", "another story"])
    judge_answers(jobs, answered, Stern(), tmp_path)
    summary = summarise(jobs, answered, "stern", tmp_path)["story"]
    assert summary["metrics"]["following_rate"]["value"] == pytest.approx(2 / 3)
    assert (summary["unjudged"], summary["problems"]) == (1, {"short": 1})
    assert missing_lines({"story": summary}) == ["story: 1 answers have no clear verdict"]
    before = (tmp_path / "verdicts.jsonl").read_bytes()
    judge_answers(jobs, answered, Stern(), tmp_path)
    assert (tmp_path / "verdicts.jsonl").read_bytes() == before


class Named:
    """Finds the fault with each answer that is named for it."""

    name = "named"

    def __init__(self, faults: dict[str, str]):
        self.faults = faults

    def judge(self, task: str, instruction: str, answer: str, context: Context) -> str | None:
        return self.faults.get(answer)


def test_known_answers_have_known_scores(tmp_path: Path) -> None:
    answers = ["a b c", "a " * 9, "a a b"]
    jobs, answered = answered_jobs(answers)
    judge_answers(jobs, answered, Named({answers[1]: "loops", answers[2]: "too short"}), tmp_path)
    summary = summarise(jobs, answered, "named", tmp_path)["story"]
    values = {name: found["value"] for name, found in summary["metrics"].items()}
    assert values == pytest.approx({"diversity": 2.0, "repeat_rate": 1 / 3, "following_rate": 1 / 3})
    assert summary["problems"] == {"loops": 1, "too short": 1}
    jobs, answered = asr_answers([{"text": "Go on now."}], ["go on"])
    assert summarise(jobs, answered, "named", tmp_path)["asr"]["metrics"]["wer"]["value"] == pytest.approx(1 / 3)


def test_values_of_a_column_have_scores_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"text": "cats see", "speaker": 8, "seconds": 3.9},
        {"text": "cats see dogs run", "speaker": 12, "seconds": 10.1},
        {"text": "cats see", "seconds": 4},
        {"text": "cats see", "speaker": 8, "seconds": 10},
    ]
    jobs, answered = asr_answers(rows, ["cats see", "cats see dogs", "cats", "see"])
    summary = summarise(jobs, answered, "rules", tmp_path, by=["speaker", "seconds", "accent"])
    found = {
        column: {value: (entry["rows"], entry["metrics"]["wer"]["value"]) for value, entry in groups.items()}
        for column, groups in summary["asr"]["by"].items()
    }
    assert found["speaker"] == {"12": (1, 0.25), "8": (2, 0.25)}
    assert found["seconds"] == {"under 4": (1, 0.0), "4 to 10": (2, 0.5), "over 10": (1, 0.25)}
    assert found["accent"] == {}
    assert summary["asr"]["metrics"]["wer"]["value"] == pytest.approx(0.3)
    lines = table({"a": summary}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| asr",
        "| asr, speaker 12",
        "| asr, speaker 8",
        "| asr, seconds under 4",
        "| asr, seconds 4 to 10",
        "| asr, seconds over 10",
    ]


def test_following_rate_of_a_group_is_of_its_own_answers(tmp_path: Path) -> None:
    jobs, answered = answered_jobs(["a long story", "no"])
    for job, speaker in zip(jobs, ["one"] * 3 + ["two"] * 3, strict=True):
        job.row["speaker"] = speaker
    judge_answers(jobs, answered, Stern(), tmp_path)
    groups = summarise(jobs, answered, "stern", tmp_path, by=["speaker"])["story"]["by"]["speaker"]
    assert {value: entry["metrics"]["following_rate"]["value"] for value, entry in groups.items()} == {
        "one": 1.0,
        "two": 0.0,
    }
    assert groups["two"]["problems"] == {"short": 1}


def test_scores_of_groups_come_into_a_model_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicence: mit\n---\n# A model\n")
    jobs, answered = asr_answers([{"text": "cats see", "speaker": "eve"}], ["cats"])
    write_model_index(card, "tiny", "mine", summarise(jobs, answered, "rules", tmp_path, by=["speaker"]))
    results = ModelCard.load(card).data.eval_results
    assert {result.task_name: result.metric_value for result in results} == {"asr": 0.5, "asr, speaker eve": 0.5}


def test_leaderboards_get_the_score_of_the_whole_data_set(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicence: mit\n---\n# A model\n")
    rows = [{"text": "cats see", "speaker": "eve"}, {"text": "dogs run", "speaker": "ada"}]
    jobs, answered = asr_answers(rows, ["cats", "dogs run"])
    summary = summarise(jobs, answered, "rules", tmp_path, by=["speaker"])
    write_model_index(card, "tiny", "librispeech_clean", summary, "openslr/librispeech_asr")
    loaded = ModelCard.load(card)
    scores = {result.dataset_config: result.metric_value for result in loaded.data.eval_results}
    assert scores == {
        "librispeech_clean": 0.25,
        "librispeech_clean, speaker ada": 0.0,
        "librispeech_clean, speaker eve": 0.5,
    }
    entries = yaml.safe_load(eval_results_yaml(loaded))
    assert [(entry["dataset"]["task_id"], entry["value"]) for entry in entries] == [("librispeech_clean", 0.25)]


def test_a_group_without_words_has_no_score_and_the_others_have(tmp_path: Path) -> None:
    rows = [{"text": "cats see", "speaker": "eve"}, {"text": "Hmm.", "speaker": "ada"}]
    jobs, answered = asr_answers(rows, ["cats", "Mm"])
    summary = summarise(jobs, answered, "rules", tmp_path, by=["speaker"])
    groups = summary["asr"]["by"]["speaker"]
    assert groups["eve"]["metrics"]["wer"]["value"] == 0.5
    assert groups["ada"]["metrics"] == {}
    (line,) = missing_lines(summary)
    assert line.startswith("asr, speaker ada: no wer: There are no rows, or no reference has any words")


def test_reference_transcript_also_unmasks_a_copy(tmp_path: Path) -> None:
    asked, heard = "Who calls at ten in the morning?", "A low tone."
    rows = [{"task": "spoken_query", "path": "a.wav"}, {"task": "spoken_query", "path": "b.wav", "transcript": asked}]
    jobs = make_jobs([Task("spoken_query", "Answer.", rule="spoken_query")], rows)
    said = {"answer": asked, "transcript": heard, "caption": heard}
    answered = [
        {"task": job.task.name, "row": job.index, "part": job.part, "instruction": "Answer.", "answer": said[job.part]}
        for job in jobs
    ]
    judge_answers(jobs, answered, RuleJudge(), tmp_path)
    summary = summarise(jobs, answered, "rules", tmp_path)["spoken_query"]
    assert summary["metrics"]["following_rate"]["value"] == 0.5
    assert summary["problems"] == {"repeats the question": 1}


def test_verdicts_of_another_judge_do_not_count(tmp_path: Path) -> None:
    jobs, answered = answered_jobs(["a long story"])
    judge_answers(jobs, answered, Stern(), tmp_path)
    summary = summarise(jobs, answered, "rules", tmp_path)["story"]
    assert "following_rate" not in summary["metrics"]
    assert summary["unjudged"] == 1


def test_caption_metrics_without_java_are_missing_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    tasks = choose_tasks(load_tasks(), ["aac"])
    jobs = make_jobs(tasks, [{"task": "audio_caption", "path": "a.wav", "text": "A dog barks."}])
    answered = [{"task": "audio_caption", "row": 0, "part": "answer", "instruction": "Say.", "answer": "A dog."}]
    summary = summarise(jobs, answered, "rules", tmp_path)
    assert summary["audio_caption"]["metrics"] == {}
    assert "no Java" in summary["audio_caption"]["missing"]["meteor"]
    assert missing_lines(summary)[0].startswith("audio_caption: no meteor: There is no Java here")


def test_table_has_a_column_for_each_summary() -> None:
    score = {"value": 0.5, "low": 0.25, "high": 0.75}
    first = {"asr": {"rows": 4, "metrics": {"wer": score}}}
    second = {"mc": {"rows": 3, "metrics": {"bleu": {"value": 12.34, "low": 10.0, "high": 15.0}}}}
    assert table({"a": first, "b": second}).splitlines() == [
        "| task | metric | rows | a | b |",
        "|---|---|---|---|---|",
        "| asr | wer | 4 | 50.0 % (25.0 to 75.0) |  |",
        "| mc | bleu | 3 |  | 12.3 (10.0 to 15.0) |",
    ]


def write_summary(folder: Path, **entry: Any) -> Path:
    folder.mkdir(parents=True)
    score = {"value": 0.5, "low": 0.25, "high": 0.75}
    (folder / "summary.json").write_text(json.dumps({"story": {"rows": 4, "metrics": {"wer": score}} | entry}))
    return folder


def test_comparison_says_why_answers_do_not_follow_and_what_is_missing() -> None:
    score = {"value": 0.0, "low": 0.0, "high": 0.0}
    story = {"rows": 3, "metrics": {"following_rate": score}, "problems": {"copies the transcript": 2, "empty": 1}}
    before, after = {"story": story}, {"story": story | {"problems": {}, "unreadable": 1}}
    head, _, line, *rest = comparison({"before": before, "after": after}).splitlines()
    assert head == "| task | metric | rows | before | after |"
    assert line == "| story | following_rate | 3 | 0.0 % (0.0 to 0.0) | 0.0 % (0.0 to 0.0) |"
    assert [text for text in rest if text] == [
        "Answers that do not follow:",
        "- before: story: 2 copies the transcript, 1 empty",
        "What is missing:",
        "- after: story: 1 clips could not be read",
    ]
    assert comparison({"before": before}).endswith("\n- story: 2 copies the transcript, 1 empty\n")


def test_evaluations_are_compared_by_their_folders(tmp_path: Path) -> None:
    folders = [write_summary(tmp_path / name / "before") for name in ("a", "b")] + [write_summary(tmp_path / "after")]
    assert compare(folders[1:]).startswith("| task | metric | rows | before | after |\n")
    assert compare(folders).startswith(f"| task | metric | rows | {' | '.join(map(str, folders))} |\n")
    with pytest.raises(ValueError, match=r"a holds no summary\.json; give the output folder of a finished evaluation"):
        compare([folders[0], tmp_path / "a"])
    with pytest.raises(ValueError, match="nothing to compare; give the folders"):
        compare([])


@pytest.mark.parametrize("entry", [{"problems": ["empty"]}, {"missing": 1}, {"metrics": {"fun": {"value": 1}}}])
def test_summary_that_cannot_be_compared_raises(entry: dict[str, Any], tmp_path: Path) -> None:
    folder = write_summary(tmp_path / "a", **entry)
    with pytest.raises(ValueError, match=r"summary\.json has no scores of 'story' that can be read; delete it"):
        compare([folder])


def test_card_keeps_other_scores_and_replaces_its_own(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\nText.\n")
    score = {"value": 0.5, "low": 0.25, "high": 0.75}
    summary = {"asr": {"rows": 4, "metrics": {"wer": score}}}
    write_model_index(card, "tiny", "test", summary)
    write_model_index(card, "tiny", "other", summary)
    summary["asr"]["metrics"]["wer"] = score | {"value": 0.4}
    write_model_index(card, "tiny", "test", summary)
    results = ModelCard.load(card).data.eval_results
    assert sorted((result.dataset_name, result.metric_value) for result in results) == [("other", 0.5), ("test", 0.4)]
    assert card.read_text().endswith("---\nText.\n")
    assert ModelCard.load(card).data.license == "mit"


def test_card_tells_tasks_on_the_same_data_apart(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("Text.\n")
    summary = {
        task: {"rows": 4, "metrics": {"bleu": {"value": value, "low": 0.0, "high": 9.0}}}
        for task, value in (("en2de", 2.5), ("en2fr", 3.5))
    }
    write_model_index(card, "tiny", "test", summary)
    write_model_index(card, "tiny", "test", summary)  # read again, each is found to be the same
    results = ModelCard.load(card).data.eval_results
    assert [(result.task_name, result.metric_value) for result in results] == [("en2de", 2.5), ("en2fr", 3.5)]


def test_references_of_a_task_are_those_it_names(tmp_path: Path) -> None:
    task = Task("quiz", "Answer.", ["contains_answer"], reference="answers")
    jobs = make_jobs([task], [{"task": "quiz", "path": "a.wav", "answers": ["seven", "7"]}])
    answered = [{"task": "quiz", "row": 0, "part": "answer", "instruction": "Answer.", "answer": "It is 7."}]
    assert summarise(jobs, answered, "rules", tmp_path)["quiz"]["metrics"]["contains_answer"]["value"] == 1
    assert json.dumps(summarise(jobs, answered, "rules", tmp_path))
