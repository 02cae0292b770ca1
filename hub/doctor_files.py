"""The folder that `salmonn doctor` examines, and checks of its files: whether they are whole, and the code among them.

Pickles are never opened, and no code is run.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

from huggingface_hub import hf_hub_download
from transformers.dynamic_module_utils import get_relative_imports

from modeling_salmonn import configuration_salmonn
from modeling_salmonn.checkpoint_files_salmonn import (
    CONFIG_FILE,
    CONNECTOR_FILE,
    GENERATION_FILE,
    HASHES_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    listing,
    sha256,
)
from modeling_salmonn.hub.saved_folder import REQUIRED_FILES, SavedFolder
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing import processing_salmonn
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor
from modeling_salmonn.processing.processor_files_salmonn import PROCESSOR_FILE, TOKENIZER_CONFIG_FILE
from modeling_salmonn.staged_saving_salmonn import MARK_FILE


PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
CODE_NAMING_FILES = (CONFIG_FILE, PROCESSOR_FILE, "preprocessor_config.json", TOKENIZER_CONFIG_FILE)
ELSEWHERE = "--"  # "owner/name--module.Class" is code of another repository

Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
Finding: TypeAlias = tuple[Status, str]


@dataclass
class Subject(SavedFolder):
    """The folder under examination, and what several checks need of it, read once."""

    hub_id: str | None = None  # the repository that it was downloaded from
    device: str = "cpu"  # where the model is run

    @cached_property
    def loaded(self) -> tuple[SalmonnForConditionalGeneration, SalmonnProcessor]:
        """The model, and its processor."""
        model = SalmonnForConditionalGeneration.from_pretrained(self.folder, use_safetensors=True)
        processor = SalmonnProcessor.from_pretrained(self.folder, trust_remote_code=False)
        return model.to(self.device).eval(), processor


def check_files(subject: Subject) -> Finding:
    """The files that loading reads, weights and code aside, are there and are JSON."""
    missing = [name for name in REQUIRED_FILES if not subject.has(name)]
    if missing:
        return "failed", f"Missing {listing(missing)}; save the model and its processor again, or download again."
    if not subject.has(GENERATION_FILE):  # transformers' default is 20 tokens
        return "warning", f"Missing {GENERATION_FILE}; answers then stop after transformers' default length."
    for name in (*REQUIRED_FILES, GENERATION_FILE):
        subject.read_json(name)
    return "ok", f"{', '.join(REQUIRED_FILES)}, {GENERATION_FILE}."


def check_git_lfs(subject: Subject) -> Finding:
    """No file is a Git-LFS pointer in place of its content."""
    pointers = [name for name in subject.names() if subject.is_lfs_pointer(name)]
    if pointers:
        return "failed", f"Pointers, not content: {listing(pointers)}; run `git lfs pull`, or download again."
    return "ok", "No file is a Git-LFS pointer."


def check_pickles(subject: Subject) -> Finding:
    """Pickles can run code; a folder has no use for them."""
    pickles = [name for name in subject.names() if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return "warning", f"Pickles, which are never loaded: {listing(pickles)}; delete them."
    return "ok", "No pickles." if subject.hub_id is None else "No pickles; a repository's are not downloaded."


def check_code(subject: Subject) -> Finding:
    """The code that `trust_remote_code` copies is complete, and that of the installed package."""
    references: set[str] = set()
    for name in CODE_NAMING_FILES:
        references.update(_references(subject, name))
    elsewhere = sorted(name for name in references if ELSEWHERE in name)
    modules = _with_imports(subject, set(map(_module, references.difference(elsewhere))))
    if not modules and not elsewhere:
        return "warning", "No code is named: the folder loads only where the package modeling_salmonn is imported."
    missing = sorted(f"{module}.py" for module in modules if not subject.has(f"{module}.py"))
    if missing:
        return "failed", f"Missing code {listing(missing)}; save the model again, or copy it from the package."
    code = [name for name in subject.names() if name.endswith(".py")]
    other = [name for name in code if not _is_installed(subject.folder / name)]
    other += filter(None, map(_other_repository, elsewhere))
    if other:
        return "warning", (
            f"Other than the installed package's: {listing(other)}; trust_remote_code runs it. Read it before you do, "
            "or save the model again; the command `salmonn` and the installed classes do not run it."
        )
    return "ok", f"{len(modules)} modules, with all that they import, as in the installed package."


def check_weight_files(subject: Subject) -> Finding:
    """Every weight file is there, and an adapter-only folder names bases that are."""
    if subject.has(MARK_FILE):
        return "failed", f"A save was stopped half-way ({MARK_FILE}): old and new files are mixed; save again."
    missing = subject.missing_weights()
    if missing:
        return "failed", f"Missing {listing(missing)}; download the folder again, or save the model again."
    if not subject.has(CONNECTOR_FILE):
        return "ok", listing(subject.weight_names)
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if subject.has(name):
            return "failed", f"{CONNECTOR_FILE} hides {name}, which is not loaded then; delete the outdated one."
    bases, lost = [], []
    for part in ("speech", "audio", "text"):
        if getattr(subject.config, f"{part}_config") is None:
            continue
        base = getattr(subject.config, f"{part}_model_id")
        bases.append(base)
        # The conversion names bases on its own machine by absolute paths.
        if not base or (os.path.isabs(base) and not os.path.exists(base)):
            lost.append(f"{part}_model_id")
    if lost:
        return "failed", f"config.json names no base that is here by {listing(lost)}; set Hub ids or local paths."
    return "ok", f"{listing(subject.weight_names)}; on the bases {', '.join(bases)}."


def check_hashes(subject: Subject) -> Finding:
    """SHA-256 of the weights, compared where the folder says what they are."""
    listed = subject.read_json(HASHES_FILE) if subject.has(HASHES_FILE) else {}
    lost = sorted(name for name in listed if not subject.has(name))
    if lost:
        return "failed", f"{HASHES_FILE} lists {listing(lost)}, which the folder lacks; download it again."
    found = {name: sha256(subject.folder / name) for name in {*subject.weight_names, *listed}}
    wrong = sorted(name for name, digest in listed.items() if found[name] != str(digest).lower())
    if wrong:
        return "failed", f"Other than {HASHES_FILE} says: {listing(wrong)}; download again."
    shown = ", ".join(f"{name} {found[name][:12]}" for name in subject.weight_names)
    unlisted = [name for name in subject.weight_names if name not in listed]
    if unlisted:
        return "ok", f"{shown}; not all listed in {HASHES_FILE}, so that damage cannot be seen: {listing(unlisted)}."
    return "ok", f"{shown}; as in {HASHES_FILE}."


def _references(subject: Subject, name: str) -> Iterator[str]:
    """The classes that a settings file names for `trust_remote_code`, such as "module.Class"."""
    sections = [subject.read_json(name)] if subject.has(name) else []
    while sections:  # processors have sections of their parts
        section = sections.pop()
        auto_map, pipelines = section.get("auto_map"), section.get("custom_pipelines")
        named = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
        for task in pipelines.values() if isinstance(pipelines, dict) else ():
            named.append(task.get("impl") if isinstance(task, dict) else None)
        for value in named:
            references = value if isinstance(value, list) else [value]  # tokenizers list a slow and a fast class
            yield from (reference for reference in references if isinstance(reference, str))
        sections += [part for part in section.values() if isinstance(part, dict)]


def _module(reference: str) -> str:
    return reference.rsplit(".", 1)[0]


def _with_imports(subject: Subject, new: set[str]) -> set[str]:
    """Modules, and those that they import from the folder."""
    modules: set[str] = set()
    waiting = list(new)
    while waiting:
        module = waiting.pop()
        if module not in modules:
            modules.add(module)
            if subject.has(f"{module}.py"):
                waiting += _imports(subject.folder / f"{module}.py")
    return modules


def _imports(file: Path) -> list[str]:
    try:
        return get_relative_imports(file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is no text; save the model again, or copy it from the package.") from error


def _is_installed(file: Path) -> bool:
    """Whether a file of code is one of the installed package, to the letter."""
    lines = file.read_bytes().splitlines()  # Git may have changed the line ends
    for module in (configuration_salmonn, processing_salmonn):
        own = Path(str(module.__file__)).with_name(file.name)
        if own.is_file() and own.read_bytes().splitlines() == lines:
            return True
    return False


def _other_repository(reference: str) -> str | None:
    """What is wrong with code of another repository, if anything."""
    repository, module = _module(reference).split(ELSEWHERE, 1)
    try:
        file = Path(hf_hub_download(repository, f"{module}.py"))
    except Exception as error:  # the Hub client raises many kinds
        return f"{module}.py of {repository}, which cannot be fetched to be compared ({type(error).__name__})"
    return None if _is_installed(file) else f"{module}.py of {repository}"
