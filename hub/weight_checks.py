"""Checks of tensors before they become a model's weights: damaged ones load without a word otherwise."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import cached_file

from modeling_salmonn.checkpoint_files_salmonn import CONFIG_FILE, is_finite


SMALLEST_SCALE = 0.3  # of normalisation, on average
LISTED = 5  # tensors spelled out before the rest is only counted


def require_sound(weights: Mapping[str, Any], source: str) -> None:
    """Refuse what cannot be trained weights.

    Args:
        weights: tensors by name.
        source: file or folder that they come from, for the error.

    Raises:
        ValueError: for values that are no floating-point tensors, and for NaN and infinity.
    """
    problems = [f"{name} {problem}" for name, tensor in weights.items() if (problem := _problem(tensor))]
    if problems:
        _refuse(source, problems)


def require_filled(weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights of nothing but zeros, as downloads that were cut off leave; biases and LoRA's B may be such.

    Raises:
        ValueError: naming the tensors.
    """
    empty = [
        name
        for name, tensor in weights.items()
        if (tensor.ndim > 1 or name.endswith(".weight")) and ".lora_B." not in name and not tensor.any()
    ]
    if empty:
        _refuse(source, [f"{name} holds nothing but zeros" for name in empty])


def require_scales(weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights of normalisation that are biases: the former are around 1 and the latter around 0.

    Raises:
        ValueError: naming the tensors.
    """
    norms = [
        (name, tensor, weights[bias])
        for name, tensor in weights.items()
        if name.endswith(".weight") and tensor.ndim == 1 and (bias := f"{name.removesuffix('weight')}bias") in weights
    ]
    swapped = [
        f"{name} and its bias are swapped"
        for name, scale, bias in norms
        if scale.float().mean() < SMALLEST_SCALE < bias.float().mean()
    ]
    if swapped:
        _refuse(source, swapped)


def require_floats_in_files(base: str) -> None:
    """Refuse a base whose files hold whole numbers in place of weights, which the library would convert in silence.

    Args:
        base: folder or Hub id that has been loaded.

    Raises:
        ValueError: naming the tensors.
    """
    config = cached_file(base, CONFIG_FILE)
    folder = Path(str(config)).parent
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    whole = [
        f"{name} is {dtype}, not floating-point"
        for file in files
        for name, dtype, is_floating in _dtypes(file)
        if name.endswith(".weight") and not is_floating
    ]
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


def _dtypes(file: Path) -> Iterator[tuple[str, str, bool]]:
    """Name, type and whether it is floating-point, of each tensor of a file; no values are read."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118
                dtype = content.get_slice(name).get_dtype()
                yield name, dtype, "F" in dtype
        return
    for name, tensor in torch.load(file, map_location="meta", weights_only=True).items():
        if isinstance(tensor, torch.Tensor):
            yield name, str(tensor.dtype).removeprefix("torch."), tensor.is_floating_point()


def _refuse(source: str, problems: list[str]) -> None:
    raise ValueError(f"{source}: {_listing(problems)}. The file is damaged or of another model; download it again.")


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return "; ".join(names[:LISTED]) + more


__all__ = ["require_filled", "require_floats_in_files", "require_scales", "require_sound"]
