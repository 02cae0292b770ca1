"""The LoRA adapter of the language model: having one, loading and saving it, and its scale at test time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.helpers import rescale_adapter_scale
from safetensors.torch import save_file
from transformers.integrations import PeftAdapterMixin

from .configuration_salmonn import SalmonnConfig


LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")


class LoraMixin(PeftAdapterMixin):
    """What a SALMONN model does with its LoRA adapter, over what transformers does with those of PEFT."""

    config: SalmonnConfig
    _weight_conversions: Any
    _hf_peft_config_loaded: bool

    def load_adapter(self, *args: Any, ignore_mismatched_sizes: bool | None = None, **kwargs: Any) -> Any:
        """Load a PEFT adapter, as for every transformers model.

        Raises:
            ValueError: if a tensor of the adapter has another shape than the model needs, naming both.
        """
        if ignore_mismatched_sizes is None:
            ignore_mismatched_sizes = getattr(kwargs.get("load_config"), "ignore_mismatched_sizes", False)
        conversions = getattr(self, "_weight_conversions", None)
        try:
            info = super().load_adapter(*args, ignore_mismatched_sizes=True, **kwargs)
        finally:  # the adapter's own would rename the whole model when it is saved
            self._weight_conversions = conversions
        if not ignore_mismatched_sizes:
            require_shapes(info, "The adapter does not fit the model")
        return info

    def add_lora(self) -> None:
        """Have a LoRA adapter to train: the loaded one, or a fresh one of the config (paper, section 3.1).

        Everything else is frozen; `modeling_salmonn.training.stages.prepare_stage` trains the connector too.
        """
        if self._hf_peft_config_loaded:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(".lora_" in name)
            return
        targets = "|".join(self.config.lora_target_modules)
        self.add_adapter(
            LoraConfig(
                r=self.config.lora_rank,
                lora_alpha=self.config.lora_alpha,
                lora_dropout=self.config.lora_dropout,
                # Whisper's attention has modules of the same names: only the language model is meant
                target_modules=rf"(.*\.)?language_model\..*\.({targets})",
            )
        )

    @contextmanager
    def lora_scale(self, scale: float) -> Iterator[None]:
        """Run the body with another LoRA scaling, then restore the trained one, also after an exception.

        Args:
            scale: absolute factor of the LoRA update: the trained one is `config.lora_scaling` (official: 4.0), the
                discounted one of activation tuning about 2.0 (paper, section 3.3), 0 turns the adapter off.

        Raises:
            ValueError: if the model has no LoRA adapter or the scale is negative.
        """
        if not self._hf_peft_config_loaded:
            raise ValueError("lora_scale needs a LoRA adapter, but this model has none; add one with add_lora().")
        if scale < 0:
            raise ValueError(f"lora_scale must not be negative, got {scale}.")
        with rescale_adapter_scale(self, scale / self.config.lora_scaling):
            yield

    def _require_trained_scaling(self, path: str | os.PathLike | None) -> None:
        scalings = {self.peft_config[name].lora_alpha / self.peft_config[name].r for name in self.active_adapters()}
        if scalings != {self.config.lora_scaling}:
            raise ValueError(
                f"adapter_config.json of {path} has the scaling {scalings}, but config.json says "
                f"{self.config.lora_scaling}; make lora_alpha and lora_rank agree."
            )

    def _save_lora(self, save_directory: str | os.PathLike, state_dict: dict[str, torch.Tensor]) -> None:
        os.makedirs(save_directory, exist_ok=True)
        (name,) = self.active_adapters()
        # AutoModel follows this name for a Hub id; a local folder is found without it
        base = self.config.name_or_path
        self.peft_config[name].base_model_name_or_path = base if base and not os.path.isdir(base) else None
        self.peft_config[name].save_pretrained(save_directory)
        adapter = {
            f"base_model.model.{key.replace(f'.{name}.', '.')}": tensor.contiguous()
            for key, tensor in state_dict.items()
            if ".lora_" in key
        }
        save_file(adapter, os.path.join(save_directory, "adapter_model.safetensors"), metadata={"format": "pt"})


def require_shapes(loading_info: Any, problem: str) -> None:
    """Make sure that all loaded tensors have the shapes that the model needs.

    Raises:
        ValueError: if not, naming the problem and each tensor with both shapes.
    """
    shapes = [f"{key} is {tuple(found)}, not {tuple(needed)}" for key, found, needed in loading_info.mismatched_keys]
    if shapes:
        raise ValueError(f"{problem}: {'; '.join(sorted(shapes))}.")


__all__ = ["LoraMixin"]
