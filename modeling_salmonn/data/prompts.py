"""Instructions per task: the bundled ones, prompt files of the research code, and filling in their fields."""

import os
import random
import re
from collections.abc import Mapping
from typing import Any

from modeling_salmonn.data.tasks import fill_in, load_tasks
from modeling_salmonn.data.text_files import read_json_object


_LEADING_AUDIO = re.compile(r"\s*(?:<Speech><SpeechHere></Speech>\s*)+")
_FIELD = re.compile(r"\{([^\W\d]\w*)\}")  # an identifier in braces


def load_prompts(path: str | os.PathLike | None = None) -> dict[str, list[str]]:
    """Read the instructions of each task.

    Instructions carry no audio placeholder at their start, since the processor puts the audio in front; a placeholder
    elsewhere is kept, and is plain text to the processor. The positional `{}` of the research code becomes
    `{question}`.

    Args:
        path: JSON file of the form `{task: [instruction, ...]}` or `{task: instruction}`, as the research code has
            them; `None` takes those of the bundled tasks.

    Returns:
        The instructions of each task, with their fields (`{question}`, `{language}`, `{slots}`) still to be filled.

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

    Args:
        prompts: instructions of each task, from `load_prompts`.
    """
    known = dict(prompts)
    for task in load_tasks().values():
        instructions = next((known[name] for name in task.names if name in known), None)
        if instructions is None and task.rows:  # German of any translation
            whole = known.get(task.rows["task"], [])
            instructions = [fill_in(text, task.rows) for text in whole]
        if instructions:
            for name in task.names:
                known.setdefault(name, instructions)
    return known


def prompt_fields(template: str) -> list[str]:
    """Names of the fields of an instruction, such as `language` of `Translate this into {language}.`"""
    return _FIELD.findall(template)


def format_prompt(template: str, **fields: str) -> str:
    """Fill in the fields of an instruction.

    Values are inserted literally in a single pass: braces in them stay as they are and are not filled in turn.

    Args:
        template: instruction with fields in braces, such as `Translate this into {language}.`
        fields: values by field name; those that the template does not have are ignored.

    Returns:
        The instruction with its fields filled in.

    Raises:
        ValueError: if the template has a field that is not given.
    """
    for name in prompt_fields(template):
        if name not in fields:
            given = ", ".join(sorted(fields)) or "none"
            raise ValueError(
                f"The prompt {template!r} needs the field '{name}', but the fields given are: {given}; pass {name}=..."
            )
    return _FIELD.sub(lambda match: fields[match[1]], template)


def choose_prompt(prompts: dict[str, list[str]], task: str, rng: random.Random, **fields: str) -> str:
    """Draw one instruction of a task and fill in its fields.

    Args:
        prompts: instructions of each task, from `load_prompts`.
        task: one of its keys.
        rng: source of the draw; an equal state gives an equal instruction.
        fields: values for the fields of the instruction, as for `format_prompt`.

    Returns:
        The instruction with its fields filled in.

    Raises:
        ValueError: if the task is unknown or a field of the instruction is not given.
    """
    if task not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise ValueError(f"There are no prompts for the task '{task}'; the known tasks are: {known}.")
    return format_prompt(rng.choice(prompts[task]), **fields)


def _read_instructions(entry: Any, task: str, file: str | os.PathLike) -> list[str]:
    instructions = [entry] if isinstance(entry, str) else entry
    if not isinstance(instructions, list):
        raise ValueError(
            f"The task '{task}' of the prompt file {file} holds a {type(entry).__name__}; it needs a list of strings."
        )
    if not instructions:
        raise ValueError(
            f"The task '{task}' of the prompt file {file} has an empty list; it needs at least one instruction."
        )
    for instruction in instructions:
        if not isinstance(instruction, str):
            raise ValueError(
                f"The task '{task}' of the prompt file {file} lists a {type(instruction).__name__} "
                f"({instruction!r:.80}); it needs a list of strings."
            )
    return [_to_instruction(text) for text in instructions]


def _to_instruction(text: str) -> str:
    leading = _LEADING_AUDIO.match(text)
    instruction = text[leading.end() :] if leading else text
    return instruction.replace("{}", "{question}")
