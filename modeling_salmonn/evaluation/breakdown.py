"""The rows of a task in groups, such as those of each speaker or of each length, which get scores of their own."""

from collections import defaultdict
from collections.abc import Sequence

from modeling_salmonn.data.rows import Row, row_seconds
from modeling_salmonn.evaluation.harness import Job


SECONDS = "seconds"
SHORT, LONG = 4, 10  # seconds; a few words, a sentence, and several fail in different ways
LENGTHS = (f"under {SHORT}", f"{SHORT} to {LONG}", f"over {LONG}")


def group_jobs(jobs: Sequence[Job], column: str) -> dict[str, list[Job]]:
    """The jobs by the value of a column of their rows.

    Args:
        jobs: those of one task.
        column: its name; `seconds` makes groups of three lengths.

    Returns:
        Jobs by value as text, in its order; those whose rows have none are in no group.
    """
    groups = defaultdict(list)
    for job in jobs:
        value = _length(job.row) if column == SECONDS else job.row.get(column)
        if value is not None:
            groups[str(value)].append(job)
    order = LENGTHS if column == SECONDS else sorted(groups)
    return {value: groups[value] for value in order if value in groups}


def _length(row: Row) -> str | None:
    seconds = row_seconds(row)
    if seconds is None:
        return None
    return LENGTHS[(seconds >= SHORT) + (seconds > LONG)]
