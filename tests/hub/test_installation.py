"""What commands say of libraries that are missing, and of versions that do not work together."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT

from modeling_salmonn.hub.doctor import examine
from modeling_salmonn.hub.installation import LIBRARIES, check_versions, explain_error
from modeling_salmonn.versions_salmonn import MEND


COMMANDS = {  # that need an extra, and which
    "train stage.yaml": "training",
    "activate MODEL --clips clips.jsonl --output out": "training",
    "evaluate MODEL --data rows.jsonl --output out": "evaluation",
    "sweep MODEL --data rows.jsonl --output out": "evaluation",
    "perplexity MODEL --probes rows.jsonl --output out": "evaluation",
    "activation-data MODEL --clips clips.jsonl --data rows.jsonl --output out": "evaluation",
    "windows MODEL --data rows --eval-data rows --feature-cache cache --output out --window 1": "evaluation",
    "build-smol out": "smol",
}
TRAINING_LIBRARIES = ("datasets", "jiwer", "tensorboard")
CORE_MODULES = (
    "processing.processing_salmonn",
    "commands.app",
    "hub.build_smol",
    "hub.convert",
    "hub.doctor",
    "hub.model_card",
    "studies.attribution",
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
