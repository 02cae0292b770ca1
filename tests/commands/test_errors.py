"""Errors of the commands: in a line if they are the user's, with their traceback if they are the code's."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from command_line import run
from conftest import ROOT
from transformers import AutoConfig

from modeling_salmonn import SalmonnConfig
from modeling_salmonn.commands.errors import is_expected, readable_errors


pytestmark = pytest.mark.usefixtures("restored_logging")
FAULTY = """
def tell():
    raise ValueError(
        "Give a number."
    )

def stumble():
    return int("number")
"""


def caught(function: Any, *arguments: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  each test compares it
        function(*arguments)
    return caught.value


@pytest.fixture
def faulty(tmp_path: Path) -> ModuleType:
    """A module of the package with a fault."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    spec = importlib.util.spec_from_file_location("modeling_salmonn.faulty", tmp_path / "faulty.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_of_a_module_that_is_run_are_expected(faulty: ModuleType) -> None:
    faulty.__name__ = "__main__"  # as by `python -m`
    assert is_expected(caught(faulty.tell))
    assert not is_expected(caught(faulty.stumble))


def test_errors_raised_on_purpose_are_expected(faulty: ModuleType, tmp_path: Path) -> None:
    assert is_expected(caught(faulty.tell))
    assert is_expected(caught(lambda: SalmonnConfig(lora_rank="8")))
    assert is_expected(caught(AutoConfig.from_pretrained, str(tmp_path)))
    assert is_expected(caught(open, tmp_path / "absent"))
    assert is_expected(caught(importlib.import_module, "no_such_package"))


def test_faults_of_the_code_are_not_expected(faulty: ModuleType) -> None:
    assert not is_expected(caught(faulty.stumble))
    assert not is_expected(caught(lambda: np.zeros(2) + np.zeros(3)))
    assert not is_expected(caught(importlib.import_module, "modeling_salmonn.no_such_module"))
    assert not is_expected(caught(lambda: {}["key"]))


def test_an_expected_error_is_one_line(faulty: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(typer.Exit) as ended, readable_errors():
        faulty.tell()
    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "Error: Give a number.\n"


def test_a_fault_keeps_its_traceback(faulty: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match="invalid literal"), readable_errors():
        faulty.stumble()
    assert capsys.readouterr().err.startswith("This error was not foreseen; ")


def test_an_interruption_is_one_line(capsys: pytest.CaptureFixture) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of shells ignore it
    try:
        with pytest.raises(typer.Exit) as ended, readable_errors():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize("place", ["before", "behind"])
def test_debug_shows_the_traceback(place: str, tmp_path: Path) -> None:
    arguments = ["ask", "clip.wav", "What?", "--model", tmp_path]
    arguments = ["--debug", *arguments] if place == "before" else [*arguments, "--debug"]
    result = run(*arguments)
    assert isinstance(result.exception, ValueError)
    assert "has no config.json: it is empty" in str(result.exception)
    assert isinstance(run("ask", "clip.wav", "What?", "--model", tmp_path).exception, SystemExit)  # only that time


def test_debug_holds_for_the_commands_of_commands(tmp_path: Path) -> None:
    arguments = ["activate", "tune", tmp_path, tmp_path / "answers.jsonl", "--output", tmp_path / "out", "--debug"]
    assert "has no config.json" in str(run(*arguments).exception)


def test_what_follows_two_hyphens_is_no_option(tmp_path: Path) -> None:
    result = run("ask", "--model", tmp_path, "clip.wav", "--", "--debug")
    assert result.stderr.startswith("Error: ")


def test_debug_variable_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALMONN_DEBUG", "1")
    assert isinstance(run("ask", "clip.wav", "What?", "--model", tmp_path).exception, ValueError)
    monkeypatch.setenv("SALMONN_DEBUG", "0")
    assert isinstance(run("ask", "clip.wav", "What?", "--model", tmp_path).exception, SystemExit)


def test_wrong_usage_is_told_by_the_command_line() -> None:
    result = run("doctor")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Missing argument" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_closed_pipe_ends_a_command_quietly(saved_folder: Path, wav_file: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "modeling_salmonn", "ask", wav_file, "What?", "--model", saved_folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--max-new-tokens", "2"], stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert done.stderr == b""
