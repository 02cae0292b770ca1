"""Which LoRA adapters are fit to be scaled, merged, and saved in a folder that loads again and answers the same."""

import math
import re
from dataclasses import fields
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import nn

from .lora_layers_salmonn import adapted_layers, is_plain, is_quantised, lora_layers


# Options of `LoraConfig` that the saved files hold in full. Others train weights that are not written, change those of
# the base, or do not follow `lora_scale`.
SAVED_OPTIONS = {
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "use_rslora",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_dora",
    "lora_bias",
    "runtime_config",
    *(field.name for field in fields(PeftConfig)),
}
SAVED_INITS = (True, False, "gaussian", "orthogonal")  # others change the base, and would do so again on loading


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
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    unsaved = {
        name: value
        for name, value in given.items()
        if name not in SAVED_OPTIONS and value and value != getattr(default, name)
    }
    if config.init_lora_weights not in SAVED_INITS:
        unsaved["init_lora_weights"] = config.init_lora_weights
    if unsaved:
        named = ", ".join(f"{name}={value!r}" for name, value in unsaved.items())
        raise ValueError(
            f"LoraConfig({named}) is not supported: such an adapter could not be saved and loaded again; leave that "
            "out. To train other weights too, call requires_grad_(True) on them: they are saved with the model."
        )


def require_adapter_name(name: str) -> None:
    """Make sure that an adapter can have a folder of its name, and its weights can be told by it.

    Raises:
        ValueError: for a name that leads elsewhere, or that starts as the names of weights do.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\]+", name) or name.startswith("lora_"):
        raise ValueError(
            f"{name!r} cannot be the name of an adapter; give one without dots and slashes that does not start with "
            "lora_."
        )


def require_linear_layers(model: nn.Module, adapter: str) -> None:
    """Make sure that an adapter is on linear layers alone.

    Raises:
        ValueError: if not, naming the layers.
    """
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


def require_scalable(model: Any, scale: float) -> None:
    """Make sure that `lora_scale` has an effect, and the right one.

    Raises:
        ValueError: if adapters are disabled or merged, are on layers whose update cannot be scaled, or have a scaling
            of 0, from which no other can be reached.
    """
    layers = adapted_layers(model)
    if any(layer.disable_adapters for layer in layers.values()):
        raise ValueError("lora_scale has no effect while adapters are disabled; call enable_adapters() first.")
    require_unmerged(model)
    for adapter in {name for layer in layers.values() for name in layer.active_adapters}:
        require_linear_layers(model, adapter)
        for name, layer in lora_layers(model, adapter).items():
            if layer.scaling[adapter] == 0 and scale != 0:
                raise ValueError(f"{name} was trained with a scaling of 0, so its lora_scale cannot be {scale:g}.")


def require_unmerged(model: nn.Module) -> None:
    """Make sure that no adapter is in the weights while its layers are still there.

    Raises:
        ValueError: if one is.
    """
    merged = [name for name, layer in adapted_layers(model).items() if layer.merged]
    if merged:
        raise ValueError(
            f"The adapter is merged into the weights of {merged[0]}; call unmerge() on these layers, or "
            "model.merge_lora() for a plain model."
        )


def require_mergeable(model: Any) -> None:
    """Make sure that an adapter can become part of the weights without loss.

    Raises:
        ValueError: if it is disabled, or the weights are quantised, sharded or offloaded.
    """
    layers = adapted_layers(model)
    if any(layer.disable_adapters for layer in layers.values()):
        raise ValueError("The adapter is disabled; call enable_adapters() first, or delete_adapter() to drop it.")
    others = [name for name, layer in layers.items() if not is_plain(layer.get_base_layer().weight)]
    if others:
        raise ValueError(
            f"merge_lora needs ordinary weights, but {others[0]} is quantised, sharded or offloaded; load the model "
            "without quantization_config and device_map, merge it, and save it."
        )
    for name, layer in layers.items():
        has_update_bias = any(layer.lora_bias.get(adapter) for adapter in layer.active_adapters)
        if has_update_bias and getattr(layer.get_base_layer(), "bias", None) is None:
            raise ValueError(f"merge_lora has no place for the lora_bias of {name}, which has no bias itself.")


def require_no_foreign_adapters(model: nn.Module) -> None:
    """Make sure that a model that knows of no adapter has none.

    Raises:
        ValueError: if PEFT has put one into its layers behind its back, which would not be saved.
    """
    layers = [name for name, layer in adapted_layers(model).items() if layer.active_adapters]
    if layers:
        raise ValueError(
            f"{layers[0]} has an adapter that this model did not add and would not save; call save_pretrained of the "
            "PeftModel, or use model.add_adapter(config) instead."
        )


def require_savable(model: Any) -> None:
    """Make sure that a folder with the model's adapters will answer as the model does.

    Raises:
        ValueError: if the folder would answer otherwise, with the way out.
    """
    layers = adapted_layers(model).values()
    if any(layer.disable_adapters for layer in layers):
        raise ValueError(
            "The adapter is disabled, but a folder would answer with it; call enable_adapters() first, or "
            "delete_adapter(name) to drop it."
        )
    active = {name for layer in layers for name in layer.active_adapters}
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
        _require_written_scaling(model, adapter)


def _require_written_scaling(model: nn.Module, adapter: str) -> None:
    for name, layer in lora_layers(model, adapter).items():
        rank = layer.r[adapter]
        written = layer.lora_alpha[adapter] / (math.sqrt(rank) if layer.use_rslora[adapter] else rank)
        if not math.isclose(written, layer.scaling[adapter]):
            raise ValueError(
                f"{name} has the scaling {layer.scaling[adapter]:g}, but by its lora_alpha it would load with "
                f"{written:g}; undo that change, or make it part of the weights by model.merge_lora()."
            )


def require_unquantised(written: dict[str, torch.Tensor], adapter_only: bool) -> None:
    """Make sure that the tensors that are written beside an adapter are those of an ordinary model.

    Raises:
        ValueError: if one is quantised, with the way out.
    """
    quantised = [key for key, tensor in written.items() if key.endswith("weight") and is_quantised(tensor)]
    if not quantised:
        return
    if adapter_only:
        way_out = "load the model with a quantization_config that skips model.qformer and model.projector"
    else:
        way_out = "save with adapter_only=True, or load it without quantization_config to save or merge_lora() it"
    raise ValueError(f"{quantised[0]} is quantised and would not load again beside an adapter; {way_out}.")


__all__ = [
    "common_scaling",
    "require_adapter_name",
    "require_linear_layers",
    "require_mergeable",
    "require_no_foreign_adapters",
    "require_savable",
    "require_saved_options",
    "require_scalable",
    "require_unmerged",
    "require_unquantised",
]
