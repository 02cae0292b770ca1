"""Studies that ask about a clip again and again: a sweep over LoRA scales, and the perplexity of a probe's answers.

    python benchmarks/studies.py .venv/salmonn-smol --scales 9 --against ../before

Every turn begins afresh, with the model loaded; answers are short, so that hearing is most of the work.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from turns import Case, run_benchmark

from modeling_salmonn.data.tasks import load_tasks
from modeling_salmonn.evaluation.judges import RuleJudge
from modeling_salmonn.evaluation.run import EvaluationSettings
from modeling_salmonn.studies.perplexity import measure_perplexities
from modeling_salmonn.studies.sweep import SCALES, sweep_scales


TEXTS = {"transcript": "Your message has been saved.", "story": "Once there was a sound that nobody could name."}


def make_cases(args: argparse.Namespace) -> list[Case]:
    """The sweep and the perplexities, of the first clips of the folder."""
    clips = [str(path.resolve()) for path in sorted(args.sources.glob("*.opus"))[: args.clips]]
    task = replace(load_tasks()["asr"], new_tokens=args.new_tokens)
    rows = [{"path": clip, "task": "asr", "text": TEXTS["transcript"]} for clip in clips]
    settings = EvaluationSettings(device=args.device, dtype=args.dtype, num_workers=0)

    def sweep() -> torch.Tensor:
        with tempfile.TemporaryDirectory() as output:
            found = sweep_scales(args.model, [task], rows, Path(output), RuleJudge(), SCALES[: args.scales], settings)
        return torch.tensor([summary["asr"]["metrics"]["wer"]["value"] for summary in found.values()])

    def perplexities() -> torch.Tensor:
        probes = [{"path": clip} | TEXTS for clip in clips]
        with tempfile.TemporaryDirectory() as output:
            measure_perplexities({"model": args.model}, probes, Path(output), args.dtype, args.device)
            losses = (Path(output) / "model" / "losses.jsonl").read_text().splitlines()
        return torch.tensor([json.loads(line)["loss"] for line in losses])

    return [Case(f"sweep over {args.scales} scales", sweep), Case("perplexities", perplexities)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a SALMONN with an adapter")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--scales", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=5)
    parser.add_argument("--sources", type=Path, default=Path("hub/salmonn-smol/clips"), help="folder of *.opus")
    run_benchmark(parser, make_cases)


if __name__ == "__main__":
    main()
