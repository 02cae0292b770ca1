"""Tells models apart by what was trained."""

import hashlib

from torch import nn

from modeling_salmonn.weight_names_salmonn import part_of


def weights_hash(model: nn.Module) -> str:
    """A short hash of a SALMONN's connector and adapter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if part_of(name) in ("connector", "lora"):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
