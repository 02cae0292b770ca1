"""vLLM serves exported folders: `make test-vllm` runs this, with vLLM in an environment of its own.

`SALMONN_VLLM` names the Python that has vLLM, `SALMONN_SMOL` the folder of a salmonn-smol.
"""

import base64
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import soxr
from conftest import ROOT
from vllm_server import SECONDS_TO_START, has_vllm, running_vllm

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.export import export_model


openai = pytest.importorskip("openai")

PYTHON = Path(os.environ.get("SALMONN_VLLM", ROOT / ".venv-vllm" / "bin" / "python"))
SMOL = Path(os.environ.get("SALMONN_SMOL", ROOT / ".venv" / "salmonn-smol"))
CLIPS = ROOT / "hub" / "salmonn-smol" / "clips"
TRANSCRIBE, CAPTION = "Write down exactly what is being said.", "What do you hear?"
NEW_TOKENS = 24
# names of the served models, and the LoRA scale of each; None for the trained one
SCALES = {"base": 0.0, "salmonn": None, "salmonn@0.5": 0.5, "salmonn@1.0": 1.0}

pytestmark = [
    pytest.mark.skipif(not has_vllm(PYTHON), reason=f"{PYTHON} has no vllm: make test-vllm installs it"),
    pytest.mark.skipif(not SMOL.is_dir(), reason=f"{SMOL} is no salmonn-smol: salmonn build-smol makes one"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export") / "apart"
    export_model(str(SMOL), output, adapter_apart=True, lora_scales=[0.5, 1.0])
    return output


@pytest.fixture(scope="module")
def client(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM with nothing of this package but the folder."""
    adapters = [f"salmonn{folder.name.removeprefix('adapter')}={folder}" for folder in exported.glob("adapter*")]
    options = ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--lora-modules", *adapters]
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    with running_vllm(PYTHON, exported, log, *options) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=SECONDS_TO_START)


@pytest.fixture(scope="module")
def model() -> SalmonnForConditionalGeneration:
    return SalmonnForConditionalGeneration.from_pretrained(SMOL, dtype="float32").eval()


@pytest.fixture(scope="module")
def processor() -> SalmonnProcessor:
    return SalmonnProcessor.from_pretrained(SMOL)


def bundled(name: str) -> bytes:
    return (CLIPS / f"{name}.opus").read_bytes()


def joined(rate: int, *names: str, times: int = 1) -> bytes:
    """Bundled clips one after the other, in a WAV file of this rate."""
    samples = [sample for name in names * times for sample in soundfile.read(CLIPS / f"{name}.opus")[0]]
    own_rate = soundfile.info(CLIPS / f"{names[0]}.opus").samplerate
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(samples, own_rate, rate), rate, format="WAV")
    return file.getvalue()


def input_audio(clip: bytes) -> dict[str, Any]:
    form = "wav" if clip.startswith(b"RIFF") else "ogg"
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(clip).decode(), "format": form}}


def data_uri(clip: bytes) -> dict[str, Any]:
    uri = "data:audio/ogg;base64," + base64.b64encode(clip).decode()
    return {"type": "audio_url", "audio_url": {"url": uri}}


def messages_of(question: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def ask(client: Any, question: str, *parts: dict[str, Any], model: str = "salmonn", **options: Any) -> Any:
    messages = messages_of(question, *parts)
    return client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=NEW_TOKENS, **options
    )


def own_answer(model: Any, processor: Any, messages: list[dict[str, Any]], scale: float | None = None) -> str:
    """The greedy answer of transformers; vLLM knows no `no_repeat_ngram_size`."""
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    options = {} if scale is None else {"lora_scale": scale}
    output = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, num_beams=1, do_sample=False, no_repeat_ngram_size=0, **options
    )
    start = length if output.shape[1] > length else 0
    return processor.tokenizer.decode(output[0, start:], skip_special_tokens=True).strip()


CASES = {
    "text only": ("What is the capital of France?", []),
    "one clip": (TRANSCRIBE, [input_audio(bundled("speech"))]),
    "two clips": (CAPTION, [input_audio(bundled("animal")), input_audio(bundled("speech"))]),
    "over 30 s": (TRANSCRIBE, [input_audio(joined(16000, "speech", "animal", times=9))]),
    "data URI": (CAPTION, [data_uri(bundled("animal"))]),
}


@pytest.mark.parametrize("case", CASES)
def test_greedy_answers_are_those_of_transformers(case: str, client: Any, model: Any, processor: Any) -> None:
    question, parts = CASES[case]
    answer = ask(client, question, *parts).choices[0].message.content.strip()
    assert answer
    assert answer == own_answer(model, processor, messages_of(question, *parts))


@pytest.mark.parametrize("name", SCALES)
def test_models_by_name_answer_at_their_lora_scale(name: str, client: Any, model: Any, processor: Any) -> None:
    part = input_audio(bundled("speech"))
    answer = ask(client, TRANSCRIBE, part, model=name).choices[0].message.content.strip()
    assert answer == own_answer(model, processor, messages_of(TRANSCRIBE, part), SCALES[name])


def test_lora_scale_changes_the_answer(client: Any) -> None:
    answers = {
        ask(client, TRANSCRIBE, input_audio(bundled("speech")), model=name).choices[0].message.content
        for name in SCALES
    }
    assert len(answers) > 1


def test_stream_is_the_answer_in_pieces(client: Any) -> None:
    part = input_audio(bundled("speech"))
    whole = ask(client, TRANSCRIBE, part).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, TRANSCRIBE, part, stream=True)]
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 1


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This package, installed in a folder of its own; from a copy, since setuptools writes into what it builds."""
    root = tmp_path_factory.mktemp("package")
    unused = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "benchmarks")
    shutil.copytree(ROOT, root / "source", symlinks=True, ignore=unused)
    command = [sys.executable, "-m", "pip", "install", root / "source", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "--target", root / "installed"], check=True)
    return root / "installed"


@pytest.fixture(scope="module")
def plugin_client(exported: Path, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """vLLM with the plugin of this package, without `--mm-processor-kwargs`."""
    log = tmp_path_factory.mktemp("plugin") / "log.txt"
    options = ["--enable-lora", "--max-lora-rank", "16", "--lora-modules", f"salmonn={exported / 'adapter'}"]
    options += ["--mm-processor-kwargs", "{}"]
    with running_vllm(PYTHON, exported, log, *options, package=package, plugins="salmonn") as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=SECONDS_TO_START)
    assert "SalmonnForVllm" in log.read_text()


@pytest.mark.parametrize("case", [*CASES, "44.1 kHz"])
def test_plugin_answers_as_transformers(case: str, plugin_client: Any, model: Any, processor: Any) -> None:
    """The generic backend resamples by torchaudio, this one by soxr, as the processor does."""
    question, parts = (CASES | {"44.1 kHz": (TRANSCRIBE, [input_audio(joined(44100, "speech"))])})[case]
    answer = ask(plugin_client, question, *parts).choices[0].message.content.strip()
    assert answer == own_answer(model, processor, messages_of(question, *parts))


def transcription_of(clip: bytes) -> dict[str, Any]:
    return {
        "model": "salmonn",
        "file": ("clip.wav", clip),
        "temperature": 0,
        "extra_body": {"max_tokens": NEW_TOKENS},
    }


@pytest.mark.parametrize("rate", [16000, 44100])
def test_plugin_transcribes(rate: int, plugin_client: Any, model: Any, processor: Any) -> None:
    clip = joined(rate, "speech")
    request = transcription_of(clip)
    answer = plugin_client.audio.transcriptions.create(**request)
    wanted = own_answer(model, processor, messages_of(processor.default_transcription_prompt, input_audio(clip)))
    assert answer.text.strip() == wanted
    prompted = plugin_client.audio.transcriptions.create(**request, prompt=CAPTION)
    assert prompted.text.strip() == own_answer(model, processor, messages_of(CAPTION, input_audio(clip)))


def test_plugin_keeps_long_clips_whole(plugin_client: Any, model: Any, processor: Any) -> None:
    (part,) = CASES["over 30 s"][1]
    clip = base64.b64decode(part["input_audio"]["data"])
    request = transcription_of(clip)
    answer = plugin_client.audio.transcriptions.create(**request)
    assert answer.text.strip() == own_answer(
        model, processor, messages_of(processor.default_transcription_prompt, part)
    )


def test_plugin_wants_an_instruction_for_translations(plugin_client: Any) -> None:
    with pytest.raises(openai.OpenAIError, match="needs an instruction in `prompt`"):
        plugin_client.audio.translations.create(model="salmonn", file=("clip.wav", joined(16000, "speech")))


def run_beside_vllm(code: str, package: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code with vLLM and this package."""
    environment = os.environ | {"PYTHONPATH": str(package), "VLLM_PLUGINS": ""}
    return subprocess.run(
        [PYTHON, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("count", [3, 5, 8])
def test_plugin_refuses_a_wrong_number_of_audio_tokens(count: int, package: Path, tmp_path: Path) -> None:
    """8 is a multiple of the 4 wanted, which the generic backend takes for several tokens of each placeholder."""
    code = (
        "import torch; from modeling_salmonn.serving.vllm_model import SalmonnForVllm as Model\n"
        "model = Model.__new__(Model)\n"
        "assert [len(part) for part in model._split_embeddings(torch.zeros(4, 2), [1, 3])] == [1, 3]\n"
        f"model._split_embeddings(torch.zeros({count}, 2), [1, 3])"
    )
    done = run_beside_vllm(code, package, tmp_path)
    assert f"ValueError: The encoders gave {count} audio tokens for 4 placeholders" in done.stderr


def test_vllm_shards_the_language_model_alone(exported: Path, package: Path, tmp_path: Path) -> None:
    """What vLLM merges, it shards under tensor parallelism, but not the biases of BEATs' heads or lone queries."""
    code = (
        "import torch; from types import SimpleNamespace; from modeling_salmonn import SalmonnConfig\n"
        "from modeling_salmonn.modeling_salmonn import SalmonnModel\n"
        "from vllm.model_executor.models.transformers.fuser import Fusers\n"
        f"with torch.device('meta'): model = SalmonnModel(SalmonnConfig.from_pretrained({str(exported)!r}))\n"
        "config = SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=2))\n"
        "fusers = Fusers(model, config)\n"
        "merged = [name for name, module in model.named_modules() "
        "if any(fuser.redefines_forward for fuser in fusers[module])]\n"
        "print({name.split('.')[0] for name in merged})"
    )
    done = run_beside_vllm(code, package, tmp_path)
    assert "{'language_model'}" in done.stdout, done.stderr
