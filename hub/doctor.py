"""Examination of a saved SALMONN folder: what `salmonn doctor` reports.

- a check returns a status and a sentence; whatever goes wrong inside it is a finding, never a traceback
- a check that needs another one is skipped if that one failed, and names it
- weights are read tensor by tensor, and neither pickles nor code of the folder are run
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import snapshot_download
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modeling_salmonn.hub.doctor_files import (
    PICKLE_SUFFIXES,
    Finding,
    Status,
    Subject,
    check_code,
    check_files,
    check_git_lfs,
    check_hashes,
    check_pickles,
    check_weight_files,
)
from modeling_salmonn.hub.doctor_model import (
    check_adapter,
    check_audio_settings,
    check_config,
    check_generation,
    check_golden_answers,
    check_keys,
    check_tokenizer,
    check_weights,
)
from modeling_salmonn.versions_salmonn import LOWEST, find_mismatch


STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    detail: str


CHECKS = (
    check_files, check_git_lfs, check_pickles, check_config, check_code, check_tokenizer, check_audio_settings,
    check_adapter, check_weight_files, check_weights, check_keys, check_hashes, check_generation, check_golden_answers,
)  # fmt: skip
# What must not have failed before a check; the config, where nothing else is named.
NEEDS = {
    "tokenizer": ("config", "files"),
    "audio settings": ("config", "files"),
    "hashes": ("weight files",),
    "weights": ("weight files", "git lfs"),
    "keys": ("weight files", "git lfs"),
    "generation": ("files", "weight files", "git lfs", "weights", "keys"),
    "golden answers": ("generation",),
}


def examine(path: str, device: str = "cpu") -> list[Check]:
    """Examine a folder, or a Hub repository, which is downloaded without its pickles; the model is run on `device`.

    Returns:
        The checks in the order of the report; only the first one if there is no such folder. Nothing is raised.
    """
    folder = Path(path).expanduser()
    is_local = folder.is_dir()
    if not is_local:
        pickles = [f"*{suffix}" for suffix in PICKLE_SUFFIXES]
        try:
            folder = Path(snapshot_download(path, ignore_patterns=pickles))
        except Exception as error:  # the Hub client raises many kinds
            reason = f"{path} is no folder, and the Hub does not give it; check the name, the network and your token."
            return [Check("folder", "failed", f"{reason} ({_reason(error)})")]
    subject = Subject(folder, None if is_local else path, device)
    checks = [Check("folder", "ok", str(folder)), Check("versions", *check_versions())]
    blocked: set[str] = set()  # checks that others have to be skipped for
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        causes = [need for need in NEEDS.get(name, ("config",)) if need in blocked]
        finding: Finding = ("skipped", f"Needs what failed: {', '.join(causes)}.")
        if not causes:
            finding = _run(check, subject)
        checks.append(Check(name, *finding))
        if causes or finding[0] == "failed":  # what is skipped itself has nothing to be skipped for
            blocked.add(name)
    return checks


def is_healthy(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.status != "failed" for check in checks)


def print_report(checks: Sequence[Check], console: Console) -> None:
    """Print the checks as a table, and the verdict below it."""
    table = Table("check", "status", "detail")
    for check in checks:
        table.add_row(check.name, Text(check.status, STYLES[check.status]), Text(check.detail))
    console.print(table)
    counts = Counter(check.status for check in checks)
    console.print(f"{counts['failed']} failed, {counts['warning']} warnings, {counts['skipped']} skipped.")


def check_versions() -> Finding:
    """Whether the installed libraries work together."""
    mismatch = find_mismatch()
    if mismatch is not None:
        return "failed", mismatch
    return "ok", ", ".join(f"{name} {version(name)}" for name in LOWEST) + "."


def _run(check: Callable[[Subject], Finding], subject: Subject) -> Finding:
    try:
        return check(subject)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # whatever is wrong with a folder is a finding; tokenizers' panics are no Exception
        return "failed", _reason(error)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
