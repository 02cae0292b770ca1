"""`transformers serve` with a saved folder, without this package."""

import base64
import sys
from pathlib import Path

import pytest
from salmonn_server import running_server

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor


openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")


def test_transformers_serve_answers_chats_about_audio(saved_folder: Path, wav_file: Path, tmp_path: Path) -> None:
    # the package is where the process runs from, so it is shut out by name
    code = "import sys; sys.modules['modeling_salmonn'] = None; from transformers.cli.transformers import main; main()"
    options = ["--trust-remote-code", "--port", "0", "--device", "cpu", "--log-level", "error"]
    with running_server([sys.executable, "-c", code, "serve", saved_folder, *options], tmp_path / "log") as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        data = base64.b64encode(wav_file.read_bytes()).decode()
        content = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
        content += [{"type": "text", "text": "What do you hear?"}]
        messages = [{"role": "user", "content": content}]
        request = {"model": str(saved_folder), "messages": messages, "max_tokens": 6}
        answer = client.chat.completions.create(**request).choices[0].message.content
        pieces = [
            chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**request, stream=True)
        ]
    model = SalmonnForConditionalGeneration.from_pretrained(saved_folder)
    pipe = AudioTextPipeline(model=model, processor=SalmonnProcessor.from_pretrained(saved_folder))
    wanted = pipe(str(wav_file), text="What do you hear?", max_new_tokens=6)[0]["generated_text"]
    assert answer.strip() == wanted
    assert "".join(pieces).strip() == wanted
