"""What a stage trains: Q-Former, LayerNorms, projection and LoRA; on demand also the encoders.

All three stages train the same parts (paper, section 3.3); they differ in data and length.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from modeling_salmonn.lora_layers_salmonn import trained_base_weights
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.weight_names_salmonn import ENCODERS, FIXED_POSITIONS, forget_bases, part_of, plain_name


def prepare_stage(
    model: SalmonnForConditionalGeneration,
    train_lora: bool = True,
    train_speech_encoder: bool = False,
    train_audio_encoder: bool = False,
) -> None:
    """Choose what is trained, in place; all of it becomes float32, whatever type the bases have.

    Frozen encoders stay in eval mode from now on, also after `model.train()`. A base that is trained, or was, is
    no longer the one that the config names: its id and its revision are cleared, so that checkpoints of this and of
    later stages hold its weights. A model without an adapter gets a fresh one for `train_lora`.

    Raises:
        ValueError: if the audio encoder of a model without one is to be trained.
    """
    if train_audio_encoder and model.model.audio_encoder is None:
        raise ValueError("train_audio_encoder is set, but this model has no audio encoder; leave it out.")
    if train_lora and not model.has_lora:
        model.add_lora()
    trained = {"connector"}
    if train_lora:
        trained.add("lora")
    if train_speech_encoder:
        trained.add("speech_encoder")
    if train_audio_encoder:
        trained.add("audio_encoder")
    forget_bases(model.config, trained_base_weights(model))  # before they are frozen again
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in trained and not name.endswith(FIXED_POSITIONS))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps are lost in half precision
    for encoder in ENCODERS:
        module = getattr(model.model, encoder)
        if module is not None:
            keep_in_eval(module, encoder not in trained)
    forget_bases(model.config, trained_base_weights(model))


def trained_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Names of the trained parameters of each part."""
    names = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            names[part_of(name)].append(name)
    return dict(names)


def keep_in_eval(module: nn.Module, keep: bool = True) -> None:
    """Make a module stay in eval mode (no dropout, no LayerDrop) whatever `train()` asks for, or end that."""
    # On the instance, past `nn.Module.__setattr__`: the class, which others may use, stays as it is.
    module.__dict__.pop("train", None)
    if keep:
        module.eval()
        module.__dict__["train"] = MethodType(_ignore_train, module)


def _ignore_train(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def sharded_layers(model: SalmonnForConditionalGeneration, named: Sequence[str] = ()) -> dict[str, int]:
    """Classes of the layers that FSDP shards and gathers one by one, and how many there are of each.

    They are the language model's, or those of them that are `named`. Layers before it run as often as the clips of a
    process have lengths, and processes that do not gather equally often would wait for each other, or mix up what they
    send. FSDP gathers these with all the rest, once for each pass.

    Raises:
        ValueError: if others are named.
    """
    modules = model.model.language_model.modules()
    existing = Counter(type(module).__name__ for module in modules if isinstance(module, GradientCheckpointingLayer))
    others = sorted(set(named) - existing.keys())
    if others:
        raise ValueError(
            f"accelerate is to shard the layers {others}, but only those of the language model, {sorted(existing)}, "
            "run equally often in all processes; correct fsdp_transformer_layer_cls_to_wrap, or leave it out."
        )
    return {name: existing[name] for name in named or sorted(existing)}


def load_trained(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy weights, named as `save_pretrained` names them, into the model, in the model's own types.

    Raises:
        ValueError: if a trained parameter is missing, or a weight has no place or another shape.
    """
    places: dict[str, Any] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        places[plain_name(name).replace(".default.", ".")] = tensor  # as peft saves them
    given = {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}
    missing = sorted(name for name, tensor in places.items() if tensor.requires_grad and name not in given)
    unknown = sorted(given.keys() - places.keys())
    shapes = [name for name in given.keys() & places.keys() if given[name].shape != places[name].shape]
    if missing or unknown or shapes:
        raise ValueError(
            f"The checkpoint does not fit the model: missing {missing}, unexpected {unknown}, of other shapes "
            f"{sorted(shapes)}; resume with the settings that it was trained with."
        )
    with torch.no_grad():
        for name, tensor in given.items():
            place = places[name]
            if isinstance(place, DTensor):  # sharded by FSDP
                tensor = distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)
            place.copy_(tensor)
