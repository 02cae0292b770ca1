"""The layers of a LoRA adapter: which they are, taking them out again, merging them, and bases that are offloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import delete_adapter
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.integrations.accelerate import load_offloaded_parameter


def lora_layers(model: nn.Module, adapter: str) -> dict[str, LoraLayer]:
    """The layers that an adapter adapts, by name."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name: layer for name, layer in layers.items() if adapter in layer.scaling}


def adapted_layers(model: nn.Module) -> dict[str, BaseTunerLayer]:
    """All layers that PEFT put in the place of others, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


def remove_layers(model: nn.Module) -> None:
    """Put the base layers back in the place of all that PEFT put there."""
    for name, layer in adapted_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def remove_adapter(model: Any, adapter: str) -> None:
    """Take one of several adapters out of its layers."""
    delete_adapter(model, adapter, prefix="lora_")
    model.peft_config.pop(adapter, None)


def merge_layers(model: nn.Module) -> list[str]:
    """Add the active adapters to the weights and remove all of PEFT's layers; returns the names of these layers.

    A weight that other layers share becomes the layer's own. Where a layer fails, none is changed.
    """
    layers = adapted_layers(model)
    bases = {name: layer.get_base_layer() for name, layer in layers.items()}
    shared = {name: base.weight for name, base in bases.items() if _is_shared(model, base.weight)}
    for name, weight in shared.items():
        bases[name].weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    merging = [layer for layer in layers.values() if not layer.merged]
    try:
        for layer in merging:
            layer.merge(safe_merge=True)
    except Exception:
        for layer in merging:
            if layer.merged:
                layer.unmerge()
        for name, weight in shared.items():
            bases[name].weight = weight
        raise
    remove_layers(model)
    return list(layers)


def _is_shared(model: nn.Module, weight: nn.Parameter) -> bool:
    return sum(other is weight for _, other in model.named_parameters(remove_duplicate=False)) > 1


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is an ordinary tensor of floats, neither quantised nor sharded nor offloaded."""
    ordinary = type(weight.data) is torch.Tensor and weight.device.type != "meta"
    return ordinary and weight.is_floating_point() and weight.element_size() > 1


def is_quantised(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds what a quantised layer makes its weight of."""
    coded = not tensor.is_floating_point() or tensor.element_size() == 1
    return coded or type(tensor.data).__module__.startswith("torchao")


def is_offloaded(weight: torch.Tensor) -> bool:
    """Whether accelerate keeps a weight elsewhere until it is needed."""
    return weight.device.type == "meta"


@contextmanager
def placed_where_layers_compute(model: Any) -> Iterator[None]:
    """Have adapters loaded to the devices that their layers compute on; offloaded tensors lie elsewhere."""
    devices = getattr(model, "hf_device_map", None)
    if devices is None:
        yield
        return
    main = next((device for device in devices.values() if device not in ("cpu", "disk")), "cpu")
    model.hf_device_map = {name: main if device in ("cpu", "disk") else device for name, device in devices.items()}
    try:
        yield
    finally:
        model.hf_device_map = devices


def start_offloaded_layers(model: nn.Module, adapter: str, config: LoraConfig) -> None:
    """Give a fresh adapter tensors where PEFT, which follows offloaded weights, gave it none.

    An empty model, all of whose weights are on the meta device, stays so.

    Raises:
        ValueError: if the adapter starts from the weights of such a layer.
    """
    if not any(hasattr(module, "_hf_hook") for module in model.modules()):
        return
    for layer in lora_layers(model, adapter).values():
        pair = (layer.lora_A[adapter], layer.lora_B[adapter])
        if not is_offloaded(pair[0].weight):
            continue
        if config.use_dora:
            raise ValueError("use_dora needs weights that are not offloaded; load the model without device_map.")
        hook = getattr(layer.get_base_layer(), "_hf_hook", None)
        for module in pair:
            module.to_empty(device=getattr(hook, "execution_device", None) or "cpu")
            module.reset_parameters()
        if config.init_lora_weights == "orthogonal":
            layer.orthogonal_init(adapter)
        else:
            layer.reset_lora_parameters(adapter, config.init_lora_weights)


def fetch_offloaded(model: Any, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict with the tensors that accelerate keeps elsewhere."""
    if not hasattr(model, "hf_device_map"):
        return state_dict
    return {
        key: load_offloaded_parameter(model, key) if is_offloaded(tensor) else tensor
        for key, tensor in state_dict.items()
    }


__all__ = [
    "adapted_layers",
    "fetch_offloaded",
    "is_offloaded",
    "is_plain",
    "is_quantised",
    "lora_layers",
    "merge_layers",
    "placed_where_layers_compute",
    "remove_adapter",
    "remove_layers",
    "start_offloaded_layers",
]
