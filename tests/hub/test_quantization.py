"""Smaller weights: which modules get them, what is answered, saving and loading."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import assert_one_line_error, run
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model
from transformers import AutoModel, BitsAndBytesConfig, GPTQConfig

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.doctor import examine, is_healthy
from modeling_salmonn.hub.export import export_model
from modeling_salmonn.hub.quantization import quantization_config
from modeling_salmonn.quantization_salmonn import KEPT_MODULES, keep_audio_parts


LIBRARIES = {"int8": "torchao", "int4": "bitsandbytes"}
CLIP = {"array": make_clip(1.5), "sampling_rate": SAMPLING_RATE}


@pytest.fixture(params=LIBRARIES)
def name(request: pytest.FixtureRequest) -> str:
    """A way whose library is here."""
    pytest.importorskip(LIBRARIES[request.param], reason="make test-quantization installs it")
    return request.param


@pytest.fixture(scope="module")
def wide_folder(bucket_processor: SalmonnProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with an adapter whose rows are whole blocks of the 64 values that share a scale in 4 bits."""
    config = tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True)
    config.text_config.hidden_size, config.text_config.intermediate_size = 64, 128
    config.text_config.head_dim = 16
    folder = tmp_path_factory.mktemp("wide")
    tiny_model(config, lora=True).save_pretrained(folder)
    bucket_processor.save_pretrained(folder)
    return folder


def greedy(model: Any, processor: SalmonnProcessor, audio: Any = CLIP, **options: Any) -> list[int]:
    inputs = processor(text="What do you hear?", audio=audio)
    return model.generate(**inputs, max_new_tokens=8, **options)[0].tolist()


def quantised_modules(model: SalmonnForConditionalGeneration) -> set[str]:
    """Names of the layers whose weights are no plain floats any more, without those of an adapter."""
    plain = (torch.Tensor, torch.nn.Parameter)
    return {
        key.removesuffix(".weight").removesuffix(".base_layer")
        for key, weight in model.named_parameters()
        if type(weight) not in plain or not weight.is_floating_point()
    }


def test_layers_of_the_language_model_alone_are_quantised(name: str, wide_folder: Path) -> None:
    model = AutoModel.from_pretrained(wide_folder, quantization_config=quantization_config(name))
    projections = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
    projections += [f"self_attn.{letter}_proj" for letter in "kqvo"]
    layers = (f"model.language_model.layers.{layer}.{projection}" for layer in (0, 1) for projection in projections)
    assert quantised_modules(model) == set(layers)


def test_a_users_own_config_keeps_the_same_parts(saved_folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="make test-quantization installs it")
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["down_proj"])
    named = quantised_modules(AutoModel.from_pretrained(saved_folder, quantization_config=config))
    assert named
    assert all(key.startswith("model.language_model.layers.") for key in named)
    assert not any(key.endswith("down_proj") for key in named)


def test_lora_scale_works_on_quantised_layers(
    name: str, wide_folder: Path, bucket_processor: SalmonnProcessor
) -> None:
    model = AutoModel.from_pretrained(wide_folder, quantization_config=quantization_config(name))
    trained = greedy(model, bucket_processor)
    assert greedy(model, bucket_processor, lora_scale=model.config.lora_scaling) == trained
    assert greedy(model, bucket_processor, lora_scale=0.0) != trained


def test_exported_model_answers_as_before_in_a_process_without_this_package(
    name: str, wide_folder: Path, bucket_processor: SalmonnProcessor, wav_file: Path, tmp_path: Path
) -> None:
    merged = AutoModel.from_pretrained(wide_folder)
    merged.merge_lora()
    merged.save_pretrained(tmp_path / "merged")
    before = AutoModel.from_pretrained(tmp_path / "merged", quantization_config=quantization_config(name))
    output = tmp_path / "out"
    result = run("export", wide_folder, output, "--quantize", name)
    assert result.stdout == f"Wrote {output}: AutoModel.from_pretrained('{output}', trust_remote_code=True)\n"
    code = (
        "import sys, transformers; path, clip = sys.argv[1:]; "
        "model = transformers.AutoModel.from_pretrained(path, trust_remote_code=True); "
        "processor = transformers.AutoProcessor.from_pretrained(path, trust_remote_code=True); "
        "inputs = processor(text='What do you hear?', audio=clip); "
        "print(model.generate(**inputs, max_new_tokens=8)[0].tolist(), 'modeling_salmonn' in sys.modules, sep='\\n')"
    )
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", code, str(output), str(wav_file)]
    asked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    answer, has_package = asked.stdout.splitlines()[-2:] or (asked.stderr, "")
    assert json.loads(answer) == greedy(before, bucket_processor, str(wav_file))
    assert has_package == "False"


def test_exported_model_is_smaller_and_healthy(name: str, wide_folder: Path, tmp_path: Path) -> None:
    for folder, quantize in (("small", name), ("plain", None)):
        export_model(str(wide_folder), tmp_path / folder, quantize=quantize)  # type: ignore[arg-type]
    assert is_healthy(examine(str(tmp_path / "small")))
    assert quantised_modules(AutoModel.from_pretrained(tmp_path / "small"))
    sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("small", "plain")]
    assert sizes[0] < sizes[1]


def test_adapter_apart_from_exported_model_answers_at_any_scale(
    name: Any, wide_folder: Path, bucket_processor: SalmonnProcessor, tmp_path: Path
) -> None:
    before = AutoModel.from_pretrained(wide_folder, quantization_config=quantization_config(name))
    export_model(str(wide_folder), tmp_path / "out", adapter_apart=True, quantize=name)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert not model.has_lora
    model.load_adapter(str(tmp_path / "out" / "adapter"))
    for options in ({}, {"lora_scale": 1.0}, {"lora_scale": 0.0}):
        assert greedy(model, bucket_processor, **options) == greedy(before, bucket_processor, **options)


def test_export_of_a_quantised_model_fails_in_a_line(name: Any, wide_folder: Path, tmp_path: Path) -> None:
    export_model(str(wide_folder), tmp_path / "small", quantize=name)
    for options in ((), ("--quantize", name)):
        result = run("export", tmp_path / "small", tmp_path / "out", *options)
        assert_one_line_error(result, "is quantised already")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"load_in_8bit": True}, "llm_int8_skip_modules"),
        ({"quant_method": "torchao"}, "modules_to_not_convert"),
        (BitsAndBytesConfig(load_in_4bit=True), "llm_int8_skip_modules"),
    ],
    ids=["dict of bitsandbytes", "dict of torchao", "config"],
)
def test_kept_modules_are_added_once_to_those_that_are_named(config: Any, field: str) -> None:
    if isinstance(config, dict):
        config[field] = ["mine"]
    else:
        setattr(config, field, ["mine"])
    for _ in range(2):
        keep_audio_parts(config)
    kept = config[field] if isinstance(config, dict) else getattr(config, field)
    assert kept == ["mine", *KEPT_MODULES]


def test_method_that_cannot_keep_modules_raises(saved_folder: Path) -> None:
    with pytest.raises(ValueError, match="GPTQConfig names no modules to leave as they are"):
        AutoModel.from_pretrained(saved_folder, quantization_config=GPTQConfig(bits=4))


def test_unknown_name_raises() -> None:
    with pytest.raises(ValueError, match="no quantisation 'int2'; there are int8 and int4"):
        quantization_config("int2")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "library"), LIBRARIES.items())
def test_missing_library_raises(name: Any, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (library, f"{library}.quantization"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"need {library}, which is not installed; install the extra 'quantization'"):
        quantization_config(name)
