"""Checks of the configurations' fields, at construction and at every later assignment.

The library's `strict` compares types and runs a field's validators; what is added here are the validators, the limits
of sizes, and errors that tell class, field and value. Everything here raises a `ValueError`.
"""

import difflib
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from huggingface_hub.dataclasses import strict, validated_field
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers.activations import ACT2FN


MAX_WIDTH = 2**20  # ten times the widest layer that any model has; larger ones only fill the memory
MAX_LAYERS = 1024
MAX_VOCABULARY = 2**24
MAX_TOKEN_ID = 2**31 - 1
MAX_QUERIES = 4096
# Least and largest sizes of encoders and language models of any class, which know no limits of their own. No layer can
# be made of a width of 0, or divided by it; some models leave other sizes at 0.
WIDTHS = (
    *("hidden_size", "d_model", "n_embd", "head_dim", "num_mel_bins"),
    *("num_attention_heads", "num_key_value_heads", "encoder_attention_heads"),
)
OTHER_SIZES = (
    *("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size"),
    *("num_labels", "num_experts", "num_local_experts", "max_source_positions", "max_target_positions"),
)
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
SIZE_LIMITS = {
    **dict.fromkeys(WIDTHS, (1, MAX_WIDTH)),
    **dict.fromkeys(OTHER_SIZES, (0, MAX_WIDTH)),
    **dict.fromkeys(LAYER_COUNTS, (0, MAX_LAYERS)),
    "vocab_size": (1, MAX_VOCABULARY),
}
ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function")
MISSPELLED = 0.85  # how alike an unknown field and a known one must be to be taken for a slip
ConfigClass = TypeVar("ConfigClass", bound=type)


class ConfigFieldError(StrictDataclassFieldValidationError, ValueError, TypeError):
    """A value that a field cannot have: what the library raises for its own configurations, as a `ValueError`."""

    def __init__(self, message: str):
        Exception.__init__(self, message)  # the library's own takes the field and the cause instead


def checked(config_class: ConfigClass) -> ConfigClass:
    """Make a configuration strict; its errors tell class, field, value and what is needed instead."""
    strict_class: Any = strict(config_class)
    assign = strict_class.__setattr__

    def __setattr__(self: Any, name: str, value: Any) -> None:
        try:
            assign(self, name, value)
        except StrictDataclassFieldValidationError as error:
            raise ConfigFieldError(_message(self, name, value, error.__cause__)) from error

    strict_class.__setattr__ = __setattr__
    return strict_class


def size(default: int, most: int = MAX_WIDTH) -> Any:
    """A field of a whole number from 1 to `most`."""
    return between(default, 1, most)


# The comparisons below are written so that they refuse NaN, which is neither smaller nor larger.


def between(default: float, least: float, most: float) -> Any:
    """A field of a finite number from `least` to `most`, both included."""

    def check(value: Any) -> None:
        if not value >= least:
            raise ValueError(f"must be at least {least}, got {value}.")
        if value > most:
            raise ValueError(f"must be at most {most}, got {value}.")

    return validated_field(check, default=default)


def positive(default: float) -> Any:
    """A field of a finite number above 0."""

    def check(value: Any) -> None:
        if not 0 < value < math.inf:
            raise ValueError(f"must be a finite number above 0, got {value}.")

    return validated_field(check, default=default)


def finite(default: float) -> Any:
    """A field of a finite number, or of several."""

    def check(value: Any) -> None:
        values = value if isinstance(value, (list, tuple)) else [value]
        if not all(-math.inf < number < math.inf for number in values):
            raise ValueError(f"must be finite, got {value}.")

    return validated_field(check, default=default)


def activation(default: str) -> Any:
    """A field of the name of an activation function of the library."""

    def check(value: Any) -> None:
        if value not in ACT2FN:
            raise ValueError(f"must name an activation function such as 'gelu' or 'relu', got {value!r}.")

    return validated_field(check, default=default)


