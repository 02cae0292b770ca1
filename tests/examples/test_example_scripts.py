"""Every example does what its first line says; run as a program by `runpy`, with a tiny model."""

import csv
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
from conftest import ROOT, SAMPLING_RATE, make_clip
from salmonn_server import running_server, serve_command
from transformers import pipeline


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMOL = Path(os.environ.get("SALMONN_SMOL", ROOT / ".venv" / "salmonn-smol"))


def run_example(name: str, *arguments: Any) -> None:
    """Run an example in this process, as its program would run."""
    words = [f"examples/{name}.py", *(str(argument) for argument in arguments)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.fixture(scope="module")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips with a question and an answer each."""
    folder = tmp_path_factory.mktemp("my_clips")
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "question", "answer"])
        for index, answer in enumerate(["one", "two", "three", "four"]):
            soundfile.write(folder / f"{index}.wav", make_clip(0.5 + 0.4 * index, seed=index), SAMPLING_RATE)
            writer.writerow([f"{index}.wav", "How many?", answer])
    return folder


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_opens_with_its_launch_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith('"""')
    assert any("python examples/" in line or "swift sft" in line for line in lines[:6])
    assert any(f"examples/{path.name} " in line for line in lines[:6])


def test_quick_start_answers(saved_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("quick_start", saved_folder)
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_folder_is_answered(saved_folder: Path, audio_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("answer_folder", saved_folder, audio_folder, "What do you hear?")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert all(isinstance(row["answer"], str) for row in rows)


@pytest.mark.usefixtures("own_caches")
def test_data_set_gets_a_column_of_answers(saved_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    run_example("map_dataset", saved_folder, audio_folder, tmp_path / "answers.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["0.wav", "1.wav", "2.wav", "3.wav"]
    pipe = pipeline("audio-text", model=str(saved_folder), trust_remote_code=True)
    alone = [pipe(str(audio_folder / row["file_name"]), text="What do you hear?") for row in rows]
    assert [row["answer"] for row in rows] == [answer[0]["generated_text"] for answer in alone]


@pytest.mark.usefixtures("own_caches")
def test_data_set_gets_the_answers_of_a_model_that_has_changed(
    saved_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(saved_folder, tmp_path / "model"))
    answers = []
    for repetition_penalty in (1.0, 50.0):
        settings = json.loads((model / "generation_config.json").read_text())
        settings |= {"repetition_penalty": repetition_penalty, "max_new_tokens": 8}
        (model / "generation_config.json").write_text(json.dumps(settings))
        run_example("map_dataset", model, audio_folder, tmp_path / "answers.jsonl")
        rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        answers.append([row["answer"] for row in rows])
    assert answers[0] != answers[1]


def fine_tune(
    model: Path, folder: Path, output: Path, printed: pytest.CaptureFixture[str]
) -> tuple[float, float, str]:
    """First and last loss, and what the tuned model says of the first clip."""
    run_example("fine_tune", model, folder, output)
    text = printed.readouterr().out
    found = re.search(r"loss (\d+\.\d+) at first, (\d+\.\d+) at last\n(.*)\Z", text, re.DOTALL)
    assert found is not None, text
    return float(found[1]), float(found[2]), found[3].strip()


def test_fine_tuning_lowers_the_loss(
    saved_folder: Path, audio_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last, _ = fine_tune(saved_folder, audio_folder, tmp_path / "tuned", capsys)
    assert last < first
    assert (tmp_path / "tuned" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not SMOL.is_dir(), reason="needs salmonn-smol, which `make` assembles")
def test_fine_tuned_salmonn_smol_gives_other_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my_clips"
    folder.mkdir()
    names = ["animal", "machine", "music", "speech"]
    for name in names:
        shutil.copy(ROOT / "hub" / "salmonn-smol" / "clips" / f"{name}.opus", folder)
    rows = [f"{name}.opus,Is this a room?,It is the {name} room." for name in names]
    (folder / "metadata.csv").write_text("\n".join(["file_name,question,answer", *rows]) + "\n")
    first, last, answer = fine_tune(SMOL, folder, tmp_path / "tuned", capsys)
    assert last < first / 2
    assert answer.endswith(" room.")


@pytest.mark.slow
def test_ray_answers_a_folder(saved_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
    run_example("ray_data", saved_folder, audio_folder, tmp_path / "answers")
    ray.shutdown()
    lines = [line for file in (tmp_path / "answers").iterdir() for line in file.read_text().splitlines()]
    assert {Path(json.loads(line)["path"]).name for line in lines} == {"0.wav", "1.wav", "2.wav", "3.wav"}


def test_server_is_asked(saved_folder: Path, audio_folder: Path, tmp_path: Path, capsys: Any) -> None:
    with running_server(serve_command(saved_folder), tmp_path / "log.txt") as address:
        run_example("ask_server", audio_folder / "0.wav", "What do you hear?", f"{address}/v1")
    pipe = pipeline("audio-text", model=str(saved_folder), trust_remote_code=True)
    answer = pipe(str(audio_folder / "0.wav"), text="What do you hear?", max_new_tokens=100)[0]["generated_text"]
    words = pipe(str(audio_folder / "0.wav"), text=pipe.processor.default_transcription_prompt)[0]["generated_text"]
    # random weights end within a character, whose bytes a stream holds back
    printed = capsys.readouterr().out.strip().removesuffix(words).rstrip("\ufffd \n")
    assert printed == answer.rstrip("\ufffd ")
