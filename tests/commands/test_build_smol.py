"""`salmonn build-smol`: from bases that are there already."""

from pathlib import Path

import pytest
from command_line import assert_one_line_error, run


pytestmark = pytest.mark.usefixtures("restored_logging")


def test_build_smol_never_writes_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert_one_line_error(run("build-smol", tmp_path / "model"), "exists already; give another folder")
