"""What a stage would need: the model is built from its configuration alone, without any weights or memory for them."""

import math
import os
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.training.arguments import SalmonnTrainingArguments
from modeling_salmonn.training.stages import prepare_stage, sharded_layers
from modeling_salmonn.weight_names_salmonn import part_of


GIGABYTE = 2**30
GRADIENT_AND_OPTIMISER_BYTES = 4 + 8  # float32: the gradient, and AdamW's two averages
TYPICAL_TEXT_TOKENS = 128  # of instruction and answer
USUAL_DEVICES = 8  # of one machine
NAMED_LAYERS = "FSDP_TRANSFORMER_CLS_TO_WRAP"  # where accelerate's launcher passes them on
# Floats that a decoder layer keeps for the backward pass, per token and hidden feature: inputs of its norms, of its
# projections, of the gated feed-forward layer (whose width is 2.7 times the hidden size in LLaMA)
KEPT_PER_FEATURE = 20


def dry_run(arguments: SalmonnTrainingArguments, config: SalmonnConfig) -> str:
    """Build the model of a stage without weights, and report its parameters and memory as a table.

    Raises:
        ValueError: if accelerate was told to shard layers that are not the language model's.
    """
    model = build_empty(config, getattr(torch, arguments.dtype))
    prepare_stage(model, arguments.train_lora, arguments.train_speech_encoder, arguments.train_audio_encoder)
    lines = [f"{'part':<16}{'parameters':>16}{'trained':>16}{'GiB':>8}"]
    for part, (count, trained, size) in _sizes(model).items():
        lines.append(f"{part:<16}{count:>16,}{trained:>16,}{size / GIGABYTE:>8.2f}")
    named = [name for name in os.environ.get(NAMED_LAYERS, "").split(",") if name]
    layers = [f"{count} {name}" for name, count in sharded_layers(model, named).items()]
    lines.append(f"Layers to shard: {', '.join(layers)}.")
    lines.append(f"GiB on each device, unsharded: {_in_gigabytes(estimate_memory(model, arguments))}.")
    devices = distributed.get_world_size() if distributed.is_initialized() else USUAL_DEVICES
    sharded = estimate_memory(model, arguments, devices)
    lines.append(f"GiB on each device, sharded over {devices}: {_in_gigabytes(sharded)}.")
    return "\n".join(lines)


def build_empty(config: SalmonnConfig, dtype: torch.dtype) -> SalmonnForConditionalGeneration:
    """The model on the meta device."""
    with torch.device("meta"):
        return SalmonnForConditionalGeneration(config).to(dtype)


def estimate_memory(
    model: SalmonnForConditionalGeneration, arguments: SalmonnTrainingArguments, devices: int = 1
) -> dict[str, float]:
    """Bytes of weights, of gradients with optimiser states, and roughly of a batch's activations, on a device.

    Weights may be on the meta device; `devices` is on how many they are sharded.
    """
    weights = trained = 0
    for parameter in model.parameters():
        # FSDP cuts each tensor along its first dimension; the first device has the largest part.
        share = math.ceil(parameter.shape[0] / devices) / parameter.shape[0]
        weights += round(parameter.nbytes * share)
        trained += round(parameter.numel() * share) if parameter.requires_grad else 0
    text = model.config.text_config
    layout = model.config.audio_layout
    batch_size = arguments.per_device_train_batch_size
    tokens = batch_size * (layout.num_audio_tokens(layout.longest_segment) + TYPICAL_TEXT_TOKENS)
    kept = 1 if arguments.gradient_checkpointing else KEPT_PER_FEATURE  # 1: the input of each layer alone
    computed = 2 if arguments.bf16 or arguments.fp16 else 4  # bytes of a float
    activations = tokens * text.hidden_size * text.num_hidden_layers * kept * computed
    labelled = batch_size * TYPICAL_TEXT_TOKENS  # other positions get no logits
    return {
        "weights": weights,
        "gradients and optimiser": trained * GRADIENT_AND_OPTIMISER_BYTES,
        # Logits as they are computed, and in float32 with their gradient for the loss.
        "activations": activations + labelled * text.vocab_size * (computed + 2 * 4),
    }


def _sizes(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters, trained parameters and bytes of each part, and of all."""
    sizes: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        trained = parameter.numel() if parameter.requires_grad else 0
        own = np.array([parameter.numel(), trained, parameter.nbytes])
        for part in (part_of(name), "all"):
            sizes[part] = sizes.get(part, 0) + own
    sizes["all"] = sizes.pop("all")  # the last line of the table
    return sizes


def _in_gigabytes(memory: dict[str, float]) -> str:
    parts = "; ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in memory.items())
    return f"{parts}; together {sum(memory.values()) / GIGABYTE:.2f}"
