"""Trains the small BEATs of salmonn-smol by tagging: which sounds, instruments, and whether anyone speaks.

Each clip is drawn at a random place and level, half of them on top of another clip, whose tags it then has too.
"""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from modeling_salmonn.configuration_salmonn import BeatsConfig
from modeling_salmonn.data.rows import Row
from modeling_salmonn.modeling_beats import BeatsForAudioClassification
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, SalmonnFeatureExtractor
from modeling_salmonn.training.checkpoints import MarkingTrainer, last_complete_checkpoint
from recipes.salmonn_smol.arguments import Corpus, Extra, Folder, Seed
from recipes.salmonn_smol.audiofolder import read_audiofolder
from recipes.salmonn_smol.model import BEATS
from recipes.salmonn_smol.waveforms import read_clip


CLIP_SECONDS = 2
PCM_SCALE = 2.0**15
MASKED_FRAMES, MASKED_BINS = 48, 24  # SpecAugment


def read_tagged(folders: Sequence[Path], speech_limit: int = 1500) -> list[Row]:
    """Rows of audio folders whose clips have tags: `path`, `kind` and `tags`; of speech only so many."""
    rows: list[Row] = []
    speech: list[Row] = []
    for folder in folders:
        for row in read_audiofolder(folder):
            tags = _tags(row)
            if tags:
                kept = speech if row["kind"] == "speech" else rows
                kept.append({"path": row["path"], "kind": row["kind"], "tags": tags})
    return rows + random.Random(0).sample(speech, min(speech_limit, len(speech)))


def _tags(row: Row) -> list[str]:
    if row["kind"] == "speech":
        return ["speech"]
    if row["kind"] == "music":
        tags = row["tags"]
        return ["music", *tags["instruments"], *([tags["mode"]] if tags.get("mode") else [])]
    return [row["sound_class"]] if row.get("sound_class") else []


class TaggedClips(Dataset):
    """Fbanks of clips with their tags as a vector of zeros and ones.

    Args:
        rows: from `read_tagged`.
        labels: all tags, in the order of the vector.
        augment: whether clips are cut, mixed and masked at random.
    """

    def __init__(self, rows: Sequence[Row], labels: Sequence[str], augment: bool):
        self.rows = rows
        self.index = {label: position for position, label in enumerate(labels)}
        self.augment = augment
        self.extractor = SalmonnFeatureExtractor(segment_seconds=CLIP_SECONDS)
        self._samples = lru_cache(maxsize=None)(read_clip)  # a gigabyte or two; decoding costs more than training

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        samples, tags = self._read(row), list(row["tags"])
        if self.augment:
            if random.random() < 0.4:
                other = random.choice(self.rows)
                samples = _mix(samples, self._read(other), random.uniform(0.2, 1.5))
                tags += other["tags"]
            samples = samples * random.uniform(0.2, 1.5)
        features = self.extractor([samples], sampling_rate=SAMPLING_RATE, return_tensors="pt")
        fbank = features["audio_input_features"][0]
        if self.augment:
            fbank = _mask(fbank)
        target = torch.zeros(len(self.index))
        target[[self.index[tag] for tag in tags if tag in self.index]] = 1
        return {
            "input_features": fbank,
            "input_features_mask": features["audio_input_features_mask"][0],
            "labels": target,
        }

    def _read(self, row: Row) -> np.ndarray:
        samples = self._samples(row["path"], "int16")
        surplus = len(samples) - CLIP_SECONDS * SAMPLING_RATE
        start = random.randint(0, surplus) if self.augment and surplus > 0 else 0
        return samples[start : start + CLIP_SECONDS * SAMPLING_RATE].astype(np.float32) / PCM_SCALE


def _mix(first: np.ndarray, second: np.ndarray, level: float) -> np.ndarray:
    mixed = np.zeros(max(len(first), len(second)), np.float32)
    mixed[: len(first)] += first
    mixed[: len(second)] += level * second
    return mixed


def _mask(fbank: torch.Tensor) -> torch.Tensor:
    """Blank a stretch of time and a band of bins."""
    fbank = fbank.clone()
    for axis, widest in ((0, MASKED_FRAMES), (1, MASKED_BINS)):
        width = random.randint(0, widest)
        start = random.randint(0, fbank.shape[axis] - width)
        fbank.narrow(axis, start, width).fill_(0)
    return fbank


def share_of_tags(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross entropy of one choice among all tags, shared by those that a clip has.

    Yes or no for each of eighty tags, of which a clip has two or three, taught a fresh encoder less in five times as
    many steps.
    """
    return nn.functional.cross_entropy(outputs.logits, labels / labels.sum(-1, keepdim=True))


def top_tag_accuracy(labels: Sequence[str], rows: Sequence[Row]) -> Any:
    """A metric for `Trainer`: how often the best tag of the clip's kind is one that the clip has."""
    kinds = {tag: row["kind"] for row in rows for tag in row["tags"] if tag not in ("music", "major", "minor")}

    def accuracy(outputs: Any) -> dict[str, float]:
        metrics = {}
        for kind in ("event", "music"):
            places = [position for position, label in enumerate(labels) if kinds.get(label) == kind]
            truth = outputs.label_ids[:, places] > 0
            chosen = outputs.predictions[:, places].argmax(-1)
            has_any = truth.any(-1)
            if has_any.any():
                metrics[f"{kind}_accuracy"] = float(truth[np.arange(len(truth)), chosen][has_any].mean())
        return metrics

    return accuracy


def train_tagger(
    train_rows: Sequence[Row], eval_rows: Mapping[str, Sequence[Row]], arguments: TrainingArguments
) -> tuple[BeatsForAudioClassification, Trainer]:
    """Train the small BEATs with a tagging head.

    Args:
        train_rows, eval_rows: from `read_tagged`; several sets to evaluate, by name.
        arguments: of `Trainer`; `resume_from_checkpoint` is honoured.
    """
    labels = sorted({tag for row in train_rows for tag in row["tags"]})
    config = BeatsConfig(**BEATS, num_labels=len(labels), id2label=dict(enumerate(labels)))
    torch.manual_seed(arguments.seed)
    model = BeatsForAudioClassification(config)
    trainer = MarkingTrainer(
        model=model,
        args=arguments,
        train_dataset=TaggedClips(train_rows, labels, augment=True),
        eval_dataset={name: TaggedClips(rows, labels, augment=False) for name, rows in eval_rows.items()},
        compute_loss_func=share_of_tags,
        compute_metrics=top_tag_accuracy(labels, train_rows),
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    return model, trainer


def train_beats(
    corpus: Corpus,
    folder: Folder,
    extra: Extra = None,
    epochs: Annotated[float, typer.Option(min=0.0, help="Passes over the clips.")] = 2.6,
    seed: Seed = 0,
) -> None:
    """Train the small BEATs by tagging sounds and instruments."""
    train_rows = read_tagged([corpus / "train", *(extra or [])])
    eval_rows = {split: read_tagged([corpus / split], speech_limit=0) for split in ("validation", "test")}
    checkpoint = last_complete_checkpoint(folder)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.05,
        max_grad_norm=1.0,
        logging_steps=20,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        report_to=[],
        seed=seed,
        resume_from_checkpoint=str(checkpoint) if checkpoint else None,
    )
    model, _ = train_tagger(train_rows, eval_rows, arguments)
    model.save_pretrained(folder)
