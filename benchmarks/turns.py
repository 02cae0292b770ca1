"""Timing in turns: every case runs once in each checkout, then all of them again.

- each checkout has a process of its own, with this checkout's benchmark and that checkout's package
- other load on the machine falls on both alike, so ratios are taken within a turn, and their median is reported
- CPU seconds are those of the process: they tell what was computed even where other processes take the wall clock
- what a case returns is compared too: a change that is faster and wrong shows
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sizes import DTYPES


HERE = Path(__file__).resolve().parent.parent
PEAK_SIZES = (512, 1024, 2048)  # square matrix products, about as large as those of the encoders
ACCELERATOR_PEAK_SIZES = (4096, 8192)  # smaller ones do not fill it
DESCRIBED = ("name", "flop", "audio_seconds", "new_tokens")  # what the parent gets to know of a case
CLOCKS = ("seconds", "cpu_seconds")
MEMORY_RESET = Path("/proc/self/clear_refs")  # Linux forgets the highest memory so far when "5" is written to it


@dataclass(frozen=True)
class Case:
    """What is timed: a call that returns a tensor to compare, the operations it needs, and whether it trains.

    Where seconds of audio or new tokens are given, the table has how many of them are done in a second.
    """

    name: str
    run: Callable[[], torch.Tensor]
    flop: float = 0.0
    has_gradients: bool = False
    audio_seconds: float = 0.0
    new_tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """One run of a case: wall clock, processor time, and how far memory rose above what there was before."""

    seconds: float
    cpu_seconds: float
    memory_mb: float


class MemoryGauge:
    """How far memory rises from now on, in MB: that of a GPU if there is one at work, otherwise of this process."""

    def __init__(self, device: str):
        self.is_on_gpu = torch.device(device).type == "cuda"
        if self.is_on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device) / 1e6
        else:
            self.before = _memory_mb("VmRSS")
            if MEMORY_RESET.exists():
                MEMORY_RESET.write_text("5")
        self.device = device

    def rise_mb(self) -> float:
        highest = torch.cuda.max_memory_allocated(self.device) / 1e6 if self.is_on_gpu else _memory_mb("VmHWM")
        return max(0.0, highest - self.before)


def run_benchmark(parser: argparse.ArgumentParser, make_cases: Callable[[argparse.Namespace], list[Case]]) -> None:
    """Run a benchmark: in turns in this checkout and the one to compare with, then print a table and write JSON.

    Args:
        parser: with the options that `make_cases` reads; those of timing are added.
        make_cases: called in a process for each checkout.
    """
    parser.add_argument("--against", type=Path, help="another checkout of this repository to compare with")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="the cases with this in their names, instead of all")
    parser.add_argument("--repeats", type=int, default=3, help="turns, after one to warm up; 0: that one alone counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # where it puts what cases return
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        _serve([case for case in make_cases(args) if args.only in case.name], args)
        return
    checkouts = [HERE] + ([args.against.resolve()] if args.against else [])
    with tempfile.TemporaryDirectory() as folder:
        workers = [_Worker(path, Path(folder) / f"{index}", args) for index, path in enumerate(checkouts)]
        try:
            result = _take_turns(workers, args.repeats)
        finally:
            for worker in workers:
                worker.close()
    _print_table(result, f"{Path(sys.argv[0]).name}, {args.threads} threads")
    if args.json:
        settings = {
            name: str(value) for name, value in vars(args).items() if name not in ("against", "json", "worker")
        }
        result = {"settings": settings, "commits": [_commit(path) for path in checkouts], **result}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class _Worker:
    """The process of a checkout: it is told numbers of cases and answers with timings, a line each."""

    def __init__(self, checkout: Path, folder: Path, args: argparse.Namespace):
        self.folder, self.name = folder, "this checkout" if checkout == HERE else str(checkout)
        folder.mkdir()
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(args.threads)}
        command = [sys.executable, *sys.argv, "--worker", str(folder)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.cases: list[dict[str, Any]] = self._read()

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        return self._read()

    def output(self, case: int) -> torch.Tensor:
        return torch.load(self.folder / f"{case}.pt", weights_only=True)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # the worker ends with its questions
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"The process of {self.name} ended; what it printed tells why.")
        return json.loads(line)


def _serve(cases: list[Case], args: argparse.Namespace) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    described = [{name: getattr(case, name) for name in DESCRIBED} for case in cases]
    print(json.dumps(described), file=answers, flush=True)
    for question in sys.stdin:
        if question.strip() == "peak":
            answer = matrix_product_peak(DTYPES[args.dtype], args.device)
        else:
            index = int(question)
            with torch.set_grad_enabled(cases[index].has_gradients):
                timing, output = _time(cases[index].run, args.device)
            torch.save(output.detach().float().cpu(), args.worker / f"{index}.pt")
            answer = asdict(timing)
        print(json.dumps(answer), file=answers, flush=True)


def matrix_product_peak(dtype: torch.dtype, device: str) -> dict[str, float]:
    """The fastest matrix product of this moment in FLOP/s, by wall clock and by processor time."""
    best = dict.fromkeys(CLOCKS, 0.0)
    sizes = PEAK_SIZES if torch.device(device).type == "cpu" else PEAK_SIZES + ACCELERATOR_PEAK_SIZES
    for size in sizes:
        left = torch.ones(size, size, dtype=dtype, device=device)  # the right one transposed, as in linear layers
        timings = [_time(lambda: torch.matmul(left, left.T), device)[0] for _ in range(3)]  # noqa: B023  called at once
        for clock in CLOCKS:
            fastest = min(getattr(timing, clock) for timing in timings)
            best[clock] = max(best[clock], 2 * size**3 / fastest)
        if 2 * size**3 / best["seconds"] > 0.2:  # a type without instructions of its own: larger products take long
            break
    return best


def _time(run: Callable[[], torch.Tensor], device: str) -> tuple[Timing, torch.Tensor]:
    _wait_for(device)
    memory = MemoryGauge(device)
    cpu, wall = time.process_time(), time.perf_counter()
    output = run()
    _wait_for(device)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    return Timing(seconds, cpu_seconds, memory.rise_mb()), output


def _wait_for(device: str) -> None:
    """An accelerator is told what to do, and does it later."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def _memory_mb(field: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1000


