"""Add a column of answers to a data set, batch by batch.

    python examples/map_dataset.py .venv/salmonn-smol my_clips answers.jsonl

`my_clips` is an audio folder: clips, and a metadata.csv with a column file_name. Needs `pip install datasets`. The
pipeline takes a column of audio too: `load_dataset(ID, split="test").cast_column("audio", Audio(decode=False))` gives
one, for `pipe(batch["audio"], ...)`.
"""

import sys
from pathlib import Path

from datasets import disable_caching, load_dataset
from transformers import pipeline


model, folder, output = sys.argv[1:]
pipe = pipeline("audio-text", model=model, trust_remote_code=True)


def add_answers(batch):
    clips = [str(Path(folder, name)) for name in batch["file_name"]]
    answers = pipe(clips, text="What do you hear?", batch_size=8)
    return {"answer": [answer[0]["generated_text"] for answer in answers]}


dataset = load_dataset("csv", data_files=str(Path(folder, "metadata.csv")), split="train")
disable_caching()  # or the answers of another model would be taken
# the fingerprint is given, or datasets would hash the model
dataset = dataset.map(add_answers, batched=True, batch_size=64, new_fingerprint="answers")
dataset.to_json(output)
