"""The small BEATs learns to tag."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, make_clip
from transformers import TrainingArguments

from modeling_salmonn.modeling_beats import BeatsForAudioClassification
from recipes.salmonn_smol.tagging import TaggedClips, read_tagged, top_tag_accuracy, train_tagger


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"kind": "event", "sound_class": "rain"},
        {"kind": "event"},  # of no class: nothing to learn from
        {"kind": "music", "tags": {"instruments": ["piano", "harp"], "mode": "minor"}},
        *[{"kind": "speech", "text": "Hello."}] * 3,
    ]
    for index, row in enumerate(rows):
        row = row | {"file_name": f"{index}.wav", "seconds": 1.0}
        soundfile.write(tmp_path / row["file_name"], make_clip(1.0 + index, seed=index), SAMPLING_RATE)
        with (tmp_path / "metadata.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return tmp_path


def test_rows_carry_the_tags_of_their_kind(folder: Path) -> None:
    tags = [row["tags"] for row in read_tagged([folder], speech_limit=1)]
    assert tags == [["rain"], ["music", "piano", "harp", "minor"], ["speech"]]


def test_clips_are_fbanks_of_one_length_with_their_tags(folder: Path) -> None:
    clips = TaggedClips(read_tagged([folder]), ["harp", "music", "piano", "rain"], augment=False)
    assert clips[0]["labels"].tolist() == [0, 0, 0, 1]
    assert clips[1]["labels"].tolist() == [1, 1, 1, 0]
    assert {tuple(clips[index]["input_features"].shape) for index in range(len(clips))} == {(200, 128)}


def test_mixed_clips_have_the_tags_of_both(folder: Path) -> None:
    clips = TaggedClips(read_tagged([folder]), ["harp", "music", "piano", "rain", "speech"], augment=True)
    seen = {tuple(clips[0]["labels"].tolist()) for _ in range(40)}
    assert (0, 0, 0, 1, 0) in seen
    assert any(sum(labels) > 1 for labels in seen)
    assert all(labels[3] == 1 for labels in seen)


def test_accuracy_counts_the_best_tag_of_the_kind(folder: Path) -> None:
    labels = ["harp", "music", "piano", "rain"]
    metric = top_tag_accuracy(labels, read_tagged([folder]))
    outputs = type("Outputs", (), {})()
    outputs.label_ids = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    outputs.predictions = np.array([[3.0, 9, 1, 5], [3.0, 9, 1, 5], [1.0, 1, 1, 0]])
    assert metric(outputs) == {"music_accuracy": 0.5, "event_accuracy": 1.0}


def test_training_learns_and_saves_a_beats(folder: Path, tmp_path: Path) -> None:
    rows = [row for row in read_tagged([folder]) if row["kind"] != "speech"]
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-3, report_to=[],
        use_cpu=True, disable_tqdm=True, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    model, trainer = train_tagger(rows, {"same": rows}, arguments)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[-1]) < float(losses[0])
    model.save_pretrained(tmp_path / "beats")
    loaded = BeatsForAudioClassification.from_pretrained(tmp_path / "beats")
    assert loaded.config.id2label == {0: "harp", 1: "minor", 2: "music", 3: "piano", 4: "rain"}
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
