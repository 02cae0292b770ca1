"""Activation tuning, the third stage (paper, section 3.3).

A model that answers everything with transcripts or captions learns from a dozen long answers of its own to follow
other instructions again.

```
salmonn activate MODEL --clips clips.jsonl --output DIR

DIR/answers.jsonl  rejected.jsonl  writing.json      written by the model at a discounted LoRA scale
DIR/model                                            tuned on them at full scale
DIR/comparison.md  comparison.json  *.jsonl          before and after
```
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback

from modeling_salmonn.activation.writing import ANSWER_FIELDS, WritingReport, WritingSettings, write_answers
from modeling_salmonn.data.files import Journal, read_record, write_json
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.data.rows import Row
from modeling_salmonn.evaluation.answering import Answerer, require_dtype
from modeling_salmonn.evaluation.comparison import Comparison, ComparisonSettings, compare_models
from modeling_salmonn.training.arguments import SalmonnTrainingArguments
from modeling_salmonn.training.run import build_trainer, run_training


MODEL_FOLDER = "model"
RECORD_FILE = "activation.json"


@dataclass(frozen=True)
class TuningSettings:
    """How a model is tuned on its own answers.

    Args:
        steps: optimiser steps of one answer each.
        learning_rate: constant, without warm-up.
        seed: of the order of the answers, and of dropout.
        dtype: type of the frozen bases: `float32`, `bfloat16` or `float16`.

    Raises:
        ValueError: if a number is not positive, or for another type.
    """

    steps: int = 12
    learning_rate: float = 3e-5
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(f"steps and learning_rate must be positive, got {self.steps} and {self.learning_rate}.")
        require_dtype(self.dtype)


@dataclass(frozen=True)
class ActivationReport:
    """What the three steps gave.

    Args:
        written: what became of the answers.
        losses: of each step.
        comparison: before and after; `None` if there were no clips to compare on.
    """

    written: WritingReport
    losses: list[float]
    comparison: Comparison | None


def run_activation(
    model: str,
    clips: Sequence[Row],
    output: Path,
    prompts: Mapping[str, list[str]],
    writing: WritingSettings | None = None,
    tuning: TuningSettings | None = None,
    comparing: ComparisonSettings | None = None,
    rows: Sequence[Row] | None = None,
) -> ActivationReport:
    """Write answers, tune on them, compare; of what an earlier call has finished only the comparison is done again.

    Args:
        model: folder or Hub id of the model after instruction tuning.
        clips: rows with a `path`, of one or several tasks.
        output: folder for everything.
        prompts: instructions of each task, from `load_prompts`.
        writing, tuning, comparing: settings of the three steps.
        rows: rows to compare on; the clips that no answer was written about if not given.

    Raises:
        ValueError: if a step cannot be done, saying why.
    """
    tuning = tuning or TuningSettings()
    written = write_answers(Answerer.from_pretrained(model, tuning.dtype), clips, output, prompts, writing)
    tuned = output / MODEL_FOLDER
    losses = finished_losses(model, written.file, tuned, tuning)
    if losses is None:
        losses = tune_on_answers(model, written.file, tuned, tuning)
    rows = unused_rows(clips, written.file) if rows is None else rows
    if not rows:
        return ActivationReport(written, losses, None)
    comparison = compare_models(model, str(tuned), rows, output, prompts, comparing, tuning.dtype)
    return ActivationReport(written, losses, comparison)


def tune_on_answers(model: str, answers: Path, output: Path, settings: TuningSettings | None = None) -> list[float]:
    """Train a model on answers, at its full LoRA scale, with the parts that every stage trains.

    Args:
        model: folder or Hub id.
        answers: manifest, such as `write_answers` wrote it or as it was changed since.
        output: folder for the tuned model.
        settings: how to tune.

    Returns:
        The loss of each step.

    Raises:
        ValueError: if model or answers cannot be read.
    """
    settings = settings or TuningSettings()
    trainer = build_trainer(training_arguments(model, answers, output, settings))
    trainer.remove_callback(PrinterCallback)
    (output / RECORD_FILE).unlink(missing_ok=True)
    run_training(trainer, None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    write_json(output / RECORD_FILE, tuning_record(model, answers, settings) | {"losses": losses})
    return losses


def training_arguments(model: str, answers: Path, output: Path, settings: TuningSettings) -> SalmonnTrainingArguments:
    """The arguments of stage 3."""
    dtype: Any = settings.dtype
    return SalmonnTrainingArguments(
        stage=3,
        model=model,
        train_data=str(answers),
        output_dir=str(output),
        dtype=dtype,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        max_steps=settings.steps,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        lr_scheduler_kwargs=None,
        warmup_steps=0,
        group_lengths=False,
        seed=settings.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )


def finished_losses(model: str, answers: Path, output: Path, settings: TuningSettings) -> list[float] | None:
    """The losses of an earlier call that tuned on the same answers in the same way; `None` if there was none."""
    record = tuning_record(model, answers, settings)
    found = read_record(output / RECORD_FILE, record, "delete it to tune the model anew") or {}
    losses = found.get("losses")
    return losses if _are_losses(losses) else None


def _are_losses(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(loss, (int, float)) for loss in value)


def tuning_record(model: str, answers: Path, settings: TuningSettings) -> dict[str, object]:
    """What a tuned model was made of."""
    content = hashlib.sha256(answers.read_bytes()).hexdigest()
    return {"model": model, "answers": content, "settings": asdict(settings)}


def unused_rows(clips: Sequence[Row], answers: Path) -> list[Row]:
    """The rows of clips that no answer was written about; those without a task or a text can only get a story."""
    used = {row["path"] for row in Journal(answers, needed=ANSWER_FIELDS).rows}
    return [row for row in clips if row["path"] not in used]


def loss_summary(losses: Sequence[float]) -> str:
    """The losses in a line."""
    return f"{len(losses)} steps; loss of the first {losses[0]:.3f}, of the last {losses[-1]:.3f}."


__all__ = [
    "ActivationReport",
    "Answerer",
    "ComparisonSettings",
    "TuningSettings",
    "WritingSettings",
    "compare_models",
    "load_prompts",
    "loss_summary",
    "run_activation",
    "tune_on_answers",
    "write_answers",
]
