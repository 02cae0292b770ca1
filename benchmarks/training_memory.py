"""Memory of a training step, and what each way to save it saves: traced at full size without any weights.

    python benchmarks/training_memory.py --speech large-v2 --text llama-7b-like --clips 8
    python benchmarks/training_memory.py --text-layers 2 --clips 2 --device cpu

- on the device `meta`, the default, the step runs on tensors without content: what they would take is counted as they
  are made and given up, so that a step of 13B takes a minute and no memory
- on another device the step is run, and what the device says it took stands beside the count
- what kernels need within themselves, and what an allocator holds in reserve, is not counted
"""

import argparse
import json
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sizes import DTYPES, PROMPT_TOKENS, add_sizes, build_config, build_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from turns import MemoryGauge

from modeling_salmonn.training.dry_run import build_empty
from modeling_salmonn.training.stages import prepare_stage


MEGABYTE = 1e6
TRACED = "meta"


@dataclass(frozen=True)
class Variant:
    """A way to train; the defaults are those of the official recipes."""

    name: str
    checkpointing: bool = True
    answers_alone: bool = True  # logits where there is a label, instead of everywhere
    frozen_encoders: bool = True  # otherwise their graph is kept, as `enable_input_require_grads` has it


VARIANTS = (
    Variant("as in the recipes"),
    Variant("without gradient checkpointing", checkpointing=False),
    Variant("logits of all positions", answers_alone=False),
    Variant("with a graph of the encoders", frozen_encoders=False),
    Variant("none of the three", checkpointing=False, answers_alone=False, frozen_encoders=False),
)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on, until they are given up."""

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self.storages: dict[int, Any] = {}
        for tensor in known:  # these are there before
            self.storages[id(tensor.untyped_storage())] = tensor.untyped_storage()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.storages:  # a view, or changed in place
            return
        self.live += size
        self.peak = max(self.peak, self.live)
        self.storages[key] = weakref.ref(storage, lambda _: self._remove(key, size))

    def _remove(self, key: int, size: int) -> None:
        del self.storages[key]
        self.live -= size


class Step:
    """A model in training, with full segments and as many answer tokens for each."""

    def __init__(self, args: argparse.Namespace, variant: Variant):
        self.args, self.variant = args, variant
        self.traced = args.device == TRACED
        self.mode = FakeTensorMode() if self.traced else None
        self.model = build_empty(build_config(args), DTYPES[args.dtype]) if self.traced else build_model(args)
        prepare_stage(self.model)
        if variant.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.disable_input_require_grads()  # as `SalmonnTrainer` does
        self.model.train()
        if self.mode is not None:
            _make_traceable(self.model, self.mode)

    def run(self) -> dict[str, float]:
        """Megabytes of weights, kept after the forward pass, and at the highest point of both passes."""
        if self.mode is None:
            return self._run()
        with self.mode:
            return self._run()

    def _run(self) -> dict[str, float]:
        device = "cpu" if self.traced else self.args.device
        features = self._features(device)
        weights = [*self.model.parameters(), *self.model.buffers()]
        gauge = MemoryGauge(device)
        with LiveBytes([*weights, *features.values()]) as counted:
            with torch.autocast(device, torch.bfloat16, enabled=self.args.dtype == "bfloat16"):
                loss = self._loss(features, device)
            kept = counted.live
            loss.backward()
        found = {
            "weights_mb": sum(weight.nbytes for weight in weights) / MEGABYTE,
            "kept_mb": kept / MEGABYTE,
            "peak_mb": counted.peak / MEGABYTE,
        }
        return found if self.traced else found | {"measured_peak_mb": gauge.rise_mb()}

    def _features(self, device: str) -> dict[str, torch.Tensor]:
        config, clips = self.model.config, self.args.clips
        frames = config.audio_layout.longest_segment
        features = {"input_features": torch.rand(clips, config.speech_config.num_mel_bins, frames, device=device)}
        if config.audio_config is not None:
            bins = config.audio_config.num_mel_bins
            features["audio_input_features"] = torch.rand(clips, frames, bins, device=device)
        for value in features.values():
            value.requires_grad_(not self.variant.frozen_encoders)
        return features

    def _loss(self, features: dict[str, torch.Tensor], device: str) -> torch.Tensor:
        """Of prompts that are put together here: a trace has no ids in which to look for placeholders."""
        clips, answer = self.args.clips, self.args.answer_tokens
        tokens = self.model.get_audio_features(**features).pooler_output.unflatten(0, (clips, -1))
        words = torch.zeros(clips, PROMPT_TOKENS + answer, dtype=torch.long, device=device)
        text = self.model.get_input_embeddings()(words)
        embeds = torch.cat([text[:, :4], tokens.to(text.dtype), text[:, 4:]], dim=1)
        length = embeds.shape[1]
        labels = torch.zeros(clips, length, dtype=torch.long, device=device)
        options: dict[str, Any] = {}
        if self.variant.answers_alone:
            options["logits_to_keep"] = torch.arange(length - answer - 1, length - 1, device=device)
            options["shift_labels"] = labels[:, -answer:].contiguous()
        loss = self.model(inputs_embeds=embeds, labels=labels, use_cache=False, **options).loss
        assert loss is not None
        return loss


def _make_traceable(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put tensors without content, that say that they are on a CPU, in the place of those on the meta device."""
    made: dict[int, torch.Tensor] = {}

    def trace(tensor: torch.Tensor) -> Any:
        if id(tensor) not in made:  # tied weights stay tied
            content = FakeTensor(mode, tensor.detach(), torch.device("cpu"))
            is_weight = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(content, tensor.requires_grad) if is_weight else content
        return made[id(tensor)]

    kept = [*model.parameters(), *model.buffers()]  # no id is used twice while they are there
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: trace(tensor) for name, tensor in tensors.items() if tensor is not None})
    del kept


COLUMNS = {"weights_mb": "weights", "kept_mb": "kept", "peak_mb": "peak", "measured_peak_mb": "measured peak"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--clips", type=int, default=8, help="in the batch, each a full segment")
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", default=TRACED)
    parser.add_argument("--only", default="", help="the variants with this in their names, instead of all")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    table = Table("MB", title=f"{args.text}, {args.clips} segments, {args.dtype}, {args.device}")
    variants = [variant for variant in VARIANTS if args.only in variant.name]
    rows = [asdict(variant) | Step(args, variant).run() for variant in variants]
    for name, header in COLUMNS.items():
        if name in rows[0]:
            table.add_column(header, justify="right")
    for row in rows:
        table.add_row(row["name"], *[f"{row[name]:,.0f}" for name in COLUMNS if name in row])
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps({"settings": vars(args) | {"json": str(args.json)}, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
