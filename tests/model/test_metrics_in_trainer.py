"""The stock `Trainer` measures predictions, also of batches without audio and in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_model
from evaluating import CONFIG, ROWS, collate, evaluate

from modeling_salmonn import SalmonnForConditionalGeneration


@torch.no_grad()
def mean_right_logit(model: SalmonnForConditionalGeneration) -> tuple[int, float]:
    """Answer tokens and the mean logit of the right ones, row by row."""
    right = []
    for row in ROWS:
        inputs = collate([row])
        labels = inputs["labels"][0, 1:]
        logits = model(**inputs).logits[0, :-1]
        right += logits[labels != -100].gather(-1, labels[labels != -100][:, None]).flatten().tolist()
    return len(right), float(np.mean(right))


@pytest.fixture(scope="module")
def expected() -> tuple[int, float]:
    return mean_right_logit(tiny_model(CONFIG))


def test_metrics_get_the_logits_alone(expected: tuple[int, float], tmp_path: Path) -> None:
    metrics, predicted = evaluate(tmp_path)
    assert isinstance(predicted.predictions, np.ndarray)
    assert predicted.predictions.shape[0] == len(ROWS)
    assert predicted.predictions.shape[-1] == CONFIG.text_config.vocab_size
    assert metrics["eval_tokens"] == predicted.metrics["test_tokens"] == expected[0]
    assert metrics["eval_right"] == pytest.approx(expected[1], abs=1e-3)


def test_two_processes_measure_the_same(expected: tuple[int, float], tmp_path: Path) -> None:
    output = tmp_path / "metrics.json"
    script = ROOT / "tests" / "helpers" / "evaluating.py"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", str(script), str(output)]
    paths = [str(ROOT), str(ROOT / "tests"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    metrics = json.loads(output.read_text())
    assert metrics["shape"][0] == len(ROWS)
    assert metrics["eval_tokens"] == expected[0]
    assert metrics["eval_right"] == pytest.approx(expected[1], abs=1e-3)
