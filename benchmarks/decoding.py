"""What a new token costs: the ways in which `generate` can decode, beside the least that it has to do.

    python benchmarks/decoding.py --threads 1
    python benchmarks/decoding.py --threads 1 --model .venv/salmonn-smol --clip hub/salmonn-smol/clips/speech.opus

- the first rows are what a single token needs: all weights of the language model read once, its matrix products, and
  its attention to the prompt (`--only token` shows them alone)
- the other rows are `generate`, from the audio tokens of a clip, which is encoded before, to the last new token
- `--compile` adds compiled steps, which on a CPU need a C++ compiler; their first turn, which warms up and is in the
  JSON, holds the compiling (transformers compiles greedy search and sampling, not beams)
"""

import argparse
from copy import deepcopy
from typing import Any

import torch
from sizes import DTYPES, SAMPLING_RATE, add_sizes, build_extractor, build_model, make_clips, make_prompt
from torch import nn
from transformers import AutoModel, AutoProcessor, CompileConfig
from turns import Case, run_benchmark

from modeling_salmonn import SalmonnForConditionalGeneration


QUESTION = "Write down exactly what is being said."
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, static cache": {"cache_implementation": "static"},
    "greedy, prompt lookup": {"prompt_lookup_num_tokens": 10},
    "4 beams": {"num_beams": 4},
}


class Decoding:
    """A prompt whose audio is encoded, and the model with its adapter in the weights, and with it beside them."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        ids, features = self.load() if args.model else self.build()
        if args.quantize:
            self.quantise()
        self.inputs: dict[str, Any] = {name: value.to(args.device) for name, value in ids.items()}
        with torch.no_grad():
            tokens = self.merged.get_audio_features(**features.to(args.device)).pooler_output
        self.inputs["audio_embeds"] = tokens[None]

    def build(self) -> tuple[dict[str, torch.Tensor], Any]:
        """Random weights and noise; the adapter starts at zero, so that it changes no answer."""
        self.merged = build_model(self.args)
        self.adapted = deepcopy(self.merged)
        self.adapted.add_lora()
        extractor = build_extractor(self.merged.config)
        (clip,) = make_clips([self.args.clip_seconds])
        ids = torch.tensor([make_prompt(self.merged, extractor, len(clip))])
        return {"input_ids": ids}, extractor(clip, sampling_rate=SAMPLING_RATE)

    def load(self) -> tuple[dict[str, torch.Tensor], Any]:
        """A saved model, by the code of this checkout, and a clip of speech."""
        processor = AutoProcessor.from_pretrained(self.args.model)
        self.adapted = AutoModel.from_pretrained(self.args.model, dtype=DTYPES[self.args.dtype]).to(self.args.device)
        self.merged = deepcopy(self.adapted).merge_lora() if self.adapted.has_lora else self.adapted
        inputs = processor(text=QUESTION, audio=self.args.clip)
        ids = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
        return ids, inputs

    def quantise(self) -> None:
        """Weights of 8 bits, each row with its scale, where `salmonn ask --quantize int8` has them."""
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(self.merged.model.language_model, Int8WeightOnlyConfig())

    def generate(self, model: SalmonnForConditionalGeneration, **options: Any) -> torch.Tensor:
        count = self.args.new_tokens
        fixed = {} if self.args.model else {"min_new_tokens": count}  # a trained model ends its answers
        return model.generate(**self.inputs, **{"max_new_tokens": count, "num_beams": 1, **fixed, **options})

    def products(self) -> torch.Tensor:
        """The linear layers of one step, each on a vector of ones."""
        total = torch.zeros((), device=self.args.device)
        like = self.inputs["audio_embeds"]
        for layer in self.linear_layers():
            ones = torch.ones(1, 1, layer.in_features, dtype=like.dtype, device=like.device)
            total = layer(ones).sum() + total
        return total

    def attention(self) -> torch.Tensor:
        """The attention of one step in all layers, to as many keys as the prompt has."""
        config = self.merged.config.text_config
        heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        like = self.inputs["audio_embeds"]
        query = torch.ones(1, heads, 1, width, dtype=like.dtype, device=like.device)
        keys = query.expand(1, heads, self.inputs["input_ids"].shape[1], width).contiguous()
        for _ in range(config.num_hidden_layers):
            query = nn.functional.scaled_dot_product_attention(query, keys, keys)
        return query

    def linear_layers(self) -> list[nn.Linear]:
        language_model = self.merged.model.language_model
        layers = [layer for layer in language_model.modules() if isinstance(layer, nn.Linear)]
        return [*layers, self.merged.lm_head]

    def cases(self) -> list[Case]:
        cases = [Case("products of a token", self.products), Case("attention of a token", self.attention)]
        if not self.args.quantize:
            weights = [layer.weight for layer in self.linear_layers()]
            cases.insert(0, Case("weights of a token", lambda: torch.stack([weight.sum() for weight in weights])))
            cases.append(Case("greedy, adapter beside", lambda: self.generate(self.adapted)))
        for name, options in WAYS.items():
            cases.append(self.case(name, options))
        if self.args.compile:
            compiled = {"cache_implementation": "static", "compile_config": compile_config()}
            cases.append(self.case("greedy, compiled", compiled))
        return cases

    def case(self, name: str, options: dict[str, Any]) -> Case:
        return Case(name, lambda: self.generate(self.merged, **options))


def compile_config() -> CompileConfig:
    """A step as one graph; on a CPU, which transformers would leave out, with products of one row as sums.

    Such a product reads each weight once. Inductor's own loop reads them faster than the matrix product of the BLAS,
    up to this many rows or columns: more than any vocabulary has.
    """
    sums = {"decompose_mm_pass": {"cpu_max_other_dimension_decomposition": 2**20}}
    config = CompileConfig(fullgraph=True, dynamic=False, mode=None, options={"post_grad_fusion_options": sums})
    config._compile_all_devices = True
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--model", help="folder of a SALMONN instead of random weights")
    parser.add_argument("--clip", default="hub/salmonn-smol/clips/speech.opus", help="speech to ask that model about")
    parser.add_argument("--clip-seconds", type=float, default=5.0, help="noise for random weights")
    parser.add_argument("--new-tokens", type=int, default=40, help="at most, for a saved model")
    parser.add_argument("--quantize", choices=["int8"], help="needs the extra quantization")
    parser.add_argument("--compile", action="store_true", help="compiled steps too")
    run_benchmark(parser, lambda args: Decoding(args).cases())


if __name__ == "__main__":
    main()
