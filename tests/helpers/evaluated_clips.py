"""Clips with words and stories to tell, and tasks that ask for them, for the tests of evaluations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
from conftest import SAMPLING_RATE, make_clip


def write_data(folder: Path, clips: int, stories: Sequence[int], tasks: str) -> Path:
    """Clips of different lengths, all with words and some also with a story; `tasks.yaml` lies beside the manifest."""
    rows: list[dict[str, Any]] = []
    for index in range(clips):
        soundfile.write(folder / f"{index}.wav", make_clip(0.4 + 0.3 * index, seed=index), SAMPLING_RATE)
        rows.append({"path": f"{index}.wav", "task": "asr", "text": f"words number {index}"})
    rows += [{"path": f"{index}.wav", "task": "story", "caption": "a tone"} for index in stories]
    (folder / "tasks.yaml").write_text(tasks)
    return write_jsonl(folder / "rows.jsonl", rows)


def write_jsonl(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A manifest, or a journal."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
