"""The watch for task over-fitting."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import Workspace, make_workspace, write_jsonl

from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.training.overfitting import (
    OverfittingCallback,
    fallback_penalty,
    has_collapsed,
    read_probes,
    story_margin,
)
from modeling_salmonn.training.run import build_trainer
from modeling_salmonn.training.trainer import SalmonnTrainer


CAPTION, STORY = "a tone", "Once there was a tone that nobody heard."


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("probes"), lora=True)
    probes = [{"path": f"clip{index}.wav", "caption": CAPTION, "story": STORY} for index in range(2)]
    write_jsonl(workspace.folder / "probes.jsonl", probes)
    captions = [{"path": f"clip{index}.wav", "text": CAPTION, "task": "story"} for index in range(4)]
    write_jsonl(workspace.folder / "captions.jsonl", captions)
    return workspace


def watched(workspace: Workspace, output: Path, **changes: Any) -> SalmonnTrainer:
    settings = {"probes": str(workspace.folder / "probes.jsonl"), "eval_data": str(workspace.manifest)}
    return build_trainer(workspace.arguments(output, **(settings | changes)))


def curves(trainer: SalmonnTrainer, name: str) -> dict[int, float]:
    return {entry["step"]: entry[name] for entry in trainer.state.log_history if name in entry}


def test_losses_are_those_of_the_model(workspace: Workspace, tmp_path: Path) -> None:
    trainer = watched(workspace, tmp_path)
    processor, prompts = trainer.processing_class, load_prompts()
    callback = OverfittingCallback(trainer, str(workspace.folder / "probes.jsonl"), processor, prompts)
    losses = callback.measure()
    kinds = ("nothing", "transcript", "caption", "story")
    assert losses.keys() == {(answer, kind) for answer in ("caption", "story") for kind in kinds}
    expected = []
    for index in range(2):
        inputs = processor(
            text=[prompts["story"][0]],
            audio=[[str(workspace.folder / f"clip{index}.wav")]],
            text_target=[CAPTION],
        )
        with torch.no_grad():
            expected.append(float(trainer.model.eval()(**inputs).loss))
    assert losses["caption", "story"] == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_margin_compares_a_story_with_short_answers_where_a_story_is_asked_for() -> None:
    losses = {("story", "story"): 3.0, ("caption", "story"): 1.0, ("transcript", "story"): 2.0, ("caption", "x"): 9.0}
    assert story_margin(losses) == 1.5


def test_curves_are_logged_at_the_start_and_at_each_evaluation(workspace: Workspace, tmp_path: Path) -> None:
    trainer = watched(workspace, tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="no")
    trainer.train()
    assert curves(trainer, "eval_story_margin").keys() == {0, 2, 4}
    names = [f"eval_perplexity_{answer}_under_nothing" for answer in ("caption", "story")]
    assert all(value > 1 for name in names for value in curves(trainer, name).values())
    ratio = math.log(curves(trainer, "eval_perplexity_story_under_story")[0])
    ratio -= math.log(curves(trainer, "eval_perplexity_caption_under_story")[0])
    assert curves(trainer, "eval_story_margin")[0] == pytest.approx(ratio, rel=1e-4)


def test_collapse_into_captions_is_warned_of(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training on captions, whatever is asked for, puts stories out of reach."""
    trainer = watched(
        workspace,
        tmp_path,
        train_data=str(workspace.folder / "captions.jsonl"),
        eval_strategy="steps",
        eval_steps=6,
        max_steps=12,
        learning_rate=0.02,
        save_strategy="no",
    )
    trainer.model.requires_grad_(True)  # the adapter of so small a model cannot do such damage alone
    with caplog.at_level(logging.WARNING, "modeling_salmonn"):
        trainer.train()
    margins = curves(trainer, "eval_story_margin")
    assert margins[12] > margins[0] + 0.5
    assert "Task over-fitting: under the story instruction" in caplog.text
    assert f"({margins[0]:.2f} at the start)" in caplog.text


