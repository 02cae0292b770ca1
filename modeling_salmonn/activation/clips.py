"""Which clips a model writes answers about, what is known of them, and which of them it is asked a question about."""

import random
from collections.abc import Sequence
from pathlib import Path

from modeling_salmonn.data.files import Journal
from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.sources import locate_clip
from modeling_salmonn.data.tasks import canonical_name
from modeling_salmonn.evaluation.instruction_following import FALLBACK_TASKS


def choose_clips(clips: Sequence[Row], seed: int) -> list[Row]:
    """The clips in the order in which they are tried: each path once, with the question and references of its rows."""
    by_path: dict[str, Row] = {}
    for row in clips:
        known = by_path.get(row["path"], row)
        chosen = known if question_of(known) or not question_of(row) else row  # the first one with a question
        by_path[row["path"]] = chosen | references_of(row) | references_of(known)
    return random.Random(seed).sample(list(by_path.values()), len(by_path))


def clips_of(row: Row) -> list[str]:
    """The absolute paths of a row's clips, without those that are held in memory."""
    clips = [row.get("path"), *(row.get("expand_wav") or [])]
    return [locate_clip(clip, "") for clip in clips if isinstance(clip, str)]


def unused_rows(rows: Sequence[Row], manifests: Sequence[Path]) -> list[Row]:
    """The rows whose clips are in none of the manifests of answers."""
    used: set[str] = set()
    for manifest in manifests:
        for row in Journal(manifest).rows:
            used.update(clips_of(row))  # also those that are joined to others
    return [row for row in rows if used.isdisjoint(clips_of(row))]


def references_of(row: Row) -> Row:
    """The `transcript` and the `caption` that a row gives of its clip: under these names, or as its task's `text`."""
    own_task = canonical_name(row.get("task", ""))
    references = {}
    for name, task in FALLBACK_TASKS.items():
        text = row.get("text" if own_task == task else name)
        if text:
            references[name] = text
    return references


def question_of(row: Row) -> str | None:
    """The question of a row whose task is to answer one."""
    question = row.get("Q") or row.get("question")
    return question if question and str(row.get("task")).endswith("_qa") else None  # Q may also be a language


def asks_question(index: int, share: float) -> bool:
    """Whether clip number `index` gets a question, so that of any first clips the share does."""
    return int((index + 1) * share) > int(index * share)
