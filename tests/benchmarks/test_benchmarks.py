"""The benchmarks run at the smallest sizes, in turns with a second checkout: this one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
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
    "throughput.py": (
        [*SMALLEST, "--clip-seconds", "1", "--new-tokens", "3", "--batches", "1", "2"],
        ["2: audio tokens", "2: answers", "2: language model alone"],
    ),
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


@pytest.mark.slow
def test_traced_memory_is_that_of_real_tensors(tmp_path: Path) -> None:
    options = [*SMALLEST, "--clips", "2", "--dtype", "float32"]
    found = {}
    for device in ("meta", "cpu"):
        results = tmp_path / f"{device}.json"
        command = [sys.executable, "benchmarks/training_memory.py", *options, "--device", device]
        done = subprocess.run(
            [*command, "--json", str(results)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found[device] = json.loads(results.read_text())["rows"]
    for traced, real in zip(found["meta"], found["cpu"], strict=True):
        assert traced["weights_mb"] == real["weights_mb"]
        assert traced["peak_mb"] == pytest.approx(real["peak_mb"], rel=0.05)
        assert real.keys() - traced.keys() == {"measured_peak_mb"}  # zero where freed memory was enough
    kept = {row["name"]: row["kept_mb"] for row in found["meta"]}
    assert min(kept, key=kept.__getitem__) == "as in the recipes"
    assert max(kept, key=kept.__getitem__) == "none of the three"


def run_gpu_parts(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", str(output), "--device", "cpu", "--sizes", "smallest"]
    command += ["--part-seconds", "3600", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["throughput_7b_bfloat16", "stages", "step", "13b", "float16", "float32", "memory"])
def test_parts_of_the_gpu_script_run_at_the_smallest_sizes(tmp_path: Path, part: str) -> None:
    done = run_gpu_parts(tmp_path, "--only", part)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in tmp_path.glob("*.json"):
        assert json.loads(file.read_text())["rows"]
        assert file.with_suffix(".txt").read_text()
    assert "done in" in done.stdout
    assert "done before" in run_gpu_parts(tmp_path, "--only", part).stdout


@pytest.mark.slow
def test_part_without_a_result_is_named_and_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = run_gpu_parts(tmp_path, "--only", "memory", "--part-seconds", "0.01")
        assert done.returncode == 1
        assert "Without a result: memory_7b; " in done.stderr
        assert (tmp_path / "memory_7b.txt").read_text().endswith("Given up after 0.01 s.\n")
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="There is no GPU with CUDA here.")
@pytest.mark.parametrize("part", ["throughput_7b_bfloat16", "stages", "step", "memory"])
def test_parts_of_the_gpu_script_run_on_a_gpu(tmp_path: Path, part: str) -> None:
    done = run_gpu_parts(tmp_path, "--only", part, "--device", "cuda")
    assert done.returncode == 0, done.stdout + done.stderr
