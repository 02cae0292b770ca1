"""Tells models apart by what was trained."""

import hashlib

from torch import nn

from modeling_salmonn.pretrained_salmonn import CONNECTOR_PREFIXES


def weights_hash(model: nn.Module) -> str:
    """A short hash of a SALMONN's connector and adapter."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(CONNECTOR_PREFIXES) or ".lora_" in name:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
