"""The layers of a LoRA adapter: which they are, taking them out, merging them, offloaded ones, and what is refused.

An adapter is accepted where it can be scaled and merged, and saved in a folder that loads again and answers the same.
Each `require_...` raises a `ValueError` that names the layer or the option, and the way out.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.functional import delete_adapter
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.integrations.accelerate import load_offloaded_parameter

from .weight_names_salmonn import BASES, FIXED_POSITIONS, is_adapter_name, part_of, plain_name


# Options of `LoraConfig` that the saved files hold in full. Others train weights that are not written, change those of
# the base, or do not follow `lora_scale`.
SAVED_OPTIONS = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "fan_in_fan_out", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    "runtime_config",
    *(field.name for field in fields(PeftConfig)),
}
SAVED_INITS = (True, False, "gaussian", "orthogonal")  # others change the base, and would do so again on loading


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
    delete_adapter(model, adapter, prefix="lora_")  # leaves the layers to the other adapters
    model.peft_config.pop(adapter, None)


def merge_layers(model: nn.Module) -> list[str]:
    """Add the active adapters to the weights and remove all of PEFT's layers; returns the names of these layers.

    A weight that other layers share becomes the layer's own. Where a layer fails, none is changed.
    """
    layers = adapted_layers(model)
    bases = {name: layer.get_base_layer() for name, layer in layers.items()}
    weights = [weight for _, weight in model.named_parameters(remove_duplicate=False)]  # a tied one once a place
    shared = {}
    for name, base in bases.items():
        if sum(weight is base.weight for weight in weights) > 1:
            shared[name] = base.weight
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=base.weight.requires_grad)
    merging = [layer for layer in layers.values() if not layer.merged]  # others are in the weights already
    try:
        for layer in merging:
            layer.merge(safe_merge=True)  # raises where the sum would hold NaN
    except Exception:
        for layer in merging:
            if layer.merged:
                layer.unmerge()
        for name, weight in shared.items():
            bases[name].weight = weight
        raise
    remove_layers(model)
    return list(layers)


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is an ordinary tensor of floats, neither quantised nor sharded nor offloaded."""
    return type(weight.data) is torch.Tensor and not is_offloaded(weight) and not is_quantised(weight)


