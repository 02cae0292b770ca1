"""The LoRA adapter of a model: having one, its scale, loading and saving it, and making it part of the weights."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import cast_adapter_dtype
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint
from transformers.integrations import PeftAdapterMixin

from .checkpoint_files_salmonn import ADAPTER_FILE
from .configuration_salmonn import SalmonnConfig
from .lora_layers_salmonn import (
    common_scaling,
    lora_layers,
    merge_layers,
    placed_where_layers_compute,
    remove_adapter,
    remove_layers,
    require_adapter_name,
    require_frozen_bases,
    require_linear_layers,
    require_mergeable,
    require_no_foreign_adapters,
    require_savable,
    require_saved_options,
    require_scalable,
    require_unquantised,
    start_offloaded_layers,
)
from .lora_scale_salmonn import add_scalers, checked_scale, checkpoint_in_scale, scaled
from .versions_salmonn import require_matching_versions
from .weight_names_salmonn import forget_bases


LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules")  # of the config


class LoraMixin(PeftAdapterMixin):
    """What a SALMONN model does with its LoRA adapter, over what transformers does with those of PEFT."""

    config: SalmonnConfig
    _weight_conversions: Any
    _hf_peft_config_loaded: bool  # transformers' own account of it

    @property
    def has_lora(self) -> bool:
        """Whether the model has a LoRA adapter, active or not."""
        return self._hf_peft_config_loaded

    def add_lora(self) -> None:
        """Have a LoRA adapter to train: the loaded one, or a fresh one of the config (paper, section 3.1).

        Everything else is frozen; `modeling_salmonn.training.stages.prepare_stage` trains the connector too. The
        adapter is float32, whatever type the model has: small steps are lost in half precision.
        """
        if self.has_lora:
            active = self.active_adapters()
            for adapter in active:
                cast_adapter_dtype(self, adapter)
            for name, parameter in self.named_parameters():
                _, found, matrix = name.rpartition(".lora_")  # ...q_proj.lora_A.default.weight
                parameter.requires_grad_(bool(found) and matrix.split(".")[1] in active)
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

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """Add a fresh LoRA adapter and make it the active one; the config then has its rank and scaling.

        It is float32, as PEFT's own, whatever type the model has.

        Raises:
            TypeError: if `adapter_config` is no PEFT configuration.
            ValueError: if there is an adapter of that name or one that PEFT alone has added, it can be no name, or
                such a one could not be saved and loaded again.
            ImportError: if the installed peft is too old for the installed transformers.
        """
        require_matching_versions()
        require_saved_options(adapter_config)
        name = adapter_name or "default"
        require_adapter_name(name)
        if not self.has_lora:
            require_no_foreign_adapters(self, "add another to")
        with self._undone_on_failure(name):
            super().add_adapter(adapter_config, name)
            self._accept_adapter(name)
            start_offloaded_layers(self, name, adapter_config)
            self._describe_adapter()

    def load_adapter(
        self,
        peft_model_id: str | None = None,
        adapter_name: str | None = None,
        *args: Any,
        load_config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load a LoRA adapter of PEFT, as for every transformers model; the config then has its rank and scaling.

        Raises:
            ValueError: if a tensor of the adapter has another shape than the model needs, naming both, or the
                adapter could not be saved and loaded again.
            ImportError: if the installed peft is too old for the installed transformers.
        """
        require_matching_versions()
        info = self._load_adapter(peft_model_id, adapter_name, *args, load_config=load_config, **kwargs)
        if load_config is None:  # not a part of `from_pretrained`, which compares the adapter with the config
            self._describe_adapter()
        return info

    def _load_adapter(
        self,
        peft_model_id: str | None,
        adapter_name: str | None,
        *args: Any,
        load_config: Any = None,
        ignore_mismatched_sizes: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if ignore_mismatched_sizes is None:
            ignore_mismatched_sizes = getattr(load_config, "ignore_mismatched_sizes", False)
        config = _adapter_config(peft_model_id, load_config, kwargs)
        if config is not None:
            require_saved_options(config)
        if load_config is not None:
            load_config = replace(load_config, hf_quantizer=None)  # which would quantise the adapter too
        name = adapter_name or "default"
        require_adapter_name(name)
        conversions = getattr(self, "_weight_conversions", None)
        try:
            with self._undone_on_failure(name), placed_where_layers_compute(self):
                info = super().load_adapter(
                    peft_model_id, name, *args, load_config=load_config, ignore_mismatched_sizes=True, **kwargs
                )
                if not ignore_mismatched_sizes:
                    require_shapes(info, "The adapter does not fit the model")
                self._accept_adapter(name)
        finally:  # the adapter's own would rename the whole model when it is saved
            self._weight_conversions = conversions
        return info

    @contextmanager
    def _undone_on_failure(self, name: str) -> Iterator[None]:
        """Leave the model as it was, if adding an adapter of this name fails."""
        others = [other for other in getattr(self, "peft_config", {}) if other != name]
        replaced = self.has_lora and name in self.peft_config
        active = self.active_adapters() if others else []
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        described = {field: getattr(self.config, field) for field in LORA_FIELDS}  # for when a check fails late
        try:
            yield
        except Exception:
            if others and not replaced:
                remove_adapter(self, name)
                self.set_adapter(active)
            elif not replaced:
                self._forget_adapters()
            for parameter in trained:  # PEFT froze them
                parameter.requires_grad_(True)
            self.config.update(described)
            raise

    def _forget_adapters(self) -> None:
        """Be a plain model, with the base layers in the place of PEFT's."""
        remove_layers(self)
        self.__dict__.pop("peft_config", None)
        self._hf_peft_config_loaded = False

    def _accept_adapter(self, name: str) -> None:
        """Refuse an adapter that the checks of its configuration cannot see through; have it follow `lora_scale`."""
        require_linear_layers(self, name)
        common_scaling(self, name)
        if not self.peft_config[name].inference_mode:  # it is there to be trained
            cast_adapter_dtype(self, name)
        add_scalers(self)  # before anyone compiles the model, which would not notice them later

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Activate an adapter, as for every transformers model; the config then has its rank and scaling."""
        super().set_adapter(adapter_name)
        self._describe_adapter()

    def _describe_adapter(self) -> None:
        """Have the config tell rank and scaling of the active adapter, as the loader demands."""
        active = self.active_adapters()
        layers = lora_layers(self, active[0]) if len(active) == 1 else {}
        if not layers:
            return
        adapter = self.peft_config[active[0]]
        scaling = next(iter(layers.values())).scaling[active[0]]
        plain = math.isclose(scaling, adapter.lora_alpha / adapter.r)
        self.config.lora_rank = adapter.r
        self.config.lora_alpha = adapter.lora_alpha if plain else scaling * adapter.r  # of `use_rslora`, say
        self.config.lora_dropout = adapter.lora_dropout
        targets = {name.rpartition(".")[2] for name in layers}
        if targets != set(self.config.lora_target_modules):
            self.config.lora_target_modules = sorted(targets)

    @contextmanager
    def lora_scale(self, scale: float) -> Iterator[None]:
        """Run the body with another LoRA scaling; other threads, tasks and models keep theirs.

        The scale belongs to the context of the body, where a block within has its own: threads that are to share it
        run in `contextvars.copy_context()`, tasks and `asyncio.to_thread` do so by themselves.

        Args:
            scale: absolute factor of the LoRA update: the trained one is `config.lora_scaling` (official: 4.0), the
                discounted one of activation tuning about 2.0 (paper, section 3.3), 0 turns the adapter off; of a DoRA
                adapter the magnitudes stay.

        Raises:
            TypeError: if the scale is not a number.
            ValueError: if it is negative or not finite, or the model has no LoRA adapter that can be scaled.
        """
        if not self.has_lora:
            require_no_foreign_adapters(self, "scale")
            raise ValueError("lora_scale needs a LoRA adapter, but this model has none; add one with add_lora().")
        scale = checked_scale(scale)
        require_scalable(self, scale)
        with scaled(add_scalers(self), scale):
            yield

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **kwargs: Any
    ) -> None:
        function = partial(checkpoint_in_scale, gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, function, **kwargs)

    def enable_input_require_grads(self) -> None:
        """Have the language model's inputs ask for gradients, as gradient checkpointing with an adapter may need.

        transformers asks for those of all parts: frozen encoders would keep a graph, and run twice, for nothing.
        """
        self.base_model.language_model.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        self.base_model.language_model.disable_input_require_grads()

    def merge_lora(self) -> Any:
        """Make the active adapters part of the weights, in place; the model is then a plain one, without adapter.

        It answers the same at the trained scale, saves and loads like every plain model, and cannot be scaled any
        more. Other adapters are dropped. The config no longer names the bases whose weights have changed.

        Returns:
            The model itself.

        Raises:
            ValueError: if there is no adapter, it is disabled, or the weights are quantised, sharded or offloaded.
        """
        if not self.has_lora:
            require_no_foreign_adapters(self, "merge")
            raise ValueError("merge_lora needs a LoRA adapter, but this model has none.")
        require_mergeable(self)
        merged = merge_layers(self)
        self._forget_adapters()
        forget_bases(self.config, [f"{name}.weight" for name in merged])
        if "lm_head" in merged:  # no longer the embeddings', if it was
            self.config.tie_word_embeddings = self.config.text_config.tie_word_embeddings = False
        return self

    def _require_trained_scaling(self, path: str | os.PathLike | None) -> None:
        scaling = common_scaling(self, self.active_adapters()[0])
        if not math.isclose(scaling, self.config.lora_scaling):
            raise ValueError(
                f"adapter_config.json of {path} has the scaling {{{scaling}}}, but config.json says "
                f"{self.config.lora_scaling}; make lora_alpha and lora_rank agree."
            )

    def _require_savable(self, written: dict[str, torch.Tensor], adapter_only: bool) -> None:
        """Refuse to save a folder that would not load, or would answer otherwise than the model."""
        if self.has_lora:
            require_savable(self)
        else:
            require_no_foreign_adapters(self, "save")
        if adapter_only:
            require_frozen_bases(self)
        if self.has_lora or adapter_only:
            require_unquantised(written, adapter_only)

    def _save_lora(self, save_directory: str | os.PathLike, state_dict: dict[str, torch.Tensor]) -> None:
        """Write the active adapter into the folder, and others into folders of their names within it."""
        (active,) = self.active_adapters()
        for name in self.peft_config:
            folder = Path(save_directory) if name == active else Path(save_directory) / name
            self._save_adapter(folder, name, state_dict)

    def _save_adapter(self, folder: Path, name: str, state_dict: dict[str, torch.Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # AutoModel follows this name for a Hub id; a local folder is found without it
        base = self.config.name_or_path
        self.peft_config[name].base_model_name_or_path = base if base and not os.path.isdir(base) else None
        self.peft_config[name].save_pretrained(folder)
        adapter = {}
        for key, tensor in state_dict.items():
            layer, found, parameter = key.rpartition(".lora_")
            if found and parameter.split(".")[1] == name:
                matrix, _, kind = parameter.split(".", 2)  # A, default, weight
                adapter[f"base_model.model.{layer}.lora_{matrix}.{kind}"] = tensor.contiguous()
        save_file(adapter, folder / ADAPTER_FILE, metadata={"format": "pt"})


def _adapter_config(path: str | None, load_config: Any, options: dict[str, Any]) -> Any:
    """The configuration that `load_adapter` is given or will read; `None` if it has none to read."""
    path = path or getattr(load_config, "pretrained_model_name_or_path", None)
    if options.get("peft_config") is not None or path is None:
        return options.get("peft_config")
    where = dict(getattr(load_config, "download_kwargs", None) or {})
    where |= options.get("adapter_kwargs") or {}
    if options.get("local_files_only"):
        where["local_files_only"] = True
    return PeftConfig.from_pretrained(path, **where)


def require_shapes(loading_info: Any, problem: str) -> None:
    """Refuse loaded tensors of other shapes than the model needs; the `ValueError` begins with the problem."""
    shapes = [f"{key} is {tuple(found)}, not {tuple(needed)}" for key, found, needed in loading_info.mismatched_keys]
    if shapes:
        raise ValueError(f"{problem}: {'; '.join(sorted(shapes))}.")
