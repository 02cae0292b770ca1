"""Where inference time goes: one row per stage, from the samples of a clip to the last new token.

    python benchmarks/inference.py --clip-seconds 5
    python benchmarks/inference.py --clip-seconds 5 --against ../before

- a random model of real sizes; the stages are the package's own modules, the last row is all of them
- operations are those that the audio needs: a row shows how far its stage is from this machine's matrix product
- `--compile` adds a row in which this checkout decodes by compiled steps, and the other one as ever; the first turn,
  which warms up and is in the JSON, holds the compiling
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from decoding import compile_config
from operations import beats_flop, qformer_flop, spectrum_flop, speech_flop, text_flop
from sizes import SAMPLING_RATE, add_sizes, build_extractor, build_model, make_clips, make_prompt
from turns import HERE, Case, run_benchmark

import modeling_salmonn
from modeling_salmonn.processing.audio_features_salmonn import kaldi_fbank, log_mel


class Workload:
    """One clip of at most one segment, and what each stage makes of it."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.model = args, build_model(args)
        self.extractor = build_extractor(self.model.config)
        (self.clip,) = make_clips([args.clip_seconds])
        self.features = self.extract()
        prompt = make_prompt(self.model, self.extractor, len(self.clip))
        self.ids = torch.tensor([prompt], device=args.device)
        with torch.no_grad():
            self.audio_embeds = self.audio_tokens()[None]

    def extract(self) -> Any:
        return self.extractor(self.clip, sampling_rate=SAMPLING_RATE).to(self.args.device)

    def audio_tokens(self) -> torch.Tensor:
        return self.model.get_audio_features(**self.features).pooler_output

    def encode(self, *names: str) -> torch.Tensor:
        """States of the encoder whose features these are."""
        used = {name: self.features[name] for name in ("input_features_mask", *names)}
        return self.model.get_encoder_states(**used)[0]

    def prefill(self) -> torch.Tensor:
        return self.model(self.ids, audio_embeds=self.audio_embeds, use_cache=True, logits_to_keep=1).logits

    def generate(self, **audio: Any) -> torch.Tensor:
        count = self.args.new_tokens
        return self.model.generate(self.ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, **audio)

    def generate_compiled(self) -> torch.Tensor:
        if not Path(modeling_salmonn.__file__).is_relative_to(HERE):  # of the checkout to compare with
            return self.generate(**self.extract())
        return self.generate(**self.extract(), cache_implementation="static", compile_config=compile_config())

    def cases(self) -> list[Case]:
        """A case for each stage, those of the audio first."""
        config, parts, extractor = self.model.config, self.model.model, self.extractor
        layout, frames = config.audio_layout, extractor.num_audio_frames(len(self.clip))
        waveform = torch.from_numpy(self.clip)[None]
        width = config.qformer_config.encoder_hidden_size
        windows = torch.randn(layout.num_audio_tokens(frames), layout.window_frames, width).to(self.audio_embeds)
        speech = speech_flop(config.speech_config, layout.padded_length(frames))
        qformer = qformer_flop(config, *windows.shape[:2])
        beats = 0.0 if config.audio_config is None else beats_flop(config.audio_config, frames)
        prompt, new, text = self.ids.shape[1], self.args.new_tokens, config.text_config
        prefill = text_flop(text, prompt, 0)
        answer = prefill + sum(text_flop(text, 1, prompt + step) for step in range(new - 1))
        cases = [
            Case("log-mel", lambda: log_mel(waveform, extractor.feature_size), spectrum_flop(frames, 400, 80)),
            Case("fbank (float64)", lambda: kaldi_fbank(waveform, 128), spectrum_flop(frames, 512, 128)),
            Case("both features", lambda: self.extract()["input_features"]),
            Case("Whisper encoder", lambda: self.encode("input_features"), speech),
            Case("Q-Former", lambda: parts.projector(parts.qformer(windows)[0]), qformer),
            Case("= audio tokens", self.audio_tokens, speech + beats + qformer),
            Case("prefill", self.prefill, prefill),
            Case("prefill and decode", lambda: self.generate(audio_embeds=self.audio_embeds), answer),
            Case("= samples to answer", lambda: self.generate(**self.extract()), speech + beats + qformer + answer),
        ]
        if self.args.compile:
            total = speech + beats + qformer + answer
            cases.append(Case("= samples to answer, compiled", self.generate_compiled, total))
        if config.audio_config is not None:
            names = ("audio_input_features", "audio_input_features_mask")
            cases.insert(4, Case("BEATs", lambda: self.encode(*names), beats))
        return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--clip-seconds", type=float, default=5.0, help="at most the longest segment")
    parser.add_argument("--new-tokens", type=int, default=40)
    parser.add_argument("--compile", action="store_true", help="decode by compiled steps too")
    run_benchmark(parser, lambda args: Workload(args).cases())


if __name__ == "__main__":
    main()
