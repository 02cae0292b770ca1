"""What a model is tested on: tasks as data, so that one more needs no code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from modeling_salmonn.data.coercion import coerce
from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.text_files import read_yaml_mapping, shown
from modeling_salmonn.evaluation.captions import CAPTION_METRICS
from modeling_salmonn.evaluation.instruction_following import RULES
from modeling_salmonn.evaluation.metrics import METRICS


BUNDLED_TASKS = Path(__file__).with_name("tasks.yaml")
SUITES = {"level1": 1, "level2": 2, "level3": 3}
ALL = "all"
FREE_OF_REFERENCES = ("diversity", "repeat_rate")


@dataclass(frozen=True)
class Task:
    """A task: which rows, what is asked, what counts.

    Args:
        name: of the task.
        instruction: asked of each clip; the row's columns are filled in for `{names}`, and its own `prompt` wins.
        metrics: names in `evaluation/metrics.py` or `evaluation/captions.py`.
        level: of the paper's three, if any.
        rows: columns and their values that choose the rows of a manifest; `task` = `name` if not given.
        reference: column with the reference, a text or a list of accepted ones, of rows without `references`.
        separator: splits a text of references.
        rule: rule of `evaluation/instruction_following.py` for the following rate.
        new_tokens: longest answer.

    Raises:
        ValueError: for unknown metrics and rules, and for values of other types.
    """

    name: str
    instruction: str
    metrics: Sequence[str] = ()
    level: int | None = None
    rows: Mapping[str, Any] = field(default_factory=dict)
    reference: str = "text"
    separator: str | None = None
    rule: str | None = None
    new_tokens: int = 200

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, coerce(f"{name} of the task {shown(self.name)}", getattr(self, name), hint))
        if self.new_tokens < 1:
            raise ValueError(f"new_tokens of the task {self.name!r} must be at least 1, got {self.new_tokens}.")
        unknown = sorted(set(self.metrics) - METRICS.keys() - set(CAPTION_METRICS))
        if unknown:
            known = ", ".join([*METRICS, *CAPTION_METRICS])
            raise ValueError(f"The task {self.name!r} has the metrics {unknown}; there are {known}.")
        if self.rule is not None and self.rule not in RULES:
            raise ValueError(f"The task {self.name!r} has the rule {self.rule!r}; there are {', '.join(RULES)}.")
        if not self.metrics and self.rule is None:
            raise ValueError(f"The task {self.name!r} measures nothing; give it metrics, or a rule.")

    def chooses(self, row: Row) -> bool:
        """Whether a row belongs to the task."""
        wanted = {"task": self.name} | dict(self.rows)
        return all(row.get(column) == value for column, value in wanted.items())

    @property
    def needs_reference(self) -> bool:
        """Whether a metric compares answers with references."""
        return any(name not in FREE_OF_REFERENCES for name in self.metrics)

    def references(self, row: Row) -> list[str]:
        """The accepted texts of a row: its `references` if it has any, or the column that the task names.

        Raises:
            ValueError: if a metric needs one and the row has none.
        """
        given = row.get("references") or row.get(self.reference) or []
        if isinstance(given, str):
            given = given.split(self.separator) if self.separator else [given]
        if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
            raise ValueError(
                f"A row of the task {self.name!r} has {shown(given)} as its reference, but it needs text or a list of "
                f"texts: {shown(row)}."
            )
        texts = [text.strip() for text in given if text.strip()]
        if not texts and self.needs_reference:
            raise ValueError(
                f"A row of the task {self.name!r} has no {self.reference!r}: {shown(row)}. Add it, or name another "
                "column as the task's reference."
            )
        return texts


def load_tasks(file: str | Path | None = None) -> dict[str, Task]:
    """The bundled tasks, with those of a file of one's own added or put in their places.

    Raises:
        ValueError: if the file is missing, no YAML mapping, or has unknown fields, metrics or rules.
    """
    tasks = _read_tasks(BUNDLED_TASKS)
    return tasks if file is None else tasks | _read_tasks(Path(file).expanduser())


def choose_tasks(tasks: Mapping[str, Task], suites: Sequence[str]) -> list[Task]:
    """The tasks of some suites: `level1`, `level2`, `level3`, `all`, or names of tasks.

    Raises:
        ValueError: for a name that is none of these.
    """
    chosen: dict[str, Task] = {}
    for suite in suites:
        found = [task for task in tasks.values() if suite in (ALL, task.name) or task.level == SUITES.get(suite, 0)]
        if not found:
            raise ValueError(f"There is no suite or task {suite!r}; there are {', '.join([ALL, *SUITES, *tasks])}.")
        chosen |= {task.name: task for task in found}
    return list(chosen.values())


def _read_tasks(file: Path) -> dict[str, Task]:
    table, lines = read_yaml_mapping(file, "file of tasks", "map names of tasks to their fields")
    return {name: _read_task(name, entry, f"line {lines[name]} of {file}") for name, entry in table.items()}


def _read_task(name: Any, entry: Any, place: str) -> Task:
    if not isinstance(name, str) or not isinstance(entry, dict):
        raise ValueError(f"{place} needs to map the name of a task to its fields; see {BUNDLED_TASKS.name}.")
    known = {one.name for one in fields(Task)} - {"name"}
    if not entry.keys() <= known or not isinstance(entry.get("instruction"), str):
        raise ValueError(
            f"The task {name!r} of {place} has the fields {sorted(map(str, entry))}; it needs an instruction and may "
            f"have {', '.join(sorted(known))}."
        )
    try:
        return Task(name=name, **entry)
    except ValueError as error:
        raise ValueError(f"In {place}: {error}") from error


__all__ = ["Task", "choose_tasks", "load_tasks"]
