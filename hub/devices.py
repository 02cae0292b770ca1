"""The device that a command runs on, and the processes that share its work."""

from datetime import timedelta

import torch
from accelerate import PartialState


AUTO = "auto"
WORKERS = 2  # beside a model on an accelerator
PATIENCE = timedelta(days=7)  # for another process to finish its share; one that dies ends all of them


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


def process_state() -> PartialState:
    """This process among those that `accelerate launch` has started, be it on CPUs."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def default_workers(device: torch.device) -> int:
    """How many processes read clips beside the model: none where it computes on the cores that they would need."""
    return 0 if device.type == "cpu" else WORKERS
