"""Arguments of a training stage: one typed dataclass, filled from a YAML file and `key=value` words.

```
salmonn train training/recipes/salmonn-7b/stage1.yaml learning_rate=1e-5 'train_data=[{path: asr.jsonl, task: asr}]'
```
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from transformers import TrainingArguments


RESEARCH_SCHEDULE = "cosine_warmup_with_min_lr"
# Renamed by transformers after 5.19; recipes keep the older names, which both versions know.
RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


@dataclass
class SalmonnTrainingArguments(TrainingArguments):
    """Everything that a stage needs, on top of `transformers.TrainingArguments`.

    The defaults are the research code's: AdamW with weight decay 0.05, 3000 steps of warm-up from 1e-6 to 3e-5, then
    a cosine to 1e-5.

    Args:
        stage: 1 pre-training, 2 instruction tuning, 3 activation tuning (paper, section 3.3).
        model: folder or Hub id of the SALMONN to go on from.
        config: `config.json` (or its folder) that names the bases, for a model with a fresh connector where `model`
            is not given, and for dry runs; a relative path may also start from the YAML file.
        dtype: type that the frozen bases are kept in; what is trained is always float32.
        attn_implementation: attention of all parts, such as `sdpa` or `flash_attention_2`.
        train_speech_encoder, train_audio_encoder: unfreeze an encoder.
        train_lora: train the LoRA adapter, a fresh one where the model has none.
        connector_learning_rate, lora_learning_rate, encoder_learning_rate: instead of `learning_rate`.
        train_data, eval_data: one source or a list of them: a path, a Hub id, or a mapping (see `DataSource`).
        audio_root: folder that relative audio paths start from, instead of their manifest's folder.
        prompts: JSON file of instructions per task, instead of the bundled one; a relative path may also start from
            the YAML file.
        task_weights: factor of each task's share of the examples; 1 if not named. A streaming source is weighted by
            its own `task`.
        task_temperature: tasks are drawn with `p ~ weight * n ** (1 / task_temperature)` of their `n` rows.
        examples_per_epoch: examples in an epoch; as many as there are rows if not given.
        max_audio_seconds: longer clips are left out, by their `seconds`, `duration` or headers; streamed ones once
            they are read.
        max_bad_clips: unreadable clips that are reported and replaced before training stops.
        overlap_examples: rows of overlapped speech to mix on the fly out of those with `overlap_task`.
        overlap_task: task whose rows are mixed.
        overlap_level_db: largest difference in level between the two voices.
        verification_examples: rows of speaker verification to join on the fly out of those with a `speaker`.
        group_lengths: fill each batch with clips and texts of about the same length; not of streams.
        feature_cache: folder for the outputs of the frozen encoders, which are then computed only once.
        alignment_weight: weight of the loss that ties audio tokens to words (`alignment_text`); 0 for none.
        alignment_epochs: passes of the alignment warm start over the clips, before the language model is run at all;
            0 for none. It needs `feature_cache`.
        alignment_learning_rate, alignment_batch_size: of the warm start.
        sample_new_tokens: longest sample answer that is logged at each evaluation; 0 for no samples.
        probes: JSON lines with `path`, `caption` and `story`, for the curves of task over-fitting.
        dry_run: build the model without weights, report its size, and stop.
    """

    stage: Literal[1, 2, 3] = 1
    model: str | None = None
    config: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attn_implementation: str | None = None
    train_speech_encoder: bool = False
    train_audio_encoder: bool = False
    train_lora: bool = True
    connector_learning_rate: float | None = None
    lora_learning_rate: float | None = None
    encoder_learning_rate: float | None = None

    train_data: str | dict | list[str | dict] = field(default_factory=list)
    eval_data: str | dict | list[str | dict] = field(default_factory=list)
    audio_root: str | None = None
    prompts: str | None = None
    task_weights: dict[str, float] = field(default_factory=dict)
    task_temperature: float = 1.0
    examples_per_epoch: int | None = None
    max_audio_seconds: float | None = None
    max_bad_clips: int = 10
    overlap_examples: int = 0
    overlap_task: str = "asr"
    overlap_level_db: float = 5.0
    verification_examples: int = 0
    group_lengths: bool = True
    feature_cache: str | None = None

    alignment_weight: float = 0.0
    alignment_epochs: float = 0.0
    alignment_learning_rate: float = 1e-3
    alignment_batch_size: int = 64
    sample_new_tokens: int = 60
    probes: str | None = None
    dry_run: bool = False

    learning_rate: float = 3e-5
    lr_scheduler_type: str = RESEARCH_SCHEDULE
    lr_scheduler_kwargs: dict | None = None
    warmup_steps: float = 3000
    weight_decay: float = 0.05
    adam_beta2: float = 0.999
    remove_unused_columns: bool = False
    prediction_loss_only: bool = True
    resume_from_checkpoint: str | bool | None = None
    use_cpu: bool = False
    accelerator_config: dict | str | None = None

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # or bf16 would be refused there
        if self.accelerator_config is None:  # each process collates streamed rows itself: clips differ in length
            self.accelerator_config = {"dispatch_batches": False}
        super().__post_init__()
        for name in ("feature_cache", "probes"):
            if (path := getattr(self, name)) is not None:
                setattr(self, name, os.path.expanduser(path))
        if self.lr_scheduler_type == RESEARCH_SCHEDULE and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr": 1e-5, "warmup_lr_rate": 1 / 30}
        if self.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.n_gpu} devices; start one for each with accelerate launch -m "
                "modeling_salmonn.training.run, or show it one with CUDA_VISIBLE_DEVICES=0."
            )
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor would compare labels with the tokens before them; leave it out.")
        if self.dtype != "float32" and not (self.bf16 or self.fp16):
            raise ValueError(
                f"dtype is {self.dtype}, but what is trained stays float32: set bf16=true (or fp16=true), so that "
                "both meet in mixed precision, or dtype=float32."
            )
        if self.task_temperature <= 0:
            raise ValueError(f"task_temperature must be positive, got {self.task_temperature}.")
        if self.max_bad_clips < 0:
            raise ValueError(f"max_bad_clips must not be negative, got {self.max_bad_clips}.")
        if self.alignment_epochs and not self.feature_cache:
            raise ValueError("alignment_epochs trains on cached encoder states; set feature_cache to a folder.")
        if self.feature_cache and (self.train_speech_encoder or self.train_audio_encoder):
            raise ValueError("feature_cache holds outputs of frozen encoders; leave it out where one is trained.")


def parse_arguments(words: Sequence[str], arguments_class: type = SalmonnTrainingArguments) -> Any:
    """Read `STAGE.yaml [key=value ...]`; values are YAML, and win over the file.

    Args:
        words: the words of the command line.
        arguments_class: dataclass to fill.

    Returns:
        An instance of `arguments_class`.

    Raises:
        ValueError: for a missing or unreadable file, unknown keys (with the nearest known one), values of the wrong
            type, and words without `=`.
    """
    if not words or "=" in words[0]:
        raise ValueError("Name the YAML file of a stage first, then key=value words.")
    file = Path(words[0])
    hints = get_type_hints(arguments_class)
    known = {item.name for item in fields(arguments_class) if item.init}
    values = {}
    for name, value in _read_yaml(file).items():
        _require_known(name, known, str(file))
        values[_current_name(name, known)] = coerce(name, value, hints[name])
    for word in words[1:]:
        name, separator, text = word.partition("=")
        if not separator:
            raise ValueError(f"Got the word {word!r}; settings are written key=value.")
        _require_known(name, known, "the command line")
        values[_current_name(name, known)] = _coerce_text(name, text, hints[name])
    for name in ("config", "prompts"):
        values[name] = _beside(file, values.get(name))
    return arguments_class(**values)


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Check a YAML value against a type; numbers that YAML takes for text, such as `1e-5`, become numbers.

    Raises:
        ValueError: if it does not fit, naming the key, the value and the type.
    """
    origin, options = get_origin(hint), get_args(hint)
    if hint is Any or (value is None and NoneType in options):
        return value
    if origin in (Union, UnionType):
        return _coerce_union(name, value, hint, options)
    if origin is Literal and value in options:
        return value
    if origin is list and isinstance(value, list):
        return [coerce(f"{name}[{index}]", item, options[0]) for index, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: coerce(f"{name}.{key}", item, options[1]) for key, item in value.items()}
    if isinstance(hint, type):
        converted = _coerce_plain(value, hint)
        if converted is not None:
            return converted
    raise ValueError(f"{name} is {value!r}, but it needs {_describe(hint)}.")


