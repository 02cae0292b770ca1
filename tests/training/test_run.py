"""Running a stage: from a SALMONN or from bases, with all kinds of data."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from audio_server import audio_server
from workspace import Workspace, make_workspace, write_jsonl

from modeling_salmonn.training.run import build_trainer, train


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("run"))


def test_streamed_data_are_trained_on(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    source = {"path": str(workspace.manifest), "streaming": True}
    trainer = build_trainer(workspace.arguments(tmp_path / "out", train_data=source, max_steps=8))
    trainer.train()  # 12 rows, 2 a step: more than an epoch
    assert trainer.state.global_step == 8
    with pytest.raises(ValueError, match="streaming and some are not"):
        build_trainer(workspace.arguments(tmp_path, train_data=[source, str(workspace.manifest)]))


def test_workers_read_a_stream_of_one_file(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    settings = {"train_data": {"path": str(workspace.manifest), "streaming": True}, "max_steps": 4, "logging_steps": 1}
    losses = []
    for workers in (1, 2):
        output = tmp_path / str(workers)
        trainer = build_trainer(workspace.arguments(output, dataloader_num_workers=workers, **settings))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap_examples": 3}, "overlap_examples needs all rows to be known"),
        ({"verification_examples": 3}, "verification_examples needs all rows to be known"),
        (
            {"task_temperature": 2.0, "examples_per_epoch": 9},
            "task_temperature, examples_per_epoch needs all rows to be known",
        ),
        ({"task_weights": {"asr": 2.0, "story": 1.0}}, r"task_weights has \['story'\], .* one of \['asr'\]"),
        ({"task_weights": {"asr": -1.0}}, "must not be negative"),
        ({"task_weights": {"asr": 0.0}}, "leave no task to draw"),
    ],
)
def test_settings_that_streams_cannot_keep_to_raise(
    changes: dict[str, Any], message: str, workspace: Workspace, tmp_path: Path
) -> None:
    source = {"path": str(workspace.manifest), "streaming": True, "task": "asr"}
    with pytest.raises(ValueError, match=message):
        build_trainer(workspace.arguments(tmp_path, train_data=source, **changes))


def test_more_bad_clips_than_the_limit_end_training(workspace: Workspace, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in workspace.manifest.read_text().splitlines()]
    for row in rows[:6]:
        row["path"] = "/none/" + row["path"]
    manifest = workspace.folder / "half.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"3 clips cannot be read .* more than max_bad_clips 2"):
        train(workspace.arguments(tmp_path, train_data=str(manifest), max_bad_clips=2, max_steps=10))
    train(workspace.arguments(tmp_path, train_data=str(manifest), max_bad_clips=6, max_steps=2))


@pytest.mark.parametrize("cached", [False, True])
def test_long_clips_are_left_out_of_annotations(cached: bool, workspace: Workspace, tmp_path: Path) -> None:
    rows = [{"path": f"clip{index}.wav", "text": str(index), "task": "asr"} for index in range(4)]  # 0.5 to 0.8 s
    manifest = workspace.folder / "annotation.json"
    manifest.write_text(json.dumps({"annotation": rows}))
    settings = {"train_data": str(manifest), "max_audio_seconds": 0.65, "max_bad_clips": 0}
    cache = str(tmp_path / "cache") if cached else None
    trainer = build_trainer(workspace.arguments(tmp_path / "out", feature_cache=cache, **settings))
    assert [row["text"] for row in trainer.train_dataset.rows] == ["0", "1"]
    trainer.train()
    assert not (tmp_path / "out" / "bad_clips.txt").exists()


def test_long_clips_of_streams_are_not_bad(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    source = {"path": str(workspace.manifest), "streaming": True}
    settings = {"train_data": source, "max_audio_seconds": 1.0, "max_bad_clips": 0}
    examples = build_trainer(workspace.arguments(tmp_path / "out", **settings)).train_dataset
    assert {example["answer"] for example in islice(examples, 6)} == {f"text number {index}" for index in range(6)}


def test_workers_report_to_one_list(workspace: Workspace, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in workspace.manifest.read_text().splitlines()]
    rows[0]["path"] = "/none.wav"
    manifest = workspace.folder / "workers.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for workers in (0, 2):
        output = tmp_path / str(workers)
        settings = {"train_data": str(manifest), "dataloader_num_workers": workers, "max_steps": 6}
        trainer = build_trainer(workspace.arguments(output, save_strategy="no", **settings))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert {line.split("\t")[0] for line in (output / "bad_clips.txt").read_text().splitlines()} == {"/none.wav"}
    assert losses[0] == losses[1]


def test_feature_cache_refuses_audio_within_tables(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    audio = {"bytes": (workspace.folder / "clip0.wav").read_bytes(), "path": "audio.wav"}
    table = datasets.Dataset.from_list([{"audio": audio, "text": "hello", "task": "asr"}])
    table.cast_column("audio", datasets.Audio(decode=False)).to_parquet(tmp_path / "rows.parquet")
    settings = {"train_data": str(tmp_path / "rows.parquet"), "feature_cache": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match=r"the data have audio\.wav#\w+ within a table; write the clips to files"):
        build_trainer(workspace.arguments(tmp_path / "out", **settings))


def test_feature_cache_refuses_urls_before_they_are_fetched(workspace: Workspace, tmp_path: Path) -> None:
    with audio_server((workspace.folder / "clip0.wav").read_bytes()) as server:
        row = {"path": f"{server.url}/clip.wav", "text": "hello", "task": "asr"}
        manifest = write_jsonl(tmp_path / "rows.jsonl", [row])
        settings = {"train_data": str(manifest), "feature_cache": str(tmp_path / "cache")}
        with pytest.raises(ValueError, match=r"have http://.*/clip\.wav behind a URL; write the clips to files"):
            build_trainer(workspace.arguments(tmp_path / "out", **settings))
        assert server.requested == []


def test_feature_cache_gives_the_same_losses(workspace: Workspace, tmp_path: Path) -> None:
    losses = []
    for cache in (None, str(tmp_path / "cache")):
        trainer = build_trainer(workspace.arguments(tmp_path / "out", feature_cache=cache, save_strategy="no"))
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # states are kept in half precision


def test_unreadable_clip_with_a_colon_in_its_name_is_replaced_with_a_feature_cache(
    workspace: Workspace, tmp_path: Path
) -> None:
    broken = tmp_path / "Part 1: broken.wav"
    broken.write_bytes(b"RIFF no audio")
    rows = [json.loads(line) for line in workspace.manifest.read_text().splitlines()]
    rows = [row | {"path": str(workspace.folder / row["path"])} for row in rows]
    rows[0]["path"] = str(broken)
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"train_data": str(data), "feature_cache": str(tmp_path / "cache"), "save_strategy": "no"}
    trainer = build_trainer(workspace.arguments(tmp_path / "out", max_steps=len(rows), **settings))
    trainer.train()
    assert [line.split("\t")[0] for line in (tmp_path / "out" / "bad_clips.txt").read_text().splitlines()] == [
        str(broken)
    ]
