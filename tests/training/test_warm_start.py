"""The alignment warm start as the beginning of a stage."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from workspace import CLIPS, Workspace, make_workspace, quick_config, write_jsonl

from modeling_salmonn.training.run import build_trainer
from modeling_salmonn.training.warm_start import (
    AlignmentTrainer,
    ClipSampler,
    alignment_arguments,
    clips_with_words,
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    config = quick_config(window_seconds=0.1, stride_seconds=0.1)
    return make_workspace(tmp_path_factory.mktemp("warm"), config=config)


@pytest.fixture
def settings(workspace: Workspace) -> dict[str, Any]:
    """Of a stage that begins with a warm start on half of its rows, one of them unreadable."""
    rows = [json.loads(line) for line in workspace.manifest.read_text().splitlines()]
    for row in rows[: CLIPS // 2]:
        row["alignment_text" if row["task"] == "asr" else "alignment_words"] = "one"
    (workspace.folder / "clip0.wav").write_bytes(b"RIFF")
    return {
        "train_data": str(write_jsonl(workspace.folder / "aligned.jsonl", rows)),
        "eval_data": str(write_jsonl(workspace.folder / "evaluation.jsonl", rows[1:3])),
        "feature_cache": str(workspace.folder / "cache"),
        "alignment_epochs": 2,
        "alignment_batch_size": 3,
        "alignment_weight": 0.3,
    }


def finished(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "alignment" / "connector.safetensors")


def test_stage_begins_with_the_warm_start(workspace: Workspace, settings: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "stage"
    before = load_file(workspace.model / "model.safetensors")
    trainer = build_trainer(workspace.arguments(output, **settings))
    aligned = finished(output)
    state = trainer.model.state_dict()
    for name in ("qformer.query_tokens", "projector.weight", "ln_speech.weight"):
        assert torch.equal(state[f"model.{name}"], aligned[f"connector.{name}"])
        assert not torch.equal(before[f"model.{name}"], aligned[f"connector.{name}"])
    assert torch.equal(trainer.alignment_head.blank, aligned["head.blank"])
    assert aligned["head.blank"].abs().sum() > 0
    trainer.train()
    trainer.save_model()
    later = build_trainer(
        workspace.arguments(tmp_path / "later", **settings | {"model": str(output), "alignment_epochs": 0})
    )
    assert torch.equal(later.alignment_head.blank, trainer.alignment_head.blank)


def test_interrupted_warm_start_goes_on_where_it_was(
    workspace: Workspace, settings: dict[str, Any], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    build_trainer(workspace.arguments(whole, **settings))
    newest = max((whole / "alignment").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    earlier = newest.with_name(f"checkpoint-{int(newest.name.split('-')[1]) - 1}")
    shutil.copytree(earlier, cut / "alignment" / earlier.name)
    build_trainer(workspace.arguments(cut, resume_from_checkpoint=True, **settings))
    for name, value in finished(whole).items():
        assert torch.equal(finished(cut)[name], value), name


def test_finished_warm_start_is_not_done_again_on_resuming(
    workspace: Workspace, settings: dict[str, Any], tmp_path: Path
) -> None:
    build_trainer(workspace.arguments(tmp_path, **settings))
    shutil.rmtree(tmp_path / "alignment" / "runs", ignore_errors=True)
    written = (tmp_path / "alignment" / "connector.safetensors").stat().st_mtime_ns
    trainer = build_trainer(workspace.arguments(tmp_path, resume_from_checkpoint=True, **settings))
    assert (tmp_path / "alignment" / "connector.safetensors").stat().st_mtime_ns == written
    assert torch.equal(trainer.alignment_head.blank, finished(tmp_path)["head.blank"])


def test_warm_start_needs_a_cache_and_words(workspace: Workspace, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set feature_cache"):
        workspace.arguments(tmp_path, **settings | {"feature_cache": None})
    with pytest.raises(ValueError, match="alignment_text or alignment_words"):
        build_trainer(workspace.arguments(tmp_path, **settings | {"train_data": str(workspace.manifest)}))


def test_words_are_spelled_in_frequent_pieces_in_later_stages_too(
    workspace: Workspace, settings: dict[str, Any], tmp_path: Path
) -> None:
    trainer = build_trainer(workspace.arguments(tmp_path / "first", **settings | {"alignment_min_count": 2}))
    tokenizer = trainer.processing_class.tokenizer  # whose only pieces are letters
    letters = sorted(tokenizer(" one", add_special_tokens=False)["input_ids"])
    assert trainer.alignment_head.vocabulary.tolist() == letters
    trainer.save_model()
    later = settings | {"model": str(tmp_path / "first"), "alignment_epochs": 0, "train_data": str(workspace.manifest)}
    second = build_trainer(workspace.arguments(tmp_path / "second", **later))
    assert second.data_collator.pieces.scores == trainer.data_collator.pieces.scores
    assert torch.equal(second.alignment_head.blank, trainer.alignment_head.blank)


def test_clips_are_drawn_by_their_weights(tmp_path: Path) -> None:
    weights = {"never.wav": 0, "plain.wav": None, "often.wav": 4} | {f"{index}.wav": 1 for index in range(95)}
    rows = [{"path": path, "alignment_text": "one", "weight": weight} for path, weight in weights.items()]
    trainer = AlignmentTrainer(
        model=torch.nn.Linear(1, 1),
        args=alignment_arguments(tmp_path, 8, 1e-3, seed=0, report_to="none", use_cpu=True),
        data_collator=list,
        train_dataset=clips_with_words(rows),
    )
    loader = trainer.get_train_dataloader()
    epochs = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        epochs.append([clip["path"] for batch in loader for clip in batch])
    assert [len(epoch) for epoch in epochs] == [len(rows)] * 3
    assert epochs[0] != epochs[1]
    drawn = Counter(path for epoch in epochs for path in epoch)
    assert "never.wav" not in drawn
    assert 2 <= drawn["plain.wav"] <= 3
    assert 11 <= drawn["often.wav"] <= 12


def test_rows_of_one_clip_are_put_together() -> None:
    rows = [
        {"path": "a.wav", "alignment_text": "hello", "alignment_words": None, "weight": 4},
        {"path": "b.wav", "alignment_text": "one", "weight": 2},
        {"path": "a.wav", "alignment_text": "", "alignment_words": "dog", "weight": None},
        {"path": "b.wav", "alignment_text": "two", "weight": 0},
        {"path": "a.wav", "text": "no target", "weight": 9},
        {"path": "http://127.0.0.1/c.wav", "alignment_text": "no file"},
    ]
    assert clips_with_words(rows) == [
        {"path": "a.wav", "alignment_text": "hello", "alignment_words": "dog", "weight": 4},
        {"path": "b.wav", "alignment_text": "two", "weight": 0},
    ]


def test_unweighted_clips_come_once_an_epoch() -> None:
    assert sorted(ClipSampler([1.0] * 20, seed=3)) == list(range(20))
    assert list(ClipSampler([1.0] * 20, seed=3)) == list(ClipSampler([1.0] * 20, seed=3))
