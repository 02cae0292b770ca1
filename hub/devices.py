"""The device that a command runs on."""

import torch


AUTO = "auto"


def resolve_device(name: str = AUTO) -> torch.device:
    """The device of a name: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is the accelerator, or the CPU without one.

    Raises:
        ValueError: if there is no such device here.
    """
    if name == AUTO:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter of torch without CUDA
        raise ValueError(
            f"There is no device {name!r} here; give auto, cpu, cuda, cuda:1, mps or another of torch's."
        ) from error
    return torch.device(name)  # not the device of the tensor: "cuda" is the one of each process
