"""Answers about all clips of a folder, in a data set of yours or a program of yours.

    python examples/answer_folder.py .venv/salmonn-smol hub/salmonn-smol/clips "What do you hear?"

On the command line, with resuming and broken files told in their rows, the same is done by
`salmonn ask FOLDER QUESTION --model MODEL --output answers.jsonl`.
"""

import json
import sys
from pathlib import Path

from transformers import pipeline


model, folder, question = sys.argv[1:]
clips = sorted(str(path) for path in Path(folder).iterdir() if path.suffix in (".wav", ".flac", ".mp3", ".opus"))
pipe = pipeline("audio-text", model=model, trust_remote_code=True)

# clips of like length go through the model together; on a GPU, num_workers=2 reads the next ones beside it
answers = pipe(clips, text=question, batch_size=8)
for clip, answer in zip(clips, answers, strict=True):
    print(json.dumps({"path": clip, "answer": answer[0]["generated_text"]}))
