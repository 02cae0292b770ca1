"""What `salmonn doctor` says of the installed versions."""

from importlib.metadata import version
from pathlib import Path

import pytest

from modeling_salmonn.hub.doctor import check_versions, examine
from modeling_salmonn.versions_salmonn import MEND


def test_doctor_names_the_versions(saved_folder: Path) -> None:
    found = examine(str(saved_folder))[1]
    assert (found.name, found.status) == ("versions", "ok")
    assert f"transformers {version('transformers')}" in found.detail
    assert f"peft {version('peft')}" in found.detail


def test_doctor_fails_where_versions_do_not_match(saved_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_salmonn.versions_salmonn.MIN_PEFT_VERSION", "99.0")
    assert check_versions()[0] == "failed"
    found = examine(str(saved_folder))[1]
    assert (found.name, found.status) == ("versions", "failed")
    assert found.detail.endswith(f"needs peft 99.0 or later, but peft {version('peft')} is installed; run: {MEND}")
