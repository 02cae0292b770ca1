"""`salmonn doctor`: its verdict and its exit code."""

from pathlib import Path

import pytest
from command_line import run
from conftest import ReferenceCase


pytestmark = pytest.mark.usefixtures("restored_logging")


def test_doctor_finds_a_converted_folder_healthy(reference: ReferenceCase) -> None:
    pytest.importorskip("modeling_salmonn.hub.doctor")
    result = run("doctor", reference.converted)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "0 failed" in result.stdout


def test_doctor_finds_an_empty_folder_ill(tmp_path: Path) -> None:
    pytest.importorskip("modeling_salmonn.hub.doctor")
    result = run("doctor", tmp_path)
    assert result.exit_code == 1
    assert "config.json" in result.stdout
