"""Serving folders: what engines need of them, and that they answer as the model that they were exported from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_model
from examinations import write_golden
from hub_server import HubServer
from model_bases import randomise_adapter
from peft import LoraConfig
from safetensors import safe_open
from saved_folders import INSTRUCTION

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.doctor import examine, is_healthy
from modeling_salmonn.hub.export import export_model


def greedy(folder: Path, adapter: Path | None = None, scale: float | None = None) -> list[int]:
    model = SalmonnForConditionalGeneration.from_pretrained(folder)
    if adapter is not None:
        model.load_adapter(str(adapter))
    processor = SalmonnProcessor.from_pretrained(folder)
    inputs = processor(text=INSTRUCTION, audio=make_clip(1.5), sampling_rate=SAMPLING_RATE)
    options = {} if scale is None else {"lora_scale": scale}
    return model.generate(**inputs, max_new_tokens=12, do_sample=False, **options)[0].tolist()


@pytest.fixture(scope="module")
def apart(saved_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export") / "apart"
    export_model(str(saved_folder), output, adapter_apart=True, lora_scales=[1.5])
    return output


@pytest.fixture(scope="module")
def merged(saved_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("export") / "merged"
    export_model(str(saved_folder), output)
    return output


@pytest.mark.parametrize("form", ["merged", "apart"])
def test_exported_folder_is_healthy_and_fits_engines(form: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(form)
    assert is_healthy(examine(str(folder)))
    weights = {file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")}
    assert json.loads((folder / "hashes.json").read_text()).keys() == weights
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_salmonn.SalmonnModel"
    assert config["audio_token_id"] < config["text_config"]["vocab_size"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "lora_" in key]  # noqa: SIM118  not a dict


def test_merged_export_answers_as_the_source(saved_folder: Path, merged: Path) -> None:
    assert greedy(merged) == greedy(saved_folder)


@pytest.mark.parametrize(("adapter", "scale"), [("adapter", None), ("adapter@1.5", 1.5)])
def test_adapter_apart_answers_as_the_source_at_its_scale(
    adapter: str, scale: float | None, saved_folder: Path, apart: Path
) -> None:
    assert greedy(apart, apart / adapter) == greedy(saved_folder, scale=scale)


def test_export_without_adapter_folder_answers_at_scale_zero(saved_folder: Path, apart: Path) -> None:
    assert greedy(apart) == greedy(saved_folder, scale=0.0)


@pytest.mark.parametrize("rslora", [False, True], ids=["alpha / r", "alpha / sqrt(r)"])
def test_ranks_and_alphas_of_single_layers_keep_to_the_scale(
    rslora: bool, bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor, tmp_path: Path
) -> None:
    model = tiny_model(bucket_config)
    layer, power = "layers.0.self_attn.q_proj", 0.5 if rslora else 1.0
    config = LoraConfig(
        r=4,
        lora_alpha=2 * 4**power,
        rank_pattern={layer: 9},
        alpha_pattern={layer: 2 * 9**power},
        use_rslora=rslora,
        target_modules=r".*language_model.*\.[qv]_proj",
    )
    model.add_adapter(config)
    randomise_adapter(model)
    source, output = tmp_path / "source", tmp_path / "out"
    model.save_pretrained(source)
    bucket_processor.save_pretrained(source)
    export_model(str(source), output, adapter_apart=True, lora_scales=[0.5])
    for adapter, scale in (("adapter", None), ("adapter@0.5", 0.5)):
        assert greedy(output, output / adapter) == greedy(source, scale=scale)
    settings = json.loads((output / "adapter@0.5" / "adapter_config.json").read_text())
    assert (settings["lora_alpha"], settings["alpha_pattern"]) == (2, {layer: 4.5})
    assert not settings["use_rslora"]


def test_placeholder_is_never_the_most_likely_token(merged: Path) -> None:
    model = SalmonnForConditionalGeneration.from_pretrained(merged)
    states = torch.randn(1000, model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0))
    logits = model.lm_head(states)
    others = logits[:, : model.config.audio_token_id]
    assert torch.allclose(logits[:, model.config.audio_token_id], others.mean(-1), atol=1e-4)
    assert (logits.argmax(-1) < model.config.audio_token_id).all()


@pytest.mark.parametrize(
    ("auto_class", "expected"),
    [("AutoModel", "SalmonnModel"), ("AutoModelForMultimodalLM", "SalmonnForConditionalGeneration")],
)
def test_classes_of_an_export_in_a_process_without_this_package(
    auto_class: str, expected: str, merged: Path, tmp_path: Path
) -> None:
    code = (
        f"import sys, transformers; model = transformers.{auto_class}.from_pretrained(sys.argv[1], "
        "trust_remote_code=True); print(type(model).__name__, 'modeling_salmonn' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(merged)]
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == [expected, "False"], result.stderr


@pytest.fixture
def whole_source(saved_folder: Path, wav_file: Path, tmp_path: Path) -> Path:
    """A folder with all that goes along with a model."""
    source = Path(shutil.copytree(saved_folder, tmp_path / "source"))
    write_golden(source, wav_file, answer="recorded")
    for name in ("README.md", "LICENSE", "LICENSE.whisper.txt", "NOTICE", "scores.png", "audio/LICENSE", "notes.txt"):
        (source / name).write_text(f"my {name}")
    return source


COMPANIONS = {"README.md", "LICENSE", "LICENSE.whisper.txt", "NOTICE", "scores.png"}
ANSWERS = {"golden_answers.json", "audio/clip.wav", "audio/LICENSE"}


@pytest.mark.usefixtures("own_caches")
@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("form", ["merged", "apart"])
def test_card_licences_and_answers_go_along(
    place: str, form: str, whole_source: Path, hub: HubServer, tmp_path: Path
) -> None:
    model = str(whole_source)
    if place == "hub":
        model = "lab/salmonn-tiny"
        hub.add_folder(model, whole_source)
    export_model(model, tmp_path / "out", adapter_apart=form == "apart")
    expected = COMPANIONS | (ANSWERS if form == "merged" else set())
    copied = {name for name in (*COMPANIONS, *ANSWERS, "notes.txt") if (tmp_path / "out" / name).is_file()}
    assert copied == expected
    assert all((tmp_path / "out" / name).read_bytes() == (whole_source / name).read_bytes() for name in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": "clips/absent.wav"}, r"is about clips/absent\.wav, which the folder lacks; put back or correct it"),
        ({"audio": "../clip.wav"}, r"names the clip '\.\./clip\.wav', which is not in the folder; put it there"),
        ({"audio": "/etc/hostname"}, "names the clip '/etc/hostname', which is not in the folder"),
        ({"audio": None}, "has a case without audio, text, answer; save it again"),
    ],
)
def test_answers_without_their_clips_raise_and_leave_nothing(
    changes: dict[str, str | None], message: str, whole_source: Path, wav_file: Path, tmp_path: Path
) -> None:
    shutil.copy(wav_file, tmp_path / "clip.wav")  # where '..' leads
    case = {"audio": "audio/clip.wav", "text": "What?", "answer": "recorded"} | changes
    (whole_source / "golden_answers.json").write_text(json.dumps({"cases": [case]}))
    with pytest.raises(ValueError, match=message):
        export_model(str(whole_source), tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()


def test_clip_of_an_answer_does_not_replace_what_is_exported(whole_source: Path, tmp_path: Path) -> None:
    case = {"audio": "config.json", "text": "What?", "answer": "recorded"}
    (whole_source / "golden_answers.json").write_text(json.dumps({"cases": [case]}))
    export_model(str(whole_source), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() != (whole_source / "config.json").read_bytes()


def test_scales_of_a_merged_adapter_raise(saved_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need --adapter-apart"):
        export_model(str(saved_folder), tmp_path / "out", lora_scales=[2.0])


def test_existing_output_raises(saved_folder: Path, merged: Path) -> None:
    with pytest.raises(ValueError, match="is not empty"):
        export_model(str(saved_folder), merged)
