"""Smaller weights: how large, how fast, and how many answers they change.

    python benchmarks/quantization.py MODEL --data validation --clips 30

Every way runs in a process of its own, so that none finds memory or caches of another, and answers the same clips
greedily, one by one. Needs `pip install ".[evaluation,quantization]"`.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from typing import Any

import jiwer
import torch
from rich.console import Console
from rich.table import Table

from modeling_salmonn.data.rows import load_rows
from modeling_salmonn.evaluation.metrics import english_normaliser
from modeling_salmonn.hub.loading import load_pipeline


WAYS = ("float32", "bfloat16", "int8", "int4")
QUESTION = "Write down exactly what is being said."
NEW_TOKENS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a SALMONN")
    parser.add_argument("--data", required=True, help="manifest or folder of speech with `text`")
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--way", choices=WAYS, help="measure this one here, and print it as JSON")
    arguments = parser.parse_args()
    if arguments.way is not None:
        print(json.dumps(measure(arguments.model, arguments.way, choose_rows(arguments.data, arguments.clips))))
        return
    found = {way: run_alone(way) for way in WAYS}
    show(found, [row["text"] for row in choose_rows(arguments.data, arguments.clips)])


def choose_rows(data: str, count: int) -> list[dict[str, Any]]:
    """The same clips of speech for every way."""
    rows = [
        row for row in load_rows(data, needs=("path",)) if row.get("kind", "speech") == "speech" and row.get("text")
    ]
    return random.Random(0).sample(rows, count)


def run_alone(way: str) -> dict[str, Any]:
    """Measure a way in a process of its own."""
    command = [sys.executable, *sys.argv, "--way", way]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def measure(model: str, way: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes of the weights, seconds of an answer, and the answers.

    The seconds are those of one thread at work, which other load on the machine changes least.
    """
    torch.set_num_threads(1)
    quantise: Any = way if way in ("int8", "int4") else None
    pipe = load_pipeline(model, "cpu", way if quantise is None else "float32", quantise)
    options: dict[str, Any] = {"text": QUESTION, "num_beams": 1, "max_new_tokens": NEW_TOKENS}
    pipe(rows[0]["path"], **options)  # kernels are chosen and packed by the first answer
    start = time.process_time()
    answers = [pipe(row["path"], **options)[0]["generated_text"] for row in rows]
    seconds = (time.process_time() - start) / len(rows)
    weights = {weight.data_ptr() or id(weight): stored_bytes(weight) for weight in pipe.model.parameters()}
    return {"bytes": sum(weights.values()), "seconds": seconds, "answers": answers}


def stored_bytes(weight: torch.Tensor) -> int:
    """Bytes of a weight, of its scales too if it is quantised."""
    if hasattr(weight, "__tensor_flatten__"):  # of torchao: a tensor of tensors
        names, _ = weight.__tensor_flatten__()
        return sum(stored_bytes(getattr(weight, name)) for name in names)
    state = getattr(weight, "quant_state", None)  # of bitsandbytes
    return weight.nbytes + (0 if state is None else state.absmax.nbytes)


def show(found: dict[str, dict[str, Any]], references: list[str]) -> None:
    """Print a row for each way."""
    table = Table("weights", "MB", "CPU s per answer", "WER", "answers as in float32")
    expected = found["float32"]["answers"]
    normalise = english_normaliser()
    wanted = [normalise(text) for text in references]
    for way, one in found.items():
        wer = jiwer.wer(wanted, [normalise(text) for text in one["answers"]])
        same = sum(answer == other for answer, other in zip(one["answers"], expected, strict=True))
        table.add_row(
            way,
            f"{one['bytes'] / 2**20:.0f}",
            f"{one['seconds']:.2f}",
            f"{100 * wer:.1f} %",
            f"{same} of {len(expected)}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