def _coerce_union(name: str, value: Any, hint: Any, options: tuple) -> Any:
    exact = [option for option in options if isinstance(option, type) and type(value) is option]
    fitting = [option for option in exact or options if _fits(value, option)]
    if not fitting:
        raise ValueError(f"{name} is {value!r}, but it needs {_describe(hint)}.")
    return coerce(name, value, fitting[0])


def _fits(value: Any, hint: Any) -> bool:
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
            return float(value)
        except ValueError:
            return None
    if isinstance(value, bool) and hint is not bool:
        return None
    return value if isinstance(value, hint) else None


def _coerce_text(name: str, text: str, hint: Any) -> Any:
    """A word of the command line: YAML, or the text itself where text is wanted."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    meant_as_text = not isinstance(value, (list, dict)) and not _fits(value, hint) and _fits(text, hint)
    return coerce(name, text if meant_as_text else value, hint)


def _describe(hint: Any) -> str:
    options = get_args(hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, options))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(option) for option in options)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    return {NoneType: "null", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"There is no file {file}; give the YAML file of a stage.")
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds a {type(values).__name__}; it needs to map keys to values.")
    return values


def _require_known(name: Any, known: set[str], source: str) -> None:
    if name in known:
        return
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "see SalmonnTrainingArguments for all keys."
    raise ValueError(f"Unknown key {name!r} in {source}; {hint}")


def _current_name(name: str, known: set[str]) -> str:
    newer = RENAMED.get(name, name)
    return newer if newer in known else name


def _beside(file: Path, path: str | None) -> str | None:
    """A path that is not found from here, taken from the YAML file's folder."""
    if path is None or os.path.exists(path) or not (file.parent / path).exists():
        return path
    return str(file.parent / path)


__all__ = ["SalmonnTrainingArguments", "coerce", "parse_arguments"]
