"""The `salmonn` command, run in this process."""

from typing import Any

from typer.testing import CliRunner

from modeling_salmonn.commands.app import app


def run(*arguments: Any) -> Any:
    """The result of a command: exit code, output, and what it raised."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_whole(*arguments: Any) -> str:
    """What a command prints that succeeds."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def assert_one_line_error(result: Any, *parts: str) -> None:
    """The command ended with a line for its user, and did nothing before."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in parts)
