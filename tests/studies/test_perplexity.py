"""Perplexity of answers under instructions: the command, the figures, going on after a stop, the heat maps."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from byte_tokenizer import byte_tokenizer
from command_line import run
from conftest import SAMPLING_RATE, make_clip
from counted_segments import counted_segments
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.activation.writing import OPEN_QUESTIONS
from modeling_salmonn.data.prompts import load_prompts
from modeling_salmonn.studies.perplexity import (
    draw_tables,
    measure_perplexities,
    perplexity_table,
    read_probes_of_kinds,
)


SPEECH = {"path": "0.wav", "transcript": "Call me.", "story": "He called her, and she came."}
SOUND = {"path": "1.wav", "caption": "A tone.", "story": "Once there was a tone that nobody heard."}
ASKED = {"path": "2.wav", "qa": "Low, as of a horn.", "question": "How high is it?", "story": "A horn called."}
COLUMNS = ["nothing", "transcript", "caption", "qa", "story", "mean"]

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probes")
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", make_clip(0.5 + 0.2 * index, seed=index), SAMPLING_RATE)
    return write_probes(folder / "probes.jsonl", SPEECH, SOUND, ASKED)


def write_probes(file: Path, *probes: dict[str, str]) -> Path:
    file.write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    return file


@pytest.fixture(scope="module")
def tuned_folder(saved_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with half of its adapter."""
    folder = tmp_path_factory.mktemp("tuned") / "salmonn-tuned"
    model = SalmonnForConditionalGeneration.from_pretrained(saved_folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.5)
    model.save_pretrained(folder)
    SalmonnProcessor.from_pretrained(saved_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measured(saved_folder: Path, tuned_folder: Path, probes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("perplexity")
    models = {"before": str(saved_folder), "after": str(tuned_folder)}
    measure_perplexities(models, read_probes_of_kinds(str(probes)), output)
    return output


def tables_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "perplexity.json").read_text())


@torch.no_grad()
def own_loss(folder: Path, clip: Path, instruction: str, answer: str) -> float:
    """What the model itself gives as its loss."""
    model = SalmonnForConditionalGeneration.from_pretrained(folder).eval()
    processor = SalmonnProcessor.from_pretrained(folder)
    return float(model(**processor(text=[instruction], audio=[[str(clip)]], text_target=[answer])).loss)


def test_clip_of_a_probe_is_encoded_once(saved_folder: Path, probes: Path, tmp_path: Path) -> None:
    with counted_segments() as counts:
        measure_perplexities({"before": str(saved_folder)}, read_probes_of_kinds(str(probes)), tmp_path)
    assert counts == {"speech": 3, "audio": 3}  # each has two answers under five instructions


