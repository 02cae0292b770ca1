"""`salmonn ask`: what it prints, what it refuses."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_one_line_error, run
from conftest import ReferenceCase, tiny_config, tiny_model, tiny_processor
from transformers import WhisperConfig, pipeline

from modeling_salmonn import AudioTextPipeline, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.quantization import quantization_config


QUESTION = "What do you hear?"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

pytestmark = pytest.mark.usefixtures("restored_logging")


def expected_answer(folder: Path, audio: Path, **options: Any) -> str:
    pipe = pipeline("audio-text", model=str(folder), trust_remote_code=True)
    return pipe(str(audio), text=QUESTION, **options)[0]["generated_text"]


def test_ask_prints_the_answer_alone(saved_folder: Path, wav_file: Path) -> None:
    result = run("ask", wav_file, QUESTION, "--model", saved_folder, "--max-new-tokens", 6)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == expected_answer(saved_folder, wav_file, max_new_tokens=6) + "\n"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--num-beams", 3], {"num_beams": 3}),
        (["--lora-scale", 0], {"lora_scale": 0.0}),
        (["--max-new-tokens", 2, "--device", "cpu"], {"max_new_tokens": 2}),
    ],
)
def test_ask_passes_its_options(
    arguments: list[Any], options: dict[str, Any], saved_folder: Path, wav_file: Path
) -> None:
    result = run("ask", wav_file, QUESTION, "--model", saved_folder, "--max-new-tokens", 6, *arguments)
    assert result.stdout == expected_answer(saved_folder, wav_file, **({"max_new_tokens": 6} | options)) + "\n"
    assert result.stdout != expected_answer(saved_folder, wav_file, max_new_tokens=6) + "\n"


def test_ask_with_smaller_weights(saved_folder: Path, wav_file: Path) -> None:
    pytest.importorskip("torchao", reason="make test-quantization installs it")
    result = run("ask", wav_file, QUESTION, "--model", saved_folder, "--max-new-tokens", 6, "--quantize", "int8")
    quantisation = quantization_config("int8")
    model = SalmonnForConditionalGeneration.from_pretrained(saved_folder, quantization_config=quantisation)
    pipe = AudioTextPipeline(model=model, processor=SalmonnProcessor.from_pretrained(saved_folder))
    assert result.stdout == pipe(str(wav_file), text=QUESTION, max_new_tokens=6)[0]["generated_text"] + "\n"


def test_ask_streams_the_same_answer(saved_folder: Path, wav_file: Path) -> None:
    arguments = ("ask", wav_file, QUESTION, "--model", saved_folder, "--max-new-tokens", 6)
    result = run(*arguments, "--stream")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.strip() == run(*arguments).stdout.strip()


def test_ask_explains_the_same_answer(saved_folder: Path, wav_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "new[folder]" / "why.png"
    arguments = ("ask", wav_file, QUESTION, "--model", saved_folder, "--max-new-tokens", 6, "--lora-scale", 1)
    result = run(*arguments, "--explain", picture)
    assert (result.exit_code, result.stderr) == (0, "")
    answer, line = result.stdout.removesuffix("\n").rsplit("\n", 1)
    assert answer + "\n" == run(*arguments).stdout
    said = r"The answer rests mostly on \d\.\d to \d\.\d s: \d+ % of the weight in \d+ % of the clip"
    assert re.fullmatch(rf"{said} \(attribution, not time stamps\); picture: {re.escape(str(picture))}", line)
    assert picture.read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("option", [["--stream"], ["--num-beams", 2]], ids=["stream", "beams"])
def test_ask_explains_only_the_whole_greedy_answer(
    option: list[Any], saved_folder: Path, wav_file: Path, tmp_path: Path
) -> None:
    arguments = ("ask", wav_file, QUESTION, "--model", saved_folder, "--explain", tmp_path / "why.png")
    assert_one_line_error(run(*arguments, *option), "leave out --stream and --num-beams")


def test_ask_to_explain_without_matplotlib_fails_in_a_line(
    saved_folder: Path, wav_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    result = run("ask", wav_file, QUESTION, "--model", saved_folder, "--explain", tmp_path / "why.png")
    assert_one_line_error(result, "pip install matplotlib")


def test_ask_equals_research_code(reference: ReferenceCase) -> None:
    for name, clip in reference.clips().items():
        if name == "long":  # the research code cuts it at 30 s
            continue
        question = clip["prompt"].split("</Speech> ", 1)[1].split("\nASSISTANT:", 1)[0]
        audio = reference.audio(name)
        result = run("ask", audio, question, "--model", reference.converted, "--max-new-tokens", 20)
        expected = clip["greedy_text"].removeprefix("<s>").removesuffix("</s>").strip()
        assert result.stdout.strip() == expected, name


def test_ask_runs_as_a_command(saved_folder: Path, wav_file: Path) -> None:
    command = Path(sysconfig.get_path("scripts")) / "salmonn"
    arguments = ["ask", wav_file, QUESTION, "--model", saved_folder, "--max-new-tokens", "6"]
    result = subprocess.run([command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected_answer(saved_folder, wav_file, max_new_tokens=6) + "\n"
    if find_spec("torchao") is None:  # which tells at import what of its own does not fit the machine
        assert result.stderr == ""


@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["absent.wav", "clip[red].wav", "clip[/red].wav"])
def test_ask_about_a_missing_file_fails_in_a_line(
    name: str, stream: list[str], saved_folder: Path, tmp_path: Path
) -> None:
    audio = tmp_path / name
    assert_one_line_error(run("ask", audio, QUESTION, "--model", saved_folder, *stream), f"no audio file {audio}")


def test_ask_about_a_file_that_is_not_audio_fails_in_a_line(saved_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("This is not audio.")
    result = run("ask", tmp_path / "notes.wav", QUESTION, "--model", saved_folder)
    assert_one_line_error(result, "notes.wav cannot be decoded")


@pytest.mark.parametrize("name", ["why.wav", "notes.txt", "why"])
def test_ask_writes_pictures_to_names_of_pictures_alone(
    name: str, saved_folder: Path, wav_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "why.wav").write_bytes(wav_file.read_bytes())
    result = run("ask", tmp_path / "why.wav", QUESTION, "--model", saved_folder, "--explain", tmp_path / name)
    assert_one_line_error(result, f"{name} is no name for a picture")
    assert (tmp_path / "why.wav").read_bytes() == wav_file.read_bytes()


def test_ask_never_writes_a_picture_over_audio(saved_folder: Path, wav_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    audio = tmp_path / "sound.png"
    audio.write_bytes(wav_file.read_bytes())
    assert_one_line_error(
        run("ask", audio, QUESTION, "--model", saved_folder, "--explain", audio), "something else than a picture"
    )
    assert audio.read_bytes() == wav_file.read_bytes()


def test_ask_does_not_run_the_code_of_the_folder(saved_folder: Path, wav_file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_folder, tmp_path / "tampered"))
    mark = f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(
        "def generate(model, **options):" + mark.replace("\n", "\n ")
    )
    (folder / "tokenization.py").write_text(mark)
    for file in folder.glob("*.py"):
        file.write_text(file.read_text() + mark)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "tokenization.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    arguments = ("ask", wav_file, QUESTION, "--max-new-tokens", 6, "--model")
    assert run(*arguments, folder).stdout == run(*arguments, saved_folder).stdout != ""
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json", "model.safetensors"])
def test_ask_names_the_file_that_a_folder_lacks(name: str, saved_folder: Path, wav_file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_folder, tmp_path / "salmonn"))
    (folder / name).unlink()
    result = run("ask", wav_file, QUESTION, "--model", folder)
    assert_one_line_error(result, f"{folder} lacks {name}" if name != "config.json" else f"{folder} has no {name}")


def test_ask_tells_what_a_folder_is_instead(saved_folder: Path, wav_file: Path, tmp_path: Path) -> None:
    whisper, adapter, damaged = tmp_path / "whisper", tmp_path / "adapter", tmp_path / "damaged"
    WhisperConfig().save_pretrained(whisper)
    adapter.mkdir()
    shutil.copy(saved_folder / "adapter_config.json", adapter)
    damaged.mkdir()
    (damaged / "config.json").write_text("[" * 100000)
    told = {
        whisper: "holds a model of type 'whisper', but 'salmonn' is needed",
        adapter: "it holds a LoRA adapter alone",
        damaged: "config.json cannot be read as JSON",
        wav_file: "is a file; give the folder of a SALMONN model",
    }
    for folder, message in told.items():
        assert_one_line_error(run("ask", wav_file, QUESTION, "--model", folder), message)


def test_ask_a_hub_id_that_cannot_be_fetched_fails_in_a_line(wav_file: Path) -> None:
    assert_one_line_error(run("ask", wav_file, QUESTION, "--model", "someone/absent"), "someone/absent")


def test_ask_a_missing_model_fails_in_a_line(wav_file: Path, tmp_path: Path) -> None:
    assert_one_line_error(run("ask", wav_file, QUESTION, "--model", tmp_path / "absent"), "absent")


def test_ask_a_folder_without_a_model_fails_in_a_line(wav_file: Path, tmp_path: Path) -> None:
    assert_one_line_error(run("ask", wav_file, QUESTION, "--model", tmp_path), "config.json")


def test_ask_for_a_lora_scale_without_adapter_fails_in_a_line(wav_file: Path, tmp_path: Path) -> None:
    config = tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True)
    tiny_model(config).save_pretrained(tmp_path)
    tiny_processor(config).save_pretrained(tmp_path)
    result = run("ask", wav_file, QUESTION, "--model", tmp_path, "--lora-scale", 2)
    assert_one_line_error(result, "lora_scale needs a LoRA adapter")


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "mps:99"])
def test_ask_on_a_device_that_is_not_there_fails_in_a_line(device: str, saved_folder: Path, wav_file: Path) -> None:
    assert_one_line_error(run("ask", wav_file, QUESTION, "--model", saved_folder, "--device", device), device)


@pytest.mark.parametrize("option", ["--num-beams", "--max-new-tokens", "--lora-scale"])
def test_ask_with_a_number_out_of_range_is_a_usage_error(option: str, saved_folder: Path, wav_file: Path) -> None:
    number = -1 if option == "--lora-scale" else 0
    result = run("ask", wav_file, QUESTION, "--model", saved_folder, option, number)
    assert (result.exit_code, result.stdout) == (2, "")
    assert option in result.stderr


def test_ask_without_model_is_a_usage_error(wav_file: Path) -> None:
    result = run("ask", wav_file, QUESTION)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--model" in result.stderr
