"""`salmonn ask ... --output FILE`: many clips, what is written, failures, going on after a kill, several processes."""

import csv
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import assert_one_line_error, run
from conftest import ROOT, SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from transformers import pipeline

from modeling_salmonn.data.windows import cut_at_silences


QUESTION = "What do you hear?"
CLIP_SECONDS = (0.8, 4.5, 1.2, 4.0, 0.6)
NEW_TOKENS = 6
DEADLINE_SECONDS = 300

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five clips, one of them in a folder within, beside what is no audio."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "old").mkdir()
    (folder / "notes.txt").write_text("no audio")
    for index, seconds in enumerate(CLIP_SECONDS):
        place = folder / "old" if index == 3 else folder
        soundfile.write(place / f"{index}.wav", make_clip(seconds, seed=index), SAMPLING_RATE)
    return folder


@pytest.fixture(scope="module")
def alone(saved_folder: Path, clips: Path) -> dict[str, str]:
    """The answer about each clip, as it is given without the others."""
    pipe = pipeline("audio-text", model=str(saved_folder), trust_remote_code=True)
    paths = sorted(str(path) for path in clips.rglob("*.wav"))
    return {path: pipe(path, text=QUESTION, max_new_tokens=NEW_TOKENS)[0]["generated_text"] for path in paths}


