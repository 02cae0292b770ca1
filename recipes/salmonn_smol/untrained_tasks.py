"""Rows of tasks that salmonn-smol is never trained on, for the scores of activation tuning."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.data.files import write_rows
from modeling_salmonn.data.rows import Row
from recipes.salmonn_smol.audiofolder import METADATA_FILE, read_audiofolder


TASKS = {"sqqa": "spoken_query", "slot_filling": "slot_filling", "coreasoning": "co_reasoning"}  # by folder
# The columns of a clip that an instruction names, by what rows call them.
NAMED = {"slot_filling": {"slots": "slot"}, "co_reasoning": {"background": "background"}}
WORD_WITHIN = re.compile(r"(?<=[a-z])(?=[A-Z])")  # where a name such as coffeeDrink has a space


def read_untrained(folder: Path) -> list[Row]:
    """Rows of all the task folders that there are, in which voices are synthetic.

    Args:
        folder: holds at least one of the audio folders `sqqa`, `slot_filling` and `coreasoning`.

    Returns:
        Rows with `path`, `task`, `text` (the first accepted answer), `answers` (all of them), `transcript` (what is
        said, for telling answers from repetitions), and `slots` (what is asked for) or `background`.

    Raises:
        ValueError: if none is there, or a row lacks what its task needs.
    """
    found = [name for name in TASKS if (folder / name / METADATA_FILE).is_file()]
    if not found:
        raise ValueError(f"{folder} has none of the folders {', '.join(TASKS)} with a {METADATA_FILE}; give another.")
    rows = []
    for name in found:
        rows += [_task_row(clip, TASKS[name]) for clip in read_audiofolder(folder / name)]
    return rows


def _task_row(clip: Row, task: str) -> Row:
    """The row of a manifest for a clip of one task."""
    columns = NAMED.get(task, {})
    missing = [name for name in ("transcript", "answer", *columns.values()) if not clip.get(name)]
    if missing:
        raise ValueError(f"The row of {clip['path']} lacks {', '.join(missing)}, which {task} needs; add it.")
    answers = clip["answer"]
    named = {name: clip[column] for name, column in columns.items()}
    row = {"path": clip["path"], "task": task, "text": answers[0], "answers": answers}
    return row | {"transcript": clip["transcript"]} | named


def order_rows(clips: Sequence[Row]) -> list[Row]:
    """A row of slot filling for each slot of the clips that have some: orders of real speakers."""
    rows = []
    for clip in clips:
        for slot, value in (clip.get("slots") or {}).items():
            name = WORD_WITHIN.sub(" ", slot).lower()
            row = {"path": clip["path"], "task": "slot_filling", "text": value, "answers": [value]}
            rows.append(row | {"transcript": clip["text"], "slots": name, "collection": clip.get("collection")})
    return rows


def write_untrained(
    tasks: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the task folders.")],
    file: Annotated[Path, typer.Argument(help="Manifest to write.")],
    stories: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Audio folder to ask for stories about.")
    ] = None,
    orders: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Audio folder with `slots` of real orders.")
    ] = None,
) -> None:
    """Write one manifest of the tasks that salmonn-smol is never trained on."""
    rows = read_untrained(tasks)
    rows += order_rows(read_audiofolder(orders)) if orders is not None else []
    for clip in read_audiofolder(stories) if stories is not None else ():
        rows.append({"path": clip["path"], "task": "story", "text": ""})  # no reference says what a story should be
    write_rows(file, rows)
    for task, count in Counter(row["task"] for row in rows).items():
        typer.echo(f"{task}: {count} rows")
