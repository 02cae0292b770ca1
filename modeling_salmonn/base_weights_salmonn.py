"""Weights of the frozen bases (Whisper, BEATs, language model) under the names of `SalmonnForConditionalGeneration`.

Used by adapter-only checkpoints, which store no base, and by the conversion of the research code's files.
Nothing here executes a pickle: `.pt` files are read with `weights_only=True`.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, WhisperModel

from .checkpoint_files_salmonn import check_base_folder, local_folder, require_finite
from .configuration_salmonn import BeatsConfig, SalmonnConfig
from .modeling_beats import BeatsModel


StateDict = dict[str, torch.Tensor]
# What transformers, torch and safetensors raise for files that they cannot read, and for configs of wrong types.
UNREADABLE = (OSError, RuntimeError, EOFError, UnpicklingError, SafetensorError, TypeError, StrictDataclassError)

# Buffers that old checkpoints carry and current models compute themselves.
OBSOLETE_TEXT_KEYS = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$")

# `original0` is the magnitude, `original1` the direction; torch called them `weight_g` and `weight_v`.
_POSITION_WEIGHT = "position_conv.conv.parametrizations.weight.original"
BEATS_RENAMES = (
    (r"^post_extract_proj\.", "patch_projection."),
    (r"^layer_norm\.", "patch_layer_norm."),
    (r"^encoder\.layer_norm\.", "layer_norm."),
    (r"^encoder\.pos_conv\.0\.bias$", "position_conv.conv.bias"),
    (r"^encoder\.pos_conv\.0\.(weight_g|parametrizations\.weight\.original0)$", _POSITION_WEIGHT + "0"),
    (r"^encoder\.pos_conv\.0\.(weight_v|parametrizations\.weight\.original1)$", _POSITION_WEIGHT + "1"),
    (r"^encoder\.layers\.0\.self_attn\.relative_attention_bias\.weight$", "relative_position_bias.embedding.weight"),
    (r"^encoder\.layers\.(\d+)\.self_attn\.grep_linear\.", r"layers.\1.self_attn.gate_proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.grep_a$", r"layers.\1.self_attn.gate_scale"),
    (r"^encoder\.layers\.", "layers."),
    (r"^predictor\.", "classifier."),
)
# Entries of an official BEATs `cfg`: our field, type, and what it means to leave one out (`None`: it must be there).
# Flags that are left out are off there, unlike in `BeatsConfig`, whose defaults are BEATs_iter3+.
BEATS_ENTRIES: dict[str, tuple[str, Any, Any]] = {
    "encoder_embed_dim": ("hidden_size", int, None),
    "encoder_layers": ("num_hidden_layers", int, None),
    "encoder_attention_heads": ("num_attention_heads", int, None),
    "encoder_ffn_embed_dim": ("intermediate_size", int, None),
    "embed_dim": ("patch_embed_size", int, None),
    "input_patch_size": ("patch_size", int, None),
    "conv_pos": ("conv_pos_kernel", int, None),
    "conv_pos_groups": ("conv_pos_groups", int, None),
    "num_buckets": ("num_buckets", int, None),
    "max_distance": ("max_distance", int, None),
    "conv_bias": ("conv_bias", bool, False),
    "gru_rel_pos": ("gated_relative_position", bool, False),
    "deep_norm": ("deep_norm", bool, False),
    "activation_fn": ("hidden_act", str, "gelu"),
    "dropout": ("hidden_dropout", (int, float), 0.0),
    "attention_dropout": ("attention_dropout", (int, float), 0.0),
    "activation_dropout": ("activation_dropout", (int, float), 0.0),
}
# Entries of it that are no fields.
OTHER_BEATS_ENTRIES = {
    "layer_norm_first": bool,
    "relative_position_embedding": bool,
    "finetuned_model": bool,
    "predictor_class": int,
}
SHARED_BIAS = re.compile(r"^encoder\.layers\.[1-9]\d*\.self_attn\.relative_attention_bias\.weight$")


def read_torch_file(path: str | os.PathLike) -> dict[str, Any]:
    """Read a `torch.save` file without executing any pickled code.

    Raises:
        ValueError: if the file is missing, damaged, or holds anything but tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {path}.") from error
    except Exception as error:  # torch raises many kinds for damaged or unsafe files
        raise ValueError(
            f"{path} cannot be read as a safe torch file ({_reason(error)}). It may be damaged, a Git-LFS pointer, or "
            "contain pickled code, which is never executed here."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, but a checkpoint dict is needed.")
    return content


def beats_config_from_official(cfg: dict[str, Any]) -> BeatsConfig:
    """Translate the `cfg` of an official BEATs checkpoint.

    Raises:
        ValueError: for the variants that no released checkpoint uses (pre-norm layers, no relative positions), and
            for entries that are missing or of another type.
    """
    if not isinstance(cfg, dict):
        raise ValueError(f"The cfg of a BEATs checkpoint is a {type(cfg).__name__}, but it needs to be a dict.")
    missing = [name for name, (_, _, default) in BEATS_ENTRIES.items() if default is None and name not in cfg]
    if missing:
        raise ValueError(f"The cfg of this BEATs checkpoint lacks {', '.join(missing)}; give an official BEATs file.")
    kinds = {name: kind for name, (_, kind, _) in BEATS_ENTRIES.items()} | OTHER_BEATS_ENTRIES
    for name in cfg.keys() & kinds.keys():
        value, kind = cfg[name], kinds[name]
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):  # a bool is an int too
            raise ValueError(f"The cfg of this BEATs checkpoint has {name}={value!r}; give an official BEATs file.")
    if cfg.get("layer_norm_first", False):
        raise ValueError("This BEATs checkpoint has layer_norm_first=True; only post-norm BEATs is supported.")
    if not cfg.get("relative_position_embedding", True):
        raise ValueError("This BEATs checkpoint has no relative position embedding, which is not supported.")
    fields = {field: cfg.get(name, default) for name, (field, _, default) in BEATS_ENTRIES.items()}
    if cfg.get("finetuned_model") and cfg.get("predictor_class"):
        fields["num_labels"] = cfg["predictor_class"]
    return BeatsConfig(**fields)


