"""A server in a process of its own, on a free port."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from conftest import ROOT


STOP_SECONDS = 120


@contextmanager
def running_server(command: list[Any], log: Path) -> Iterator[str]:
    """The address of a server that says `Uvicorn running on ADDRESS`; it ends with the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    arguments = [str(part) for part in command]
    with subprocess.Popen(
        arguments, env=environment, cwd=log.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watch = None
        try:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                match = re.search(r"Uvicorn running on (http://\S+)", line)
                if match:
                    break
            else:
                raise AssertionError("".join(lines))
            # read on, or the server would wait for its reader
            watch = Thread(target=lambda: log.write_text("".join(process.stdout or ())), daemon=True)
            watch.start()
            yield match[1]
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)
            if watch is not None:
                watch.join(STOP_SECONDS)


def serve_command(folder: Path, *options: Any) -> list[Any]:
    """`salmonn serve` on a free port."""
    return [sys.executable, "-m", "modeling_salmonn", "serve", folder, "--port", 0, "--device", "cpu", *options]