def is_quantised(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds what a quantised layer makes its weight of."""
    coded = not tensor.is_floating_point() or tensor.element_size() == 1  # whole numbers or float8
    return coded or type(tensor.data).__module__.startswith("torchao")


def is_offloaded(weight: torch.Tensor) -> bool:
    """Whether accelerate keeps a weight elsewhere until it is needed."""
    return weight.device.type == "meta"


@contextmanager
def placed_where_layers_compute(model: Any) -> Iterator[None]:
    """Have adapters loaded to the devices that their layers compute on; offloaded tensors lie elsewhere."""
    devices = getattr(model, "hf_device_map", None)
    if devices is None:  # loaded without `device_map`
        yield
        return
    offloading = ("cpu", "disk")
    main = next((device for device in devices.values() if device not in offloading), "cpu")
    model.hf_device_map = {name: main if device in offloading else device for name, device in devices.items()}
    try:
        yield
    finally:
        model.hf_device_map = devices


def start_offloaded_layers(model: nn.Module, adapter: str, config: LoraConfig) -> None:
    """Give a fresh adapter tensors where PEFT, which follows offloaded weights, gave it none."""
    if not any(hasattr(module, "_hf_hook") for module in model.modules()):
        return  # an empty model, all of whose weights are on the meta device, stays so
    for layer in lora_layers(model, adapter).values():
        pair = (layer.lora_A[adapter], layer.lora_B[adapter])
        if not is_offloaded(pair[0].weight):
            continue
        if config.use_dora:  # its magnitudes start from the norms of the weights
            raise ValueError("use_dora needs weights that are not offloaded; load the model without device_map.")
        hook = getattr(layer.get_base_layer(), "_hf_hook", None)  # accelerate's
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
    fetched = {}
    for key, tensor in state_dict.items():
        fetched[key] = load_offloaded_parameter(model, key) if is_offloaded(tensor) else tensor
    return fetched


def trained_base_weights(model: nn.Module) -> list[str]:
    """Names of the weights of bases that are trained, as they require gradients.

    torch has those of all weights required: before an adapter or a stage freezes any, that says nothing.
    """
    has_adapter = any(is_adapter_name(name) for name, _ in model.named_parameters())
    # quantised ones never require any
    is_frozen = [not weight.requires_grad and not is_quantised(weight) for weight in _base_weights(model).values()]
    return trainable_base_weights(model) if has_adapter or any(is_frozen) else []


def trainable_base_weights(model: nn.Module) -> list[str]:
    """Names of the weights of bases that require gradients: all of them, unless somebody has frozen any."""
    return [name for name, weight in _base_weights(model).items() if weight.requires_grad]


def _base_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    weights = {}
    for name, parameter in model.named_parameters():
        if part_of(name) in BASES and not name.endswith(FIXED_POSITIONS):
            weights[plain_name(name)] = parameter
    return weights


def require_saved_options(config: Any) -> None:
    """Make sure that a PEFT configuration asks only for what a saved folder can hold.

    Raises:
        TypeError: if it is no PEFT configuration.
        ValueError: for another method than LoRA, or an option that is not saved, naming it.
    """
    if not isinstance(config, PeftConfig):
        raise TypeError(f"An adapter needs a peft.LoraConfig, got {type(config).__name__}.")
    if type(config) is not LoraConfig:
        raise ValueError(
            f"{type(config).__name__} is not supported: such an adapter could not be saved and loaded again; use "
            "peft.LoraConfig."
        )
    default = LoraConfig()
    unsaved = []
    for field in fields(config):
        value = getattr(config, field.name)
        # options that are off say nothing, whatever their default is
        if field.name not in SAVED_OPTIONS and value and value != getattr(default, field.name):
            unsaved.append(f"{field.name}={value!r}")
    if config.init_lora_weights not in SAVED_INITS:
        unsaved.append(f"init_lora_weights={config.init_lora_weights!r}")
    if unsaved:
        raise ValueError(
            f"LoraConfig({', '.join(unsaved)}) is not supported: such an adapter could not be saved and loaded again; "
            "leave that out. To train other weights too, call requires_grad_(True) on them: they are saved with the "
            "model."
        )


def require_adapter_name(name: str) -> None:
    """Make sure that an adapter can have a folder of its name, and its weights can be told by it."""
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\]+", name) or name.startswith("lora_"):
        raise ValueError(
            f"{name!r} cannot be the name of an adapter; give one without dots and slashes that does not start with "
            "lora_."
        )


def require_linear_layers(model: nn.Module, adapter: str) -> None:
    """Make sure that an adapter is on linear layers alone."""
    layers = lora_layers(model, adapter)
    others = [name for name, layer in layers.items() if not isinstance(dict(layer.lora_B).get(adapter), nn.Linear)]
    if others:
        raise ValueError(
            f"LoRA is not supported on {', '.join(others)}: only linear layers can be saved, loaded again and scaled; "
            "leave these out of target_modules."
        )


def common_scaling(model: nn.Module, adapter: str) -> float:
    """The scaling that all layers of an adapter really have, whatever its configuration says.

    Raises:
        ValueError: if they have several, of which `config.json` could name but one.
    """
    scalings = {name: layer.scaling[adapter] for name, layer in lora_layers(model, adapter).items()}
    lowest, highest = min(scalings, key=scalings.__getitem__), max(scalings, key=scalings.__getitem__)
    if not math.isclose(scalings[lowest], scalings[highest]):
        raise ValueError(
            f"Adapter '{adapter}' has several scalings, {scalings[lowest]:g} at {lowest} and {scalings[highest]:g} at "
            f"{highest}, but config.json names one; choose rank_pattern and alpha_pattern so that they agree."
        )
    return scalings[lowest]


def require_enabled(model: nn.Module, problem: str, way_out: str = "") -> None:
    """Make sure that adapters are not disabled; the error tells the problem that they would be."""
    if any(layer.disable_adapters for layer in adapted_layers(model).values()):
        raise ValueError(f"{problem}; call enable_adapters() first{way_out}.")


def require_scalable(model: Any, scale: float) -> None:
    """Make sure that `lora_scale` has an effect, and the right one."""
    require_enabled(model, "lora_scale has no effect while adapters are disabled")
    require_unmerged(model)
    active = {name for layer in adapted_layers(model).values() for name in layer.active_adapters}
    for adapter in active:
        require_linear_layers(model, adapter)
        for name, layer in lora_layers(model, adapter).items():
            if layer.scaling[adapter] == 0 and scale != 0:  # from which no other can be reached by a factor
                raise ValueError(f"{name} was trained with a scaling of 0, so its lora_scale cannot be {scale:g}.")


def require_unmerged(model: nn.Module) -> None:
    """Make sure that no adapter is in the weights while its layers are still there."""
    merged = [name for name, layer in adapted_layers(model).items() if layer.merged]
    if merged:
        raise ValueError(
            f"The adapter is merged into the weights of {merged[0]}; call unmerge() on these layers, or "
            "model.merge_lora() for a plain model."
        )


def require_mergeable(model: Any) -> None:
    """Make sure that an adapter can become part of the weights without loss."""
    require_enabled(model, "The adapter is disabled", ", or delete_adapter() to drop it")
    for name, layer in adapted_layers(model).items():
        base = layer.get_base_layer()
        if not is_plain(base.weight):
            raise ValueError(
                f"merge_lora needs ordinary weights, but {name} is quantised, sharded or offloaded; load the model "
                "without quantization_config and device_map, merge it, and save it."
            )
        has_update_bias = any(layer.lora_bias.get(adapter) for adapter in layer.active_adapters)
        if has_update_bias and getattr(base, "bias", None) is None:
            raise ValueError(f"merge_lora has no place for the lora_bias of {name}, which has no bias itself.")


def require_no_foreign_adapters(model: nn.Module, asked: str) -> None:
    """Make sure that a model that knows of no adapter has none: PEFT may put one in behind its back.

    Args:
        model: with or without layers of PEFT's.
        asked: what the model cannot do with such an adapter.
    """
    layers = [name for name, layer in adapted_layers(model).items() if layer.active_adapters]
    if layers:
        raise ValueError(
            f"{layers[0]} has an adapter that this model did not add and cannot {asked}; use model.add_adapter(config)"
            " instead of get_peft_model(model, config), or the methods of the PeftModel."
        )


def require_savable(model: Any) -> None:
    """Make sure that a folder with the model's adapters will answer as the model does."""
    problem = "The adapter is disabled, but a folder would answer with it"
    require_enabled(model, problem, ", or delete_adapter(name) to drop it")
    # asked of the layers, since PEFT's own functions may have switched them
    active = {name for layer in adapted_layers(model).values() for name in layer.active_adapters}
    if len(active) != 1:
        raise ValueError(
            f"A folder answers with one adapter, but {sorted(active)} are active; choose one by "
            "model.set_adapter(name), or make all part of the weights by model.merge_lora()."
        )
    require_unmerged(model)
    for adapter, config in model.peft_config.items():
        require_saved_options(config)
        require_linear_layers(model, adapter)
        common_scaling(model, adapter)
        for name, layer in lora_layers(model, adapter).items():
            rank = layer.r[adapter]
            written = layer.lora_alpha[adapter] / (math.sqrt(rank) if layer.use_rslora[adapter] else rank)
            if not math.isclose(written, layer.scaling[adapter]):  # changed by PEFT's own functions
                raise ValueError(
                    f"{name} has the scaling {layer.scaling[adapter]:g}, but by its lora_alpha it would load with "
                    f"{written:g}; undo that change, or make it part of the weights by model.merge_lora()."
                )


def require_frozen_bases(model: nn.Module) -> None:
    """Make sure that a folder without the bases loses nothing that was trained."""
    trained = trained_base_weights(model)
    if trained:
        others = f" and {len(trained) - 1} more" if len(trained) > 1 else ""
        raise ValueError(
            f"An adapter-only checkpoint takes the bases as they were, but {trained[0]}{others} of them "
            "may have been trained; save without adapter_only, or call requires_grad_(False) on what has not changed."
        )


def require_unquantised(written: dict[str, torch.Tensor], adapter_only: bool) -> None:
    """Make sure that the tensors that are written beside an adapter are those of an ordinary model."""
    quantised = [key for key, tensor in written.items() if key.endswith("weight") and is_quantised(tensor)]
    if not quantised:
        return
    way_out = "save with adapter_only=True, or load it without quantization_config to save or merge_lora() it"
    if adapter_only:
        way_out = "load the model with a quantization_config that skips model.qformer and model.projector"
    raise ValueError(f"{quantised[0]} is quantised and would not load again beside an adapter; {way_out}.")