def read_official_beats(path: str | os.PathLike) -> tuple[BeatsConfig, StateDict]:
    """Read an official BEATs `.pt` file: `{"cfg": dict, "model": state_dict}`.

    Returns:
        The configuration and the weights under the names of `BeatsModel`; a tagging head is kept as `classifier.*`.

    Raises:
        ValueError: if the file is not such a checkpoint.
    """
    content = read_torch_file(path)
    if not {"cfg", "model"} <= content.keys():
        raise ValueError(f"{path} has the keys {sorted(content)}, but a BEATs checkpoint has 'cfg' and 'model'.")
    if not isinstance(content["model"], dict):
        raise ValueError(f"{path} has a {type(content['model']).__name__} as 'model', but it needs to be a dict.")
    weights: StateDict = {}
    first_bias = content["model"].get("encoder.layers.0.self_attn.relative_attention_bias.weight")
    for key, tensor in content["model"].items():
        if SHARED_BIAS.match(key):  # one table serves all layers; later layers only repeat it
            if first_bias is None or not torch.equal(tensor, first_bias):
                raise ValueError(f"{path}: {key} differs from layer 0, but BEATs shares one bias table.")
            continue
        weights[_rename(key, BEATS_RENAMES)] = tensor
    try:
        return beats_config_from_official(content["cfg"]), weights
    except ValueError as error:
        raise ValueError(f"{path} holds no BEATs that can be used. {error}") from error


@contextmanager
def naming_base(model_id: str) -> Iterator[None]:
    """Name the base, and the file in its folder, where a damaged, unsafe or absent file raises one of many errors."""
    if folder := local_folder(model_id):
        check_base_folder(folder)
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(
            f"{model_id} cannot be loaded ({_reason(error)}). Give a Hub id or a folder with whole weights; "
            "pickled code in them is never executed."
        ) from error


