"""Answers about many clips on several machines: Ray Data, with a pipeline in each actor.

    python examples/ray_data.py .venv/salmonn-smol hub/salmonn-smol/clips answers

Needs `pip install "ray[data]"`. Model and clips lie where all machines find them; with GPUs, set ACTORS to their
number and GPUS_EACH to 1. `answers` becomes a folder of JSON lines.
"""

import sys
from pathlib import Path

import ray
from transformers import pipeline


QUESTION = "What do you hear?"
ACTORS, GPUS_EACH = 1, 0


class Answerer:
    """Loads the model once in its actor and answers batch after batch."""

    def __init__(self, model):
        device = "cuda" if GPUS_EACH else "cpu"
        self.pipe = pipeline("audio-text", model=model, trust_remote_code=True, device=device)

    def __call__(self, batch):
        # of each 64 clips, those of like length go through the model together
        answers = self.pipe(list(batch["path"]), text=QUESTION, batch_size=8)
        return {"path": batch["path"], "answer": [answer[0]["generated_text"] for answer in answers]}


model, folder, output = sys.argv[1:]
paths = sorted(str(path.absolute()) for path in Path(folder).rglob("*") if path.suffix in (".wav", ".flac", ".opus"))
clips = ray.data.from_items([{"path": path} for path in paths])
answered = clips.map_batches(
    Answerer,
    fn_constructor_args=(str(Path(model).absolute()),),
    batch_size=64,
    num_gpus=GPUS_EACH,
    compute=ray.data.ActorPoolStrategy(size=ACTORS),
)
answered.write_json(str(Path(output).absolute()))
