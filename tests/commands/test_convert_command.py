"""`salmonn convert`: what it writes and prints."""

import json
from pathlib import Path

import pytest
import torch
from command_line import assert_one_line_error, run
from conftest import reference_folder


pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.mark.parametrize("name", ["tiny", "nobeats"])
def test_convert_writes_a_folder_and_counts(name: str, tmp_path: Path) -> None:
    case = reference_folder(name)
    output = tmp_path / "converted[/a]"
    beats = ["--beats", case / "beats.pt"] if (case / "beats.pt").exists() else []
    result = run(
        "convert", "--whisper", case / "whisper", "--llm", case / "llama", "--checkpoint", case / "salmonn.pth",
        "--output", output, "--qformer-heads", 4, "--dtype", "bfloat16", *beats,
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads((output / "conversion_report.json").read_text())
    assert result.stdout == (
        f"Wrote {output}: {report['parameters']:,} parameters, {report['trained_parameters']:,} of them trained; "
        f"{len(report['mapped'])} keys mapped, {len(report['obsolete'])} obsolete (conversion_report.json).\n"
    )
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


def test_convert_of_a_wrong_file_fails_in_a_line(tmp_path: Path) -> None:
    torch.save({"weights": {}}, tmp_path / "other.pth")
    result = run(
        "convert", "--whisper", "w", "--llm", "l", "--checkpoint", tmp_path / "other.pth", "--output", tmp_path / "o"
    )
    assert_one_line_error(result, "other.pth has the keys ['weights'], but a SALMONN checkpoint has 'model'")
    assert not (tmp_path / "o").exists()
