"""Has a model answer the rows of some tasks, and resumes where it was stopped.

Answers are appended to `answers-N.jsonl` (one file for each process) as they are made; a row that is there is not
answered again, whatever the number of processes.
"""

import hashlib
import json
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from modeling_salmonn.data.answers import Answer
from modeling_salmonn.data.clips import USUAL_SECONDS, BadClips, ClipReader, UnreadableClipError, clip_name
from modeling_salmonn.data.examples import Example, ExampleMaker
from modeling_salmonn.data.files import Journal, claim_folder
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.rows import Row, row_seconds
from modeling_salmonn.data.tasks import Task
from modeling_salmonn.evaluation.answering import Decoding
from modeling_salmonn.evaluation.instruction_following import FALLBACK_TASKS, FALLBACK_TOKENS
from modeling_salmonn.evaluation.metrics import METRICS
from modeling_salmonn.hub.devices import process_state
from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor


logger = logging.getLogger(__name__)

Key = tuple[str, int, str]
KEYS = ("task", "row", "part")
ANSWER_FIELDS = {"task": str, "row": int, "part": str, "instruction": str, "new_tokens": int, "answer": str}
ANSWER = "answer"  # the part of a row that counts; the others are what a model that does not follow might say
ANSWERS_FILES, SETTINGS_FILE, BAD_CLIPS_FILE = "answers-*.jsonl", "settings.json", "bad_clips.txt"
REPLACED_FILES = ("summary.json", "summary.md")  # once the settings are there; all others are added to


class AnswersExamples(Protocol):
    """What is tested: SALMONN (`evaluation/answering.py`), or one of its peers (`evaluation/baselines.py`)."""

    @property
    def extractor(self) -> SalmonnFeatureExtractor:
        """Knows how to read audio."""

    @property
    def prepare(self) -> Callable[[Sequence[Example]], Any]:
        """Makes of the examples of a batch what is answered, also in a process that has no model."""

    def answer_prepared(self, prepared: Any, decoding: Decoding) -> list[Answer]:
        """Answers to one batch."""


@dataclass(frozen=True)
class Job:
    """One instruction about one row."""

    task: Task
    index: int  # of the row in the data
    row: Row
    part: str  # `answer`, or the fallback that the answer is compared with: `transcript` or `caption`

    @property
    def key(self) -> Key:
        """What tells it apart, in the journals too."""
        return self.task.name, self.index, self.part

    @property
    def new_tokens(self) -> int:
        """Longest answer."""
        return self.task.new_tokens if self.part == ANSWER else FALLBACK_TOKENS

    @property
    def seconds(self) -> float:
        """Length of the clip, or the usual one where it is not known or cannot be true."""
        known = row_seconds(self.row)
        return USUAL_SECONDS if known is None else known


@dataclass(frozen=True)
class PreparedBatch:
    """A batch that the model can answer.

    Args:
        places: of the jobs in the batch whose clips can be read; the others have been reported.
        instructions: of these.
        inputs: what the model's `prepare` made of these; `None` if there are none.
    """

    places: list[int]
    instructions: list[str]
    inputs: Any


class PreparedBatches(Dataset):
    """Reads the clips of batches and makes the model's inputs of them, in worker processes too.

    Args:
        batches: the jobs.
        maker: makes their examples.
        prepare: makes the inputs of these.
    """

    def __init__(self, batches: Sequence[Sequence[Job]], maker: ExampleMaker, prepare: Callable[..., Any]):
        self.batches = batches
        self.maker = maker
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PreparedBatch:
        places, examples = [], []
        for place, job in enumerate(self.batches[index]):
            with suppress(UnreadableClipError):
                examples.append(_make_example(self.maker, job))
                places.append(place)
        instructions = [example["instruction"] for example in examples]
        return PreparedBatch(places, instructions, self.prepare(examples) if examples else None)


def make_jobs(tasks: Sequence[Task], rows: Sequence[Row], limit: int | None = None, seed: int = 0) -> list[Job]:
    """What is to be asked, task by task; rows of other tasks are left out.

    Args:
        tasks: the tasks.
        rows: the data.
        limit: at most so many rows of each task, drawn at random; more rows contain those of fewer.
        seed: of the draw.

    Raises:
        ValueError: if there is no row for any of the tasks, or one has no reference that its metrics can use.
    """
    jobs = []
    for task in tasks:
        own = [index for index, row in enumerate(rows) if task.chooses(row)]
        # The first of all in random order, not a sample of `limit`: so more rows contain those of fewer.
        chosen = sorted(random.Random(f"{seed}/{task.name}").sample(own, len(own))[:limit])
        if not chosen:
            logger.warning("There are no rows for the task %s.", task.name)
            continue
        _require_usable_references(task, [rows[index] for index in chosen])
        parts = [ANSWER, *FALLBACK_TASKS] if task.rule else [ANSWER]
        for index in chosen:
            jobs += [Job(task, index, rows[index], part) for part in parts]
    if not jobs:
        wanted = ", ".join(task.name for task in tasks)
        found = sorted({str(row.get("task")) for row in rows})
        raise ValueError(f"None of the {len(rows)} rows is for {wanted}; the rows have the tasks {found}.")
    return jobs


