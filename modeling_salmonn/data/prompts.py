"""Instructions per task: the bundled ones, prompt files of the research code, and filling in their fields."""

import os
import random
import re
from collections.abc import Mapping
from typing import Any

from modeling_salmonn.data.row_checks import is_number
from modeling_salmonn.data.tasks import fill_in, load_tasks
from modeling_salmonn.data.text_files import read_json_object


_LEADING_AUDIO = re.compile(r"\s*(?:<Speech><SpeechHere></Speech>\s*)+")
FIELDS_OF_Q = ("question", "language", "slots")  # what `Q` may stand for in an instruction
_FIELD = re.compile(r"\{([^\W\d]\w*)\}")  # an identifier in braces


def load_prompts(path: str | os.PathLike | None = None) -> dict[str, list[str]]:
    """Read the instructions of each task, with their fields (`{question}`, `{language}`, `{slots}`) not yet filled in.

    Args:
        path: JSON file of the form `{task: [instruction, ...]}` or `{task: instruction}`, as the research code has
            them; `None` takes those of the bundled tasks.

    Raises:
        ValueError: if the file is missing, is not JSON, or does not map tasks, each once, to lists of strings with
            entries.
    """
    if path is None:
        # Tasks with rows of their own, such as en2de, are parts of others.
        return {task.name: list(task.instructions) for task in load_tasks().values() if not task.rows}
    table = read_json_object(path, "give a JSON file that maps tasks to lists of instructions", "prompt file")
    return {task: _read_instructions(entry, task, path) for task, entry in table.items()}


def load_all_prompts(path: str | os.PathLike | None = None) -> dict[str, list[str]]:
    """The bundled instructions, and those of a file, which win; see `load_prompts`."""
    bundled = load_prompts()
    return bundled if path is None else bundled | load_prompts(path)


def with_aliases(prompts: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Instructions under all names that a bundled task has, so that annotation files of the research code go by them.

    A name that has instructions of its own keeps them.
    """
    known = dict(prompts)
    for task in load_tasks().values():
        given = [known[name] for name in task.names if name in known]
        instructions = given[0] if given else []
        if not given and task.rows:  # a part of another task, such as German of any translation
            instructions = [fill_in(text, task.rows) for text in known.get(task.rows["task"], [])]
        if instructions:
            known = dict.fromkeys(task.names, instructions) | known
    return known


def prompt_fields(template: str) -> list[str]:
    """Names of the fields of an instruction, such as `language` of `Translate this into {language}.`"""
    return _FIELD.findall(template)


def field_values(row: Mapping[str, Any]) -> dict[str, str]:
    """What a row fills the fields of instructions with: its texts and numbers, and its `Q` where it has no others."""
    given = {}
    for name, value in row.items():
        if is_number(value) or (isinstance(value, str) and value):
            given[name] = str(value)
    of_q = dict.fromkeys(FIELDS_OF_Q, given["Q"]) if "Q" in given else {}
    return of_q | given


def format_prompt(template: str, /, **fields: str) -> str:
    """Fill in the fields of an instruction, such as `Translate this into {language}.`

    Raises:
        ValueError: if the template has a field that is not given; others are ignored.
    """
    for name in prompt_fields(template):
        if name not in fields:
            given = ", ".join(sorted(fields)) or "none"
            raise ValueError(
                f"The prompt {template!r} needs the field '{name}', but the fields given are: {given}; pass {name}=..."
            )
    # In a single pass: braces within values stay as they are.
    return _FIELD.sub(lambda match: fields[match[1]], template)


def choose_prompt(prompts: dict[str, list[str]], task: str, rng: random.Random, /, **fields: str) -> str:
    """Draw one instruction of a task and fill in its fields.

    Raises:
        ValueError: if the task is unknown or a field of the instruction is not given.
    """
    if task not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise ValueError(f"There are no prompts for the task '{task}'; the known tasks are: {known}.")
    return format_prompt(rng.choice(prompts[task]), **fields)


def _read_instructions(entry: Any, task: str, file: str | os.PathLike) -> list[str]:
    instructions = [entry] if isinstance(entry, str) else entry
    place = f"The task '{task}' of the prompt file {file}"
    if not isinstance(instructions, list):
        raise ValueError(f"{place} holds a {type(entry).__name__}; it needs a list of strings.")
    if not instructions:
        raise ValueError(f"{place} has an empty list; it needs at least one instruction.")
    read = []
    for text in instructions:
        if not isinstance(text, str):
            raise ValueError(f"{place} lists a {type(text).__name__} ({text!r:.80}); it needs a list of strings.")
        # The processor puts the audio in front itself. A placeholder elsewhere is plain text to it, and stays.
        leading = _LEADING_AUDIO.match(text)
        instruction = text[leading.end() :] if leading else text
        read.append(instruction.replace("{}", "{question}"))  # the research code fills in by position
    return read
