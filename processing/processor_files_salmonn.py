"""Files of a saved processor, and what is wrong with them where it cannot be loaded."""

import os
from pathlib import Path

from .staged_saving_salmonn import read_json


PROCESSOR_FILE, TOKENIZER_FILE = "processor_config.json", "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
JSON_FILES = (PROCESSOR_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, "config.json")  # all that tokenizers look at
NEEDED_FILES = (PROCESSOR_FILE, TOKENIZER_FILE)
MEND = "download it, or save the processor, again"


def explain_failed_loading(folder: str | os.PathLike) -> None:
    """Look for the file of a local folder that is missing or damaged; says nothing where it finds none.

    Raises:
        ValueError: naming the file, what is wrong with it, and what to do.
    """
    if not Path(folder).is_dir():
        return
    if missing := [name for name in NEEDED_FILES if not (Path(folder) / name).is_file()]:
        raise ValueError(f"{folder} has no {' and no '.join(missing)}, which the processor needs; {MEND}.")
    for name in JSON_FILES:
        if (Path(folder) / name).is_file():
            read_json(Path(folder) / name)
