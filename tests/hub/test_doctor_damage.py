"""The doctor on damage: each file of a folder is deleted, cut or overwritten, and no damage goes unseen."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from examinations import ADAPTER, GOLDEN, WEIGHTS, greedy_answer, named, write_golden

from modeling_salmonn.hub.doctor import examine


@pytest.fixture(scope="module")
def sealed_folder(saved_folder: Path, wav_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose every change can be seen: with hashes and a golden answer."""
    folder = Path(shutil.copytree(saved_folder, tmp_path_factory.mktemp("sealed") / "salmonn"))
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, ADAPTER)}
    (folder / "hashes.json").write_text(json.dumps(hashes))
    write_golden(folder, wav_file, answer=greedy_answer(folder, wav_file, max_new_tokens=6), max_new_tokens=6)
    return folder


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "halved": lambda content: content[: len(content) // 2],
    "noise": lambda content: random.Random(0).randbytes(200),
    "empty": lambda content: b"",
    "nested": lambda content: b"[" * 100_000,
    "null": lambda content: b"null",
    "list": lambda content: b"[]",
    "object": lambda content: b"{}",
}
OFTEN_DAMAGED = ["config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, ADAPTER]
OFTEN_DAMAGED += ["adapter_config.json", "generation_config.json", "chat_template.jinja", GOLDEN]


def assert_reported_or_harmless(sealed_folder: Path, copy: Path, name: str, damage: str | None) -> None:
    shutil.copytree(sealed_folder, copy)
    if damage is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(DAMAGES[damage]((copy / name).read_bytes()))
    checks = examine(str(copy))
    reported = any(check.status in ("failed", "warning") for check in checks)
    assert reported or name == GOLDEN or named(checks, "golden answers").status == "ok", checks
    assert all(check.detail for check in checks)


@pytest.mark.parametrize("damage", [None, "halved", "noise"])
@pytest.mark.parametrize("name", OFTEN_DAMAGED)
def test_damage_is_reported_or_harmless(name: str, damage: str | None, sealed_folder: Path, tmp_path: Path) -> None:
    assert_reported_or_harmless(sealed_folder, tmp_path / "salmonn", name, damage)


@pytest.mark.slow
def test_any_damage_is_reported_or_harmless(sealed_folder: Path, tmp_path: Path) -> None:
    for name in (*OFTEN_DAMAGED, "hashes.json", "modeling_salmonn.py"):
        for damage in (None, *DAMAGES):
            assert_reported_or_harmless(sealed_folder, tmp_path / f"{name}-{damage}", name, damage)


def test_enormous_settings_are_refused_unread(sealed_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sealed_folder, tmp_path / "salmonn"))
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate(2**40)  # sparse: it takes no room
    checks = examine(str(folder))
    assert "tokenizer.json has 1,099,511,627,776 bytes" in named(checks, "files").detail
    assert {named(checks, name).status for name in ("tokenizer", "generation")} == {"skipped"}
