"""A saved SALMONN folder: its files, and what is missing of them, before anything is loaded.

```
config.json  processor_config.json  tokenizer.json                           always
model.safetensors, or shards and model.safetensors.index.json                the whole model, or
connector.safetensors                                                        what was trained of it
adapter_config.json  adapter_model.safetensors                               with LoRA
hashes.json  generation_config.json  chat_template.jinja                     where saving wrote them
```
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from modeling_salmonn.checkpoint_files_salmonn import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    CONNECTOR_FILE,
    WEIGHTS_FILE,
    weight_file_names,
)
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.processing.processor_files_salmonn import NEEDED_FILES
from modeling_salmonn.staged_saving_salmonn import LFS_HEADER, STAGING_FOLDER, read_json


REQUIRED_FILES = (CONFIG_FILE, *NEEDED_FILES)
GOLDEN_FILE = "golden_answers.json"
LFS_MAX_BYTES = 1024  # a pointer has three short lines


@dataclass
class SavedFolder:
    """Files of a folder, which exists, each read when it is asked for."""

    folder: Path

    @cached_property
    def config(self) -> Any:  # a SalmonnConfig, whose parts are typed as dicts too
        """The configuration."""
        return SalmonnConfig.from_pretrained(self.folder)

    @cached_property
    def weight_names(self) -> list[str]:
        """The weight files that loading reads, whether they are there or not."""
        names = [CONNECTOR_FILE]
        if not self.has(CONNECTOR_FILE):
            names = weight_file_names(self.folder) or [WEIGHTS_FILE]
        has_adapter = self.has(ADAPTER_CONFIG_FILE) or self.has(ADAPTER_FILE)
        return names + ([ADAPTER_FILE] if has_adapter else [])

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.folder / name).is_file()

    def names(self) -> list[str]:
        """All files, those in folders below by their relative path."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def matching(self, patterns: Sequence[str]) -> list[str]:
        """The files that match a pattern, in which a star stands for one name, not for folders."""
        found = []
        for name in self.names():
            alike = [pattern for pattern in patterns if pattern.count("/") == name.count("/")]
            if any(fnmatch(name, pattern) for pattern in alike):
                found.append(name)
        return found

    def missing_weights(self) -> list[str]:
        """What loading needs for the weights, and the folder lacks."""
        needed = list(self.weight_names)
        if self.has(ADAPTER_FILE):  # neither of its files is of use without the other
            needed.append(ADAPTER_CONFIG_FILE)
        return [name for name in needed if not self.has(name)]

    def missing(self) -> list[str]:
        """What loading needs and the folder lacks."""
        return [name for name in REQUIRED_FILES if not self.has(name)] + self.missing_weights()

    def is_lfs_pointer(self, name: str) -> bool:
        """Whether a file names its content instead of holding it."""
        file = self.folder / name
        return file.stat().st_size < LFS_MAX_BYTES and file.read_bytes().startswith(LFS_HEADER)

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file that is there."""
        return read_json(self.folder / name)

    def tensors(self) -> Iterator[tuple[str, str, Any]]:
        """File, key and lazy slice of each tensor; a `ValueError` names a file that cannot be read."""
        for name in self.weight_names:
            try:
                with safe_open(self.folder / name, "pt") as file:
                    for key in file.keys():  # noqa: SIM118  not a dict
                        yield name, key, file.get_slice(key)
            except SafetensorError as error:  # noqa: PERF203  tells which file
                raise ValueError(f"{name} is truncated or damaged ({error}); download it again.") from error


def require_model(path: str) -> None:
    """Refuse, by a `ValueError`, a mistyped folder before the Hub is asked, and a SALMONN that lacks files.

    Other models, and Hub ids, are not looked into.
    """
    folder = Path(path)
    if folder.is_file():
        raise ValueError(f"{path} is a file; give the folder of a SALMONN model, which holds {CONFIG_FILE}.")
    if not folder.is_dir():
        if path.startswith((".", "/", "~")) or path.count("/") > 1:  # no Hub id, which is owner/name
            raise ValueError(f"There is no folder {path}; give the folder or the Hub id of a SALMONN model.")
        return
    saved = SavedFolder(folder)
    if not saved.has(CONFIG_FILE):
        raise ValueError(f"{path} has no {CONFIG_FILE}{_without_config(saved)}")
    if saved.read_json(CONFIG_FILE).get("model_type") != SalmonnConfig.model_type:
        return
    missing = saved.missing()
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; save the model and its processor there again, or download it again."
        )


def require_salmonn(path: str) -> None:
    """As `require_model`, and no model of another kind."""
    require_model(path)
    folder = Path(path)
    if folder.is_dir():
        kind = SavedFolder(folder).read_json(CONFIG_FILE).get("model_type")
        if kind != SalmonnConfig.model_type:
            raise ValueError(
                f"{path} holds a model of type {kind!r}, but '{SalmonnConfig.model_type}' is needed; "
                "give the folder or the Hub id of a SALMONN model."
            )


def require_new_folder(output: Path) -> None:
    """Refuse, by a `ValueError`, a folder that cannot be made or is not empty, before any work is done for it."""
    if output.is_symlink():
        raise ValueError(f"{output} is a link, which would be replaced; give the folder itself.")
    # What a save that was killed has left is no one's.
    if output.exists() and (not output.is_dir() or {path.name for path in output.iterdir()} - {STAGING_FOLDER}):
        raise ValueError(f"{output} exists and is not empty; choose another folder.")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{output} cannot be made: {parent} is no folder that can be written to; choose another.")


def _without_config(saved: SavedFolder) -> str:
    """What such a folder is instead, and what to do."""
    if saved.has(ADAPTER_CONFIG_FILE):
        return (
            ": it holds a LoRA adapter alone. Save the model it was trained in, by model.save_pretrained(folder), or "
            "with adapter_only=True where the bases are to be fetched."
        )
    if not os.listdir(saved.folder):
        return ": it is empty. Give the folder or the Hub id of a SALMONN model."
    return "; give the folder or the Hub id of a SALMONN model, or download this one again."
