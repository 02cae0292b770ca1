"""Names of weights: in files, and in a live model with an adapter.

```
file          ...q_proj.weight             ...q_proj.lora_A.default.weight   only in the checkpoints of a training
live model    ...q_proj.base_layer.weight  ...q_proj.lora_A.default.weight
```

`transformers.Trainer` resumes from a checkpoint by `load_state_dict` of what is in `model.safetensors`, and never
looks at the files of an adapter. Its checkpoints, and no other folders, hold the adapter there a second time, and as
one file unless a size of shards is given.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn


ADAPTER_MARK = ".lora_"
# What training changes besides LoRA; the only full tensors of an adapter-only checkpoint.
CONNECTOR_PREFIXES = ("model.ln_speech.", "model.ln_audio.", "model.qformer.", "model.projector.")
ENCODERS = ("speech_encoder", "audio_encoder")
# Each part that has a base, and how the fields of the config that name it begin.
BASES = {"speech_encoder": "speech_model", "audio_encoder": "audio_model", "language_model": "text_model"}
FIXED_POSITIONS = "speech_encoder.embed_positions.weight"  # Whisper's sinusoids are no weights to train
TRAINING_CHECKPOINT = re.compile(r"checkpoint-\d+")


def plain_name(name: str) -> str:
    """The name that a weight of the base has without an adapter."""
    return name.replace(".base_layer.", ".")


def is_adapter_name(name: str) -> bool:
    """Whether a weight belongs to an adapter."""
    return ADAPTER_MARK in name


def part_of(name: str) -> str:
    """Part of the model that a weight belongs to: `connector`, `lora`, `language_model`, or an encoder's name."""
    if is_adapter_name(name):
        return "lora"
    if name.startswith(CONNECTOR_PREFIXES):
        return "connector"
    for encoder in ENCODERS:
        if name.startswith(f"model.{encoder}."):
            return encoder
    return "language_model"


def forget_bases(config: Any, changed: Iterable[str]) -> None:
    """Have a config no longer name the bases of weights that have changed, nor their revisions."""
    for part in BASES.keys() & {part_of(name) for name in changed}:
        for field in ("id", "revision"):
            setattr(config, f"{BASES[part]}_{field}", None)


def is_training_checkpoint(folder: Path) -> bool:
    """Whether `transformers.Trainer` saves there in order to resume from it: `checkpoint-1000`."""
    return TRAINING_CHECKPOINT.fullmatch(folder.name) is not None


def to_live_names(weights: Mapping[str, Any], live_names: Iterable[str]) -> dict[str, Any]:
    """Rename weights to what they are called in a live model; unknown names stay."""
    live = {plain_name(name): name for name in live_names}
    renamed = OrderedDict((live.get(name, name), tensor) for name, tensor in weights.items())
    if hasattr(weights, "_metadata"):  # versions of the modules, which torch hides there
        renamed._metadata = weights._metadata  # type: ignore[attr-defined]
    return renamed


def require_adapter(model: nn.Module, weights: Mapping[str, Any], given: frozenset[str]) -> frozenset[str]:
    """Make sure that a model's adapter is loaded together with its other weights, which may come in several shards.

    Args:
        model: with or without adapter.
        weights: the shard that is about to be loaded, under the names of the live model.
        given: names of the earlier shards.

    Returns:
        Names of the shards up to now; none once all weights have been given.

    Raises:
        ValueError: if all have been given but those of the adapter that is being trained, or there is no place for
            weights of an adapter.
    """
    parameters = dict(model.named_parameters())  # tied ones once
    unplaced = [name for name in weights if is_adapter_name(name) and name not in parameters]
    if unplaced:
        raise ValueError(
            f"The weights hold an adapter for which this model has no place ({unplaced[0]} and so on); add the same "
            "one first, with add_lora(), or load its folder with from_pretrained or load_adapter."
        )
    given = given | weights.keys()
    if not given >= {name for name in parameters if not is_adapter_name(name)}:
        return given  # more shards follow
    trained = [name for name, parameter in parameters.items() if is_adapter_name(name) and parameter.requires_grad]
    lacking = [name for name in trained if name not in given]
    if lacking:
        raise ValueError(
            f"The weights hold no adapter ({lacking[0]} and so on), and the one that is being trained would stay as "
            "it is. Resume from a checkpoint-N folder of a training with this version; of other folders load the "
            "adapter too: from_pretrained(folder), then add_lora()."
        )
    return frozenset()
