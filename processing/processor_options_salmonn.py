"""Options of the processor: their names and defaults, flat or in groups; others are errors."""

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any

from transformers import ProcessorMixin
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, TextKwargs


# Other libraries' names for what is called `audio` here.
AUDIO_NAMES = ("audios", "clip", "clips", "input_audio", "raw_audio", "raw_speech", "sound", "sounds", "speech", "wav")
MISSING_MODALITIES = ("images", "videos")  # the library passes them as None


class SalmonnProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Options of the processor and their defaults: padded on the left, torch tensors."""

    _defaults = {
        "text_kwargs": {"padding": True, "padding_side": "left"},
        "common_kwargs": {"return_tensors": "pt"},
    }


# How clips are read: the rate in Hz of bare samples, and where clips may come from.
READING_OPTIONS = ("sampling_rate", "allow_paths", "allow_urls")
# What the library passes to extractors; rows are padded to the longest, whatever it says.
EXTRACTOR_OPTIONS = frozenset(AudioKwargs.__annotations__) - {"raw_speech"}
_AUDIO_OPTIONS = {*EXTRACTOR_OPTIONS, *READING_OPTIONS, "audio_frames", "return_tensors"}
_TEXT_OPTIONS = {*TextKwargs.__annotations__, "return_tensors"}
_GROUPS = {
    "text_kwargs": _TEXT_OPTIONS,
    "audio_kwargs": _AUDIO_OPTIONS,
    "common_kwargs": _TEXT_OPTIONS | _AUDIO_OPTIONS,
}
_FLAT_OPTIONS = {name for name in ProcessingKwargs.__annotations__ if not name.endswith("_kwargs")}
PROCESSOR_OPTIONS = frozenset(_TEXT_OPTIONS | _AUDIO_OPTIONS | _FLAT_OPTIONS | set(_GROUPS))


def check_options(options: Mapping[str, Any], owner: str = "SalmonnProcessor") -> None:
    """Refuse options that would be dropped.

    Args:
        options: flat, or in `text_kwargs`, `audio_kwargs` and `common_kwargs`.
        owner: whose options they are, for messages.

    Raises:
        TypeError: for an unknown name, naming the closest known one.
    """
    for name, value in options.items():
        if name in MISSING_MODALITIES and value is None:
            continue
        check_names([name], PROCESSOR_OPTIONS, owner)
        if name in _GROUPS:
            if not isinstance(value, Mapping):
                raise TypeError(f"{name} of {owner} must be a dict of options, got {value!r:.80}.")
            check_names(value, _GROUPS[name], f"{name} of {owner}")


def check_names(names: Collection[str], known: Collection[str], owner: str) -> None:
    """Refuse names that are not known.

    Raises:
        TypeError: naming the closest known one.
    """
    for name in names:
        if name in known:
            continue
        if name in MISSING_MODALITIES:
            raise TypeError(f"{owner} got {name!r}, but SALMONN takes text and audio alone; leave it out.")
        closest = ["audio"] if name in AUDIO_NAMES else get_close_matches(str(name), [*known, "text", "audio"], n=1)
        advice = f"did you mean {closest[0]!r}?" if closest else "leave it out."
        if name in ("text", "audio"):
            advice = "it has a place of its own, which in chats is in the messages."
        raise TypeError(f"{owner} got an unknown argument {name!r}: {advice}")


def check_template_options(options: Mapping[str, Any], template: str) -> None:
    """Refuse options of `apply_chat_template` that are none of rendering, of the processor or of the template.

    Args:
        options: all but those that our method takes by name.
        template: what is rendered, or the name of one of several templates; its variables are known, too.

    Raises:
        TypeError: for an unknown name, naming the closest known one.
        ValueError: for tools and documents that the template does not render.
    """
    code = re.sub(r"'[^']*'|\"[^\"]*\"", "", template)
    named = set(re.findall(r"(?<![.\w])[^\W\d]\w*", code))  # fields of messages are no variables
    rendering = signature(ProcessorMixin.apply_chat_template).parameters
    check_names(options, {*rendering, *PROCESSOR_OPTIONS, *named}, "apply_chat_template")
    for name in ("tools", "documents"):
        if options.get(name) and name not in named:
            raise ValueError(f"The chat template has no place for {name}; put them into the messages.")


def take_options(options: dict[str, Any], group: str, names: Sequence[str]) -> dict[str, Any]:
    """Remove options that are given flat, in their group or in `common_kwargs`, in this order.

    Args:
        options: those of a call; the groups in it stay as the caller has them.
        group: which else may hold them.
        names: of the options to take.

    Returns:
        All of them by their names; `None` for what is not given.
    """
    places = [options]
    for place in (group, "common_kwargs"):
        if place in options:
            options[place] = dict(options[place])
            places.append(options[place])
    taken: dict[str, Any] = dict.fromkeys(names)
    for name in names:
        for holder in places:
            value = holder.pop(name, None)
            taken[name] = value if taken[name] is None else taken[name]
    return taken
