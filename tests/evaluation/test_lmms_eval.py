"""lmms-eval asks a SALMONN: `make test-lmms-eval` runs this, in an environment of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SAMPLING_RATE, make_clip
from datasets import Dataset

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor


pytest.importorskip("lmms_eval")
TASK, INSTRUCTION = "librispeech_dev_clean", "Please recognize the speech and only output the recognized content:"
SECONDS = (0.5, 2.5, 1.0, 4.0, 1.5)


@pytest.fixture
def clips() -> list[dict[str, Any]]:
    return [
        {"array": make_clip(seconds, seed=seed), "sampling_rate": SAMPLING_RATE}
        for seed, seconds in enumerate(SECONDS)
    ]


@pytest.fixture
def data_folder(clips: list[dict[str, Any]], tmp_path: Path) -> Path:
    """A folder that `datasets` takes for the task's data set."""
    folder = tmp_path / "lmms-lab-audio" / "librispeech"
    folder.mkdir(parents=True)
    rows = [{"audio": clip, "gt": "some words", "source": "made", "task": "asr_en"} for clip in clips]
    Dataset.from_list(rows).to_parquet(folder / f"{TASK}.parquet")
    split = {"split": TASK, "path": f"{TASK}.parquet"}
    (folder / "README.md").write_text(
        "---\n" + json.dumps({"configs": [{"config_name": TASK, "data_files": [split]}]}) + "\n---\n"
    )
    return tmp_path


def evaluate(folder: Path, model: Path, *launcher: str, **model_args: Any) -> list[str]:
    """Run a task; returns the answers in the order of the rows."""
    arguments = ",".join(f"{name}={value}" for name, value in {"pretrained": model, **model_args}.items())
    command = [sys.executable, "-m", *launcher, "lmms_eval", "eval", "--model", "salmonn", "--model_args", arguments]
    command += ["--tasks", TASK, "--batch_size", "2", "--output_path", "out", "--log_samples"]
    command += ["--gen_kwargs", "max_new_tokens=8"]
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "HF_HOME": str(folder / "home"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (samples,) = (folder / "out").rglob("*_samples_*.jsonl")
    rows = [json.loads(line) for line in samples.open()]
    return [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]


def own_answers(folder: Path, clips: list[dict[str, Any]], **options: Any) -> list[str]:
    pipe = AudioTextPipeline(
        model=SalmonnForConditionalGeneration.from_pretrained(folder),
        processor=SalmonnProcessor.from_pretrained(folder),
    )
    asked = [{"audio": clip, "text": INSTRUCTION} for clip in clips]
    return [answer[0]["generated_text"] for answer in pipe(asked, max_new_tokens=8, num_beams=1, **options)]


def test_answers_are_those_of_the_pipeline(saved_folder: Path, data_folder: Path, clips: list[dict[str, Any]]) -> None:
    answers = evaluate(data_folder, saved_folder)
    assert answers == own_answers(saved_folder, clips)
    assert len(set(answers)) > 1


def test_answers_are_at_the_given_lora_scale(
    saved_folder: Path, data_folder: Path, clips: list[dict[str, Any]]
) -> None:
    answers = evaluate(data_folder, saved_folder, lora_scale=0)
    assert answers == own_answers(saved_folder, clips, lora_scale=0)
    assert answers != own_answers(saved_folder, clips)


def test_several_processes_share_the_rows(saved_folder: Path, data_folder: Path, clips: list[dict[str, Any]]) -> None:
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m")
    assert evaluate(data_folder, saved_folder, *launcher) == own_answers(saved_folder, clips)


def test_options_of_a_task_become_those_of_generate() -> None:
    from modeling_salmonn.evaluation.lmms_eval_model import generation_options

    greedy = {"max_new_tokens": 16, "num_beams": 1, "do_sample": False}
    assert generation_options({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "until": ["\n"]}) == greedy
    sampled = generation_options({"temperature": 0.2, "top_p": None})
    assert sampled == {"max_new_tokens": 200, "num_beams": 1, "do_sample": True, "temperature": 0.2}


def test_answers_are_cut_where_a_task_says() -> None:
    from modeling_salmonn.evaluation.lmms_eval_model import cut_at

    assert cut_at("A duck.\n\nIt quacks.", ["\n\n"]) == "A duck."
    assert cut_at("A duck. It quacks.", "It") == "A duck."
    assert cut_at("A duck.", ["", "x"]) == "A duck."
