"""Ask a server that speaks OpenAI's API, such as ours or vLLM's.

    salmonn serve .venv/salmonn-smol
    python examples/ask_server.py hub/salmonn-smol/clips/speech.opus "What does the speaker say?"

A third argument names another address than http://127.0.0.1:8000/v1. Needs `pip install openai`.
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI


clip, question, *url = sys.argv[1:]
client = OpenAI(base_url=url[0] if url else "http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id

audio = {"data": base64.b64encode(Path(clip).read_bytes()).decode(), "format": Path(clip).suffix.removeprefix(".")}
content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": question}]
for chunk in client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": content}], max_tokens=100, stream=True
):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

with open(clip, "rb") as file:
    print(client.audio.transcriptions.create(model=model, file=file).text)
