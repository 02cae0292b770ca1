"""Rows of tasks that salmonn-smol is never trained on, for the figures of activation tuning.

`python -m recipes.salmonn_smol.untrained_tasks TASKS ROWS.jsonl` reads the audio folders `sqqa`, `slot_filling` and
`coreasoning` of a folder, each with its `metadata.jsonl`, and writes one manifest with the columns of
`data/rows.py`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from modeling_salmonn.data.files import write_rows
from modeling_salmonn.data.rows import Row, read_manifest


METADATA = "metadata.jsonl"
TASKS = {"sqqa": "spoken_query", "slot_filling": "slot_filling", "coreasoning": "co_reasoning"}  # by folder
NEEDED = {"spoken_query": ("transcript", "answer"), "co_reasoning": ("transcript", "answer", "background")}
NEEDED["slot_filling"] = ("transcript", "answer", "slot")


def read_untrained(folder: Path) -> list[Row]:
    """Rows of all the task folders that there are.

    Args:
        folder: holds at least one of `sqqa`, `slot_filling` and `coreasoning`.

    Returns:
        Rows with `path`, `task`, `text` (the first accepted answer), `answers` (all of them), `transcript` (what is
        said, for telling answers from repetitions), and `slots` (what is asked for) or `background`.

    Raises:
        ValueError: if none is there, or a row lacks what its task needs.
    """
    found = {name: task for name, task in TASKS.items() if (folder / name / METADATA).is_file()}
    if not found:
        raise ValueError(f"{folder} has none of the folders {', '.join(TASKS)} with a {METADATA}; give another.")
    return [untrained_row(row, task) for name, task in found.items() for row in clips_of(folder / name)]


def clips_of(folder: Path) -> list[Row]:
    """Rows of an audio folder, with the absolute `path` of each clip."""
    return [row | {"path": str(folder.absolute() / row["file_name"])} for row in read_manifest(folder / METADATA)]


def untrained_row(row: Row, task: str) -> Row:
    """The row of a manifest for a clip of one task.

    Raises:
        ValueError: if the clip's row lacks what the task needs.
    """
    missing = [name for name in NEEDED[task] if not row.get(name)]
    if missing:
        raise ValueError(f"The row of {row['path']} lacks {', '.join(missing)}, which {task} needs; add it.")
    made = {"path": row["path"], "task": task, "text": row["answer"][0], "answers": row["answer"]}
    made["transcript"] = row["transcript"]
    if task == "slot_filling":
        return made | {"slots": row["slot"]}
    return made | ({"background": row["background"]} if task == "co_reasoning" else {})


def story_rows(clips: Sequence[str]) -> list[Row]:
    """Rows that ask for a story about clips; no reference says what it should be."""
    return [{"path": clip, "task": "story", "text": ""} for clip in clips]


def write_untrained(folder: Path, file: Path, stories: Sequence[str] = ()) -> Counter[str]:
    """Write the manifest in one step.

    Args:
        folder: see `read_untrained`.
        file: manifest to write.
        stories: clips to ask for stories about.

    Returns:
        How many rows each task has.
    """
    rows = read_untrained(folder) + story_rows(stories)
    write_rows(file, rows)
    return Counter(row["task"] for row in rows)


def main(
    tasks: Annotated[Path, typer.Argument(help="Folder of the task folders.")],
    rows: Annotated[Path, typer.Argument(help="Manifest to write.")],
    stories: Annotated[Path | None, typer.Option(help="Audio folder to ask for stories about.")] = None,
) -> None:
    """Write one manifest of the tasks that salmonn-smol is never trained on."""
    clips = [row["path"] for row in clips_of(stories)] if stories else []
    for task, count in write_untrained(tasks, rows, clips).items():
        typer.echo(f"{task}: {count} rows")


if __name__ == "__main__":
    typer.run(main)


__all__ = ["read_untrained", "story_rows", "untrained_row", "write_untrained"]
