"""Manifests, recipes, tasks and records with random mistakes: each is read, or told in one clear error with its name.

The same inputs come in every run; `-m slow` draws thousands.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.data.clips import BadClips, ClipReader
from modeling_salmonn.data.collator import SalmonnCollator
from modeling_salmonn.data.examples import ExampleMaker, ExampleSet
from modeling_salmonn.data.files import Journal
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.data.sources import parse_sources
from modeling_salmonn.data.tasks import load_tasks
from modeling_salmonn.evaluation.run import read_data
from modeling_salmonn.training.arguments import parse_arguments
from modeling_salmonn.training.overfitting import read_probes


ROW = {"path": "a.wav", "text": "hello", "task": "asr", "seconds": 2.0, "weight": 1.0, "speaker": "x", "Q": "How?"}
FIELDS = [*ROW, "expand_wav", "prompt", "language", "duration", "alignment_text", "audio", "references", "other"]
NUMBERS = st.sampled_from([0, -1, 3, 2**31, 2**63, 10**400, 1e-3, -0.5, 1e300, float("nan"), float("inf")])
WORDS = st.one_of(st.text(max_size=8), st.sampled_from(["asr", "a.wav", "", "1e-4", "\ud800", "\0", "x" * 1_100_000]))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3).map(lambda changes: ROW | changes)
    | st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6)
    | VALUES,
    min_size=1,
    max_size=4,
)
STAGE_KEYS = [
    "dtype",
    "learning_rate",
    "train_data",
    "task_weights",
    "max_steps",
    "bf16",
    "seed",
    "model",
    "lerning_rate",
]
STAGE_KEYS += ["examples_per_epoch", "warmup_steps", "lr_scheduler_type", "report_to", "fsdp", "probes", "output_dir"]
YAML_VALUES = ["1e-4", "true", "null", "[1, 2", "*a", "&a [*a]", "'x", "!!int ''", "0o9", "2024-99-99", "{a: 1, a: 2}"]
YAML_VALUES += ["[" * 70, ".nan", "-.inf", "9" * 400, "\t- 1", "|", "- a\n  b: c", "{path: 3}", "[[a.jsonl]]", "~"]
BYTES = [
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\t",
    b"{",
    b"[",
    b'"',
    b":",
    b"\\u",
    b"[" * 2000,
    b"\xe2\x80\xa8",
]
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 9), st.sampled_from([b"", *BYTES])), max_size=4)
FORMS: dict[str, Callable[[Any], str]] = {
    "rows.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "rows.json": lambda rows: json.dumps(rows, indent=1),
    "annotation.json": lambda rows: json.dumps({"annotation": rows}),
}
STAGE = "seed: 2\nmodel: some/model\nlearning_rate: 1e-4\ntrain_data:\n  - {path: a.jsonl, task: asr}\n  - b.jsonl\n"
TASKS = "words:\n  rows: {task: asr}\n  instruction: Write.\n  metrics: [wer]\n  new_tokens: 5\n"


def edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """A text in which some bytes are replaced by others."""
    for place, length, given_bytes in edits:
        start = place % (len(content) + 1)
        content = content[:start] + given_bytes + content[start + length :]
    return content


def reads_or_tells(read: Callable[[], Any], name: str) -> Any:
    """What is read, or `None` after an error of the two kinds that users are shown in a line, with the file's name."""
    told: Exception
    try:
        return read()
    except (ValueError, OSError) as error:
        told = error
    assert type(told) in (ValueError, FileNotFoundError, IsADirectoryError), repr(told)
    assert name in str(told), str(told)
    assert len(str(told)) < 3000
    return None


def check_rows(rows: list[Any], form: str, edits: list[Any], folder: Path, extractor: Any) -> None:
    """A manifest: its rows are read, planned and made into examples, or there is one error."""
    file = folder / form
    file.write_bytes(edited(FORMS[form](rows).encode(), edits))
    reads_or_tells(lambda: read_data([str(file)]), form)
    reads_or_tells(lambda: read_probes(str(file)), form)
    read = reads_or_tells(lambda: load_rows(parse_sources({"path": str(file), "task": "asr"})), form)
    if read is None:
        return
    assert all(seconds is None or 0 <= seconds < 10**6 for seconds in read.seconds())
    reads_or_tells(lambda: plan(read, extractor), "")