def answer_jobs(
    answerer: AnswersExamples,
    jobs: Sequence[Job],
    output: Path,
    batch_size: int,
    decoding: Decoding,
    prompts: Mapping[str, list[str]] | None = None,
    num_workers: int = 0,
) -> list[Row]:
    """Answer what has no answer yet.

    Args:
        answerer: the model.
        jobs: what to ask.
        output: folder of the journals.
        batch_size: clips answered at once; clips of like length share a batch.
        decoding: how to answer, but for the longest answer, which is the task's.
        prompts: instructions of each task, of which the first ones ask for the fallbacks; the bundled ones if not
            given.
        num_workers: processes that read clips and make inputs beside the model.

    Returns:
        The rows of all journals that belong to the jobs: `task`, `row`, `part`, `path`, `instruction`, `new_tokens`
        and `answer`.

    Raises:
        ValueError: if a row lacks a field of its instruction, or has an answer to another instruction or of another
            longest length.
    """
    state = process_state()
    bad_clips = BadClips(sys.maxsize, output / BAD_CLIPS_FILE)  # they are counted, and end nothing
    maker = ExampleMaker(prompts or load_prompts(), ClipReader(answerer.extractor, bad_clips))
    answered = read_answers(output)
    _require_same_questions(maker, jobs, answered, output)
    pending = [job for job in jobs if job.key not in answered]
    pending.sort(key=lambda job: (job.new_tokens, job.seconds))
    state.wait_for_everyone()  # all have read what there was
    journal = Journal(output / f"answers-{state.process_index}.jsonl", KEYS)
    own = pending[state.process_index :: state.num_processes]
    batches = list(_batches(own, batch_size))
    prepared = PreparedBatches(batches, maker, answerer.prepare)
    loader = DataLoader(prepared, batch_size=None, collate_fn=_as_it_is, num_workers=num_workers)
    with tqdm(total=len(own), desc="Answers", disable=not state.is_main_process or None) as bar:
        for batch, ready in zip(batches, loader, strict=True):
            for row in _answer_batch(answerer, batch, ready, decoding):
                journal.append(row)
            bar.update(len(batch))
    state.wait_for_everyone()
    answered = read_answers(output)
    return [answered[job.key] for job in jobs if job.key in answered]


def read_answers(output: Path) -> dict[Key, Row]:
    """The rows of all journals in a folder, by their keys."""
    answers: dict[Any, Row] = {}
    for file in sorted(output.glob(ANSWERS_FILES)):
        answers |= Journal(file, KEYS, ANSWER_FIELDS).by_key
    return answers


def claim_answers(output: Path, rows: Sequence[Row], **settings: Any) -> None:
    """Note in a folder what its answers are to: rows, and whatever else they depend on.

    Raises:
        ValueError: if it is no folder, or has answers of other settings or files of others.
    """
    named = [row | {"path": clip_name(row.get("path"))} for row in rows]  # a clip may be held in memory
    claim_folder(output, SETTINGS_FILE, settings | {"data": content_hash(named)}, REPLACED_FILES)


def content_hash(content: Any) -> str:
    """Tells data apart in a record."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def _require_usable_references(task: Task, rows: Sequence[Row]) -> None:
    """Tell before anything is answered what the metrics would tell when all is."""
    references = [task.references(row) for row in rows]
    for name in task.metrics:
        if name in METRICS:
            with suppress(ImportError):  # the summary names it as missing
                METRICS[name].statistics(references, [""] * len(references))


def _batches(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    """Batches of jobs with the same length of answer, by which they are sorted."""
    for _, group in groupby(jobs, key=lambda job: job.new_tokens):
        alike = list(group)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _answer_batch(
    answerer: AnswersExamples, batch: Sequence[Job], ready: PreparedBatch, decoding: Decoding
) -> list[Row]:
    """The rows of the journal for those jobs whose clips can be read."""
    if not ready.places:
        return []
    answers = answerer.answer_prepared(ready.inputs, replace(decoding, max_new_tokens=batch[0].new_tokens))
    rows = []
    for place, instruction, answer in zip(ready.places, ready.instructions, answers, strict=True):
        job = batch[place]
        rows.append(
            {
                "task": job.task.name,
                "row": job.index,
                "part": job.part,
                "path": clip_name(job.row.get("path")),
                "instruction": instruction,
                "new_tokens": job.new_tokens,
                "answer": answer.text,
                "finished": answer.finished,
            }
        )
    return rows


def _as_it_is(value: Any) -> Any:
    return value


def _require_same_questions(
    maker: ExampleMaker, jobs: Sequence[Job], answered: Mapping[Key, Row], output: Path
) -> None:
    for job in jobs:  # also those without an answer: a row that lacks a field is told before any work
        instruction = maker.instruction(_asked_row(maker, job), random.Random(0))
        given = answered[job.key]["instruction"] if job.key in answered else instruction
        if given != instruction:
            raise ValueError(
                f"{output} holds answers of the task {job.task.name!r} to the instruction {given!r}, not to "
                f"{instruction!r}; choose another folder, or delete this one."
            )
        length = answered[job.key]["new_tokens"] if job.key in answered else job.new_tokens
        if length != job.new_tokens:
            raise ValueError(
                f"{output} holds answers of the task {job.task.name!r} of at most {length} tokens, not "
                f"{job.new_tokens}; choose another folder, or delete this one."
            )


def _asked_row(maker: ExampleMaker, job: Job) -> Row:
    """The row of a job with its instruction; a row's own prompt asks for the answer, never for a fallback."""
    row = {name: value for name, value in job.row.items() if value is not None}
    if job.part != ANSWER:
        row["prompt"] = maker.prompts[FALLBACK_TASKS[job.part]][0]
    row.setdefault("prompt", job.task.instruction)
    return row | {"text": "", "task": job.task.name}  # its reference is not asked for


def _make_example(maker: ExampleMaker, job: Job) -> Example:
    example = maker.make(_asked_row(maker, job), random.Random(0))
    # Peers that read instead of listening take the true transcript.
    return example | {"transcript": job.row.get("transcript") or job.row.get("alignment_text")}
