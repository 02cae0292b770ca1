"""The `salmonn` application: its commands, imported when they are run."""

import ast
import os
import subprocess
import sys
from importlib import import_module

import pytest
import typer
from command_line import run, run_whole
from conftest import ROOT

from modeling_salmonn.commands.app import COMMANDS


pytestmark = pytest.mark.usefixtures("restored_logging")
FAMILIES = {"activate": ("run", "write", "tune"), "study": ("sweep", "perplexity", "activation-data", "windows")}


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(arguments: tuple[str, ...]) -> None:
    output = run(*arguments).output
    assert all(command in output for command in COMMANDS)


@pytest.mark.parametrize(("family", "commands"), FAMILIES.items())
@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_of_a_family_lists_its_commands(
    arguments: tuple[str, ...], family: str, commands: tuple[str, ...]
) -> None:
    output = run(family, *arguments).output
    assert all(command in output for command in commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_list_says_what_the_help_of_each_command_begins_with(name: str) -> None:
    module = import_module(f"modeling_salmonn.commands.{name.replace('-', '_')}")
    command = typer.main.get_command(module.app)
    assert (command.help or "").split("\n\n")[0] == COMMANDS[name]
    assert COMMANDS[name].split()[0] in run_whole(name, "--help")


def test_commands_are_imported_when_they_are_run() -> None:
    code = """
import sys
from typer.testing import CliRunner
from modeling_salmonn.commands.app import app
for arguments in (["--help"], ["ask", "--help"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
    print([name for name in sys.modules if name.startswith("modeling_salmonn.")])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    listed, asked = map(ast.literal_eval, result.stdout.splitlines())
    commands = {name.rpartition(".")[2] for name in listed if name.startswith("modeling_salmonn.commands.")}
    assert commands == {"app", "errors", "extras"}
    unused = ("training", "evaluation", "activation")
    assert not any(name.split(".")[1] in unused for name in asked)


def test_mistyped_command_is_a_usage_error_that_names_the_nearest() -> None:
    result = run("evalute", "model")
    assert result.exit_code == 2
    assert "Did you mean 'evaluate'?" in result.stderr
