"""Which clips a model writes answers about, what is known of them, and which of them it is asked a question about."""

import random
from collections.abc import Sequence

from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.tasks import canonical_name
from modeling_salmonn.evaluation.instruction_following import FALLBACK_TASKS


def choose_clips(clips: Sequence[Row], seed: int) -> list[Row]:
    """The clips in the order in which they are tried: each path once, with the question and references of its rows."""
    by_path: dict[str, Row] = {}
    for row in clips:
        known = by_path.get(row["path"], row)
        asking = row if question_of(row) and not question_of(known) else known
        by_path[row["path"]] = asking | references_of(row) | references_of(known)
    return random.Random(seed).sample(list(by_path.values()), len(by_path))


def references_of(row: Row) -> Row:
    """The `transcript` and the `caption` that a row gives of its clip: under these names, or as its task's `text`."""
    own_task = canonical_name(row.get("task", ""))
    given = row | {name: row.get("text") for name, task in FALLBACK_TASKS.items() if own_task == task}
    return {name: given[name] for name in FALLBACK_TASKS if given.get(name)}


def question_of(row: Row) -> str | None:
    """The question of a row whose task is to answer one."""
    question = row.get("Q") or row.get("question")
    return question if question and str(row.get("task")).endswith("_qa") else None


def asks_question(index: int, share: float) -> bool:
    """Whether clip number `index` gets a question, so that of any first clips the share does."""
    return int((index + 1) * share) > int(index * share)


__all__ = [
    "asks_question",
    "choose_clips",
    "question_of",
    "references_of",
]
