"""Many clips at once: seconds of audio and new tokens in a second, and beside them the same language model alone.

    python benchmarks/throughput.py --speech large-v2 --text llama-7b-like --dtype bfloat16 --device cuda
    python benchmarks/throughput.py --batches 1 8 --clip-seconds 10 --new-tokens 20

- for each size of batch: its audio tokens, and its answers from features on; features are made beside the model
- the anchor is the language model alone, with prompts of as many tokens and as many new ones: no way of hearing can be
  faster than that
- `--quantise` loads the model with weights of 8 or 4 bits, as `docs/use.md` has it
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from sizes import DTYPES, SAMPLING_RATE, add_sizes, build_extractor, build_model, make_clips, make_prompt
from turns import Case, run_benchmark

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.hub.quantization import quantization_config


BATCHES = (1, 8, 32, 64)


class Workload:
    """One clip and its prompt, of which batches are made."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.model = args, load_model(args)
        extractor = build_extractor(self.model.config)
        (clip,) = make_clips([args.clip_seconds])
        self.features = extractor(clip, sampling_rate=SAMPLING_RATE).to(args.device)
        self.prompt = torch.tensor([make_prompt(self.model, extractor, len(clip))], device=args.device)

    def audio_tokens(self, count: int) -> torch.Tensor:
        return self.model.get_audio_features(**self._repeat(count)).pooler_output

    def answer(self, count: int) -> torch.Tensor:
        return self._generate(self.prompt.repeat(count, 1), **self._repeat(count))

    def answer_without_audio(self, count: int) -> torch.Tensor:
        words = self.prompt.masked_fill(self.prompt == self.model.config.audio_token_id, 3)
        return self._generate(words.repeat(count, 1))

    def _repeat(self, count: int) -> dict[str, torch.Tensor]:
        repeated = {}
        for name, value in self.features.items():
            repeated[name] = value.repeat(count, *[1] * (value.ndim - 1))
        return repeated

    def _generate(self, ids: torch.Tensor, **audio: Any) -> torch.Tensor:
        count = self.args.new_tokens
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        return self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **audio, **options)

    def cases(self) -> list[Case]:
        """Three for each size of batch."""
        cases = []
        for count in self.args.batches:
            audio, new = count * self.args.clip_seconds, count * self.args.new_tokens
            cases += [
                Case(f"{count}: audio tokens", _call(self.audio_tokens, count), audio_seconds=audio),
                Case(f"{count}: answers", _call(self.answer, count), audio_seconds=audio, new_tokens=new),
                Case(f"{count}: language model alone", _call(self.answer_without_audio, count), new_tokens=new),
            ]
        return cases


def _call(function: Callable[[int], torch.Tensor], count: int) -> Callable[[], torch.Tensor]:
    return lambda: function(count)


def load_model(args: argparse.Namespace) -> SalmonnForConditionalGeneration:
    """The random model, with smaller weights on demand: these are made while a folder is loaded."""
    if args.quantise is None:
        return build_model(args)
    config = quantization_config(args.quantise)  # what is missing is told first
    with tempfile.TemporaryDirectory() as folder:
        build_model(args).save_pretrained(folder)
        model = SalmonnForConditionalGeneration.from_pretrained(
            folder, quantization_config=config, dtype=DTYPES[args.dtype], device_map={"": args.device}
        )
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="clips at once")
    parser.add_argument("--clip-seconds", type=float, default=30.0, help="of each clip")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--quantise", choices=("int8", "int4"), help="of torchao, of bitsandbytes")
    run_benchmark(parser, lambda args: Workload(args).cases())


if __name__ == "__main__":
    main()
