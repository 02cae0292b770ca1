"""Scores of answers: a summary by task with intervals, Markdown tables, and metadata for a model card."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult

from modeling_salmonn.data.files import Journal, write_bytes
from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.tasks import Task
from modeling_salmonn.data.text_files import read_json_object
from modeling_salmonn.evaluation.breakdown import group_jobs
from modeling_salmonn.evaluation.captions import CAPTION_METRICS, CaptionMetricError
from modeling_salmonn.evaluation.harness import ANSWER, KEYS, Job
from modeling_salmonn.evaluation.instruction_following import FALLBACK_TASKS, context_of
from modeling_salmonn.evaluation.intervals import bootstrap_interval
from modeling_salmonn.evaluation.judges import Judge, UnclearVerdictError
from modeling_salmonn.evaluation.metrics import METRICS, Metric, NothingToScoreError
from modeling_salmonn.hub.model_card import GROUP, load_card


SUMMARY_FILE, VERDICTS_FILE = "summary.json", "verdicts.jsonl"
VERDICT_KEYS = ("task", "row", "judge")
VERDICT_FIELDS = {"task": str, "row": int, "judge": str}
FOLLOWING_RATE = "following_rate"
SCORE_FIELDS = ("value", "low", "high")
ALL_METRICS = {**METRICS, **CAPTION_METRICS}  # names that tasks may have


def judge_answers(jobs: Sequence[Job], answered: Sequence[Row], judge: Judge, output: Path) -> None:
    """Judge whether the answers to tasks with a rule do what was asked; what was judged before is not judged again.

    Verdicts are appended to `verdicts.jsonl`: `task`, `row`, `judge` and `problem`, which is `None` for an answer that
    follows; instead of it `unclear` where the judge did not give a verdict.
    """
    journal = Journal(output / VERDICTS_FILE, VERDICT_KEYS, VERDICT_FIELDS)
    answers = {itemgetter(*KEYS)(row): row for row in answered}
    for job in jobs:
        name = job.task.name
        if job.task.rule is None or job.part != ANSWER:
            continue
        if job.key not in answers or (name, job.index, judge.name) in journal.by_key:
            continue
        said = {}  # a fallback may be missing where the work was interrupted
        for part in FALLBACK_TASKS:
            said[part] = answers.get((name, job.index, part), {}).get("answer", "")
        row = answers[job.key]
        verdict: Row = {"task": name, "row": job.index, "judge": judge.name}
        try:
            context = replace(context_of(job.row, **said), wanted=job.task.judge or "")
            verdict["problem"] = judge.judge(job.task.rule, row["instruction"], row["answer"], context)
        except UnclearVerdictError as error:
            verdict["unclear"] = str(error)
        journal.append(verdict)


def summarise(
    jobs: Sequence[Job],
    answered: Sequence[Row],
    judge: str,
    output: Path,
    seed: int = 0,
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores of each task, of answers as `answer_jobs` returns them and of one judge's verdicts in the output folder.

    Args:
        jobs: what was asked.
        answered: the answers.
        judge: name of the judge.
        output: folder with `verdicts.jsonl`.
        seed: of the intervals.
        by: columns of the rows; the rows of each value get scores of their own, see `group_jobs`.

    Returns:
        `{task: {"rows": n, "unreadable": n, "metrics": {name: {"value", "low", "high"}}, ...}}`, where `low` and
        `high` bound the 95 % interval; tasks with a rule also have `judge`, `problems` and how many answers are
        `unjudged`, those with metrics that could not be computed `missing` with the reasons, and with columns `by`:
        `{column: {value: {"rows", ...}}}`.
    """
    verdicts = {}
    for row in Journal(output / VERDICTS_FILE, VERDICT_KEYS, VERDICT_FIELDS).rows:
        if row["judge"] == judge and "problem" in row:
            verdicts[row["task"], row["row"]] = row["problem"]
    answers = {itemgetter(*KEYS)(row): row["answer"] for row in answered}
    asked: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        if job.part == ANSWER:
            asked[job.task.name].append(job)

    summary = {}
    for name, own in asked.items():
        summary[name] = _entry(own, answers, verdicts, judge, seed)
        groups = {column: group_jobs(own, column) for column in by}
        if any(groups.values()):
            summary[name]["by"] = {
                column: {value: _entry(some, answers, verdicts, judge, seed) for value, some in found.items()}
                for column, found in groups.items()
            }
    return summary


