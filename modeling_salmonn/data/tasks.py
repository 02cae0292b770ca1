"""The table of tasks: names, instructions, what counts; as data, so that one more needs no code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from modeling_salmonn.data.coercion import coerce
from modeling_salmonn.data.text_files import read_yaml_mapping, shown


BUNDLED_TASKS = Path(__file__).with_name("tasks.yaml")
LEVELS = {"level1": 1, "level2": 2, "level3": 3}
ALL = "all"
FREE_OF_REFERENCES = ("diversity", "repeat_rate")  # metrics that look at answers alone


@dataclass(frozen=True)
class Task:
    """A task: which rows, what is asked, what counts; `tasks.yaml` explains the fields.

    Values of other types, and a task without an instruction, are refused by a `ValueError`.
    """

    name: str  # as rows have it
    instruction: str = ""  # what the evaluation asks; the first of `instructions` if not given
    metrics: Sequence[str] = ()
    level: int | None = None  # of the paper's three, if any
    rows: Mapping[str, Any] = field(default_factory=dict)
    reference: str = "text"  # column, of rows without `references`
    separator: str | None = None
    rule: str | None = None
    new_tokens: int = 200
    instructions: Sequence[str] = ()
    aliases: Sequence[str] = ()
    judge: str | None = None
    place: str = ""  # where the task comes from, for messages

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            self._set(name, coerce(f"{name} of the task {shown(self.name)}", getattr(self, name), hint))
        if self.new_tokens < 1:
            raise ValueError(f"new_tokens of the task {self.name!r} must be at least 1, got {self.new_tokens}.")
        if not self.instruction and not self.instructions:
            raise ValueError(f"The task {self.name!r} needs an instruction.")
        self._set("instruction", self.instruction or self.instructions[0])
        self._set("instructions", self.instructions or [self.instruction])

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # as a frozen dataclass sets its fields itself

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the task, its own first."""
        return self.name, *self.aliases

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to evaluate; other tasks are for training alone."""
        return bool(self.metrics) or self.rule is not None

    def chooses(self, row: Mapping[str, Any]) -> bool:
        """Whether a row belongs to the task, whatever name of it the row has."""
        if row.get("task") in self.aliases:
            return True
        # Both sides by their names in the table: `translation_en2de` is `translation` with a language.
        wanted = {"task": self.name, **self.rows}
        wanted |= columns_of(wanted["task"])
        given = {**row, **columns_of(row.get("task"))}
        return all(given.get(column) == value for column, value in wanted.items())

    def references(self, row: Mapping[str, Any]) -> list[str]:
        """The accepted texts of a row: its `references` if it has any, or the column that the task names.

        If a metric needs one and there is none, this is a `ValueError`.
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
        if not texts and not set(self.metrics) <= set(FREE_OF_REFERENCES):
            raise ValueError(
                f"A row of the task {self.name!r} has no {self.reference!r}: {shown(row)}. Add it, or name another "
                "column as the task's reference."
            )
        return texts


def load_tasks(include_path: str | Path | None = None) -> dict[str, Task]:
    """The bundled tasks, with those of a file of one's own added or put in their places."""
    tasks = dict(_bundled_tasks())
    if include_path is not None:
        tasks |= _read_tasks(Path(include_path).expanduser(), tasks)
    return tasks


def choose_tasks(tasks: Mapping[str, Task], names: Sequence[str]) -> list[Task]:
    """The tasks that are meant by `level1`, `level2`, `level3`, `all` (those that are measured), names or aliases."""
    chosen: dict[str, Task] = {}
    for name in names:
        found = _find_tasks(tasks, name)
        if not found:
            raise ValueError(f"There is no task {name!r}; there are {', '.join([ALL, *LEVELS, *tasks])}.")
        for task in found:
            chosen[task.name] = task
    return list(chosen.values())


def canonical_name(name: str) -> str:
    """The name in the table of a task that goes by another; a name that is not in the table as it is."""
    task = _tasks_by_name().get(name)
    return name if task is None else task.name


def columns_of(name: Any) -> dict[str, Any]:
    """The columns that a name of a task stands for: `task`, and `language` for `translation_en2de`."""
    task = _tasks_by_name().get(name) if isinstance(name, str) else None
    if task is None:
        return {"task": name}
    return {"task": task.name, **task.rows}


def fill_in(text: str, columns: Mapping[str, Any]) -> str:
    """An instruction with those of its `{fields}` filled in that the columns have."""
    for column, value in columns.items():
        text = text.replace(f"{{{column}}}", str(value))
    return text


def _find_tasks(tasks: Mapping[str, Task], name: str) -> list[Task]:
    if name in tasks:
        return [tasks[name]]
    if name == ALL:  # of what can be evaluated
        return [task for task in tasks.values() if task.is_measured]
    if name in LEVELS:
        return [task for task in tasks.values() if task.level == LEVELS[name]]
    return [task for task in tasks.values() if name in task.aliases]


@cache  # rows ask for names one by one
def _bundled_tasks() -> Mapping[str, Task]:
    return _read_tasks(BUNDLED_TASKS, {})


@cache
def _tasks_by_name() -> Mapping[str, Task]:
    return {name: task for task in _bundled_tasks().values() for name in task.names}


def _read_tasks(file: Path, known: Mapping[str, Task]) -> dict[str, Task]:
    table, lines = read_yaml_mapping(file, "file of tasks", "map names of tasks to their fields")
    tasks: dict[str, Task] = {}
    for name, entry in table.items():  # in order: a task may refer to those before it
        tasks[name] = _read_task(name, entry, f"line {lines[name]} of {file}", {**known, **tasks})
    return tasks


def _read_task(name: Any, entry: Any, place: str, known: Mapping[str, Task]) -> Task:
    if not isinstance(name, str) or not isinstance(entry, dict):
        raise ValueError(f"{place} needs to map the name of a task to its fields; see {BUNDLED_TASKS.name}.")
    allowed = {one.name for one in fields(Task)} - {"name", "place"}
    if not entry.keys() <= allowed:
        raise ValueError(
            f"The task {name!r} of {place} has the fields {sorted(map(str, entry))}; it needs an instruction and may "
            f"have {', '.join(sorted(allowed))}."
        )
    try:
        if not entry.keys() & {"instruction", "instructions"}:
            entry = entry | _inherited_instructions(entry.get("rows"), known)
        return Task(name=name, place=place, **entry)
    except ValueError as error:
        raise ValueError(f"In {place}: {error}") from error


def _inherited_instructions(rows: Any, known: Mapping[str, Task]) -> dict[str, Any]:
    """Those of the task that the rows are of, with the other columns filled in; none if that is unknown."""
    task = known.get(str(rows.get("task"))) if isinstance(rows, dict) else None
    if task is None:
        return {}
    filled = [fill_in(text, rows) for text in task.instructions]
    return {"instruction": fill_in(task.instruction, rows), "instructions": filled}