def _take_turns(workers: Sequence[_Worker], repeats: int) -> dict[str, Any]:
    cases = workers[0].cases
    timings: list[list[list[Timing]]] = [[[] for _ in workers] for _ in cases]  # of each case and checkout
    differences, peaks = [], []
    for turn in range(repeats + 1):
        for index in range(len(cases)):
            pairs = list(zip(workers, timings[index], strict=True))
            for worker, times in pairs if turn % 2 else reversed(pairs):
                times.append(Timing(**worker.ask(f"{index}")))
            if turn == 0:  # later outputs may follow from these, as losses do
                differences.append(_difference([worker.output(index) for worker in workers]))
        peaks.append(workers[0].ask("peak"))
    peak = {clock: max(values[clock] for values in peaks) for clock in CLOCKS}
    rows = []
    for case, of_checkouts, difference in zip(cases, timings, differences, strict=True):
        row = case | _summary(case, of_checkouts, peak)
        rows.append(row if len(workers) == 1 else row | {"largest_difference": difference})
    return {"peak_flop_per_second": peak, "peaks": peaks, "rows": rows}


def _difference(outputs: list[torch.Tensor]) -> float:
    return float((outputs[0] - outputs[-1]).abs().max())


def _summary(case: dict[str, Any], timings: list[list[Timing]], peak: dict[str, float]) -> dict[str, Any]:
    """Of the turns of a case, but the first: the fastest, and the median of the ratios; memory is that of all."""
    row: dict[str, Any] = {}
    flop = case["flop"]
    for clock in CLOCKS:
        mine, *others = [[getattr(timing, clock) for timing in times[1:] or times] for times in timings]
        row[clock] = min(mine)
        row[f"fraction_of_peak_{clock}"] = flop / min(mine) / peak[clock] if flop else None
        for other in others:
            row[f"against_{clock}"] = min(other)
            row[f"times_as_fast_{clock}"] = statistics.median(b / a for a, b in zip(mine, other, strict=True))
    for amount in ("audio_seconds", "new_tokens"):
        if case[amount]:
            row[f"{amount}_per_second"] = case[amount] / row["seconds"]
    row["memory_mb"] = max(timing.memory_mb for timing in timings[0])
    if len(timings) > 1:
        row["against_memory_mb"] = max(timing.memory_mb for timing in timings[1])
    return row | {"timings": [[asdict(timing) for timing in times] for times in timings]}


COLUMNS = {
    "seconds": ("s", ".3f"),
    "cpu_seconds": ("CPU s", ".3f"),
    "fraction_of_peak_cpu_seconds": ("of peak", ".0%"),
    "fraction_of_peak_seconds": ("by s", ".0%"),
    "audio_seconds_per_second": ("RTFx", ".1f"),
    "new_tokens_per_second": ("tokens/s", ".1f"),
    "memory_mb": ("MB", ".0f"),
    "against_seconds": ("other: s", ".3f"),
    "against_cpu_seconds": ("CPU s", ".3f"),
    "against_memory_mb": ("MB", ".0f"),
    "times_as_fast_seconds": ("times as fast", ".2f"),
    "times_as_fast_cpu_seconds": ("by CPU s", ".2f"),
    "largest_difference": ("difference", ".1e"),
}


def _print_table(result: dict[str, Any], title: str) -> None:
    peak = result["peak_flop_per_second"]
    caption = f"matrix product: {peak['seconds'] / 1e9:.1f} GFLOP/s, {peak['cpu_seconds'] / 1e9:.1f} by CPU s"
    table = Table("case", title=title, caption=caption)
    rows = result["rows"]
    shown = {name: column for name, column in COLUMNS.items() if any(name in row for row in rows)}
    for header, _ in shown.values():
        table.add_column(header, justify="right")
    for row in rows:
        cells = ["" if row.get(name) is None else format(row[name], style) for name, (_, style) in shown.items()]
        table.add_row(row["name"], *cells)
    Console(width=150).print(table)