def _entry(
    jobs: Sequence[Job], answers: Mapping[Any, str], verdicts: Mapping[Any, str | None], judge: str, seed: int
) -> dict[str, Any]:
    """Scores of some jobs of one task."""
    task = jobs[0].task
    heard = [job for job in jobs if job.key in answers]  # clips that cannot be read have no answers
    entry: dict[str, Any] = {"rows": len(heard), "unreadable": len(jobs) - len(heard), "metrics": {}}
    if heard:
        references = [task.references(job.row) for job in heard]
        entry |= task_scores(task, references, [answers[job.key] for job in heard], seed)
    if heard and task.rule is not None:  # a verdict may be missing where the judge was unclear
        problems = [verdicts[task.name, job.index] for job in heard if (task.name, job.index) in verdicts]
        entry["metrics"] |= following_score(problems, seed)
        entry |= {"judge": judge, "unjudged": len(heard) - len(problems)}
        entry["problems"] = dict(Counter(filter(None, problems)).most_common())
    return entry


def with_groups(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Task, group and entry of all scores: the whole of each task, whose group is empty, and then its groups."""
    for task, entry in summary.items():
        yield task, "", entry
        for column, groups in entry.get("by", {}).items():
            for value, own in groups.items():
                yield task, f"{column} {value}", own


def label(task: str, group: str) -> str:
    """How tables and cards call scores: `asr`, or of a group `asr, speaker 84`."""
    return f"{task}, {group}" if group else task


def task_scores(
    task: Task, references: Sequence[Sequence[str]], answers: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """The metrics of a task, with their intervals, and what is missing of them."""
    metrics, missing = {}, {}
    for name in task.metrics:
        metric = ALL_METRICS[name]
        try:
            metrics[name] = score(metric, metric.statistics(references, answers), seed)
        except (ImportError, CaptionMetricError, NothingToScoreError) as error:  # not here, or not of these rows
            missing[name] = str(error)
    return {"metrics": metrics, "missing": missing} if missing else {"metrics": metrics}


def following_score(problems: Sequence[str | None], seed: int = 0) -> dict[str, dict[str, float]]:
    """The following rate of some verdicts; nothing for none."""
    if not problems:
        return {}
    followed = [problem is None for problem in problems]
    statistics = np.column_stack([followed, np.ones(len(followed))])  # as of any share of rows
    return {FOLLOWING_RATE: score(metric_named(FOLLOWING_RATE), statistics, seed)}


def score(metric: Metric, statistics: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Value and 95 % interval of a metric."""
    low, high = bootstrap_interval(metric, statistics, seed=seed)
    return {"value": float(metric.combine(statistics.sum(0))), "low": low, "high": high}  # JSON takes no NumPy


def compare(folders: Sequence[Path]) -> str:
    """What several evaluations found, side by side, such as of the same rows before and after training.

    Columns are named after the folders; a `ValueError` if there are none, or one holds no summary.
    """
    if not folders:
        raise ValueError("There is nothing to compare; give the folders of evaluations.")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):  # all may be called `after`
        names = list(map(str, folders))
    summaries = {}
    for name, folder in zip(names, folders, strict=True):
        if not (folder / SUMMARY_FILE).is_file():
            raise ValueError(f"{folder} holds no {SUMMARY_FILE}; give the output folder of a finished evaluation.")
        summaries[name] = read_summary(folder / SUMMARY_FILE)
    return comparison(summaries)


