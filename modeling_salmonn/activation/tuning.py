"""Activation tuning, the third stage (paper, section 3.3).

A model that answers everything with transcripts or captions learns from a dozen long answers of its own to follow
other instructions again.

```
salmonn activate MODEL --clips clips.jsonl --output DIR

DIR/answers.jsonl  rejected.jsonl  writing.json      written by the model at a discounted LoRA scale
DIR/model                                            tuned on them at full scale
DIR/before  after                                    evaluations of both models, with all files of `run.py`
DIR/comparison.md                                    their scores side by side
```
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback

from modeling_salmonn.activation.clips import references_of, unused_rows
from modeling_salmonn.activation.writing import STORY_TASK, WritingReport, WritingSettings, write_answers
from modeling_salmonn.data.files import read_record, write_bytes, write_json
from modeling_salmonn.data.rows import Row
from modeling_salmonn.data.tasks import Task, load_tasks
from modeling_salmonn.evaluation.answering import Answerer, require_dtype
from modeling_salmonn.evaluation.harness import SETTINGS_FILE
from modeling_salmonn.evaluation.judges import RuleJudge
from modeling_salmonn.evaluation.metrics import english_normaliser
from modeling_salmonn.evaluation.run import EvaluationSettings, evaluate
from modeling_salmonn.evaluation.summary import comparison
from modeling_salmonn.hub.devices import AUTO, resolve_device
from modeling_salmonn.training.arguments import SalmonnTrainingArguments
from modeling_salmonn.training.run import build_trainer, run_training


BEFORE, AFTER, MODEL_FOLDER = "before", "after", "model"
RECORD_FILE, COMPARISON_FILE = "activation.json", "comparison.md"
SPEECH_TASK = "asr"
UNTRAINED_METRICS = ["diversity", "repeat_rate"]  # beside the following rate; none compares with references
SPEECH_METRICS = ["wer", "repeat_rate"]
EVALUATED_ROWS = 100  # of each task


@dataclass(frozen=True)
class TuningSettings:
    """How a model is tuned on its own answers."""

    steps: int = 12  # optimiser steps of one answer each (paper, section 3.3)
    learning_rate: float = 3e-5  # constant, without warm-up
    seed: int = 0  # of the order of the answers, and of dropout
    dtype: str = "float32"  # of the frozen bases
    device: str = AUTO  # `cpu`, or `auto` for the accelerator if there is one

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(f"steps and learning_rate must be positive, got {self.steps} and {self.learning_rate}.")
        require_dtype(self.dtype)


@dataclass(frozen=True)
class ActivationReport:
    """What the three steps gave."""

    written: WritingReport
    losses: list[float]  # of each step
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # none if there were no clips to compare on

    def summary(self) -> str:
        """The report for the terminal."""
        compared = "Nothing to compare on: all clips were written about; give more clips, or --data."
        if self.summaries:
            compared = comparison(self.summaries)
        return f"{self.written.summary()}\n{loss_summary(self.losses)}\n\n{compared}"


class ActivationEvaluation:
    """Evaluates models on the same rows: stories, other untrained tasks, and what tuning costs in word errors.

    Of the rows, those of these tasks are taken; of the prompts, the first one of each task.
    """

    def __init__(self, rows: Sequence[Row], prompts: Mapping[str, list[str]], settings: EvaluationSettings):
        self.rows = evaluation_rows(rows)
        self.tasks = [task for task in evaluation_tasks(prompts) if any(task.chooses(row) for row in self.rows)]
        self.prompts = prompts
        self.settings = settings

    def run(self, model: str, output: Path, answerer: Answerer | None = None) -> dict[str, Any]:
        """The summary of a model; see `evaluate`."""
        return evaluate(model, self.tasks, self.rows, output, RuleJudge(), self.settings, answerer, self.prompts)


def run_activation(
    model: str,
    clips: Sequence[Row],
    output: Path,
    prompts: Mapping[str, list[str]],
    writing: WritingSettings | None = None,
    tuning: TuningSettings | None = None,
    evaluation: EvaluationSettings | None = None,
    rows: Sequence[Row] | None = None,
) -> ActivationReport:
    """Write answers, tune on them, evaluate before and after; what an earlier call has finished is not done again.

    Args:
        model: folder or Hub id of the model after instruction tuning.
        clips: rows with a `path`, of one or several tasks.
        output: folder for everything.
        prompts: instructions of each task, from `load_prompts`.
        writing, tuning, evaluation: settings of the steps; `dtype` and `device` are those of `tuning`.
        rows: rows to evaluate on; the clips that no answer was written about if not given.
    """
    tuning = tuning or TuningSettings()
    answerer = Answerer.from_pretrained(model, tuning.dtype, tuning.device)
    written = write_answers(answerer, clips, output, prompts, writing)
    if rows is None:
        rows = unused_rows(clips, [written.file])
    tested, summaries = None, {}
    if rows:
        tested = ActivationEvaluation(rows, prompts, evaluation_settings(evaluation, tuning))
        summaries[BEFORE] = tested.run(model, output / BEFORE, answerer)
    del answerer  # or it would stay in memory beside the one that is tuned
    losses = tune_unless_finished(model, written.file, output, tuning)
    if tested is not None:
        summaries[AFTER] = tested.run(str(output / MODEL_FOLDER), output / AFTER)
        text = f"`{model}` before and after activation tuning\n\n{comparison(summaries)}"
        write_bytes(output / COMPARISON_FILE, text.encode())
    return ActivationReport(written, losses, summaries)


def evaluation_settings(settings: EvaluationSettings | None, tuning: TuningSettings) -> EvaluationSettings:
    """How the models are evaluated, with the type and the device that they are tuned with."""
    settings = settings or EvaluationSettings(limit=EVALUATED_ROWS)
    return replace(settings, dtype=tuning.dtype, device=tuning.device)


def evaluation_tasks(prompts: Mapping[str, list[str]]) -> list[Task]:
    """The tasks that are judged by a rule, and speech recognition, each with its first instruction."""
    tasks = []
    for task in load_tasks().values():
        if task.rule is None and task.name != SPEECH_TASK:
            continue
        instructions = prompts.get(task.rule or task.name, [task.instruction])
        metrics = UNTRAINED_METRICS if task.rule else SPEECH_METRICS
        tasks.append(replace(task, instruction=instructions[0], metrics=metrics))
    return tasks


def evaluation_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows with clips, but for speech without words, and stories about the clips if no row asks for one."""
    chosen = []
    for row in rows:
        # No word error rate is of speech without words.
        is_wordless = row.get("task") == SPEECH_TASK and not english_normaliser()(row.get("text") or "").strip()
        if row.get("path") and not is_wordless:
            chosen.append(row)
    if STORY_TASK not in {row.get("task") for row in chosen}:
        chosen += story_rows(rows)
    if not chosen:
        raise ValueError("There are no clips to compare the models on; give rows with a 'path'.")
    return chosen


