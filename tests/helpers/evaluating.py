"""The stock `Trainer` with metrics on rows with and without audio; run as a script, by each of several processes.

Writes what it measured to the file that is named: `evaluating.py OUTPUT`.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from transformers import EvalPrediction, Trainer, TrainingArguments


CONFIG = tiny_config(segment_seconds=[2, 5], trim_audio_tokens=True)
# Answers of different length, so that batches are; every second batch of two rows is text alone.
ROWS: list[dict[str, Any]] = [
    {"text": f"What is it, {index}?", "target": "a" * (index + 1), "seconds": [1.0, 3.0, None, None][index % 4]}
    for index in range(7)
]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    clips = [[] if row["seconds"] is None else [make_clip(row["seconds"])] for row in rows]
    processor = tiny_processor(CONFIG)
    texts, targets = [row["text"] for row in rows], [row["target"] for row in rows]
    return dict(processor(text=texts, audio=clips, text_target=targets, sampling_rate=SAMPLING_RATE))


def measure(prediction: EvalPrediction) -> dict[str, float]:
    """Answer tokens, and the mean logit of the right ones."""
    logits, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    answers = labels[:, 1:] != -100
    right = logits[:, :-1].gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return {"tokens": float(answers.sum()), "right": float(right[answers].mean())}


def evaluate(output: Path) -> tuple[dict[str, float], Any]:
    """Metrics and predictions of all rows."""
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_eval_batch_size=2,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
    )
    trainer = Trainer(tiny_model(CONFIG), arguments, data_collator=collate, eval_dataset=ROWS, compute_metrics=measure)
    return trainer.evaluate(), trainer.predict(ROWS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        metrics, predicted = evaluate(Path(folder))
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(metrics | {"shape": predicted.predictions.shape}))
