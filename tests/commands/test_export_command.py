"""`salmonn export`: what it prints, what it refuses."""

import sys
from pathlib import Path

import pytest
from command_line import assert_one_line_error, run


pytestmark = pytest.mark.usefixtures("restored_logging")


def test_export_names_the_folders_and_how_to_serve_them(saved_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = run("export", saved_folder, output, "--adapter-apart", "--lora-scale", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    folders = [output / "adapter", output / "adapter@2.0"]
    told = [f"  adapter {folder}" for folder in folders]
    assert result.stdout.splitlines() == [f"Wrote {output}: vllm serve {output} --trust-remote-code", *told]
    assert all(folder.is_dir() for folder in folders)


def test_export_without_the_library_for_smaller_weights_fails_in_a_line(
    saved_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    result = run("export", saved_folder, tmp_path / "out", "--quantize", "int4")
    assert_one_line_error(result, "int4 need bitsandbytes, which is not installed; install the extra 'quantization'")
    assert not (tmp_path / "out").exists()
