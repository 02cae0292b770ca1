"""The comparison of batches, at a small size: it runs, and both orders give the same answers."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_both_orders_are_measured_and_answer_alike(saved_folder: Path) -> None:
    command = [sys.executable, "benchmarks/batches.py", str(saved_folder), "--clips", "5", "--batch-size", "2"]
    command += ["--new-tokens", "2", "--rounds", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    measured = json.loads(result.stdout)
    assert measured["equal_answers"] == 5
    assert len(measured["ratios"]) == 1
    assert measured["processor_seconds"].keys() == {"as given", "sorted"}