@pytest.mark.parametrize("name", ["before", "after"])
def test_perplexity_is_that_of_the_models_own_loss(
    name: str, measured: Path, saved_folder: Path, tuned_folder: Path, probes: Path
) -> None:
    folder = {"before": saved_folder, "after": tuned_folder}[name]
    instruction = load_prompts()["asr"][0]
    loss = own_loss(folder, probes.parent / "0.wav", instruction, SPEECH["transcript"])
    found = tables_of(measured)[name]["transcript"]["under"]["transcript"]
    assert found["value"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_perplexity_of_several_probes_is_that_of_their_mean_loss(
    measured: Path, saved_folder: Path, probes: Path
) -> None:
    clips, instruction = (
        [probes.parent / probe["path"] for probe in (SPEECH, SOUND, ASKED)],
        load_prompts()["story"][0],
    )
    losses = [
        own_loss(saved_folder, clip, instruction, probe["story"])
        for clip, probe in zip(clips, (SPEECH, SOUND, ASKED), strict=True)
    ]
    entry = tables_of(measured)["before"]["story"]
    assert entry["probes"] == 3
    found = entry["under"]["story"]
    assert found["value"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-4)
    assert (
        math.exp(min(losses)) * 0.999 < found["low"] < found["value"] < found["high"] < math.exp(max(losses)) * 1.001
    )


def test_answers_are_asked_for_with_their_question(measured: Path, saved_folder: Path, probes: Path) -> None:
    tables = tables_of(measured)["before"]
    own = own_loss(saved_folder, probes.parent / "2.wav", ASKED["question"], ASKED["qa"])
    assert tables["qa"]["under"]["qa"]["value"] == pytest.approx(math.exp(own), rel=1e-4)
    open_one = own_loss(saved_folder, probes.parent / "1.wav", OPEN_QUESTIONS[0], SOUND["caption"])
    assert tables["caption"]["under"]["qa"]["value"] == pytest.approx(math.exp(open_one), rel=1e-4)


def test_mean_is_over_what_is_asked_for() -> None:
    losses = {("story", name): float(index) for index, name in enumerate(COLUMNS[:-1])}  # 0 for nothing
    table = perplexity_table([losses])
    assert list(table) == ["story"]
    assert list(table["story"]["under"]) == COLUMNS
    assert table["story"]["under"]["mean"]["value"] == pytest.approx(math.exp((1 + 2 + 3 + 4) / 4))


def test_report_has_both_models_below_each_other(measured: Path) -> None:
    heading, paragraph, table = (measured / "perplexity.md").read_text().strip().split("\n\n")
    assert heading.startswith("# ")
    assert "`mean`, the geometric mean over the instructions" in " ".join(paragraph.split())
    head, _, *lines = table.splitlines()
    assert head == f"| answer | model | probes | {' | '.join(COLUMNS)} |"
    assert [line.split(" | ")[:3] for line in lines] == [
        [f"| {kind}", name, count]
        for kind, count in (("transcript", "1"), ("caption", "1"), ("qa", "1"), ("story", "3"))
        for name in ("before", "after")
    ]


def test_command_measures_one_model_alone(saved_folder: Path, probes: Path, measured: Path, tmp_path: Path) -> None:
    result = run("study", "perplexity", saved_folder, "--probes", probes, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Wrote perplexity.json, perplexity.png and perplexity.md to {tmp_path}.\n"
    assert tables_of(tmp_path) == {"before": tables_of(measured)["before"]}
    widths = [
        int.from_bytes((folder / "perplexity.png").read_bytes()[16:20], "big") for folder in (tmp_path, measured)
    ]
    assert widths[1] == 2 * widths[0]  # one panel, and two


def test_finished_command_measures_nothing(
    measured: Path, saved_folder: Path, tuned_folder: Path, probes: Path
) -> None:
    files = [measured / name / "losses.jsonl" for name in ("before", "after")]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    tables = tables_of(measured)
    result = run("study", "perplexity", saved_folder, tuned_folder, "--probes", probes, "--output", measured)
    assert result.exit_code == 0, result.output
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in files] == before
    assert tables_of(measured) == tables


def test_stopped_command_measures_what_is_left(
    measured: Path, saved_folder: Path, probes: Path, tmp_path: Path
) -> None:
    lines = (measured / "before" / "losses.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "losses.jsonl").write_text("".join(lines[:12]) + lines[12][:9])  # amid the second probe
    result = run("study", "perplexity", saved_folder, "--probes", probes, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "before" / "losses.jsonl").read_text().splitlines(keepends=True) == lines
    assert tables_of(tmp_path)["before"] == tables_of(measured)["before"]


def test_folder_with_losses_of_another_model_raises(measured: Path, tuned_folder: Path, probes: Path) -> None:
    result = run("study", "perplexity", tuned_folder, "--probes", probes, "--output", measured)
    assert result.exit_code == 1
    assert "other settings: weights " in result.stderr


def test_heat_maps_share_their_scale_and_tell_figures() -> None:
    before = {("story", name): 3.0 for name in COLUMNS[:-1]}
    after = before | {("story", "story"): 1.0}
    tables = {name: perplexity_table([losses]) for name, losses in (("one", before), ("two", after))}
    figure = draw_tables(tables)
    panels = [axes for axes in figure.axes if axes.get_title("left")]
    assert [panel.get_title("left") for panel in panels] == ["one", "two"]
    limits = [panel.get_images()[0].get_clim() for panel in panels]
    assert limits == [(1, pytest.approx(math.exp(3)))] * 2
    assert [text.get_text() for text in panels[0].texts] == ["20.1"] * 6
    assert [text.get_text() for text in panels[1].texts] == ["20.1"] * 4 + ["2.72", "12.2"]
    frame = panels[0].patches[0]
    assert frame.get_x() < COLUMNS.index("story") < frame.get_x() + frame.get_width()


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"path": "0.wav", "caption": "A tone."}, r"it needs 'path', 'story', and one of \['caption', 'qa', 'tran"),
        ({"path": "0.wav", "story": "A tale."}, r"it needs 'path', 'story', and one of \['caption', 'qa', 'transc"),
        ({"path": "0.wav", "story": "A tale.", "qa": "Low."}, "Probe 1 of .* has 'qa' but no 'question'"),
    ],
)
def test_incomplete_probe_raises(probe: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_probes_of_kinds(str(write_probes(tmp_path / "probes.jsonl", SOUND, probe)))


def test_other_model_raises(probes: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=261, **sizes)).save_pretrained(tmp_path / "llama")
    byte_tokenizer().save_pretrained(tmp_path / "llama")
    models = {"before": str(tmp_path / "llama")}
    with pytest.raises(ValueError, match=r"llama is no SALMONN; give its folder or Hub id\."):
        measure_perplexities(models, read_probes_of_kinds(str(probes)), tmp_path / "out")


def test_unreadable_clip_is_named(saved_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    probes = write_probes(tmp_path / "probes.jsonl", SOUND | {"path": "broken.wav"})
    result = run("study", "perplexity", saved_folder, "--probes", probes, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "broken.wav" in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_matplotlib_is_told_before_anything_is_measured(
    saved_folder: Path, probes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(ImportError, match="Figures need matplotlib; install it: pip install matplotlib"):
        measure_perplexities({"before": str(saved_folder)}, read_probes_of_kinds(str(probes)), tmp_path)
    assert list(tmp_path.iterdir()) == []
