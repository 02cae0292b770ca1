"""Tells models apart by what they answer with, whatever device they are on."""

import hashlib
import json
from typing import Any

from torch import nn

from modeling_salmonn.weight_names_salmonn import part_of


SAMPLED_VALUES = 64  # of each weight of the bases: to merge an adapter or to take another base changes nearly all


def weights_hash(model: nn.Module) -> str:
    """A short hash of a SALMONN's connector and adapter, of samples of its bases, and of how they are stored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {type(tensor).__name__} {tensor.dtype}".encode())
        values = tensor.detach()
        if part_of(name) not in ("connector", "lora"):
            if not values.is_floating_point() or hasattr(values, "__tensor_flatten__"):
                continue  # quantised, by which devices may round otherwise
            values = values.reshape(-1)[:: max(1, values.numel() // SAMPLED_VALUES)]
        digest.update(values.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def answering_record(model: Any) -> dict[str, Any]:
    """What a model's answers depend on besides what it is asked, for the record of a run, as JSON holds it."""
    method = getattr(model, "quantization_method", None)
    # all settings, those that are not set too: one that was set in the other run would not be missed otherwise
    generation = json.loads(model.generation_config.to_json_string(use_diff=False))
    for name in ("transformers_version", "_from_model_config"):  # where they come from
        generation.pop(name, None)
    return {
        "quantization": None if method is None else str(method.value),
        "dtype": str(model.dtype),
        "generation": generation,
        "weights": weights_hash(model),
    }
