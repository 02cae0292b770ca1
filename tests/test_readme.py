"""The README: it begins with how to install, and its first example runs."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT


README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def first_example() -> str:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:1]
    return example


def test_readme_installs_before_its_first_example() -> None:
    assert README.index("pip install .") < README.index("```python")
    assert README.index("\nmake ") < README.index("```python")


def test_readme_installs_from_no_index() -> None:
    documents = [path for path in ROOT.glob("*.md") if "pip install modeling" in path.read_text().replace('"', "")]
    assert documents == []


def test_first_example_takes_what_make_puts_together() -> None:
    (folder,) = re.findall(r"^SMOL := \$\(VENV\)/(\S+)$", MAKEFILE, re.MULTILINE)
    assert f'path = ".venv/{folder}"' in first_example()


def test_first_example_runs_and_prints_its_answers(
    saved_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(re.sub(r'path = "[^"]+"', f"path = {str(saved_folder)!r}", first_example()), {})
    texts, generated = capsys.readouterr().out.splitlines()
    assert len(ast.literal_eval(texts)) == 2
    assert [set(entry) for entry in ast.literal_eval(generated)] == [{"generated_text"}]
