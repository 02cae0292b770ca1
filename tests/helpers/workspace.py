"""A tiny model with a few clips on disk, as a user has them, for the tests of training."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor

from modeling_salmonn import SalmonnConfig
from modeling_salmonn.training.arguments import SalmonnTrainingArguments


CLIPS = 12
QUICK: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "logging_steps": 1,
    "save_steps": 1,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "sample_new_tokens": 0,
    "seed": 1,
}


@dataclass
class Workspace:
    """Folders and files of a run."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def manifest(self) -> Path:
        return self.folder / "rows.jsonl"

    def settings(self, output: Path, **changes: Any) -> dict[str, Any]:
        """Settings of a quick run, as a YAML file would have them."""
        files = {"model": str(self.model), "train_data": str(self.manifest), "output_dir": str(output)}
        return QUICK | files | changes

    def arguments(self, output: Path, **changes: Any) -> SalmonnTrainingArguments:
        return SalmonnTrainingArguments(**self.settings(output, **changes))


def quick_config(**options: Any) -> SalmonnConfig:
    return tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True, **options)


def config_without_dropout(**options: Any) -> SalmonnConfig:
    """Without dropout in what is trained: batches then compare exactly, whoever computes them."""
    config = quick_config(lora_dropout=0.0, **options)
    config.qformer_config.hidden_dropout_prob = config.qformer_config.attention_probs_dropout_prob = 0.0
    return config


def make_workspace(folder: Path, lora: bool = False, config: SalmonnConfig | None = None) -> Workspace:
    """Write the model, its processor, clips of 0.5 to 1.6 s, and a manifest of two tasks and three speakers."""
    config = config or quick_config()
    tiny_model(config, lora=lora).save_pretrained(folder / "model")
    tiny_processor(config).save_pretrained(folder / "model")
    rows = []
    for index in range(CLIPS):
        seconds = 0.5 + 0.1 * index
        soundfile.write(folder / f"clip{index}.wav", make_clip(seconds, seed=index), SAMPLING_RATE)
        row = {"path": f"clip{index}.wav", "text": f"text number {index}", "speaker": f"speaker {index % 3}"}
        rows.append(row | {"task": "asr" if index % 2 else "audio_caption", "seconds": seconds})
    write_jsonl(folder / "rows.jsonl", rows)
    return Workspace(folder)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
