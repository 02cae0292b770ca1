"""An evaluation as a whole: what it writes, going on after a stop, several processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated_clips import write_data, write_jsonl

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.data.clips import USUAL_SECONDS
from modeling_salmonn.data.tasks import choose_tasks, load_tasks
from modeling_salmonn.evaluation import baselines
from modeling_salmonn.evaluation.answering import Answerer
from modeling_salmonn.evaluation.baselines import load_answerer
from modeling_salmonn.evaluation.harness import KEYS, Job, claim_answers, make_jobs, read_answers
from modeling_salmonn.evaluation.judges import RuleJudge
from modeling_salmonn.evaluation.run import EvaluationSettings, evaluate, read_data, require_measures


TASKS = """
words: {rows: {task: asr}, instruction: Write., metrics: [wer, bleu], new_tokens: 5}
tale: {rows: {task: story}, instruction: Tell., metrics: [diversity], rule: story, new_tokens: 7}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of different lengths with words, two of them also with a story to tell."""
    return write_data(tmp_path_factory.mktemp("data"), 6, (0, 5), TASKS)


def run_evaluation(folder: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["words", "tale"])
    return evaluate(str(folder), tasks, read_data([str(data)]), output, RuleJudge(), EvaluationSettings(**options))


@pytest.fixture(scope="module")
def finished(saved_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluation") / "plain"
    run_evaluation(saved_folder, data, output, batch_size=4)
    return output


def test_summary_has_scores_with_intervals(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["words"]["rows"] == 6
    rate = summary["words"]["metrics"]["wer"]
    assert rate["low"] <= rate["value"] <= rate["high"]
    assert summary["tale"]["judge"] == "rules"
    assert summary["tale"]["metrics"]["following_rate"]["value"] == 0
    assert sum(summary["tale"]["problems"].values()) == 2
    assert "| words | wer | 6 |" in (finished / "summary.md").read_text()


@torch.no_grad()
def test_answers_are_those_of_each_clip_alone(finished: Path, saved_folder: Path, data: Path) -> None:
    model = SalmonnForConditionalGeneration.from_pretrained(saved_folder).eval()
    processor = SalmonnProcessor.from_pretrained(saved_folder)
    for row in read_answers(finished).values():
        if row["task"] == "words":
            inputs = processor(text="Write.", audio=row["path"])
            ids = model.generate(**inputs, max_new_tokens=5)[:, inputs["input_ids"].shape[1] :]
            assert row["answer"] == processor.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()


def test_stopped_evaluation_answers_only_what_is_left(
    finished: Path, saved_folder: Path, data: Path, tmp_path: Path
) -> None:
    lines = (finished / "answers-0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers-0.jsonl").write_text("".join(lines[:5]) + lines[5][:20])  # killed while writing the sixth
    summary = run_evaluation(saved_folder, data, tmp_path, batch_size=4)
    assert summary == json.loads((finished / "summary.json").read_text())
    resumed = (tmp_path / "answers-0.jsonl").read_text().splitlines(keepends=True)
    assert resumed[:5] == lines[:5]
    assert sorted(resumed) == sorted(lines)


def test_fallbacks_are_asked_for_by_the_first_prompts_of_their_tasks(
    saved_folder: Path, data: Path, tmp_path: Path
) -> None:
    tasks = [load_tasks(data.parent / "tasks.yaml")["tale"]]
    prompts = {"asr": ["Hear.", "Listen."], "audio_caption": ["Describe."]}
    arguments = str(saved_folder), tasks, read_data([str(data)]), tmp_path, RuleJudge()
    evaluate(*arguments, prompts=prompts)
    asked = {part: row["instruction"] for (_, _, part), row in read_answers(tmp_path).items()}
    assert asked == {"answer": "Tell.", "transcript": "Hear.", "caption": "Describe."}
    with pytest.raises(ValueError, match=r"to the instruction 'Hear\.', not to "):
        evaluate(*arguments)


def test_finished_evaluation_answers_nothing(finished: Path, saved_folder: Path, data: Path) -> None:
    class Refusing(Answerer):
        def answer_prepared(self, *arguments: Any, **options: Any) -> Any:
            raise AssertionError("there is nothing to answer")

    before = (finished / "answers-0.jsonl").read_bytes()
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["words", "tale"])
    answerer = Refusing.from_pretrained(str(saved_folder))
    evaluate(str(saved_folder), tasks, read_data([str(data)]), finished, RuleJudge(), answerer=answerer)
    assert (finished / "answers-0.jsonl").read_bytes() == before


def test_tasks_that_were_evaluated_before_keep_their_scores(saved_folder: Path, data: Path, tmp_path: Path) -> None:
    rows = read_data([str(data)])
    for suite in ("words", "tale"):
        tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), [suite])
        assert set(evaluate(str(saved_folder), tasks, rows, tmp_path, RuleJudge())) == {suite}
    assert list(json.loads((tmp_path / "summary.json").read_text())) == ["words", "tale"]


def test_folder_with_answers_to_something_else_raises(finished: Path, saved_folder: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=r"other settings: lora_scale None instead of 1\.0; choose another folder"):
        run_evaluation(saved_folder, data, finished, lora_scale=1.0)


def test_answers_to_another_instruction_raise(finished: Path, saved_folder: Path, data: Path) -> None:
    task = replace(load_tasks(data.parent / "tasks.yaml")["words"], instruction="Sing.")
    with pytest.raises(ValueError, match=r"answers of the task 'words' to the instruction 'Write.', not to 'Sing.'"):
        evaluate(str(saved_folder), [task], read_data([str(data)]), finished, RuleJudge())


def test_answers_of_another_length_raise(finished: Path, saved_folder: Path, data: Path) -> None:
    task = replace(load_tasks(data.parent / "tasks.yaml")["words"], new_tokens=6)
    with pytest.raises(ValueError, match=r"answers of the task 'words' of at most 5 tokens, not 6; choose another"):
        evaluate(str(saved_folder), [task], read_data([str(data)]), finished, RuleJudge())


def test_answers_by_other_settings_of_the_model_raise(finished: Path, saved_folder: Path, data: Path) -> None:
    answerer = Answerer.from_pretrained(str(saved_folder))
    answerer.model.generation_config.repetition_penalty = 1.5
    tasks = [load_tasks(data.parent / "tasks.yaml")["words"]]
    with pytest.raises(ValueError, match=r"other settings: repetition_penalty None instead of 1\.5; choose another"):
        evaluate(str(saved_folder), tasks, read_data([str(data)]), finished, RuleJudge(), answerer=answerer)


def test_rows_without_a_field_of_their_instruction_raise_before_any_is_answered(
    saved_folder: Path, data: Path, tmp_path: Path
) -> None:
    rows = [row | {"mood": "merry"} for row in read_data([str(data)])]
    del rows[5]["mood"]
    task = replace(load_tasks(data.parent / "tasks.yaml")["words"], instruction="Be {mood}.")
    with pytest.raises(ValueError, match="needs the field 'mood'"):
        evaluate(str(saved_folder), [task], rows, tmp_path, RuleJudge())
    assert not (tmp_path / "answers-0.jsonl").exists()


def test_lora_scale_changes_answers(finished: Path, saved_folder: Path, data: Path, tmp_path: Path) -> None:
    run_evaluation(saved_folder, data, tmp_path, lora_scale=0.0)
    assert {row["answer"] for row in read_answers(tmp_path).values()} != {
        row["answer"] for row in read_answers(finished).values()
    }


def test_answers_of_beam_search_are_those_of_the_model(
    finished: Path, saved_folder: Path, data: Path, tmp_path: Path
) -> None:
    run_evaluation(saved_folder, data, tmp_path, num_beams=3)
    greedy = {key: row["answer"] for key, row in read_answers(finished).items()}
    assert greedy != {key: row["answer"] for key, row in read_answers(tmp_path).items()}
    answerer = Answerer.from_pretrained(str(saved_folder))
    for row in read_answers(tmp_path).values():
        if row["task"] == "words":
            example = {"instruction": row["instruction"], "audio": row["path"]}
            options = answerer.collator.prepare([example])
            output = answerer.model.generate(**options, max_new_tokens=5, num_beams=3, do_sample=False)
            (text,) = answerer.processor.tokenizer.batch_decode(
                output[:, options["input_ids"].shape[1] :], skip_special_tokens=True
            )
            assert row["answer"] == text.strip()


def test_numbers_below_one_raise() -> None:
    with pytest.raises(ValueError, match="num_beams must be at least 1, got 0"):
        EvaluationSettings(num_beams=0)


def test_two_processes_give_the_scores_of_one(finished: Path, saved_folder: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "modeling_salmonn", "evaluate", str(saved_folder)]
    command += ["--data", str(data), "--output", str(tmp_path), "--tasks", "words", "--tasks", "tale"]
    command += ["--include-path", str(data.parent / "tasks.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads((finished / "summary.json").read_text())
    keys = [
        tuple(json.loads(line)[name] for name in KEYS)
        for file in sorted(tmp_path.glob("answers-*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert len(keys) == len(set(keys)) == len(read_answers(finished))
    assert (tmp_path / "answers-1.jsonl").stat().st_size > 0


def test_processes_have_their_accelerators_before_the_model_is_loaded(
    saved_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def load(*arguments: Any) -> Any:
        events.append("load")

    monkeypatch.setattr(baselines, "process_state", lambda: events.append("process_state"))
    monkeypatch.setattr(baselines.Answerer, "from_pretrained", load)
    load_answerer(str(saved_folder))
    assert events == ["process_state", "load"]


def test_model_is_loaded_onto_the_device_that_is_named(saved_folder: Path, data: Path, tmp_path: Path) -> None:
    assert load_answerer(str(saved_folder), device="meta").model.device.type == "meta"
    with pytest.raises(ValueError, match="There is no device 'tpu9' here; give auto, cpu, cuda"):
        run_evaluation(saved_folder, data, tmp_path, device="tpu9")


def test_workers_change_no_answer(finished: Path, saved_folder: Path, data: Path, tmp_path: Path) -> None:
    run_evaluation(saved_folder, data, tmp_path, batch_size=4, num_workers=2)
    assert (tmp_path / "answers-0.jsonl").read_bytes() == (finished / "answers-0.jsonl").read_bytes()


def test_unreadable_clip_is_named_once_by_several_workers(saved_folder: Path, data: Path, tmp_path: Path) -> None:
    (data.parent / "broken.wav").write_bytes(b"no audio")
    broken = [{"path": str(data.parent / "broken.wav"), "task": task, "text": "x"} for task in ("asr", "story")]
    rows = [*read_data([str(data)]), *broken]
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["words", "tale"])
    settings = EvaluationSettings(batch_size=4, num_workers=2)
    summary = evaluate(str(saved_folder), tasks, rows, tmp_path, RuleJudge(), settings)
    assert (summary["words"]["rows"], summary["words"]["unreadable"]) == (6, 1)
    assert (tmp_path / "bad_clips.txt").read_text().count("broken.wav\t") == 1


def test_unreadable_clip_is_counted_and_named(saved_folder: Path, data: Path, tmp_path: Path) -> None:
    rows = read_data([str(data)])
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no audio")
    tasks = choose_tasks(load_tasks(data.parent / "tasks.yaml"), ["words"])
    rows = [*rows[:2], rows[2] | {"path": str(broken)}]
    summary = evaluate(str(saved_folder), tasks, rows, tmp_path / "out", RuleJudge())
    assert (summary["words"]["rows"], summary["words"]["unreadable"]) == (2, 1)
    assert str(broken) in (tmp_path / "out" / "bad_clips.txt").read_text()
    assert "1 clips could not be read" in (tmp_path / "out" / "summary.md").read_text()


def test_unreadable_clips_of_an_earlier_task_do_not_end_another(saved_folder: Path, tmp_path: Path) -> None:
    tasks = load_tasks()
    rows = [{"path": f"{index}.wav", "task": "asr", "text": "words"} for index in range(3)]
    rows.append({"path": "3.wav", "task": "gender_recognition", "text": "male"})
    for name, unreadable in (("asr", 3), ("gender_recognition", 1)):
        summary = evaluate(str(saved_folder), [tasks[name]], rows, tmp_path, RuleJudge())
        assert summary[name]["unreadable"] == unreadable


def test_more_rows_contain_those_of_fewer() -> None:
    rows = [{"task": "asr", "text": "a", "path": str(index)} for index in range(30)]
    tasks = choose_tasks(load_tasks(), ["asr"])
    few = {job.index for job in make_jobs(tasks, rows, limit=5)}
    more = {job.index for job in make_jobs(tasks, rows, limit=12)}
    assert len(few) == 5
    assert few < more


def test_references_that_a_metric_cannot_read_raise_before_any_row_is_answered() -> None:
    rows = [{"path": "a.wav", "task": "emotion_recognition", "text": text} for text in ("happy", "surprised")]
    with pytest.raises(ValueError, match=r"Row 2 has no reference that can be used, but \['surprised'\]"):
        make_jobs(choose_tasks(load_tasks(), ["er"]), rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("metrics: [charm]", r"has the metrics \['charm'\]; there are wer"),
        ("rule: nice", "has the rule 'nice'; there are story"),
        ("level: 1", "measures nothing; give it metrics, or a rule"),
    ],
)
def test_task_that_cannot_be_measured_is_told_with_its_line(fields: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(f"new: {{instruction: Sing., {fields}}}\n")
    tasks = choose_tasks(load_tasks(tmp_path / "tasks.yaml"), ["new"])
    with pytest.raises(ValueError, match=rf"The task 'new' \(line 1 of .*tasks\.yaml\) {message}"):
        evaluate("./nothing", tasks, [], tmp_path, RuleJudge())


def test_bundled_tasks_can_be_measured() -> None:
    require_measures(choose_tasks(load_tasks(), ["all"]))


def test_column_that_no_row_has_raises_before_any_is_answered(saved_folder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No row has speakr to group by; the rows have .*path"):
        evaluate(str(saved_folder), [], read_data([str(data)]), tmp_path / "out", RuleJudge(), by=["speakr"])
    assert not (tmp_path / "out").exists()


def test_rows_of_other_tasks_raise() -> None:
    with pytest.raises(ValueError, match=r"None of the 1 rows is for asr; the rows have the tasks \['song'\]"):
        make_jobs(choose_tasks(load_tasks(), ["asr"]), [{"task": "song", "text": "la"}])


def test_clips_of_a_manifest_are_found_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    row = {"path": "a.wav", "expand_wav": ["b.wav", "https://host/c.wav"], "task": "asr", "text": "words"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    for manifest in (str(tmp_path / "rows.jsonl"), "~/rows.jsonl"):
        (found,) = read_data([manifest])
        assert found["path"] == str(tmp_path / "a.wav")
        assert found["expand_wav"] == [str(tmp_path / "b.wav"), "https://host/c.wav"]


def test_rows_without_path_or_task_raise(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"task": "asr", "text": "a"}\n')
    with pytest.raises(ValueError, match=r"has the columns .* and lacks \[.path.\]"):
        read_data([str(file)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "settings.json holds a list, but it needs an object .*; choose another folder, or delete this one"),
        ('{"data": ', "settings.json is not JSON .*; choose another folder, or delete this one"),
    ],
)
def test_damaged_settings_of_a_folder_raise(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        claim_answers(tmp_path, [], model="a")
    assert (tmp_path / "settings.json").read_text() == content


def test_summary_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("mine")
    with pytest.raises(ValueError, match=r"has summary\.json, but no settings\.json: they are of something else"):
        claim_answers(tmp_path, [], model="a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": 1}, "Line 2 of .*answers-0.jsonl has a number as 'task'; mend or delete it"),
        ({"row": "0"}, "Line 2 of .* has text as 'row'; mend or delete it"),
        ({"answer": None}, "Line 2 of .* has nothing as 'answer'; mend or delete it"),
    ],
)
def test_answer_of_another_form_is_told_with_its_line(changes: Any, message: str, tmp_path: Path) -> None:
    answer = {"task": "asr", "row": 0, "part": "answer", "instruction": "Write.", "new_tokens": 5, "answer": "Words."}
    write_jsonl(tmp_path / "answers-0.jsonl", [answer, answer | {"row": 1} | changes])
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"references": 3}, "Line 2 of .*rows.jsonl: references is 3 .*, but it needs text or a list of texts"),
        ({"references": ["a", None]}, "Line 2 of .*: references is .*, but it needs text or a list of texts"),
        ({"text": ["a"]}, r"Line 2 of .*: text is \['a'\] .*, but it needs text"),
        ({"task": None}, r"has task=None: .*Give each row a task.*\(line 2\)"),
        ({"path": 7}, "Line 2 of .*: path is 7 .*, but it needs the path of a clip"),
    ],
)
def test_broken_row_is_told_with_its_line(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"path": "a.wav", "task": "asr", "text": "words"}
    data = write_jsonl(tmp_path / "rows.jsonl", [good, good | row])
    with pytest.raises(ValueError, match=message):
        read_data([str(data)])


def test_clip_of_absurd_length_is_planned_as_a_usual_one() -> None:
    task = load_tasks()["asr"]
    lengths = [Job(task, 0, {"path": "a.wav", "seconds": seconds}, "answer").seconds for seconds in (2.0, 2.0**60)]
    assert lengths == [2.0, USUAL_SECONDS]