def comparison(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the table of some summaries, why answers do not follow, and what is missing."""
    parts = [table(summaries)]
    problems, missing = [], []
    for name, summary in summaries.items():
        mark = f"- {name}: " if len(summaries) > 1 else "- "
        missing += [mark + line for line in missing_lines(summary)]
        for task, entry in summary.items():
            counts = [f"{count} {problem}" for problem, count in entry.get("problems", {}).items()]
            if counts:
                problems.append(f"{mark}{task}: {', '.join(counts)}")
    if problems:
        parts += ["Answers that do not follow:", "\n".join(problems)]
    if missing:
        parts += ["What is missing:", "\n".join(missing)]
    return "\n\n".join(parts) + "\n"


def table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: one line for each task and metric, one column for each summary, in its order."""
    columns = [
        {label(task, group): entry for task, group, entry in with_groups(summary)} for summary in summaries.values()
    ]
    measured: dict[tuple[str, str], None] = {}  # a set in the order in which they come
    for entries in columns:
        for task, entry in entries.items():
            for name in entry["metrics"]:
                measured[task, name] = None
    lines = [f"| task | metric | rows | {' | '.join(summaries)} |", "|---" * (3 + len(summaries)) + "|"]
    nothing = {"rows": 0, "metrics": {}}
    for task, name in measured:
        rows, scores = 0, []  # of fewer rows where a clip could not be read
        for entries in columns:
            entry = entries.get(task, nothing)
            rows = max(rows, entry["rows"])
            scores.append(show(name, entry["metrics"].get(name)))
        lines.append(f"| {task} | {name} | {rows} | {' | '.join(scores)} |")
    return "\n".join(lines)


def missing_lines(summary: Mapping[str, Any]) -> list[str]:
    """What a summary lacks, in sentences."""
    lines = []
    for task, group, entry in with_groups(summary):
        said = summary[task].get("missing", {}) if group else {}
        for name, reason in entry.get("missing", {}).items():
            if name not in said:
                lines.append(f"{label(task, group)}: no {name}: {reason}")
        if group:
            continue
        if entry.get("unreadable"):
            lines.append(f"{task}: {entry['unreadable']} clips could not be read")
        if entry.get("unjudged"):
            lines.append(f"{task}: {entry['unjudged']} answers have no clear verdict")
    return lines


def show(name: str, found: Mapping[str, float] | None) -> str:
    """A score with its interval, in the unit of its metric; empty for none."""
    if found is None:
        return ""
    scale, unit = (100, " %") if metric_named(name).percent else (1, "")
    return f"{scale * found['value']:.1f}{unit} ({scale * found['low']:.1f} to {scale * found['high']:.1f})"


def metric_named(name: str) -> Metric:
    """The metric of a score; the following rate is a share of rows, as accuracy is."""
    return ALL_METRICS["accuracy" if name == FOLLOWING_RATE else name]


def read_summary(file: Path) -> dict[str, Any]:
    """The scores by task that an earlier call has written."""
    mend = "delete it, and evaluate again"
    summary = read_json_object(file, mend)
    for task, entry in summary.items():
        if not _is_entry(entry):
            raise ValueError(f"{file} has no scores of {task!r} that can be read; {mend}.")
    return summary


def _is_entry(entry: Any) -> bool:
    """Whether this has what tables show of a task."""
    if not isinstance(entry, dict) or not isinstance(entry.get("rows"), int) or "metrics" not in entry:
        return False
    if not all(isinstance(entry.get(name, {}), dict) for name in ("metrics", "missing", "problems", "by")):
        return False
    groups = entry.get("by", {}).values()
    if not all(isinstance(found, dict) and all(map(_is_entry, found.values())) for found in groups):
        return False
    for name, found in entry["metrics"].items():
        if not isinstance(found, dict) or name not in (*ALL_METRICS, FOLLOWING_RATE):
            return False
        if not all(isinstance(found.get(field), (int, float)) for field in SCORE_FIELDS):
            return False
    return True


def write_model_index(
    card: Path, model: str, data: str, summary: Mapping[str, Any], hub_id: str | None = None
) -> None:
    """Put the scores into the metadata of a model card, in place of earlier ones of the same tasks and data.

    Args:
        card: `README.md` or `MODEL_CARD.md` of a model.
        model: name that the card gives the model.
        data: name of the data.
        summary: of `summarise`.
        hub_id: of the data, if they are a data set of the Hub.

    Raises:
        ValueError: if the card cannot be read.
    """
    made = []
    for task, group, entry in with_groups(summary):
        details = {"rows": entry["rows"]} | ({GROUP: group} if group else {})
        for name, found in entry["metrics"].items():
            rounded = {field: round(found[field], 4) for field in SCORE_FIELDS}  # 0.01 %
            result = EvalResult(
                task_type="audio-text-to-text",
                task_name=label(task, group),
                dataset_type=hub_id or data,
                dataset_name=data,
                # a public data set is for one task; own data without a configuration would make one task of all
                dataset_config=label(data if hub_id else task, group),
                metric_type=name,
                metric_name=name,
                metric_value=rounded.pop("value"),
                metric_args=rounded | details,
            )
            made.append(result)
    content = load_card(card)
    replaced = set(map(_identity, made))
    kept = [result for result in content.data.eval_results or [] if _identity(result) not in replaced]
    content.data.model_name = content.data.model_name or model
    content.data.eval_results = kept + made
    write_bytes(card, str(content).encode())


def _identity(result: EvalResult) -> tuple[str | None, ...]:
    return result.task_name, result.dataset_name, result.metric_name