@pytest.fixture
def ask(saved_folder: Path) -> Callable[..., Any]:
    def call(*names: Any, **changes: Any) -> Any:
        options = {"model": saved_folder, "max_new_tokens": NEW_TOKENS, "batch_size": 2} | changes
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        return run("ask", *names, QUESTION, *words)

    return call


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_folder_is_answered_as_its_clips_alone(
    ask: Callable[..., Any], clips: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    result = ask(clips, output=tmp_path / "answers.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"5 of 5 clips answered: {tmp_path / 'answers.jsonl'}\n"
    rows = read_rows(tmp_path / "answers.jsonl")
    assert [row["path"] for row in rows] == sorted(alone)
    assert {row["path"]: row["answer"] for row in rows} == alone
    assert len(set(alone.values())) > 2
    assert {(row["question"], row["error"], type(row["finished"])) for row in rows} == {(QUESTION, None, bool)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_answers_keep_the_order_of_the_names(
    num_workers: int, ask: Callable[..., Any], clips: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    names = [clips / "4.wav", clips / "old", clips / "[01].wav", clips / "4.wav", clips / "**" / "2.wav"]
    result = ask(*names, output=tmp_path / "answers.csv", num_workers=num_workers)
    assert result.exit_code == 0, result.output
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [clips / name for name in ("4.wav", "old/3.wav", "0.wav", "1.wav", "2.wav")]
    assert [row["path"] for row in rows] == [str(path) for path in expected]
    assert [row["answer"] for row in rows] == [alone[str(path)] for path in expected]


def test_broken_clips_are_told_and_stop_nothing(
    ask: Callable[..., Any], clips: Path, alone: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clips, tmp_path / "clips"))
    (folder / "2b.wav").write_text("This is not audio.")
    (folder / "2c.wav").write_bytes(b"")
    output = tmp_path / "answers.jsonl"
    result = ask(folder, tmp_path / "absent.wav", output=output)
    assert result.exit_code == 1
    assert result.stdout == f"5 of 8 clips answered: {output}\n"
    assert result.stderr.startswith(f"3 failed, the first one {folder / '2b.wav'}: {folder / '2b.wav'} cannot be dec")
    rows = {Path(row["path"]).name: row for row in read_rows(output)}
    assert [rows[name]["answer"] for name in ("2b.wav", "2c.wav", "absent.wav")] == [None] * 3
    assert "is empty" in rows["2c.wav"]["error"]
    assert "no audio file" in rows["absent.wav"]["error"]
    assert sorted(row["answer"] for row in rows.values() if row["error"] is None) == sorted(alone.values())

    shutil.copy(clips / "0.wav", folder / "2b.wav")
    assert ask(folder, output=output).stdout == f"6 of 7 clips answered: {output}\n"
    repaired = {Path(row["path"]).name: row for row in read_rows(output)}
    assert repaired["2b.wav"]["answer"] == rows["0.wav"]["answer"]
    assert repaired["2b.wav"]["error"] is None


def test_option_that_no_clip_can_be_answered_with_ends_the_run(
    clips: Path, ask: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True)
    tiny_model(config).save_pretrained(tmp_path / "model")
    tiny_processor(config).save_pretrained(tmp_path / "model")
    result = ask(clips, model=tmp_path / "model", lora_scale=2, output=tmp_path / "answers.jsonl")
    assert_one_line_error(result, "lora_scale needs a LoRA adapter")


def open_terminal() -> tuple[int, int]:
    """Both ends of a terminal that is wide enough for a progress bar."""
    screen, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    return screen, writer


def test_killed_run_goes_on_where_it_was(
    ask: Callable[..., Any], saved_folder: Path, clips: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for index in range(60):
        shutil.copy(clips / f"{index % 3}.wav", folder / f"{index:02}.wav")
    output, journal = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.journal" / "answers-0.jsonl"
    command = [sys.executable, "-m", "modeling_salmonn", "ask", str(folder), QUESTION, "--model", str(saved_folder)]
    command += ["--max-new-tokens", str(NEW_TOKENS), "--batch-size", "2", "--output", str(output)]
    screen, terminal = open_terminal()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and b"\n" in journal.read_bytes():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert re.search(r"Answers: +\d+%.* \d+/\d+ s of audio \[", os.read(screen, 65536).decode())
    assert not output.exists()
    before = journal.read_bytes()
    assert before.count(b"\n") < 60

    assert ask(folder, output=output).stdout == f"60 of 60 clips answered: {output}\n"
    assert journal.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert journal.read_bytes().count(b"\n") == 60
    whole = tmp_path / "whole.jsonl"
    assert ask(folder, output=whole).exit_code == 0
    assert output.read_bytes() == whole.read_bytes()


def test_finished_run_answers_nothing_again_and_new_clips_alone(
    ask: Callable[..., Any], clips: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    journal = tmp_path / "answers.jsonl.journal" / "answers-0.jsonl"
    ask(clips / "0.wav", output=output)
    first = journal.read_bytes()
    assert ask(clips / "0.wav", output=output).exit_code == 0
    assert journal.read_bytes() == first
    ask(clips / "0.wav", clips / "1.wav", output=output)
    assert journal.read_bytes().startswith(first)
    assert [Path(row["path"]).name for row in read_rows(output)] == ["0.wav", "1.wav"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_scale": 1}, "lora_scale None instead of 1.0"),
        ({"num_beams": 2}, "num_beams None instead of 2"),
        ({"max_new_tokens": 7}, "max_new_tokens 6 instead of 7"),
        ({"dtype": "bfloat16"}, "dtype 'torch.float32' instead of 'torch.bfloat16'"),
        ({"quantize": "int8"}, "quantization None instead of 'torchao'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_answers_to_something_else_are_never_taken(
    changes: dict[str, Any], message: str, ask: Callable[..., Any], clips: Path, tmp_path: Path
) -> None:
    if "quantize" in changes:
        pytest.importorskip("torchao", reason="make test-quantization installs it")
    output = tmp_path / "answers.jsonl"
    ask(clips / "0.wav", output=output)
    before = output.read_bytes()
    assert_one_line_error(ask(clips / "0.wav", output=output, **changes), message)
    assert output.read_bytes() == before


def test_answers_by_other_settings_of_the_model_are_never_taken(
    ask: Callable[..., Any], saved_folder: Path, clips: Path, tmp_path: Path
) -> None:
    model, output = Path(shutil.copytree(saved_folder, tmp_path / "model")), tmp_path / "answers.jsonl"
    original = (model / "generation_config.json").read_bytes()
    (model / "generation_config.json").write_text(json.dumps(json.loads(original) | {"repetition_penalty": 1.5}))
    assert ask(clips / "0.wav", output=output, model=model).exit_code == 0
    (model / "generation_config.json").write_bytes(original)
    result = ask(clips / "0.wav", output=output, model=model)
    assert_one_line_error(result, "repetition_penalty 1.5 instead of None")


def test_files_of_others_are_not_written_over(ask: Callable[..., Any], clips: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("mine")
    (tmp_path / "0.srt").write_text("mine")
    result = ask(clips / "0.wav", output=tmp_path / "answers.jsonl")
    assert_one_line_error(result, "answers.jsonl is there already, and not of an earlier call")
    result = ask(clips / "0.wav", clips / "1.wav", output=tmp_path, format="srt")
    assert_one_line_error(result, "0.srt is there already")
    assert (tmp_path / "0.srt").read_text() == "mine"


def speech_with_pauses() -> np.ndarray:
    """Noise of 70 s with pauses at 21 to 22 s and 47 to 48 s."""
    samples = 0.1 * np.random.default_rng(0).standard_normal(70 * SAMPLING_RATE)
    for start in (21, 47):
        samples[start * SAMPLING_RATE : (start + 1) * SAMPLING_RATE] = 0
    return samples.astype(np.float32)


def test_subtitles_have_the_times_of_the_windows(
    ask: Callable[..., Any], saved_folder: Path, clips: Path, tmp_path: Path
) -> None:
    samples = speech_with_pauses()
    soundfile.write(tmp_path / "talk.wav", samples, SAMPLING_RATE)
    result = ask(tmp_path / "talk.wav", output=tmp_path / "talk.srt")
    assert result.exit_code == 0, result.output
    cues = (tmp_path / "talk.srt").read_text().split("\n\n")
    windows = cut_at_silences(soundfile.read(tmp_path / "talk.wav", dtype="float32")[0], 30.0)
    assert [cue.splitlines()[1] for cue in cues] == [f"{clock(start)} --> {clock(end)}" for start, end in windows]
    pipe = pipeline("audio-text", model=str(saved_folder), trust_remote_code=True)
    written, _ = soundfile.read(tmp_path / "talk.wav", dtype="float32")
    for number, (cue, (start, end)) in enumerate(zip(cues, windows, strict=True), start=1):
        window = {"array": written[start:end], "sampling_rate": SAMPLING_RATE}
        expected = pipe(window, text=QUESTION, max_new_tokens=NEW_TOKENS)[0]["generated_text"]
        assert cue.splitlines()[0] == str(number)
        assert cue.splitlines()[2:] == [line for line in expected.splitlines() if line.strip()]


def clock(sample: int) -> str:
    seconds, milliseconds = divmod(round(sample / 16), 1000)
    return f"00:{seconds // 60:02}:{seconds % 60:02},{milliseconds:03}"


def test_subtitles_of_several_clips_go_into_a_folder(ask: Callable[..., Any], clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "clips")
    soundfile.write(tmp_path / "clips" / "0.flac", make_clip(1.0), SAMPLING_RATE)
    result = ask(tmp_path / "clips", output=tmp_path / "texts", format="srt")
    assert result.exit_code == 0, result.output
    names = {str(file.relative_to(tmp_path / "texts")) for file in (tmp_path / "texts").rglob("*.srt")}
    assert names == {"0.wav.srt", "0.flac.srt", "1.srt", "2.srt", "old/3.srt", "4.srt"}
    assert "00:00:00,000 --> 00:00:04,500" in (tmp_path / "texts" / "1.srt").read_text()
    result = ask(tmp_path / "clips", output=tmp_path / "all.srt")
    assert_one_line_error(result, "cannot hold the subtitles of 6 clips; give a folder, and --format srt")


def test_names_of_files_may_have_any_bytes(ask: Callable[..., Any], clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    shutil.copy(clips / "0.wav", os.fsdecode(bytes(folder / "caf") + b"\xe9.wav"))
    result = ask(folder, output=tmp_path / "answers.jsonl")
    assert result.exit_code == 0, result.output
    (row,) = read_rows(tmp_path / "answers.jsonl")
    assert row["path"].endswith("caf\\udce9.wav")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "several clips, folders and patterns go to a file; give --output"),
        ({"output": "answers.txt"}, "Answers are written as jsonl, csv, srt: answers.txt does not end in one"),
        ({"output": "answers.jsonl", "format": "xml"}, "--format xml; give --format"),
        ({"output": "answers.jsonl", "explain": "why.png"}, "--stream and --explain are for one clip"),
    ],
)
def test_options_that_do_not_fit_are_told(
    changes: dict[str, Any], message: str, ask: Callable[..., Any], clips: Path, tmp_path: Path
) -> None:
    if "output" in changes:
        changes = changes | {"output": tmp_path / changes["output"]}
    assert_one_line_error(ask(clips, **changes), message)


def test_question_that_was_forgotten_is_missed(saved_folder: Path, clips: Path, tmp_path: Path) -> None:
    arguments = ("--model", saved_folder, "--output", tmp_path / "answers.jsonl")
    result = run("ask", clips / "0.wav", clips / "1.wav", *arguments)
    assert_one_line_error(result, f"The question comes last, and {clips / '1.wav'} is a file")


def test_folder_without_audio_is_told(ask: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "._0.wav").write_text("hidden")
    assert_one_line_error(ask(tmp_path, output=tmp_path / "answers.csv"), "has no audio files")


@pytest.mark.slow
def test_two_processes_write_the_answers_of_one(
    ask: Callable[..., Any], saved_folder: Path, clips: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "modeling_salmonn", "ask", str(clips), QUESTION]
    command += ["--model", str(saved_folder), "--max-new-tokens", str(NEW_TOKENS), "--batch-size", "2"]
    command += ["--output", str(tmp_path / "two.jsonl")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    assert "5 of 5 clips answered" in result.stdout
    assert ask(clips, output=tmp_path / "one.jsonl").exit_code == 0
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert (tmp_path / "two.jsonl.journal" / "answers-1.jsonl").stat().st_size > 0
