"""`salmonn build-smol`: what it refuses; `make` runs it whole, with bases of 160 MB."""

from pathlib import Path

import pytest
from command_line import assert_one_line_error, run


pytestmark = pytest.mark.usefixtures("restored_logging")


def test_build_smol_never_writes_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of something else")
    assert_one_line_error(run("build-smol", tmp_path), "exists and is not empty; choose another folder")
