"""Arguments of a training stage: one typed dataclass, filled from a YAML file and `key=value` words.

```
salmonn train recipes/salmonn/stage1.yaml learning_rate=1e-5 'train_data=[{path: asr.jsonl, task: asr}]'
```
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from transformers import TrainingArguments

from modeling_salmonn.data.coercion import coerce, fits
from modeling_salmonn.data.sources import parse_sources
from modeling_salmonn.data.text_files import parse_yaml, read_yaml_mapping


RESEARCH_SCHEDULE = "cosine_warmup_with_min_lr"
SCHEDULES_TO_MIN_LR = (RESEARCH_SCHEDULE, "cosine_with_min_lr")
SOURCES = ("train_data", "eval_data")
PATHS_BESIDE = ("config", "prompts")  # may start from the folder of the YAML file
POSITIVE = (
    "task_temperature", "examples_per_epoch", "max_audio_seconds", "alignment_learning_rate", "alignment_batch_size",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
)  # fmt: skip
NOT_NEGATIVE = (
    "learning_rate", "connector_learning_rate", "lora_learning_rate", "encoder_learning_rate", "weight_decay",
    "warmup_steps", "max_bad_clips", "overlap_examples", "overlap_level_db", "verification_examples",
    "alignment_weight", "alignment_epochs", "alignment_min_count", "sample_new_tokens",
)  # fmt: skip
COUNTS = ("examples_per_epoch", "overlap_examples", "verification_examples")
MOST_EXAMPLES = 10_000_000  # of an epoch, which are drawn at once


@dataclass
class SalmonnTrainingArguments(TrainingArguments):
    """Everything that a stage needs, on top of `transformers.TrainingArguments`.

    The defaults are the research code's: AdamW with weight decay 0.05, 3000 steps of warm-up from 1e-6 to 3e-5, then a
    cosine to 1e-5, and in the same proportions with another learning rate. Relative paths of `config` and `prompts`
    may also start from the YAML file.
    """

    model: str | None = None  # folder or Hub id of the SALMONN to start from
    config: str | None = None  # names the bases of a model with a fresh connector, and of dry runs
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the frozen bases; what is trained is float32
    attn_implementation: str | None = None  # of all parts, such as `sdpa` or `flash_attention_2`
    train_speech_encoder: bool = False
    train_audio_encoder: bool = False
    train_lora: bool = True  # a fresh adapter where the model has none
    connector_learning_rate: float | None = None  # these three instead of `learning_rate`
    lora_learning_rate: float | None = None
    encoder_learning_rate: float | None = None

    # One source or a list of them: a path, a Hub id, or a mapping (see `DataSource`).
    train_data: str | dict | list[str | dict] = field(default_factory=list)
    eval_data: str | dict | list[str | dict] = field(default_factory=list)
    audio_root: str | None = None  # where relative paths of clips start, instead of their manifest's folder
    prompts: str | None = None  # JSON file of instructions per task, instead of the bundled ones
    # Tasks are drawn with p ~ weight * n ** (1 / temperature) of their n rows; streams by the weight of their task.
    task_weights: dict[str, float] = field(default_factory=dict)
    task_temperature: float = 1.0
    examples_per_epoch: int | None = None  # as many as there are rows if not given
    max_audio_seconds: float | None = None  # longer clips are left out, by their columns or headers
    max_bad_clips: int = 10  # unreadable ones that are replaced before training stops
    overlap_examples: int = 0  # two voices at once, mixed on the fly of rows of `overlap_task`
    overlap_task: str = "asr"
    overlap_level_db: float = 5.0  # largest difference between the two voices
    verification_examples: int = 0  # two utterances, joined on the fly of rows with a `speaker`
    group_lengths: bool = True  # batches of about the same length; not of streams
    feature_cache: str | None = None  # folder for outputs of the frozen encoders, computed only once

    alignment_weight: float = 0.0  # of the loss that ties audio tokens to words (`alignment_text`)
    alignment_epochs: float = 0.0  # of the warm start, which needs `feature_cache`
    alignment_learning_rate: float = 1e-3  # of the warm start
    alignment_batch_size: int = 64  # of the warm start
    # Words that are said are spelled in pieces that occur so often in the training rows, or as an earlier stage has
    # spelled them. With 0 in the tokenizer's own pieces, most of which are too rare in some hours of speech.
    alignment_min_count: int = 0
    sample_new_tokens: int = 60  # longest sample answer that is logged at each evaluation; 0 for no samples
    probes: str | None = None  # JSON lines with `path`, `caption` and `story`, for the curves of task over-fitting
    dry_run: bool = False  # build the model without weights, report its size, and stop

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
        _check_numbers(self)
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # or bf16 would be refused there
        if self.accelerator_config is None:  # each process collates streamed rows itself: clips differ in length
            self.accelerator_config = {"dispatch_batches": False}
        super().__post_init__()
        for name in ("feature_cache", "probes"):
            path = getattr(self, name)
            if path is not None:
                setattr(self, name, os.path.expanduser(path))
        if self.lr_scheduler_type == RESEARCH_SCHEDULE and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 1 / 3, "warmup_lr_rate": 1 / 30}  # 1e-5 and 1e-6 of 3e-5
        _check_lowest_rate(self)
        if self.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.n_gpu} devices; start one for each with accelerate launch -m "
                "modeling_salmonn train, or show it one with CUDA_VISIBLE_DEVICES=0."
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy is {self.train_sampling_strategy!r}, but examples are drawn by their tasks; "
                "leave it out. group_lengths makes batches of like lengths."
            )
        if self.deepspeed_plugin is not None and self.deepspeed_plugin.zero_stage == 3:
            raise ValueError(
                "ZeRO stage 3 gathers each layer when a process needs it, and processes whose clips differ in length "
                "would wait for each other; use recipes/accelerate/fsdp2.yaml."
            )
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor would compare labels with the tokens before them; leave it out.")
        if self.dtype != "float32" and not (self.bf16 or self.fp16):
            raise ValueError(
                f"dtype is {self.dtype}, but what is trained stays float32: set bf16=true (or fp16=true), so that "
                "both meet in mixed precision, or dtype=float32."
            )
        for name in ("output_dir", "feature_cache"):
            path = getattr(self, name)
            if path and os.path.exists(path) and not os.path.isdir(path):
                raise ValueError(f"{name} is {path}, which is no folder; give one, or a new name.")
        if self.alignment_epochs and not self.feature_cache:
            raise ValueError("alignment_epochs trains on cached encoder states; set feature_cache to a folder.")
        if self.feature_cache and (self.train_speech_encoder or self.train_audio_encoder):
            raise ValueError("feature_cache holds outputs of frozen encoders; leave it out where one is trained.")


def _check_numbers(arguments: SalmonnTrainingArguments) -> None:
    """Numbers that nothing could be done with; others of `TrainingArguments` are its own matter."""
    for name in (*POSITIVE, *NOT_NEGATIVE):
        value = getattr(arguments, name)
        must_be_positive = name in POSITIVE
        if value is None:
            continue
        if not isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}.")
        if value < 0 or (value == 0 and must_be_positive):
            raise ValueError(f"{name} must {'be positive' if must_be_positive else 'not be negative'}, got {value}.")
        if name in COUNTS and value > MOST_EXAMPLES:
            raise ValueError(f"{name} must be at most {MOST_EXAMPLES:,}, got {value:,}; train for more epochs.")


def _check_lowest_rate(arguments: SalmonnTrainingArguments) -> None:
    """A `min_lr` that `learning_rate` would rise to, in the schedules that end there."""
    lowest = (arguments.lr_scheduler_kwargs or {}).get("min_lr")
    if lowest is None or arguments.lr_scheduler_type not in SCHEDULES_TO_MIN_LR:
        return
    if not isinstance(lowest, (int, float)):
        raise ValueError(
            f"lr_scheduler_kwargs has min_lr={lowest!r}, but a number is needed; YAML has 1.0e-5 for 1e-5."
        )
    if lowest > arguments.learning_rate or arguments.learning_rate == 0:  # by which transformers divides
        raise ValueError(
            f"lr_scheduler_kwargs has min_lr={lowest:g}, but the schedule ends there and learning_rate is "
            f"{arguments.learning_rate:g}; give a lower one, or a share of it, as {{min_lr_rate: 0.3333}}."
        )


def parse_arguments(words: Sequence[str]) -> SalmonnTrainingArguments:
    """Read the words `STAGE.yaml [key=value ...]` of a command line; values are YAML, and win over the file.

    Raises:
        ValueError: for a missing or unreadable file, unknown keys (with the nearest known one), values of the wrong
            type, and words without `=`.
    """
    if not words or "=" in words[0]:
        raise ValueError("Name the YAML file of a stage first, then key=value words.")
    file = Path(words[0])
    hints = get_type_hints(SalmonnTrainingArguments)
    known = {item.name for item in fields(SalmonnTrainingArguments) if item.init}
    values = {}
    given, lines = read_yaml_mapping(file, "file")
    for name, value in given.items():
        place = f"line {lines[name]} of {file}"
        _require_known(name, known, place)
        try:
            values[name] = _checked(name, value, hints[name])
        except ValueError as error:
            raise ValueError(f"In {place}: {error}") from error
    for word in words[1:]:
        name, separator, text = word.partition("=")
        if not separator:
            raise ValueError(f"Got the word {word!r}; settings are written key=value.")
        _require_known(name, known, "the command line")
        values[name] = _checked(name, _parse_word(name, text, hints[name]), hints[name])
    for name in PATHS_BESIDE:
        path = values.get(name)
        if path is not None and not os.path.exists(path) and (file.parent / path).exists():
            values[name] = str(file.parent / path)
    return SalmonnTrainingArguments(**values)


def _parse_word(name: str, text: str, hint: Any) -> Any:
    """A value of the command line: YAML, or the text itself where text is needed."""
    try:
        value = parse_yaml(text, name)
    except ValueError:
        if text[:1] in ("[", "{"):  # meant as a list or as a mapping
            raise
        return text
    is_text = not isinstance(value, (list, dict)) and not fits(value, hint) and fits(text, hint)
    return text if is_text else value


def _checked(name: str, value: Any, hint: Any) -> Any:
    """A value in its type; of sources of data also what is in them."""
    value = coerce(name, value, hint)
    if name in SOURCES and value:
        parse_sources(value)  # told with the line of the file
    return value


def _require_known(name: Any, known: set[str], place: str) -> None:
    if name in known:
        return
    nearest = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "see SalmonnTrainingArguments for all keys."
    raise ValueError(f"Unknown key {name!r} in {place}; {hint}")