def test_model_that_starts_collapsed_is_warned_of_at_once(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"train_data": str(workspace.folder / "captions.jsonl"), "save_strategy": "no"}
    earlier = watched(workspace, tmp_path / "earlier", probes=None, max_steps=12, learning_rate=0.02, **settings)
    earlier.model.requires_grad_(True)
    earlier.train()
    earlier.save_model()
    later = watched(workspace, tmp_path / "later", model=str(tmp_path / "earlier"), max_steps=1, **settings)
    with caplog.at_level(logging.WARNING, "modeling_salmonn"):
        later.train()
    assert curves(later, "eval_story_margin").keys() == {0}
    assert "Task over-fitting: under the story instruction" in caplog.text


def test_penalty_compares_short_answers_where_a_story_and_where_they_are_asked_for() -> None:
    losses = {("caption", "story"): 1.5, ("caption", "caption"): 1.0, ("transcript", "story"): 3.0}
    losses |= {("transcript", "transcript"): 1.0, ("story", "story"): 9.0, ("story", "caption"): 0.0}
    assert fallback_penalty(losses) == 1.25


@pytest.mark.parametrize(
    ("margin", "growth", "penalty", "collapsed"),
    [
        (2.9, 0.0, 0.06, True),
        (2.9, 0.0, 1.0, False),  # stories are hard to foresee, and transcripts kept back
        (0.1, 0.0, 0.0, False),  # nothing is likely
        (0.1, 0.6, 1.0, True),
        (-0.1, 0.6, 0.0, False),
    ],
)
def test_collapse_is_told_by_growth_or_by_fallbacks_that_no_instruction_keeps_back(
    margin: float, growth: float, penalty: float, collapsed: bool
) -> None:
    assert has_collapsed(margin, growth, penalty) == collapsed


def test_prompts_without_stories_are_completed(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text('{"asr": ["Write."], "audio_caption": ["Tell."]}')
    trainer = watched(workspace, tmp_path, prompts=str(tmp_path / "prompts.json"))
    (callback,) = [own for own in trainer.callback_handler.callbacks if isinstance(own, OverfittingCallback)]
    expected = {"nothing": "", "transcript": "Write.", "caption": "Tell.", "story": load_prompts()["story"][0]}
    assert callback.instructions == expected


def test_steady_margin_is_not_warned_of(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = watched(workspace, tmp_path, eval_strategy="steps", eval_steps=2, learning_rate=1e-9, save_strategy="no")
    with caplog.at_level(logging.WARNING, "modeling_salmonn"):
        trainer.train()
    assert "over-fitting" not in caplog.text


def test_resumed_run_compares_with_its_own_start(workspace: Workspace, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2}
    first = watched(workspace, tmp_path, max_steps=2, **settings)
    first.train()
    resumed = watched(workspace, tmp_path, max_steps=4, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert curves(resumed, "eval_story_margin").keys() == {0, 2, 4}
    assert curves(resumed, "eval_story_margin")[0] == curves(first, "eval_story_margin")[0]


@pytest.mark.parametrize("missing", ["path", "story", "caption"])
def test_incomplete_probe_raises(missing: str, tmp_path: Path) -> None:
    probe = {"path": "a.wav", "story": STORY, "caption": CAPTION}
    del probe[missing]
    with pytest.raises(ValueError, match=r"it needs 'path', 'story', and one of|lacks \['path'\]"):
        read_probes(str(write_jsonl(tmp_path / "probes.jsonl", [probe])))


def test_self_written_stories_are_probes(tmp_path: Path) -> None:
    written = {"path": "a.wav", "task": "story", "text": STORY, "caption": CAPTION, "transcript": ""}
    (probe,) = read_probes(str(write_jsonl(tmp_path / "answers.jsonl", [written])))
    assert probe["story"] == STORY
    assert probe["path"] == str(tmp_path / "a.wav")


def test_empty_probes_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no rows"):
        read_probes(str(write_jsonl(tmp_path / "probes.jsonl", [])))