def layer_names(default: tuple[str, ...]) -> Any:
    """A field of names of layers, with or without those of the modules that hold them."""

    def check(value: Any) -> None:
        if not value:
            raise ValueError("is empty; name the linear layers to adapt, such as q_proj and v_proj.")
        wrong = [name for name in value if not re.fullmatch(r"\w+(\.\w+)*", name)]
        if wrong:
            raise ValueError(f"must hold names of layers such as 'q_proj', no patterns; got {wrong[0]!r}.")

    return validated_field(check, default=default)


def require_plausible_sizes(owner: str, values: Mapping[str, Any]) -> None:
    """Refuse sizes of an owner's fields, and of dicts in these, that only fill the memory, before they are made."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            require_plausible_sizes(f"{owner}.{name}", value)
        elif name in SIZE_LIMITS and isinstance(value, int):
            least, most = SIZE_LIMITS[name]
            if not least <= value <= most:
                raise ValueError(f"{owner}.{name} must be from {least} to {most}, got {value}; is the file damaged?")


def require_usable_part(owner: str, values: Mapping[str, Any]) -> None:
    """Refuse sizes, activation functions and padding tokens that no part of `SalmonnConfig` can be made of."""
    require_plausible_sizes(owner, values)
    for name in ACTIVATION_FIELDS:
        value = values.get(name)
        if isinstance(value, str) and value not in ACT2FN:
            raise ValueError(f"{owner}.{name} must name an activation function such as 'gelu', got {value!r}.")
    padding, vocabulary = values.get("pad_token_id"), values.get("vocab_size")
    if owner == "text_config" and isinstance(padding, int) and isinstance(vocabulary, int) and padding >= vocabulary:
        raise ValueError(
            f"{owner}.pad_token_id is {padding}, but vocab_size {vocabulary} has embeddings for smaller ids alone; "
            "name another one, such as eos_token_id."
        )


def require_known_options(config: Any, options: Mapping[str, Any]) -> None:
    """Refuse what would be left without effect, or fail later, of what the library's base class takes.

    These are options that differ from a field by a slip or make something absurdly large, and wrong dtypes and labels.
    """
    name = type(config).__name__
    require_plausible_sizes(name, options)  # of `num_labels` the base class writes a list
    for option in options:
        # names that the class knows but has no field for, such as `num_labels`, are no slips
        alike = difflib.get_close_matches(option, config.__dataclass_fields__, 1, MISSPELLED)
        if alike and not hasattr(type(config), option):
            raise ValueError(f"{name} has no field {option!r}; is {alike[0]!r} meant?")
    for field in ("id2label", "label2id"):
        labels = getattr(config, field)
        if not isinstance(labels, (dict, type(None))):
            raise ValueError(f"{name}.{field} must be a dict or None, got {reprlib.repr(labels)}.")
    dtype = config.dtype if config.dtype is not None else options.get("torch_dtype")
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(found, torch.dtype):
        raise ValueError(f"{name}.dtype must name a type of torch such as 'bfloat16', got {dtype!r}.")


def library_config(owner: str, config_class: Any, values: Mapping[str, Any]) -> Any:
    """A configuration of the library from a dict, whose `model_type` is left out; errors tell the owner."""
    require_plausible_sizes(owner, values)
    try:
        return config_class(**{name: value for name, value in values.items() if name != "model_type"})
    except ValueError:  # tells class and field already
        raise
    except Exception as error:  # wrong values raise many kinds in the library's classes
        reason = error.__cause__ or error
        raise ValueError(f"{owner} does not make a {config_class.__name__}: {reason}") from error


def _message(config: Any, name: str, value: Any, cause: BaseException | None) -> str:
    field = f"{type(config).__name__}.{name}"
    if not isinstance(cause, TypeError):  # of a validator, whose message continues after the field's name
        return f"{field} {cause}"
    needed = config.__dataclass_fields__[name].type
    needed = needed.__name__ if isinstance(needed, type) else str(needed)
    advice = f"; did you mean [{value!r}]?" if isinstance(value, str) and "list" in needed else "."
    return f"{field} must be {needed}, got {reprlib.repr(value)} ({type(value).__name__}){advice}"
