"""Everything that is to be measured on a GPU, one part after the other: a part that has its JSON is not run again.

    python benchmarks/gpu.py results                                  # official sizes
    python benchmarks/gpu.py results --device cpu --sizes smallest    # whether all of it runs

- a part is a benchmark of this folder with its options: `results/PART.json` is what it measured, `PART.txt` its table
- each has a limit of time; one that fails, or takes longer, is named at the end and run again by the next call
- weights are random, of the sizes of Whisper large-v2, BEATs base, and LLaMA-7B or 13B
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


HERE = Path(__file__).resolve().parent
OFFICIAL = ["--speech", "large-v2", "--audio", "base"]
SIZES = {
    "official": [*OFFICIAL, "--text", "llama-7b-like"],
    "smallest": ["--speech", "smallest", "--audio", "smallest", "--text", "smallest"],
}
LARGER = {"official": [*OFFICIAL, "--text", "llama-13b-like"], "smallest": SIZES["smallest"]}
SMALL = {"official": [], "smallest": ["--clip-seconds", "1", "--new-tokens", "3"]}
STEP_CLIPS = {"official": ["8", "16", "24", "30"] * 2, "smallest": ["1", "2"]}
BATCHES = {"official": ["1", "8", "32", "64"], "smallest": ["1", "2"]}


def make_parts(sizes: str) -> dict[str, list[str]]:
    """The benchmark and the options of each part, the most telling ones first."""
    model, larger, small = SIZES[sizes], LARGER[sizes], SMALL[sizes]
    batches = ["--batches", *BATCHES[sizes]]
    once = ["--repeats", "1"]
    few = ["throughput.py", *model, *small, "--batches", *BATCHES[sizes][:2], *once]
    step = ["training.py", *model, "--clip-seconds", *STEP_CLIPS[sizes], "--gradient-checkpointing"]
    half = ["--dtype", "bfloat16"]
    return {
        "throughput_7b_bfloat16": ["throughput.py", *model, *small, *batches, *half, *once],
        "stages_7b_bfloat16": ["inference.py", *model, *small, *half],
        "step_7b_bfloat16": [*step, *half, "--repeats", "2"],
        "throughput_13b_bfloat16": ["throughput.py", *larger, *small, *batches, *half, *once],
        "throughput_7b_float16": [*few, "--dtype", "float16"],
        "throughput_7b_float32": [*few, "--dtype", "float32"],
        "throughput_7b_int8": [*few, *half, "--quantise", "int8"],
        "throughput_7b_int4": [*few, *half, "--quantise", "int4"],
        "memory_7b": ["training_memory.py", *model, *half, "--clips", BATCHES[sizes][1], "--only", "as in"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", choices=SIZES, default="official")
    parser.add_argument("--only", default="", help="the parts with this in their names, instead of all")
    parser.add_argument("--part-seconds", type=float, default=300, help="after which a part is given up")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, command in make_parts(args.sizes).items():
        if args.only in name and not run_part(name, command, args):
            failed.append(name)
    if failed:
        sys.exit(
            f"Without a result: {', '.join(failed)}; their .txt files tell why. The same command tries them again."
        )


def run_part(name: str, command: list[str], args: argparse.Namespace) -> bool:
    """Run a benchmark in a process of its own, unless its result is there; whether it has one."""
    result, table = args.output / f"{name}.json", args.output / f"{name}.txt"
    if result.exists():
        print(f"{name}: done before", flush=True)
        return True
    unfinished = result.with_suffix(".part")
    script, *options = command
    words = [sys.executable, str(HERE / script), *options, "--device", args.device, "--json", str(unfinished)]
    start = time.perf_counter()
    with table.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait(timeout=args.part_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too: they hold the memory of the GPU
            code = process.wait()
            print(f"Given up after {args.part_seconds:g} s.", file=file)
    print(f"{name}: {'done' if code == 0 else 'failed'} in {time.perf_counter() - start:.0f} s", flush=True)
    if code == 0:
        unfinished.replace(result)
    return code == 0


if __name__ == "__main__":
    main()
