"""`salmonn demo`: a page at the port that was asked for, until it is interrupted."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import assert_one_line_error, run
from conftest import ROOT


pytest.importorskip("gradio", reason="the extra demo is not installed")

import httpx
from demo_server import free_port


pytestmark = pytest.mark.usefixtures("restored_logging")


def heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_demo_serves_its_page_on_this_machine_until_interrupted(saved_folder: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "modeling_salmonn", "demo", saved_folder, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == f"Open http://127.0.0.1:{port}/ in a browser; Ctrl-C ends it.\n"
            page = httpx.get(f"http://127.0.0.1:{port}/", timeout=60)
            assert page.status_code == 200
            assert "salmonn-tiny" in page.text
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        finally:
            process.kill()


def test_demo_at_a_port_that_is_taken_fails_in_a_line(saved_folder: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        result = run("demo", saved_folder, "--port", listener.getsockname()[1])
    assert_one_line_error(result, "port")


def test_demo_of_a_missing_model_fails_in_a_line(tmp_path: Path) -> None:
    assert_one_line_error(run("demo", tmp_path / "absent"), "absent")
