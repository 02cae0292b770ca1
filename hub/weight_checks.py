"""Checks of tensors before they become a model's weights: damaged ones load without a word otherwise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers.utils import cached_file

from modeling_salmonn.checkpoint_files_salmonn import CONFIG_FILE, check_weight_file, is_finite, listing


SMALLEST_SCALE = 0.3  # of normalisation, on average; a bias is below


def require_sound(weights: Mapping[str, Any], source: str) -> None:
    """Refuse what cannot be trained weights: all but floating-point tensors, and NaN and infinity.

    Its `ValueError`, as of all functions here, names the source and the tensors.
    """
    problems = []
    for name, tensor in weights.items():
        problem = _problem(tensor)
        if problem is not None:
            problems.append(f"{name} {problem}")
    if problems:
        _refuse(source, problems)


def require_filled(weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights of nothing but zeros, as downloads that were cut off leave; biases and LoRA's B may be such."""
    empty = []
    for name, tensor in weights.items():
        may_be_zero = ".lora_B." in name or (tensor.ndim == 1 and not name.endswith(".weight"))
        if not may_be_zero and not tensor.any():
            empty.append(f"{name} holds nothing but zeros")
    if empty:
        _refuse(source, empty)


def require_scales(weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights of normalisation that are biases: the former are around 1 and the latter around 0."""
    swapped = []
    for name, scale in weights.items():
        bias = weights.get(f"{name.removesuffix('weight')}bias") if name.endswith(".weight") else None
        if bias is None or scale.ndim != 1:
            continue
        if scale.float().mean() < SMALLEST_SCALE < bias.float().mean():
            swapped.append(f"{name} and its bias are swapped")
    if swapped:
        _refuse(source, swapped)


def require_floats_in_files(base: str) -> None:
    """Refuse a base whose files have whole numbers as weights, which the library has converted in silence."""
    folder = Path(str(cached_file(base, CONFIG_FILE))).parent  # of a Hub id, too
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        check_weight_file(file)
    pickles = [] if files else sorted(folder.glob("*.bin"))  # which loading reads only without the others
    for file in pickles:
        whole = []
        for name, tensor in torch.load(file, map_location="meta", weights_only=True).items():
            if name.endswith(".weight") and isinstance(tensor, torch.Tensor) and not tensor.is_floating_point():
                whole.append(f"{name} {_problem(tensor)}")
        if whole:
            _refuse(base, whole)


def _problem(tensor: Any) -> str | None:
    if not isinstance(tensor, torch.Tensor):
        return f"is a {type(tensor).__name__}, not a tensor"
    if not tensor.is_floating_point():
        return f"is {str(tensor.dtype).removeprefix('torch.')}, not floating-point"
    if tensor.layout != torch.strided:
        return "is sparse"
    if not is_finite(tensor):
        narrow = " in float16; if its values are beyond it, choose bfloat16" if tensor.dtype == torch.float16 else ""
        return f"has NaN or infinite values{narrow}"
    return None


def _refuse(source: str, problems: list[str]) -> NoReturn:
    raise ValueError(f"{source}: {listing(problems)}. The file is damaged or of another model; download it again.")
