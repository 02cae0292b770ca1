"""Ask a model about a clip, and about several at once.

    python examples/quick_start.py .venv/salmonn-smol

Needs no more than `pip install .`; the model may be a folder or a Hub id.
"""

import sys

from transformers import pipeline


(model,) = sys.argv[1:]
pipe = pipeline("audio-text", model=model, trust_remote_code=True)

clip = "hub/salmonn-smol/clips/speech.opus"
print(pipe(clip, text="What does the speaker say?")[0]["generated_text"])

# the next question of a conversation comes with what was said before
turns = [
    {"role": "user", "content": [{"type": "audio", "path": clip}, {"type": "text", "text": "What do you hear?"}]},
    {"role": "assistant", "content": "Someone speaks."},
    {"role": "user", "content": "What does the speaker say?"},
]
print(pipe(turns)[0]["generated_text"])

clips = ["hub/salmonn-smol/clips/animal.opus", "hub/salmonn-smol/clips/music.opus"]
questions = ["What do you hear?", "Which instruments play?"]
for answer in pipe(clips, text=questions, batch_size=2):
    print(answer[0]["generated_text"])
