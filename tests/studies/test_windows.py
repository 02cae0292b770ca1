"""Window lengths: that all are trained alike, what is measured, what is kept, what is told."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.data.encoder_cache import EncoderCache
from modeling_salmonn.studies.windows import (
    WindowScores,
    WindowSettings,
    clips_with,
    compare_windows,
    draw_batches,
    draw_windows,
    fresh_model,
    load_bases,
    needed_tokens,
    train_window,
    window_configs,
    window_extractor,
    windows_report,
)
from modeling_salmonn.training.warm_start import AlignmentCollator
from modeling_salmonn.weight_names_salmonn import part_of


WORDS = ("one", "two", "six", "ten", "oh")
QUICK = WindowSettings(steps=4, batch_size=2, seed=1)

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 0.8 s with a word each, and one with a word that describes it."""
    folder = tmp_path_factory.mktemp("clips")
    rows: list[dict[str, Any]] = []
    for index, word in enumerate(WORDS):
        soundfile.write(folder / f"{word}.wav", make_clip(0.8, seed=7 * index), SAMPLING_RATE)
        rows.append({"path": f"{word}.wav", "task": "asr", "text": word, "alignment_text": word})
    soundfile.write(folder / "tone.wav", make_clip(0.8, seed=50), SAMPLING_RATE)
    rows.append({"path": "tone.wav", "task": "audio_caption", "text": "A tone.", "alignment_words": "tone"})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def rows(manifest: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [row | {"path": str(manifest.parent / row["path"])} for row in read]


@pytest.fixture
def compare(saved_folder: Path, rows: list[dict[str, Any]], tmp_path: Path) -> Callable[..., list[WindowScores]]:
    def call(*windows: float, settings: WindowSettings = QUICK, train: Any = rows, held_out: Any = rows) -> Any:
        folders = tmp_path / "cache", tmp_path / "out"
        return compare_windows(str(saved_folder), windows, train, held_out, *folders, settings)

    return call


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of the clips in each batch that is collated, of training and of evaluation."""
    batches: list[list[str]] = []
    collate = AlignmentCollator.__call__

    def note(self: AlignmentCollator, clips: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batches.append([Path(clip["path"]).stem for clip in clips])
        return collate(self, clips)

    monkeypatch.setattr(AlignmentCollator, "__call__", note)
    return batches


def test_lengths_are_trained_on_the_same_batches(
    compare: Callable[..., list[WindowScores]], rows: list[dict[str, Any]], seen: list[list[str]]
) -> None:
    compare(0.06, 0.24, settings=WindowSettings(steps=7, batch_size=2, seed=3))  # more than two rounds of the clips
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert first == second
    drawn = draw_batches(clips_with(rows, ("alignment_text", "alignment_words"), ""), WindowSettings(7, 2, seed=3))
    names = [Path(clip["path"]).stem for clip in drawn]
    assert first[:7] == [names[start : start + 2] for start in range(0, 14, 2)]
    assert first[7:] == [list(WORDS[:2]), list(WORDS[2:4]), list(WORDS[4:])]  # spoken ones, to measure on


def test_lengths_start_with_the_same_connector(saved_folder: Path) -> None:
    bases = load_bases(str(saved_folder))
    configs = window_configs(SalmonnConfig.from_pretrained(saved_folder), [0.06, 0.5])
    short, long = (fresh_model(config, bases, seed=5).state_dict() for config in configs.values())
    other = fresh_model(configs[0.06], bases, seed=6).state_dict()
    given = SalmonnForConditionalGeneration.from_pretrained(saved_folder).state_dict()
    assert short.keys() == long.keys()
    for name, value in short.items():
        assert torch.equal(value, long[name]), name
        if part_of(name) != "connector":
            assert torch.equal(value, given.get(name, given.get(name.replace(".weight", ".base_layer.weight")))), name
    for drawn in ("model.qformer.query_tokens", "model.projector.weight"):
        assert not torch.equal(short[drawn], given[drawn])
        assert not torch.equal(short[drawn], other[drawn])


def test_long_enough_training_is_read_without_errors(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    config = tiny_config(segment_seconds=[2], trim_audio_tokens=True)
    tiny_model(config).save_pretrained(tmp_path / "model")
    tiny_processor(config).save_pretrained(tmp_path / "model")
    folders = tmp_path / "cache", tmp_path / "out"
    settings = WindowSettings(steps=250, batch_size=3, learning_rate=1e-2)
    (figures,) = compare_windows(str(tmp_path / "model"), [0.1], rows[:3], rows[:3], *folders, settings)
    folders = tmp_path / "cache", tmp_path / "untrained"
    (untrained,) = compare_windows(str(tmp_path / "model"), [0.1], rows[:3], rows[:3], *folders, WindowSettings(1, 1))
    assert figures.loss < 0.5 < 5 < untrained.loss
    assert figures.word_error_rate < 0.5 < untrained.word_error_rate


def test_figures_of_each_length(compare: Callable[..., list[WindowScores]]) -> None:
    long, short = compare(0.4, 0.1)[::-1]  # by increasing length
    assert (short.window_seconds, long.window_seconds) == (0.1, 0.4)
    assert short.tokens_per_second == pytest.approx(10)  # clips of 0.8 s have 8
    assert long.tokens_per_second == pytest.approx(2.5)
    assert (short.too_fast, long.too_fast) == (0.0, 1.0)  # a byte is a word piece: even " oh" needs three windows
    assert long.loss == 0.0
    assert all(figures.seconds_per_step > 0 for figures in (short, long))


def test_repeated_word_pieces_need_a_window_in_between(bucket_processor: SalmonnProcessor) -> None:
    clips = [{"alignment_text": text} for text in ("ab", "aabb", "aaa")]
    assert needed_tokens(clips, bucket_processor.tokenizer) == [3, 7, 6]  # with the space in front


def test_finished_lengths_are_not_trained_again(
    compare: Callable[..., list[WindowScores]], tmp_path: Path, seen: list[list[str]]
) -> None:
    (first,) = compare(0.12)
    trained = len(seen)
    again, added = compare(0.12, 0.2)
    assert again == first
    assert len(seen) == 2 * trained  # of the one that was added
    assert compare(0.2, 0.12) == [first, added]
    assert len(seen) == 2 * trained
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "settings.json", "lengths.jsonl", "windows.json", "windows.md", "windows.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"settings": WindowSettings(steps=4, batch_size=2, seed=2)},
        {"settings": WindowSettings(steps=5, batch_size=2, seed=1)},
        {"train": slice(1, None)},
        {"held_out": slice(1, None)},
    ],
)
def test_scores_of_another_training_raise(
    change: dict[str, Any], compare: Callable[..., list[WindowScores]], rows: list[dict[str, Any]]
) -> None:
    compare(0.2)
    changed = {name: rows[value] if isinstance(value, slice) else value for name, value in change.items()}
    with pytest.raises(ValueError, match="holds files of other settings: "):
        compare(0.2, **changed)


def test_figures_do_not_depend_on_the_other_lengths(
    saved_folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    found = []
    for name, windows in (("alone", [0.2]), ("beside", [0.1, 0.2, 0.8])):
        figures = compare_windows(str(saved_folder), windows, rows, rows, tmp_path / "c", tmp_path / name, QUICK)
        found += [(f.loss, f.word_error_rate, f.tokens_per_second) for f in figures if f.window_seconds == 0.2]
    assert found[0] == found[1]


def test_language_model_is_not_run_and_encoders_once(
    saved_folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = window_configs(SalmonnConfig.from_pretrained(saved_folder), [0.2])[0.2]
    model = fresh_model(config, load_bases(str(saved_folder)), 0)
    processor = SalmonnProcessor.from_pretrained(saved_folder)
    calls: list[str] = []
    for name in ("language_model", "speech_encoder", "audio_encoder"):
        getattr(model.model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    clips = clips_with(rows, ("alignment_text",), "")
    frozen = {name: value.clone() for name, value in model.state_dict().items() if part_of(name) != "connector"}
    train_window(
        model,
        EncoderCache(tmp_path, model, window_extractor(processor, 0.2)),
        processor.tokenizer,
        draw_batches(clips, QUICK),
        clips,
        QUICK,
    )
    assert sorted(calls) == ["audio_encoder", "speech_encoder"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in frozen.items())


def test_clips_come_once_with_nothing_but_their_targets() -> None:
    words = {"path": "a.wav", "alignment_text": "hi", "text": "Hi."}
    rows = [
        words,
        words,
        {"path": "b.wav", "alignment_words": "dog"},
        {"path": "c.wav"},
        {"path": {"bytes": b""}, "alignment_text": "hi"},
        {"path": "d.wav", "expand_wav": ["a.wav"], "alignment_text": "hi hi"},
        {"alignment_text": "hi"},
    ]
    spoken = {"path": "a.wav", "alignment_text": "hi"}
    assert clips_with(rows, ("alignment_text",), "") == [spoken]
    assert clips_with(rows, ("alignment_text", "alignment_words"), "") == [spoken, rows[2]]


def test_each_clip_is_drawn_as_often_as_the_others() -> None:
    clips = [{"path": str(index)} for index in range(4)]
    drawn = [clip["path"] for clip in draw_batches(clips, WindowSettings(steps=5, batch_size=2))]
    assert len(drawn) == 10
    assert sorted(drawn[:4]) == sorted(drawn[4:8]) == ["0", "1", "2", "3"]
    assert drawn != [clip["path"] for clip in draw_batches(clips, WindowSettings(steps=5, batch_size=2, seed=1))]


@pytest.fixture
def found() -> list[WindowScores]:
    return [WindowScores(0.06, 16.68, 0.125, 1.5, 0.0, 0.25), WindowScores(0.24, 4.2, 0.5, 0.75, 0.125, 0.0625)]


def test_report_has_a_line_for_each_length_and_how_to_read_it(found: list[WindowScores]) -> None:
    title, table, reading = windows_report("m", found, 40, QUICK).strip().split("\n\n")
    assert title == "Window lengths for `m`, measured on 40 clips"
    assert table.splitlines() == [
        "| window | audio tokens per second | word error rate | loss | too fast | time per step |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 0.06 s | 16.7 | 12.5% | 1.500 | 0.0% | 250 ms |",
        "| 0.24 s | 4.2 | 50.0% | 0.750 | 12.5% | 62 ms |",
    ]
    assert "for 4 steps of 2 clips in the same order" in " ".join(reading.split())
    assert "not the answers of the whole model" in " ".join(reading.split())


def test_curves_are_the_figures_against_the_length(found: list[WindowScores]) -> None:
    figure = draw_windows(found)
    curves = {axis.get_ylabel(): axis.get_lines()[0].get_xydata().tolist() for axis in figure.axes}
    assert curves == {
        "word error rate": [[0.06, 0.125], [0.24, 0.5]],
        "loss": [[0.06, 1.5], [0.24, 0.75]],
        "tokens per second": [[0.06, 16.68], [0.24, 4.2]],
        "seconds per step": [[0.06, 0.25], [0.24, 0.0625]],
    }
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0.06", "0.24"]


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([], "no window lengths to compare; give some"),
        ([0.12, 0.125], r"0\.12 and 0\.125 s are both 6 frames of 0\.02 s; leave one out"),
        ([0.001], "window_seconds must give at least one frame of 0.02 s, got 0.001"),
        ([3.0], "window_seconds 3.0 is longer than the shortest segment of 2 s"),
    ],
)
def test_lengths_that_cannot_be_raise(
    windows: list[float], message: str, compare: Callable[..., list[WindowScores]], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(*windows)
    assert list(tmp_path.iterdir()) == []


def test_rows_without_words_raise(compare: Callable[..., list[WindowScores]], rows: list[dict[str, Any]]) -> None:
    with pytest.raises(
        ValueError, match="nothing to train on: none of 1 rows has a clip with alignment_text or align"
    ):
        compare(0.2, train=[{"path": "a.wav", "text": "Hi."}])
    with pytest.raises(ValueError, match="nothing to evaluate on: none of 1 rows has a clip with alignment_text"):
        compare(0.2, held_out=rows[-1:])


def test_clip_that_cannot_be_read_raises(
    compare: Callable[..., list[WindowScores]], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    absent = {"path": str(tmp_path / "absent.wav"), "alignment_text": "hi"}
    with pytest.raises(ValueError, match=r"absent\.wav cannot be read: .*; repair it or drop it"):
        compare(0.2, held_out=[*rows, absent])


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_settings_out_of_range_raise(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be positive, got 0"):
        WindowSettings(**change)


def test_missing_matplotlib_is_told_before_anything_is_written(
    compare: Callable[..., list[WindowScores]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(ImportError, match="Figures need matplotlib; install it"):
        compare(0.2)
    assert list(tmp_path.iterdir()) == []


def test_damaged_scores_raise(compare: Callable[..., list[WindowScores]], tmp_path: Path) -> None:
    compare(0.2)
    (tmp_path / "out" / "lengths.jsonl").write_text('{"window_seconds": 0.2, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"Line 1 of .*lengths\.jsonl has nothing as 'tokens_per_second'; mend or"):
        compare(0.2)
