"""What commands say of libraries that are missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from modeling_salmonn.commands.extras import LIBRARIES, explain_error


COMMANDS = {  # that need an extra, and which
    "train stage.yaml": "training",
    "activate MODEL --clips clips.jsonl --output out": "training",
    "evaluate MODEL --data rows.jsonl --output out": "evaluation",
    "compare before after": "evaluation",
    "study sweep MODEL --data rows.jsonl --output out": "evaluation",
    "build-smol out": "smol",
    "serve MODEL": "serve",
    "demo MODEL": "demo",
}
TRAINING_LIBRARIES = ("datasets", "jiwer", "tensorboard")
CORE_MODULES = (
    "processing.processing_salmonn",
    "commands.ask",
    "commands.convert",
    "commands.doctor",
    "commands.push",
    "hub.build_smol",
    "hub.model_card",
    "serving.answer_files",
    "serving.attribution",
    "serving.many_clips",
    "data.collator",
    "training.stages",
)


def test_core_works_without_extras_and_commands_name_the_one_they_need(tmp_path: Path) -> None:
    # accelerate comes with peft; a module that is None cannot be imported, and is not found
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({sorted(LIBRARIES - {"accelerate"})}))
for name in {CORE_MODULES}:
    importlib.import_module(f"modeling_salmonn.{{name}}")
from typer.testing import CliRunner
from modeling_salmonn.commands.app import app
assert CliRunner().invoke(app, ["ask", "--help"]).exit_code == 0
for arguments in sys.argv[1:]:
    print(CliRunner().invoke(app, arguments.split()).output, end="")
for name in {TRAINING_LIBRARIES}:
    sys.modules.pop(name, None)
for name in {sorted(path.stem for path in (ROOT / "modeling_salmonn" / "training").glob("*.py"))}:
    importlib.import_module(f"modeling_salmonn.training.{{name}}")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *COMMANDS]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(COMMANDS), result.stdout + result.stderr
    for line, extra in zip(lines, COMMANDS.values(), strict=True):
        assert line.startswith("Error: This command needs ")
        assert line.endswith(f"install the extra '{extra}' in the checkout: pip install \".[{extra}]\"")


def test_other_missing_modules_are_told_as_they_are() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        import nowhere_to_be_found  # noqa: F401
    assert explain_error(caught.value) == "No module named 'nowhere_to_be_found'"
