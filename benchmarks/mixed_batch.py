"""A batch of clips of different lengths: its audio tokens, and all from samples to the last new token.

python benchmarks/mixed_batch.py --clip-seconds 2 4 7 9 12 15 17 20 --against ../before
"""

import argparse

import torch
from sizes import SAMPLING_RATE, add_sizes, build_extractor, build_model, make_clips, make_prompt
from torch.nn.utils.rnn import pad_sequence
from turns import Case, run_benchmark


class Workload:
    """Clips with a prompt for each, padded on the left."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.model = args, build_model(args)
        self.extractor = build_extractor(self.model.config)
        self.clips = make_clips(args.clip_seconds)
        self.prompts = [torch.tensor(make_prompt(self.model, self.extractor, len(clip))) for clip in self.clips]
        self.features = self.extractor(self.clips, sampling_rate=SAMPLING_RATE).to(args.device)

    def answer(self) -> torch.Tensor:
        """New tokens of the clips."""
        device, count = self.args.device, self.args.new_tokens
        features = self.extractor(self.clips, sampling_rate=SAMPLING_RATE).to(device)
        ids = pad_sequence(self.prompts, batch_first=True, padding_side="left").to(device)
        ones = [torch.ones_like(prompt) for prompt in self.prompts]
        mask = pad_sequence(ones, batch_first=True, padding_side="left").to(device)
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        return self.model.generate(input_ids=ids, attention_mask=mask, **features, **options)[:, ids.shape[1] :]

    def cases(self) -> list[Case]:
        return [
            Case("audio tokens", lambda: self.model.get_audio_features(**self.features).pooler_output),
            Case("= samples to answers", self.answer),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--clip-seconds", type=float, nargs="+", default=[2, 4, 7, 9, 12, 15, 17, 20])
    parser.add_argument("--new-tokens", type=int, default=40)
    run_benchmark(parser, lambda args: Workload(args).cases())


if __name__ == "__main__":
    main()