def story_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for a story about each clip, with the references that other rows of the clip have."""
    by_path: dict[str, Row] = {}
    for row in rows:
        path = row.get("path")
        if isinstance(path, str):
            known = by_path.get(path, {"path": path, "task": STORY_TASK})
            by_path[path] = known | references_of(row)
    return list(by_path.values())


def tune_unless_finished(model: str, answers: Path, folder: Path, settings: TuningSettings) -> list[float]:
    """Tune a model on answers into `folder/model`, unless an earlier call did; see `tune_on_answers`.

    The evaluation in `folder/after`, if there is one, is deleted along with the model that it is of.
    """
    tuned, evaluated = folder / MODEL_FOLDER, folder / AFTER
    losses = finished_losses(model, answers, tuned, settings)
    if losses is None:
        if (evaluated / SETTINGS_FILE).is_file():
            shutil.rmtree(evaluated)
        losses = tune_on_answers(model, answers, tuned, settings)
    return losses


def tune_on_answers(model: str, answers: Path, output: Path, settings: TuningSettings | None = None) -> list[float]:
    """Train a model on a manifest of answers, at its full LoRA scale, into a folder; returns the loss of each step."""
    settings = settings or TuningSettings()
    trainer = build_trainer(training_arguments(model, answers, output, settings))
    trainer.remove_callback(PrinterCallback)
    (output / RECORD_FILE).unlink(missing_ok=True)  # it is of the model that is overwritten now
    run_training(trainer, None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    write_json(output / RECORD_FILE, tuning_record(model, answers, settings) | {"losses": losses})
    return losses


def training_arguments(model: str, answers: Path, output: Path, settings: TuningSettings) -> SalmonnTrainingArguments:
    """The arguments of stage 3."""
    dtype: Any = settings.dtype  # of the names that the arguments list
    return SalmonnTrainingArguments(
        model=model,
        train_data=str(answers),
        output_dir=str(output),
        dtype=dtype,
        bf16=dtype == "bfloat16",
        fp16=dtype == "float16",
        use_cpu=resolve_device(settings.device).type == "cpu",
        max_steps=settings.steps,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        lr_scheduler_kwargs=None,
        warmup_steps=0,
        group_lengths=False,  # a batch is one answer
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
    if not isinstance(losses, list) or not all(isinstance(loss, (int, float)) for loss in losses):
        return None  # changed by hand: tuned anew
    return losses or None


def tuning_record(model: str, answers: Path, settings: TuningSettings) -> dict[str, object]:
    """What a tuned model was made of."""
    content = hashlib.sha256(answers.read_bytes()).hexdigest()
    return {"model": model, "answers": content, "settings": asdict(settings)}


def loss_summary(losses: Sequence[float]) -> str:
    """The losses in a line."""
    return f"{len(losses)} steps; loss of the first {losses[0]:.3f}, of the last {losses[-1]:.3f}."
