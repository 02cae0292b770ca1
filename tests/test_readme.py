"""README and pages: they begin with how to install, their Python runs, and their commands exist with these options."""

import os
import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main
from conftest import ROOT

from modeling_salmonn.commands.app import app


README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = [ROOT / "README.md", ROOT / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.append(ROOT / "recipes" / "salmonn_smol" / "README.md")
BUILT = ".venv/salmonn-smol"  # what make assembles


def python_blocks() -> list[tuple[str, str]]:
    return [
        (page.name, block) for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    ]


def documented_commands() -> list[str]:
    """The `salmonn` commands of all code blocks, with their continued lines."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.S):
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [line for line in lines if line.startswith("salmonn ")]
    return list(dict.fromkeys(found))


def test_readme_installs_before_its_first_example() -> None:
    assert README.index("pip install .") < README.index("```python")
    assert README.index("\nmake ") < README.index("```python")


def test_pages_install_from_no_index() -> None:
    assert [page for page in PAGES if "pip install modeling" in page.read_text().replace('"', "")] == []


def test_first_example_takes_what_make_assembles() -> None:
    (folder,) = re.findall(r"^SMOL := \$\(VENV\)/(\S+)$", MAKEFILE, re.MULTILINE)
    assert f".venv/{folder}" == BUILT
    assert BUILT in python_blocks()[0][1]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_example_runs(
    page: str, block: str, saved_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hub", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)  # what an example writes stays there
    exec(block.replace(BUILT, str(saved_folder)), {"path": str(saved_folder)})


@pytest.mark.parametrize("line", documented_commands())
def test_documented_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(re.sub(r"\.\.\.|\s#.*", "", line))[1:]
    command: click.Command = typer.main.get_command(app)
    context = None
    while True:
        context = command.make_context(command.name, words, parent=context)
        if not isinstance(command, click.Group):
            return
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert name is not None


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert os.path.exists(page.parent / target), f"{page.name} links to {target}"
