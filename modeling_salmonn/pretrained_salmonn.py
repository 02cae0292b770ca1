"""Loading and saving of SALMONN.

A folder holds either the whole model or only what was trained:

```
full           config.json  model.safetensors      adapter_model.safetensors  adapter_config.json
adapter-only   config.json  connector.safetensors  adapter_model.safetensors  adapter_config.json
```

In the second form the frozen bases are fetched from where the config says. In both, a missing, unexpected or damaged
weight is an error that names it, and `hashes.json` tells what was written.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, extract_commit_hash, has_file

from .base_weights_salmonn import load_base_weights, require_complete
from .checkpoint_files_salmonn import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILES,
    CONFIG_FILE,
    CONNECTOR_FILE,
    GENERATION_FILE,
    check_model_folder,
    full_weight_names,
    is_own_weight_file,
    local_folder,
    require_finite,
    require_layers,
    write_hashes,
)
from .configuration_salmonn import SalmonnConfig
from .lora_layers_salmonn import fetch_offloaded, trained_base_weights
from .lora_salmonn import LoraMixin, require_shapes
from .quantization_salmonn import keep_audio_parts
from .staged_saving_salmonn import replace_files
from .weight_names_salmonn import (
    CONNECTOR_PREFIXES,
    forget_bases,
    is_adapter_name,
    is_training_checkpoint,
    plain_name,
    require_adapter,
    to_live_names,
)


HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")
REPORT_ADVICE = (
    " Nothing is initialised at random in silence; pass output_loading_info=True to load all the same and judge the "
    "report yourself."
)
ONE_FILE_BYTES = 2**62  # a shard as large as that is never full


class SalmonnPreTrainedModel(LoraMixin, PreTrainedModel):
    """Loading and saving of SALMONN: full or adapter-only, and never with weights made up in silence."""

    config_class = SalmonnConfig
    config: SalmonnConfig
    _base_loading_info: dict[str, Any]
    _repeated_adapter_keys: set[str]
    _given_names: frozenset[str] = frozenset()  # to `load_state_dict`, by the shards so far
    base_model_prefix = "model"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["WhisperEncoderLayer", "BeatsLayer", "BeatsPositionConv", "SalmonnQFormerModel"]
    # a cache is moved by its own layers
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True  # text and decoding; how many audio tokens a prompt has depends on the data

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        output_loading_info: bool = False,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a full or an adapter-only checkpoint, with its LoRA adapter where it has one.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            output_loading_info: also return the report of keys, and leave it to the caller to judge it.
            adapter_kwargs: where the adapter is, as `AutoModel` tells it. One that lies alone, and names this model as
                its base, takes the place of the model's own.
            **kwargs: as for every transformers model (`dtype`, `device_map`, `revision`, ...), fields of the config
                included. Of a `quantization_config` the language model alone is quantised; see `keep_audio_parts`.

        Raises:
            ValueError: if keys are missing or unexpected or values are NaN (unless `output_loading_info` is set), a
                file is damaged, a base that an adapter-only checkpoint needs is not named or cannot be loaded
                completely, or `AutoModel` was sent here by the adapter of a repository that has weights of its own.
        """
        path = pretrained_model_name_or_path
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = keep_audio_parts(kwargs["quantization_config"])
        folder = None if path is None else local_folder(path, kwargs.get("subfolder") or "")
        if folder is not None:
            given = {name for name in ("config", "state_dict", "gguf_file") if kwargs.get(name) is not None}
            quantised = hasattr(kwargs.get("config"), "quantization_config")
            check_model_folder(folder, kwargs.get("variant"), given, quantised)
        file_kwargs = {name: kwargs[name] for name in (*HUB_OPTIONS, "revision", "subfolder") if name in kwargs}
        adapter_kwargs = dict(adapter_kwargs or {})
        adapter = adapter_kwargs.pop("_adapter_model_path", None)  # what AutoModel was asked for
        adapter_options = {**file_kwargs, **adapter_kwargs}
        is_apart = adapter is not None and not _is_same(adapter, adapter_options, path, file_kwargs)
        if is_apart:
            _require_adapter_alone(adapter, adapter_options, path, kwargs.get("variant"))
        else:
            adapter = path
        has_lora = is_apart or (path is not None and _has_lora(path, file_kwargs))
        connector = None if path is None else _find_file(path, CONNECTOR_FILE, file_kwargs)
        if connector is not None:
            model = cls._load_connector(path, connector, file_kwargs, model_args, kwargs)
            adapter_info = {}
            if has_lora:
                adapter_info = model._load_adapter(str(adapter), None, adapter_kwargs=adapter_options).to_dict()
        else:
            if has_lora:  # named here, or transformers would take the base in adapter_config.json for a Hub id
                adapter_kwargs["_adapter_model_path"] = str(adapter)
            try:
                model, adapter_info = super().from_pretrained(
                    path, *model_args, output_loading_info=True, adapter_kwargs=adapter_kwargs, **kwargs
                )
            except SafetensorError:
                config_file = None if path is None else _find_file(path, CONFIG_FILE, file_kwargs)
                if config_file is not None:  # downloaded: the check names the file
                    check_model_folder(Path(config_file).parent, kwargs.get("variant"))
                raise
        # transformers was given no path for a connector on its bases, and would name that "None" in what is saved
        model.name_or_path = model.config.name_or_path = str(path or "")
        # one report of base and adapter
        info = {name: set(keys) for name, keys in model._base_loading_info.items()}
        for name in ("missing_keys", "unexpected_keys"):
            info[name] |= set(adapter_info.get(name, ()))
        if not has_lora:
            info["unexpected_keys"] |= model._repeated_adapter_keys
        if output_loading_info:
            return model, info
        source = str(path or "the state dict")
        if kwargs.get("ignore_mismatched_sizes"):
            info["mismatched_keys"] = set()
        require_complete(source, info, REPORT_ADVICE)
        require_finite(model.state_dict().items(), source)
        if is_apart:
            model._describe_adapter()
        elif has_lora:
            model._require_trained_scaling(path)
        return model

    @classmethod
    def _load_connector(
        cls, path: Any, connector: str, file_kwargs: dict[str, Any], model_args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """An adapter-only checkpoint without its adapter, on the bases that its config names."""
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):
            names = {field.name for field in fields(cls.config_class)} - {"dtype"}  # which is the weights' too
            values = {name: kwargs.pop(name) for name in names & kwargs.keys()}
            config = cls.config_class.from_pretrained(config or path, **file_kwargs, **values)
        config = copy.deepcopy(config)
        if hasattr(config, "quantization_config"):  # of bases that are stored as they were before
            kwargs.setdefault("quantization_config", config.quantization_config)
            del config.quantization_config
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        if dtype in (None, "auto"):
            dtype = config.dtype or torch.float32
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        # revision and subfolder are those of the checkpoint: the config names the revisions of the bases
        hub_kwargs = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        weights = load_base_weights(config, dtype, **hub_kwargs) | load_file(connector)
        require_layers(config.to_dict(), len(weights), str(path))
        kwargs |= {"config": config, "dtype": dtype, "state_dict": weights}
        # transformers reads it beside whole weights alone
        if kwargs.get("generation_config") is None and _find_file(path, GENERATION_FILE, file_kwargs):
            kwargs["generation_config"] = GenerationConfig.from_pretrained(path, **file_kwargs)
        return super().from_pretrained(None, *model_args, **kwargs)

    @staticmethod
    def _finalize_model_loading(model: "SalmonnPreTrainedModel", load_config: Any, loading_info: Any) -> Any:
        """Keep the report of the base: `from_pretrained` replaces it by the adapter's."""
        # the checkpoints of a training hold the adapter twice, and here it is read from its own file
        model._repeated_adapter_keys = {key for key in loading_info.unexpected_keys if is_adapter_name(key)}
        loading_info.unexpected_keys -= model._repeated_adapter_keys
        if not load_config.ignore_mismatched_sizes:
            require_shapes(loading_info, "The weights do not fit the config")
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        model._base_loading_info = loading_info.to_dict()
        return loading_info

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        adapter_only: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save a folder that `from_pretrained` loads with `trust_remote_code` and without this package.

        It answers as the model does, by the active adapter; other adapters are written into folders of their names
        within it, for `load_adapter`. The config no longer names a base of which weights are trained: that require
        gradients although others are frozen, or did so in `train()`.

        Args:
            save_directory: folder to write to.
            adapter_only: write only what is trained (Q-Former, LayerNorms, projection, LoRA); the config must name
                the bases by `speech_model_id`, `audio_model_id` and `text_model_id`.
            state_dict: weights to save instead of the model's own.
            is_main_process: whether this process writes, in distributed training.
            **kwargs: as for every transformers model (`max_shard_size`, ...).

        Raises:
            ValueError: if `adapter_only` is set and the config does not name the bases or they are trained, if the
                folder would answer otherwise than the model (two active adapters, merged layers, quantised weights),
                or for `push_to_hub`.
        """
        if kwargs.pop("push_to_hub", False):
            raise ValueError("save_pretrained does not upload; call model.push_to_hub(repo_id) instead.")
        state_dict = fetch_offloaded(self, state_dict if state_dict is not None else self.state_dict())
        if adapter_only:
            self._require_base_ids()
        weights = {plain_name(key): tensor for key, tensor in state_dict.items() if not is_adapter_name(key)}
        self._require_savable(_connector_of(weights) if adapter_only else weights, adapter_only)
        if not adapter_only:
            forget_bases(self.config, trained_base_weights(self))
        if is_training_checkpoint(Path(save_directory)):
            weights |= {key: tensor for key, tensor in state_dict.items() if is_adapter_name(key)}
            if self.has_lora:  # beside whose file `Trainer` finds no shards of the best model
                kwargs.setdefault("max_shard_size", ONE_FILE_BYTES)
        if not is_main_process:  # takes part in gathering sharded weights, and writes nothing
            self._save_base(save_directory, weights, adapter_only, is_main_process=False, **kwargs)
            return
        variant = kwargs.get("variant")
        with replace_files(save_directory, lambda name: is_own_weight_file(name, variant)) as staging:
            if self.has_lora:
                self._save_lora(staging, state_dict)
            self._save_base(staging, weights, adapter_only, is_main_process=True, **kwargs)
            write_hashes(staging)

    def _save_base(
        self,
        folder: str | os.PathLike,
        weights: dict[str, torch.Tensor],
        adapter_only: bool,
        is_main_process: bool,
        **kwargs: Any,
    ) -> None:
        """Everything but the adapter."""
        has_lora = self.has_lora
        try:
            self._hf_peft_config_loaded = False  # or transformers would write the adapter alone
            if not adapter_only:
                super().save_pretrained(folder, state_dict=weights, is_main_process=is_main_process, **kwargs)
            elif is_main_process:
                self._save_connector(folder, weights)
        finally:
            self._hf_peft_config_loaded = has_lora

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, as for every module; those named without an adapter find their place in a model that has one.

        `transformers.Trainer` resumes from a checkpoint, and goes back to the best one, in this way.

        Raises:
            ValueError: if the adapter that is being trained is left out, or there is no place for the given one.
        """
        weights = to_live_names(state_dict, self.state_dict())
        self._given_names = require_adapter(self, weights, self._given_names)
        return super().load_state_dict(weights, strict=strict, assign=assign)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As for every transformers model; with another size the config no longer names the language model's base."""
        size = self.config.text_config.vocab_size
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.config.text_config.vocab_size != size:
            forget_bases(self.config, ["model.language_model.embed_tokens.weight"])
        return embeddings

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Upload the model; its adapter then names the repository as its base, which `AutoModel` follows."""
        self.config.name_or_path = repo_id  # `_save_adapter` writes it into adapter_config.json
        return super().push_to_hub(repo_id, **kwargs)

    def _save_connector(self, save_directory: str | os.PathLike, state_dict: dict[str, torch.Tensor]) -> None:
        # With an empty state dict transformers writes everything but weights: config, code, generation config.
        quantizer = self.__dict__.pop("hf_quantizer", None)  # which would write its own
        try:
            super().save_pretrained(save_directory, state_dict={})
        finally:
            if quantizer is not None:
                self.hf_quantizer = quantizer
        connector = {key: tensor.contiguous() for key, tensor in _connector_of(state_dict).items()}
        save_file(connector, os.path.join(save_directory, CONNECTOR_FILE), metadata={"format": "pt"})

    def _require_base_ids(self) -> None:
        parts = ["speech", "text"] + (["audio"] if self.config.audio_config is not None else [])
        unnamed = [f"{part}_model_id" for part in parts if getattr(self.config, f"{part}_model_id") is None]
        if unnamed:
            raise ValueError(
                f"An adapter-only checkpoint must name its bases, but config.{', config.'.join(unnamed)} "
                "is not set, as it is once a base has been trained or resized; set Hub ids or local paths of the same "
                "weights, or save without adapter_only."
            )


def _connector_of(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state_dict.items() if key.startswith(CONNECTOR_PREFIXES)}


def _find_file(path: str | os.PathLike, name: str, file_kwargs: dict[str, Any]) -> str | None:
    """A file of a folder or of the Hub; `None` where it is not there, or the Hub cannot be reached."""
    found: Any = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **file_kwargs,
    )
    return found


def _has_lora(path: str | os.PathLike, file_kwargs: dict[str, Any]) -> bool:
    found = [name for name in ADAPTER_FILES if _find_file(path, name, file_kwargs) is not None]
    if len(found) == 1:
        (missing,) = set(ADAPTER_FILES) - set(found)
        raise ValueError(f"{path} has {found[0]} but no {missing}; download the folder again.")
    return bool(found)


def _is_same(
    adapter: str | os.PathLike, adapter_options: dict[str, Any], path: Any, file_kwargs: dict[str, Any]
) -> bool:
    """Whether an adapter lies beside the model that it names, which a repository does by its former name too."""
    if str(adapter) == str(path):
        return True
    files = [
        _find_file(adapter, ADAPTER_CONFIG_FILE, adapter_options),
        _find_file(path, ADAPTER_CONFIG_FILE, file_kwargs),
    ]
    first, second = (extract_commit_hash(file, None) for file in files)
    return first is not None and first == second


def _require_adapter_alone(
    adapter: str | os.PathLike, options: dict[str, Any], base: Any, variant: str | None
) -> None:
    """Refuse an adapter beside weights that `AutoModel` leaves out, since it reads those of the named base."""
    place = f"{options['subfolder']}/" if options.get("subfolder") else ""
    where = {name: options[name] for name in ("revision", "token", "local_files_only", "cache_dir") if name in options}
    names = (CONNECTOR_FILE, *full_weight_names(None), *full_weight_names(variant))
    for name in dict.fromkeys(names):  # each is a request
        if has_file(adapter, place + name, **where):
            raise ValueError(
                f"{adapter} has weights of its own ({name}), but its {ADAPTER_CONFIG_FILE} names {base} as the base, "
                f"whose weights AutoModel would read instead. Set base_model_name_or_path to {str(adapter)!r} there, "
                "as `salmonn push` and model.push_to_hub do; or download it, and load the folder: "
                f"AutoModel.from_pretrained(huggingface_hub.snapshot_download({str(adapter)!r}))."
            )
