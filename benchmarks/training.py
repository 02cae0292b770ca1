"""A training step of the official stages: frozen encoders, trained Q-Former, projection and LoRA.

    python benchmarks/training.py --clip-seconds 2 3 4 5 --against ../before

The forward pass, the backward pass and the step of AdamW, on one batch; what is compared is the first loss.
"""

import argparse

import numpy as np
import torch
from sizes import SAMPLING_RATE, add_sizes, build_extractor, build_model, make_clips, make_prompt
from turns import Case, run_benchmark

from modeling_salmonn.training.stages import prepare_stage
from modeling_salmonn.training.trainer import keep_label_positions


class Step:
    """A model in training with one batch."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.model = args, build_model(args)
        prepare_stage(self.model)
        if args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.train()
        for module in self.model.modules():  # so that losses can be compared
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.model.config.qformer_config.attention_probs_dropout_prob = 0.0
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)
        self.batch = self._make_batch()

    def _make_batch(self) -> dict[str, torch.Tensor]:
        """Prompts of one length, as all clips have equally many tokens, each with an answer."""
        clips, extractor = make_clips(self.args.clip_seconds), build_extractor(self.model.config)
        vocabulary = self.model.config.text_config.vocab_size
        answer = np.random.default_rng(2).integers(3, vocabulary, self.args.answer_tokens).tolist()
        rows = [make_prompt(self.model, extractor, len(clip)) + answer for clip in clips]
        ids = torch.tensor(rows, device=self.args.device)
        labels = ids.clone()
        labels[:, : -self.args.answer_tokens] = -100
        features = extractor(clips, sampling_rate=SAMPLING_RATE).to(self.args.device)
        return keep_label_positions({"input_ids": ids, "labels": labels, "use_cache": False, **features})

    def run(self) -> torch.Tensor:
        """One step; returns the loss."""
        mixed = torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.dtype == "bfloat16")
        with mixed:
            loss = self.model(**self.batch).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def encode(self) -> torch.Tensor:
        """What the frozen encoders take of the step."""
        features = {name: value for name, value in self.batch.items() if "features" in name}
        return torch.cat(self.model.get_encoder_states(**features), dim=-1)

    def cases(self) -> list[Case]:
        return [Case("encoders", self.encode), Case("training step", self.run, has_gradients=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--clip-seconds", type=float, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--answer-tokens", type=int, default=20)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    run_benchmark(parser, lambda args: Step(args).cases())


if __name__ == "__main__":
    main()
