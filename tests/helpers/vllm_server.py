"""`vllm serve` in a process of its own, on a free port of 127.0.0.1."""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


# Only a deadline: among many other programs it took a quarter of an hour.
SECONDS_TO_START = 1800
# What the figures of a small model on a CPU need; the model answers as `base`.
OPTIONS = ["--trust-remote-code", "--host", "127.0.0.1", "--served-model-name", "base", "--dtype", "float32"]
OPTIONS += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8"]
OPTIONS += ["--limit-mm-per-prompt", '{"audio": 4}', "--mm-processor-kwargs", '{"formatted": true}']


def has_vllm(python: Path) -> bool:
    """Whether this Python can import vLLM; nothing is imported."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    return python.is_file() and subprocess.run([python, "-c", code], check=False).returncode == 0


@contextlib.contextmanager
def running_vllm(
    python: Path, model: Path, log: Path, *options: str, package: Path | None = None, plugins: str = ""
) -> Iterator[str]:
    """Serve a folder; yields the address.

    Args:
        python: the one that has vLLM.
        model: the folder.
        log: file for what the server prints.
        *options: of `vllm serve`.
        package: folder with an installed package to add to those of `python`.
        plugins: names of the plugins that vLLM may load.

    Raises:
        RuntimeError: if the server ends before it answers, or does not answer in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"DO_NOT_TRACK": "1", "VLLM_PLUGINS": plugins}
    environment |= {"VLLM_ENGINE_READY_TIMEOUT_S": str(SECONDS_TO_START)}
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    command = [python.parent / "vllm", "serve", model, "--port", str(port), *OPTIONS, *options]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_until_healthy(process, address, log)
            yield address
        finally:
            # the engine is a process of its own, in the same session
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait_until_healthy(process: subprocess.Popen, address: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"vllm serve ended with {process.returncode}:\n{log.read_text()[-6000:]}")
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise RuntimeError(f"vllm serve did not answer within {SECONDS_TO_START} s:\n{log.read_text()[-6000:]}")
