"""What activation tuning changed: a model before and after on untrained tasks, and its cost in word errors.

Each answer to an untrained task is judged by its task's rule, against the references and against the transcript and
caption that the same model gives of the clip (paper, section 4.2).
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from rich.table import Table
from tqdm.auto import tqdm

from modeling_salmonn.activation.clips import references_of
from modeling_salmonn.activation.writing import STORY_TASK
from modeling_salmonn.data.clips import BadClips, ClipReader, UnreadableClipError
from modeling_salmonn.data.examples import Example, ExampleMaker
from modeling_salmonn.data.files import make_output_folder, write_bytes, write_json, write_rows
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.instruction_following import (
    FALLBACK_TASKS,
    FALLBACK_TOKENS,
    RULES,
    context_of,
    why_not_followed,
)
from modeling_salmonn.evaluation.metrics import english_normaliser, word_error_rate
from modeling_salmonn.evaluation.text_statistics import diversity, repeat_rate


SPEECH_TASK = "asr"
FALLBACKS = Decoding(FALLBACK_TOKENS)
COMPARISON_FILE, TABLE_FILE = "comparison.json", "comparison.md"
FIGURES = {"following_rate": ".2f", "diversity": ".1f", "repeat_rate": ".2f", "word_error_rate": ".1%"}


@dataclass(frozen=True)
class ComparisonSettings:
    """How two models are compared.

    Args:
        limit: rows of each task.
        seed: of the choice of rows and of instructions.
        max_new_tokens: longest answer; all are greedy.
        batch_size: clips answered at once.

    Raises:
        ValueError: if a number is below 1.
    """

    limit: int = 100
    seed: int = 0
    max_new_tokens: int = 200
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("limit", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Figures:
    """Figures of one model on one task.

    Args:
        clips: how many were answered.
        following_rate: share of answers that do what was asked, of untrained tasks.
        diversity: mean number of different words in an answer, of untrained tasks.
        repeat_rate: share of answers that loop.
        word_error_rate: of transcripts.
        problems: why answers do not follow, and how often.
    """

    clips: int
    following_rate: float | None
    diversity: float | None
    repeat_rate: float
    word_error_rate: float | None
    problems: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Figures by task, of a model before and after."""

    before: Mapping[str, Figures]
    after: Mapping[str, Figures]

    def lines(self) -> list[list[str]]:
        """The table: its head, then one line for each task."""
        lines = [["task", "clips", *(name.replace("_", " ") for name in FIGURES)]]
        for task, before in self.before.items():
            after = self.after[task]
            values = [_change(getattr(before, name), getattr(after, name), form) for name, form in FIGURES.items()]
            lines.append([task, str(before.clips), *values])
        return lines

    def table(self) -> Table:
        """The table for the terminal, of less than 80 columns."""
        head, *lines = self.lines()
        table = Table(title="before -> after", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in head:
            table.add_column(name.replace(" ", "\n"), no_wrap=True, vertical="bottom")
        for line in lines:
            table.add_row(*line)
        return table

    def markdown(self) -> str:
        """The table, and below it why answers do not follow."""
        head, *lines = self.lines()
        text = "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])
        problems = [
            f"- {task}, {name}: {', '.join(f'{count} {reason}' for reason, count in figures.problems.items())}\n"
            for name, model in (("before", self.before), ("after", self.after))
            for task, figures in model.items()
            if figures.problems
        ]
        return text + ("\nAnswers that do not follow:\n\n" + "".join(problems) if problems else "")


def compare_models(
    before: str,
    after: str,
    rows: Sequence[Row],
    output: Path,
    prompts: Mapping[str, list[str]],
    settings: ComparisonSettings | None = None,
    dtype: str = "float32",
) -> Comparison:
    """Have two models answer the same rows, one model after the other.

    Args:
        before, after: folders or Hub ids.
        rows: rows of untrained tasks and of speech recognition; others are left out.
        output: folder for `comparison.json`, `comparison.md` and the answers, `before.jsonl` and `after.jsonl`.
        prompts: instructions of each task, from `load_prompts`.
        settings: how to compare.
        dtype: type of the weights.

    Raises:
        ValueError: if no row is of use, or no clip can be read.
    """
    settings = settings or ComparisonSettings()
    chosen = choose_rows(rows, settings)
    make_output_folder(output)
    figures = {}
    for name, model in (("before", before), ("after", after)):
        judged = answer_rows(Answerer.from_pretrained(model, dtype), chosen, prompts, settings)
        write_rows(output / f"{name}.jsonl", judged)
        figures[name] = figures_by_task(judged)
    comparison = Comparison(**figures)
    write_json(
        output / COMPARISON_FILE, {"models": [before, after], "settings": asdict(settings)} | asdict(comparison)
    )
    write_bytes(output / TABLE_FILE, f"`{before}` -> `{after}`\n\n{comparison.markdown()}".encode())
    return comparison


def choose_rows(rows: Sequence[Row], settings: ComparisonSettings) -> list[Row]:
    """Rows of tasks that can be judged, up to the limit of each, and stories about the clips if no row asks for one.

    Raises:
        ValueError: if there are none.
    """
    by_task = defaultdict(list)
    for row in rows:
        task, text = row.get("task"), row.get("text") or ""
        is_speech = task == SPEECH_TASK and english_normaliser()(text).strip()
        if row.get("path") and (task in RULES or is_speech):
            by_task[task].append(row | {"text": text})
    if STORY_TASK not in by_task:
        by_task[STORY_TASK] = story_rows(rows)
    if not any(by_task.values()):
        raise ValueError("There are no clips to compare the models on; give rows with a 'path'.")
    chosen = {
        task: random.Random(f"{settings.seed}/{task}").sample(found, min(settings.limit, len(found)))
        for task, found in by_task.items()
    }
    return list(chain.from_iterable(chosen[task] for task in (*RULES, SPEECH_TASK) if task in chosen))


def story_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for a story about each clip, with the references that other rows of the clip have."""
    by_path: dict[str, Row] = {}
    for row in rows:
        if isinstance(row.get("path"), str):
            made = by_path.setdefault(row["path"], {"path": row["path"], "task": STORY_TASK, "text": ""})
            made |= references_of(row)
    return list(by_path.values())


def answer_rows(
    answerer: Answerer, rows: Sequence[Row], prompts: Mapping[str, list[str]], settings: ComparisonSettings
) -> list[Row]:
    """Greedy answers of a model, each with its verdict.

    Returns:
        For each row whose clip can be read: `task`, `path`, `instruction`, `answer` and the reference `text`; for
        untrained tasks also the model's `transcript` and `caption`, and the `problem`: why the answer does not follow,
        `None` if it does.

    Raises:
        ValueError: if no clip can be read.
    """
    maker = ExampleMaker(prompts, ClipReader(answerer.processor.feature_extractor, BadClips(limit=len(rows))))
    numbered = list(enumerate(rows))
    judged = []
    for start in tqdm(range(0, len(rows), settings.batch_size), desc="Comparison", disable=None):
        made = [
            (row, make_example(maker, row, f"{settings.seed}/{number}"))
            for number, row in numbered[start : start + settings.batch_size]
        ]
        batch = [(row, example) for row, example in made if example is not None]
        judged += judge_batch(answerer, batch, prompts, settings) if batch else []
    if not judged:
        raise ValueError(f"None of the {len(rows)} clips to compare the models on can be read; see the warnings.")
    return judged


def make_example(maker: ExampleMaker, row: Row, seed: str) -> Example | None:
    """The example of a row; `None` if its clip cannot be read, which is logged."""
    try:
        return maker.make(row, random.Random(seed))
    except UnreadableClipError:
        return None


def judge_batch(
    answerer: Answerer,
    batch: Sequence[tuple[Row, Example]],
    prompts: Mapping[str, list[str]],
    settings: ComparisonSettings,
) -> list[Row]:
    """Answers to a batch; see `answer_rows`."""
    answers = answerer.answer([example for _, example in batch], Decoding(settings.max_new_tokens))
    untrained = [example for row, example in batch if row["task"] in RULES]
    said = {
        name: iter(answerer.answer([example | {"instruction": prompts[task][0]} for example in untrained], FALLBACKS))
        for name, task in FALLBACK_TASKS.items()
        if untrained
    }
    judged = []
    for (row, example), answer in zip(batch, answers, strict=True):
        clip = row["path"] if isinstance(row["path"], str) else None
        result: Row = {"task": row["task"], "path": clip, "instruction": example["instruction"]}
        result |= {"answer": answer.text, "text": row["text"]}
        if row["task"] in RULES:
            own = {name: next(texts).text for name, texts in said.items()}
            result |= own | {"problem": why_not_followed(row["task"], answer.text, context_of(row, **own))}
        judged.append(result)
    return judged


def figures_by_task(judged: Sequence[Row]) -> dict[str, Figures]:
    """Figures of the tasks, in the order in which they come."""
    by_task = defaultdict(list)
    for row in judged:
        by_task[row["task"]].append(row)
    return {task: task_figures(task, rows) for task, rows in by_task.items()}


def task_figures(task: str, rows: Sequence[Row]) -> Figures:
    """Figures of one task."""
    answers = [row["answer"] for row in rows]
    if task == SPEECH_TASK:
        errors = word_error_rate([row["text"] for row in rows], answers)
        return Figures(len(rows), None, None, repeat_rate(answers), errors)
    problems = Counter(row["problem"] for row in rows if row["problem"] is not None)
    following = 1 - problems.total() / len(rows)
    return Figures(len(rows), following, diversity(answers), repeat_rate(answers), None, dict(problems.most_common()))


def _change(before: float | None, after: float | None, form: str) -> str:
    return "" if before is None or after is None else f"{before:{form}} -> {after:{form}}"


__all__ = ["Comparison", "ComparisonSettings", "Figures", "compare_models"]
