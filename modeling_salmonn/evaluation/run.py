"""One evaluation from beginning to end: answers, verdicts, summary, table.

```
OUTPUT/settings.json   what the answers are to
OUTPUT/answers-N.jsonl the answers of process N
OUTPUT/verdicts.jsonl  whether they do what was asked, by judge
OUTPUT/summary.json    OUTPUT/summary.md
```
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_salmonn.data.files import write_bytes, write_json
from modeling_salmonn.data.rows import Row, load_rows
from modeling_salmonn.data.tasks import Task
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.baselines import load_answerer, require_scale, tasks_for
from modeling_salmonn.evaluation.breakdown import SECONDS
from modeling_salmonn.evaluation.harness import answer_jobs, claim_answers, make_jobs
from modeling_salmonn.evaluation.instruction_following import RULES
from modeling_salmonn.evaluation.judges import Judge
from modeling_salmonn.evaluation.public_data import PUBLIC_DATA, load_public
from modeling_salmonn.evaluation.summary import (
    ALL_METRICS,
    SUMMARY_FILE,
    comparison,
    judge_answers,
    read_summary,
    summarise,
)
from modeling_salmonn.hub.devices import AUTO, default_workers, process_state
from modeling_salmonn.hub.weights_hash import answering_record


TABLE_FILE = "summary.md"


@dataclass(frozen=True)
class EvaluationSettings:
    """How a model is evaluated.

    Args:
        limit: at most so many rows of each task.
        batch_size: clips answered at once.
        lora_scale: LoRA scaling instead of the trained one.
        num_beams: beams of the search; 1 is greedy, the research code used 4.
        seed: of the choice of rows, and of the intervals.
        dtype: type of the weights.
        device: as `resolve_device` takes it.
        num_workers: processes that read clips beside the model; `None` for `default_workers`.

    Raises:
        ValueError: if a number but the seed is below 1, the scale or the workers below 0.
    """

    limit: int | None = None
    batch_size: int = 8
    lora_scale: float | None = None
    num_beams: int = 1
    seed: int = 0
    dtype: str = "float32"
    device: str = AUTO
    num_workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_beams", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name in ("lora_scale", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")


def evaluate(
    model: str,
    tasks: Sequence[Task],
    rows: Sequence[Row],
    output: Path,
    judge: Judge,
    settings: EvaluationSettings | None = None,
    answerer: Any = None,
    prompts: Mapping[str, list[str]] | None = None,
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a model on some tasks; what an earlier call has answered is not answered again.

    Args:
        model: folder or Hub id of a SALMONN, or of a Whisper or a language model as its peer.
        tasks: the tasks; those that a peer is not meant for are left out.
        rows: data of all of them.
        output: folder to write to.
        judge: of the following rate.
        settings: how to evaluate.
        answerer: the model, if it is loaded already.
        prompts: instructions that ask for the fallbacks of the following rate; the bundled ones if not given.
        by: columns of the rows; the rows of each value get scores of their own, see `group_jobs`.

    Returns:
        The scores by task; see `summarise`.

    Raises:
        ValueError: if there is nothing to ask, a metric or rule is unknown, a column is in no row, there is no adapter
            to scale, or the folder holds answers to something else.
    """
    require_measures(tasks)
    require_columns(rows, by)
    settings = settings or EvaluationSettings()
    answerer = answerer or load_answerer(model, settings.dtype, settings.device)
    if settings.lora_scale is not None:
        require_scale(answerer, model)
    # A model may change in its folder.
    record = answering_record(answerer.model) if isinstance(answerer, Answerer) else {"dtype": settings.dtype}
    used = {"lora_scale": settings.lora_scale, "num_beams": settings.num_beams}
    claim_answers(output, rows, model=model, **used, **record)
    jobs = make_jobs(tasks_for(answerer, tasks), rows, settings.limit, settings.seed)
    decoding = Decoding(lora_scale=settings.lora_scale, num_beams=settings.num_beams)
    workers = settings.num_workers
    if workers is None:
        workers = default_workers(answerer.model.device)
    answered = answer_jobs(answerer, jobs, output, settings.batch_size, decoding, prompts, workers)
    state = process_state()
    if state.is_main_process:
        judge_answers(jobs, answered, judge, output)
    state.wait_for_everyone()
    summary = summarise(jobs, answered, judge.name, output, settings.seed, by)
    if state.is_main_process:
        write_summary(output, Path(model).name, summary)
    return summary


def require_measures(tasks: Sequence[Task]) -> None:
    """Refuse, by a `ValueError`, a task with a metric or a rule that there is not, or with neither."""
    for task in tasks:
        named = f"The task {task.name!r}" + (f" ({task.place})" if task.place else "")
        unknown = sorted(set(task.metrics) - ALL_METRICS.keys())
        if unknown:
            raise ValueError(f"{named} has the metrics {unknown}; there are {', '.join(ALL_METRICS)}.")
        if task.rule is not None and task.rule not in RULES:
            raise ValueError(f"{named} has the rule {task.rule!r}; there are {', '.join(RULES)}.")
        if not task.is_measured:
            raise ValueError(f"{named} measures nothing; give it metrics, or a rule.")


def require_columns(rows: Sequence[Row], by: Sequence[str]) -> None:
    """Refuse, by a `ValueError`, a column to group rows by that none of them has."""
    columns = {name for row in rows for name, value in row.items() if value is not None} | {SECONDS}
    unknown = sorted(set(by) - columns)
    if unknown:
        raise ValueError(f"No row has {', '.join(unknown)} to group by; the rows have {', '.join(sorted(columns))}.")


def write_summary(output: Path, model: str, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` and `summary.md`; other tasks that were evaluated into the folder keep their scores."""
    file = output / SUMMARY_FILE
    whole = read_summary(file) if file.is_file() else {}
    whole |= summary
    write_json(file, whole)
    write_bytes(output / TABLE_FILE, comparison({model: whole}).encode())


def read_data(sources: Sequence[str]) -> list[Row]:
    """Rows of manifests, of audio folders, and of public data sets: `NAME` or `NAME=FOLDER` of `public_data.yaml`."""
    rows: list[Row] = []
    for source in sources:
        name, _, folder = source.partition("=")
        if name in PUBLIC_DATA:
            rows += load_public(name, folder or None)
        else:
            rows += load_rows(source, needs=("path", "task"))  # some tasks have no text
    return rows


def name_data(sources: Sequence[str]) -> tuple[str, str | None]:
    """What a model card calls the data of `read_data`, and the Hub id of a public data set that stands alone."""
    public = [source.partition("=")[0] for source in sources]
    names = [name if name in PUBLIC_DATA else Path(source).name for name, source in zip(public, sources, strict=True)]
    hub_id = PUBLIC_DATA[names[0]].hub if len(names) == 1 and names[0] in PUBLIC_DATA else None
    return ", ".join(names), hub_id
