"""What a stage would need: the model is built from its configuration alone, without any weights or memory for them."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.training.arguments import SalmonnTrainingArguments
from modeling_salmonn.training.stages import part_of, prepare_stage, sharded_layers


GIGABYTE = 2**30
GRADIENT_AND_OPTIMISER_BYTES = 4 + 8  # float32: the gradient, and AdamW's two averages
TYPICAL_TEXT_TOKENS = 128
USUAL_DEVICES = 8
NAMED_LAYERS = "FSDP_TRANSFORMER_CLS_TO_WRAP"  # where accelerate's launcher passes them on
# Floats that a decoder layer keeps for the backward pass, per token and hidden feature: inputs of its norms, of its
# projections, of the gated feed-forward layer (whose width is 2.7 times the hidden size in LLaMA)
KEPT_PER_FEATURE = 20


def dry_run(arguments: SalmonnTrainingArguments, config: SalmonnConfig) -> str:
    """Build the model without weights and report its size.

    Args:
        arguments: of the stage.
        config: of the model.

    Returns:
        A table of parameters and memory.

    Raises:
        ValueError: if accelerate was told to shard layers that the model does not have.
    """
    model = build_empty(config, getattr(torch, arguments.dtype))
    prepare_stage(model, arguments.train_lora, arguments.train_speech_encoder, arguments.train_audio_encoder)
    lines = [f"{'part':<16}{'parameters':>16}{'trained':>16}{'GiB':>8}"]
    for part, (count, trained, size) in _sizes(model).items():
        lines.append(f"{part:<16}{count:>16,}{trained:>16,}{size / GIGABYTE:>8.2f}")
    layers = _layers_to_shard(model)
    unsharded = estimate_memory(model, arguments)
    with _processes() as devices:
        shard(model, layers, devices)
        sharded = estimate_memory(model, arguments)
    return "\n".join(
        [
            *lines,
            f"Layers to shard: {', '.join(f'{count} {name}' for name, count in layers.items())}.",
            f"GiB on each device, unsharded: {_in_gigabytes(unsharded)}.",
            f"GiB on each device, sharded over {devices}: {_in_gigabytes(sharded)}.",
        ]
    )


def build_empty(config: SalmonnConfig, dtype: torch.dtype) -> SalmonnForConditionalGeneration:
    """The model on the meta device."""
    with torch.device("meta"):
        return SalmonnForConditionalGeneration(config).to(dtype)


def shard(model: nn.Module, layers: Iterable[str], devices: int) -> None:
    """Wrap an empty model with FSDP2 as accelerate would: each of the layers, and the rest as one.

    Args:
        model: on the meta device; changed in place.
        layers: names of classes.
        devices: processes of the current process group.
    """
    mesh = init_device_mesh("cpu", (devices,))
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def _processes() -> Iterator[int]:
    """The process group that was launched, or one that stands for the usual devices and sends nothing."""
    if distributed.is_initialized():
        yield distributed.get_world_size()
        return
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=USUAL_DEVICES)
    try:
        yield USUAL_DEVICES
    finally:
        distributed.destroy_process_group()


def estimate_memory(model: SalmonnForConditionalGeneration, arguments: SalmonnTrainingArguments) -> dict[str, float]:
    """Bytes of this process' weights, gradients with optimiser states, and roughly of a batch's activations."""
    text = model.config.text_config
    layout = model.config.audio_layout
    tokens = arguments.per_device_train_batch_size * (
        layout.num_audio_tokens(layout.longest_segment) + TYPICAL_TEXT_TOKENS
    )
    kept = 1 if arguments.gradient_checkpointing else KEPT_PER_FEATURE
    computed = 2 if arguments.bf16 or arguments.fp16 else 4
    activations = tokens * text.hidden_size * text.num_hidden_layers * kept * computed
    labelled = arguments.per_device_train_batch_size * TYPICAL_TEXT_TOKENS
    trained = sum(_local(parameter).numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "weights": sum(_local(parameter).nbytes for parameter in model.parameters()),
        "gradients and optimiser": trained * GRADIENT_AND_OPTIMISER_BYTES,
        "activations": activations + labelled * text.vocab_size * (computed + 2 * 4),
    }


def _layers_to_shard(model: nn.Module) -> dict[str, int]:
    """Those that accelerate's configuration names, otherwise those that the trainer names; with their number."""
    existing = sharded_layers(model)
    named = [name for name in os.environ.get(NAMED_LAYERS, "").split(",") if name]
    missing = sorted(set(named) - existing.keys())
    if missing:
        raise ValueError(
            f"accelerate is to shard the layers {missing}, but this model repeats {sorted(existing)}; correct "
            "fsdp_transformer_layer_cls_to_wrap, or leave it out."
        )
    return {name: existing[name] for name in named or existing}


def _sizes(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    """Parameters, trained parameters and bytes of each part, and of all."""
    counts: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        for part in (part_of(name), "all"):
            counts[part] += parameter.numel()
            trained[part] += parameter.numel() if parameter.requires_grad else 0
            sizes[part] += parameter.numel() * parameter.element_size()
    order = [part for part in counts if part != "all"] + ["all"]
    return {part: (counts[part], trained[part], sizes[part]) for part in order}


def _in_gigabytes(memory: dict[str, float]) -> str:
    parts = "; ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in memory.items())
    return f"{parts}; together {sum(memory.values()) / GIGABYTE:.2f}"


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """What this process holds of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


__all__ = ["build_empty", "dry_run", "estimate_memory", "shard"]