def load_speech_weights(model_id: str, dtype: torch.dtype, **hub_kwargs: Any) -> StateDict:
    """Whisper's encoder from a Hub id or folder, as `model.speech_encoder.*`."""
    model = _load_base(WhisperModel, model_id, dtype, hub_kwargs)
    return {f"model.speech_encoder.{key}": tensor for key, tensor in model.encoder.state_dict().items()}


def load_audio_weights(model_id: str, dtype: torch.dtype, **hub_kwargs: Any) -> StateDict:
    """BEATs from an official `.pt` file, or a `BeatsModel` folder or Hub id, as `model.audio_encoder.*`."""
    if os.path.isfile(model_id):
        _, weights = read_official_beats(model_id)
        # the tagging head of fine-tuned ones
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith("classifier.")}
    else:
        weights = _load_base(BeatsModel, model_id, dtype, hub_kwargs).state_dict()
    return {f"model.audio_encoder.{key}": tensor.to(dtype) for key, tensor in weights.items()}


def load_text_weights(model_id: str, dtype: torch.dtype, **hub_kwargs: Any) -> StateDict:
    """A causal language model from a Hub id or folder, as `model.language_model.*` and `lm_head.weight`."""
    model = _load_base(AutoModelForCausalLM, model_id, dtype, hub_kwargs)
    prefix = f"{model.base_model_prefix}."
    weights = {}
    for key, tensor in model.state_dict().items():
        # the head alone is not of the base model, and has one name everywhere
        name = f"model.language_model.{key.removeprefix(prefix)}" if key.startswith(prefix) else key
        weights[name] = tensor
    return weights


def load_base_weights(config: SalmonnConfig, dtype: torch.dtype, **hub_kwargs: Any) -> StateDict:
    """All frozen bases that `config` names, under the names of `SalmonnForConditionalGeneration`.

    Raises:
        ValueError: if the configuration does not name a base, or a base is damaged or has missing, unexpected or NaN
            weights.
    """
    # one by one, so that a base that is not finite is told by its own name
    loaders = {"speech": load_speech_weights, "text": load_text_weights}
    if config.audio_config is not None:
        loaders["audio"] = load_audio_weights
    weights: StateDict = {}
    for part, load in loaders.items():
        model_id = getattr(config, f"{part}_model_id")
        if model_id is None:
            raise ValueError(
                f"This checkpoint holds only what was trained, and its config does not name the {part} base; "
                f"set {part}_model_id to a Hub id or a local path."
            )
        revision = getattr(config, f"{part}_model_revision") or "main"
        base = load(model_id, dtype, revision=revision, **hub_kwargs)
        require_finite(base.items(), model_id)
        weights |= base
    return weights


def _reason(error: BaseException) -> str:
    """The first sentence: torch's next ones advise to run the pickled code."""
    if isinstance(error, StrictDataclassError):  # tells the value on its second line
        return " ".join(str(error).split())
    if not str(error):
        return type(error).__name__
    return str(error).split(". ")[0].splitlines()[0]


def _rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    """The key by the first pattern that fits."""
    for pattern, replacement in renames:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key


def _load_base(model_class: Any, model_id: str, dtype: torch.dtype, hub_kwargs: dict[str, Any]) -> Any:
    with naming_base(model_id):
        model, info = model_class.from_pretrained(model_id, dtype=dtype, output_loading_info=True, **hub_kwargs)
    info["unexpected_keys"] = [key for key in info["unexpected_keys"] if not OBSOLETE_TEXT_KEYS.search(key)]
    require_complete(model_id, info)
    return model


def require_complete(source: str, info: dict[str, Any], advice: str = "") -> None:
    """Refuse weights by the report of loading them, if the model has others, fewer or more; ends with the advice."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    if missing or unexpected or mismatched:
        raise ValueError(
            f"The weights of {source} do not fit its config: missing {missing}, unexpected {unexpected}, mismatched "
            f"shapes {mismatched}.{advice}"
        )