def plan(rows: Any, extractor: Any) -> None:
    """The examples of an epoch, as far as there are clips."""
    maker = ExampleMaker(load_prompts(), ClipReader(extractor, BadClips(limit=100)))
    examples = ExampleSet(rows, maker, group_lengths=extractor.audio_layout)
    order = list(examples.sampler(batch_size=2, seed=0))
    assert all(isinstance(examples[place]["answer"], str) for place in order)


def check_stage(keys: list[str], values: list[str], edits: list[Any], folder: Path) -> None:
    added = "".join(f"{key}: {value}\n" for key, value in zip(keys, values, strict=False))
    (folder / "stage.yaml").write_bytes(edited((STAGE + added).encode(), edits))
    reads_or_tells(lambda: parse_arguments([str(folder / "stage.yaml")]), "")
    (folder / "tasks.yaml").write_bytes(edited((TASKS + added).encode(), edits))
    reads_or_tells(lambda: load_tasks(folder / "tasks.yaml"), "tasks.yaml")


def check_journal(rows: list[Any], edits: list[Any], folder: Path) -> None:
    file = folder / "answers.jsonl"
    file.write_bytes(edited(FORMS["rows.jsonl"](rows).encode(), edits))
    journal = reads_or_tells(lambda: Journal(file, needed={"path": str, "text": str}), "answers.jsonl")
    if journal is not None:
        journal.append({"path": "new.wav", "attempt": 0, "text": "new"})
        assert Journal(file).rows == journal.rows or any(
            value != value for row in journal.rows for value in row.values()
        )


def check_examples(examples: list[Any], processor: SalmonnProcessor) -> None:
    silent = [example | {"audio": None} if isinstance(example, dict) else example for example in examples]
    batch = reads_or_tells(lambda: SalmonnCollator(processor)(silent), "Example")
    assert batch is None or len(batch["labels"]) == len(examples)


MANIFESTS = {"rows": ROWS, "form": st.sampled_from(list(FORMS)), "edits": EDITS | st.just([])}
STAGES = {
    "keys": st.lists(st.sampled_from(STAGE_KEYS), max_size=4),
    "values": st.lists(st.sampled_from(YAML_VALUES), max_size=4),
    "edits": EDITS | st.just([]),
}
EXAMPLES = st.lists(
    st.dictionaries(st.sampled_from(["instruction", "answer", "other"]), VALUES, max_size=3)
    | st.fixed_dictionaries({"instruction": st.text(max_size=5), "answer": st.text(max_size=5) | LEAVES})
    | VALUES,
    min_size=1,
    max_size=3,
)


@fuzzed(100)
@given(**MANIFESTS)
def test_manifest_is_read_or_told(
    rows: Any, form: str, edits: Any, tmp_path: Path, bucket_processor: SalmonnProcessor
) -> None:
    check_rows(rows, form, edits, tmp_path, bucket_processor.feature_extractor)


@fuzzed(100)
@given(**STAGES)
def test_recipe_is_read_or_told(keys: list[str], values: list[str], edits: Any, tmp_path: Path) -> None:
    check_stage(keys, values, edits, tmp_path)


@fuzzed(60)
@given(rows=ROWS, edits=EDITS)
def test_journal_is_read_or_told(rows: Any, edits: Any, tmp_path: Path) -> None:
    check_journal(rows, edits, tmp_path)


@fuzzed(60)
@given(examples=EXAMPLES)
def test_examples_are_collated_or_told(examples: Any, bucket_processor: SalmonnProcessor) -> None:
    check_examples(examples, bucket_processor)


@pytest.mark.slow
@fuzzed(3000)
@given(**MANIFESTS)
def test_thousands_of_manifests_are_read_or_told(
    rows: Any, form: str, edits: Any, tmp_path: Path, bucket_processor: SalmonnProcessor
) -> None:
    check_rows(rows, form, edits, tmp_path, bucket_processor.feature_extractor)


@pytest.mark.slow
@fuzzed(3000)
@given(**STAGES)
def test_thousands_of_recipes_are_read_or_told(keys: list[str], values: list[str], edits: Any, tmp_path: Path) -> None:
    check_stage(keys, values, edits, tmp_path)


@pytest.mark.slow
@fuzzed(3000)
@given(rows=ROWS, edits=EDITS)
def test_thousands_of_journals_are_read_or_told(rows: Any, edits: Any, tmp_path: Path) -> None:
    check_journal(rows, edits, tmp_path)
