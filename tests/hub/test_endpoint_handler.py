"""`handler.py` of Inference Endpoints, in a process that has the folder alone."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub import endpoint_handler
from modeling_salmonn.hub.export import export_model


QUESTION = "What do you hear?"
# as the toolkit of the endpoints does: the file is found in the folder, and requests are JSON or bytes
SCRIPT = """
import base64, importlib.util, json, sys
sys.modules["modeling_salmonn"] = None
spec = importlib.util.spec_from_file_location("handler", sys.argv[1] + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(sys.argv[1])
for line in sys.stdin:
    request = json.loads(line)
    if "bytes" in request:
        request["inputs"] = base64.b64decode(request.pop("bytes"))
    try:
        print(json.dumps({"answer": handler(request)}))
    except ValueError as error:
        print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def exported(saved_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "salmonn"
    shutil.copytree(saved_folder, folder)
    shutil.copyfile(endpoint_handler.__file__, folder / "handler.py")
    return folder


def replies(folder: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", SCRIPT, str(folder)]
    result = subprocess.run(command, input=lines, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_endpoint_answers_as_the_pipeline(exported: Path, wav_file: Path) -> None:
    model = SalmonnForConditionalGeneration.from_pretrained(exported)
    pipe = AudioTextPipeline(model=model, processor=SalmonnProcessor.from_pretrained(exported))
    wanted = pipe(str(wav_file), text=QUESTION, max_new_tokens=6)
    quiet = pipe(str(wav_file), text=QUESTION, max_new_tokens=6, lora_scale=0.0)
    assert quiet != wanted
    clip = base64.b64encode(wav_file.read_bytes()).decode()
    parameters = {"text": QUESTION, "max_new_tokens": 6}
    messages = [{"role": "user", "content": [{"type": "audio", "audio": clip}, {"type": "text", "text": QUESTION}]}]
    answers = replies(
        exported,
        {"inputs": clip, "parameters": parameters},
        {"inputs": f"data:audio/wav;base64,{clip}", "parameters": parameters},
        {"bytes": clip, "parameters": parameters},
        {"inputs": {"audio": clip, "text": QUESTION}, "parameters": {"max_new_tokens": 6}},
        {"inputs": messages, "parameters": {"max_new_tokens": 6}},
        {"inputs": [clip, clip], "parameters": parameters},
        {"inputs": clip, "parameters": parameters | {"lora_scale": 0.0}},
    )
    assert answers == [{"answer": answer} for answer in [*[wanted] * 5, [wanted, wanted], quiet]]


def test_endpoint_refuses_what_is_not_for_strangers(exported: Path, wav_file: Path) -> None:
    clip = base64.b64encode(wav_file.read_bytes()).decode()
    answers = replies(
        exported,
        {"inputs": str(wav_file)},
        {"inputs": {"path": str(wav_file)}},
        {"inputs": "http://127.0.0.1:9/clip.wav"},
        {"inputs": str(wav_file), "parameters": {"allow_paths": True}},
        {"inputs": clip, "parameters": {"custom_generate": "someone/code", "trust_remote_code": True}},
        {"inputs": clip, "question": QUESTION},
        {"question": QUESTION},
    )
    said = ["allow_paths is False", "allow_paths is False", "no public address", "Unknown parameters ['allow_paths']"]
    said += ["Unknown parameters ['custom_generate', 'trust_remote_code']", *["A request needs 'inputs'"] * 2]
    assert len(answers) == len(said)
    for answer, words in zip(answers, said, strict=True):
        assert words in answer["error"]


def test_exported_folder_answers_by_its_handler(exported: Path, wav_file: Path, tmp_path: Path) -> None:
    export_model(str(exported), tmp_path / "merged")
    request = {"inputs": base64.b64encode(wav_file.read_bytes()).decode(), "parameters": {"max_new_tokens": 6}}
    assert replies(tmp_path / "merged", request) == replies(exported, request)
