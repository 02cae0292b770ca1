"""The benchmarks run at the smallest sizes, in turns with a second checkout: this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


SMALLEST = ["--speech", "smallest", "--audio", "smallest", "--text", "smallest"]
TIMING = ["--repeats", "1", "--threads", "1"]
BENCHMARKS = {
    "inference.py": ([*SMALLEST, "--clip-seconds", "2", "--new-tokens", "3"], ["BEATs", "= samples to answer"]),
    "decoding.py": (
        [*SMALLEST, "--clip-seconds", "2", "--new-tokens", "3"],
        ["weights of a token", "attention of a token", "greedy, adapter beside", "greedy, prompt lookup", "4 beams"],
    ),
    "mixed_batch.py": ([*SMALLEST, "--clip-seconds", "1", "2", "--new-tokens", "3"], ["= samples to answers"]),
    "long_audio.py": ([*SMALLEST, "--minutes", "1", "--encoded-minutes", "1"], ["features of a file of 1 min"]),
    "training.py": ([*SMALLEST, "--clip-seconds", "1", "2"], ["encoders", "training step"]),
    "attention_mask.py": (["--patches", "40"], ["no mask", "head by head"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_compares_two_checkouts(tmp_path: Path, name: str) -> None:
    options, cases = BENCHMARKS[name]
    results = tmp_path / "results.json"
    command = [sys.executable, f"benchmarks/{name}", *options, *TIMING, "--against", ".", "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(results.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert set(cases) <= set(rows)
    assert result["peak_flop_per_second"]["cpu_seconds"] > 0
    for case, row in rows.items():
        assert row["name"] in done.stdout
        assert [len(times) for times in row["timings"]] == [2, 2]  # of each checkout: to warm up, and one turn
        assert row["times_as_fast_seconds"] > 0
        assert row["largest_difference"] == 0, case


@pytest.mark.slow
def test_benchmark_that_cannot_start_says_so() -> None:
    command = [sys.executable, "benchmarks/training.py", *SMALLEST, *TIMING, "--device", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "The process of this checkout ended" in done.stderr
