"""Values of YAML brought to the types that settings have, and what is said where they do not fit."""

import math
from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from modeling_salmonn.data.text_files import shown


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Check a YAML value against a type; numbers that YAML takes for text, such as `1e-5`, become numbers.

    One that does not fit is a `ValueError` with the key, the value and the type.
    """
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any or (value is None and NoneType in options):
        return value
    if origin in (Union, UnionType):
        # A value that already has one of the types keeps it: text stays text, although it might be read as a number.
        exact = [option for option in options if type(value) is option]
        for option in exact or options:
            if fits(value, option):
                return coerce(name, value, option)
    if origin is Literal and any(type(value) is type(option) and value == option for option in options):
        return value  # types are compared since True equals 1
    if origin in (list, Sequence) and isinstance(value, (list, tuple)):
        return [coerce(f"{name}[{index}]", item, options[0]) for index, item in enumerate(value)]
    if origin in (dict, Mapping) and isinstance(value, dict):
        converted_items = {}
        for key, item in value.items():
            own_key = coerce(f"the key {shown(key)} of {name}", key, options[0])
            converted_items[own_key] = coerce(f"{name}.{key}", item, options[1])
        return converted_items
    if origin is None and isinstance(hint, type):  # Python 3.10 takes list[str] for a type
        converted = _coerce_plain(value, hint)
        if converted is not None:
            return converted
    raise ValueError(f"{name} is {shown(value)}, but it needs {_describe(hint)}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether `coerce` takes a value for a type."""
    try:
        coerce("value", value, hint)
    except ValueError:
        return False
    return True


def _coerce_plain(value: Any, hint: type) -> Any:
    """The value as that type, or `None` if it is of another."""
    if issubclass(hint, Enum):
        return value if value in [member.value for member in hint] else None
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML takes 1e-5 for text
        except (ValueError, OverflowError):
            return None
    if hint is float and isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bool) and hint is not bool:
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # torch and Arrow have no larger ones
        return None
    return value if isinstance(value, hint) else None


def _describe(hint: Any) -> str:
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, options))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(option) for option in options)
    if get_origin(hint) is None and isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    if get_origin(hint) in (list, Sequence):
        return f"list of {_describe(options[0])}"
    if get_origin(hint) in (dict, Mapping):
        return f"mapping of {_describe(options[0])} to {_describe(options[1])}"
    return {NoneType: "null", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))
