"""Figures of answers: judged and unjudged, missing metrics, tables, cards."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from modeling_salmonn.data.tasks import Task, choose_tasks, load_tasks
from modeling_salmonn.evaluation.harness import Job, make_jobs
from modeling_salmonn.evaluation.instruction_following import Context
from modeling_salmonn.evaluation.judges import UnclearVerdictError
from modeling_salmonn.evaluation.summary import (
    judge_answers,
    missing_lines,
    summarise,
    table,
    write_model_index,
)


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
    figure = {"value": 0.5, "low": 0.25, "high": 0.75}
    first = {"asr": {"rows": 4, "metrics": {"wer": figure}}}
    second = {"mc": {"rows": 3, "metrics": {"bleu": {"value": 12.34, "low": 10.0, "high": 15.0}}}}
    assert table({"a": first, "b": second}).splitlines() == [
        "| task | metric | rows | a | b |",
        "|---|---|---|---|---|",
        "| asr | wer | 4 | 50.0 % (25.0 to 75.0) |  |",
        "| mc | bleu | 3 |  | 12.3 (10.0 to 15.0) |",
    ]


def test_card_keeps_other_figures_and_replaces_its_own(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\nText.\n")
    figure = {"value": 0.5, "low": 0.25, "high": 0.75}
    summary = {"asr": {"rows": 4, "metrics": {"wer": figure}}}
    write_model_index(card, "tiny", "test", summary)
    write_model_index(card, "tiny", "other", summary)
    summary["asr"]["metrics"]["wer"] = figure | {"value": 0.4}
    write_model_index(card, "tiny", "test", summary)
    results = ModelCard.load(card).data.eval_results
    assert sorted((result.dataset_name, result.metric_value) for result in results) == [("other", 0.5), ("test", 0.4)]
    assert card.read_text().endswith("---\nText.\n")
    assert ModelCard.load(card).data.license == "mit"


def test_references_of_a_task_are_those_it_names(tmp_path: Path) -> None:
    task = Task("quiz", "Answer.", ["contains_answer"], reference="answers")
    jobs = make_jobs([task], [{"task": "quiz", "path": "a.wav", "answers": ["seven", "7"]}])
    answered = [{"task": "quiz", "row": 0, "part": "answer", "instruction": "Answer.", "answer": "It is 7."}]
    assert summarise(jobs, answered, "rules", tmp_path)["quiz"]["metrics"]["contains_answer"]["value"] == 1
    assert json.dumps(summarise(jobs, answered, "rules", tmp_path))
