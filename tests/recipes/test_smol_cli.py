"""Commands that rebuild salmonn-smol: what is wrong with their arguments is told, without a traceback."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from recipes.salmonn_smol.__main__ import app


@pytest.mark.parametrize(
    "words",
    [
        ["manifests", "nowhere", "folder"],
        ["variants", "folder", "nowhere"],
        ["report", "nowhere", "report.json"],
        ["ship", "nowhere", "folder"],
    ],
)
def test_missing_folder_is_named(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "'nowhere' does not exist" in " ".join(result.stderr.replace("│", " ").split())
    assert not any(tmp_path.iterdir())


def test_unusable_folder_is_told_in_a_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["manifests", str(tmp_path), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert f"{tmp_path}/train/metadata.jsonl" in result.stderr
    assert result.stderr.count("\n") == 1
