"""What batches of like length save: clips of 2 to 20 s in the order given, and sorted, in turns.

    python benchmarks/batches.py .venv/salmonn-smol --clips 48 --batch-size 8

- a list is sorted by the pipeline, a generator is answered as it comes: the same clips, questions and code
- all answers have the same number of tokens, so that only the clips differ; the answers of both are compared
- processor time is what others on the machine change least; wall-clock time is told beside it
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from modeling_salmonn.hub.loading import load_pipeline


RATE = 16000
SHORTEST_SECONDS, LONGEST_SECONDS = 2.0, 20.0
QUESTION = "What do you hear?"
ORDERS = ("as given", "sorted")


def make_clips(folder: Path, count: int, sources: Path) -> list[str]:
    """Stretches of the bundled clips, one after the other, with lengths drawn evenly."""
    bundled = [soundfile.read(path, dtype="float32")[0] for path in sorted(sources.glob("*.opus"))]
    audio = np.concatenate(bundled * 12)
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        length = int(rng.uniform(SHORTEST_SECONDS, LONGEST_SECONDS) * RATE)
        start = int(rng.integers(len(audio) - length))
        paths.append(str(folder / f"{index}.wav"))
        soundfile.write(paths[-1], audio[start : start + length], RATE)
    return paths


def measure(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call returns, its seconds of processor time and those on the clock."""
    processor, clock = time.process_time(), time.perf_counter()
    result = run()
    return result, time.process_time() - processor, time.perf_counter() - clock


def compare(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians of both orders and the ratio of each pair of turns."""
    pipe = load_pipeline(args.model, "auto", "float32")  # of this checkout, not of the folder
    clips = make_clips(folder, args.clips, args.sources)
    tokens = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "num_beams": 1}
    options = {"text": QUESTION, "batch_size": args.batch_size, "num_workers": args.num_workers, **tokens}
    pipe(clips[: args.batch_size], **options)  # warms up
    inputs = {"as given": lambda: (clip for clip in clips), "sorted": lambda: clips}
    processor: dict[str, list[float]] = {order: [] for order in ORDERS}
    clock: dict[str, list[float]] = {order: [] for order in ORDERS}
    answers: dict[str, Any] = {}
    for _ in range(args.rounds):
        for order in ORDERS:
            run = lambda order=order: list(pipe(inputs[order](), **options))  # noqa: E731
            answers[order], seconds, elapsed = measure(run)
            processor[order].append(seconds)
            clock[order].append(elapsed)
    pairs = list(zip(processor["as given"], processor["sorted"], strict=True))
    return {
        "clips": args.clips,
        "batch_size": args.batch_size,
        "processor_seconds": {order: statistics.median(times) for order, times in processor.items()},
        "clock_seconds": {order: statistics.median(times) for order, times in clock.items()},
        "ratios": [given / by_length for given, by_length in pairs],
        "equal_answers": sum(one == other for one, other in zip(*answers.values(), strict=True)),
    }


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a SALMONN")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sources", type=Path, default=Path("hub/salmonn-smol/clips"), help="folder of *.opus")
    with tempfile.TemporaryDirectory() as folder:
        result = compare(parser.parse_args(), Path(folder))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
