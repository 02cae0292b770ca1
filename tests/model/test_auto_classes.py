"""Auto classes: a folder or a Hub id loads whole, also in a process without this package."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_folders import ADAPTER, ADAPTER_CONFIG, INSTRUCTION, WEIGHTS, assert_loads_equal, edited_copy, prompt_logits
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
)

from modeling_salmonn import SalmonnConfig, SalmonnFeatureExtractor, SalmonnForConditionalGeneration, SalmonnProcessor


HUB_ID = "someone/salmonn-tiny"
NEW_TOKENS = 8

# Without this package: load, generate, save again, load what was saved, and run the pipeline on that.
CLEAN_PROCESS = f"""
import importlib.util, json, sys
from transformers import (
    AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoProcessor, pipeline
)

assert importlib.util.find_spec("modeling_salmonn") is None
audio, output, *sources = sys.argv[1:]

def generate(source):
    assert AutoConfig.from_pretrained(source, trust_remote_code=True).model_type == "salmonn"
    model = AutoModel.from_pretrained(source, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.")
    inputs = processor(text={INSTRUCTION!r}, audio=audio)
    return model, processor, model.generate(**inputs, max_new_tokens={NEW_TOKENS}).tolist()

content = [{{"type": "audio", "audio": audio}}, {{"type": "text", "text": {INSTRUCTION!r}}}]
messages = [{{"role": "user", "content": content}}]
written = None
try:
    any_to_any = pipeline("any-to-any", model=sources[0], trust_remote_code=True)
    written = any_to_any(text=messages, max_new_tokens={NEW_TOKENS}, return_full_text=False)[0]["generated_text"]
except ImportError as error:  # older releases want librosa, which they do not use here
    assert "librosa" in str(error)
model = generate(sources[0])[0]
for auto_class in (AutoModelForMultimodalLM, AutoModelForSeq2SeqLM):
    assert type(auto_class.from_pretrained(sources[0], trust_remote_code=True)) is type(model)

answers = []
for index, source in enumerate(sources):
    model, processor, first = generate(source)
    again = f"{{output}}/{{index}}"
    options = {{"adapter_only": True}} if model.config.text_model_id else {{}}
    model.save_pretrained(again, **options)
    processor.save_pretrained(again)
    second = generate(again)[2]
    text = [
        pipeline("audio-text", model=folder, trust_remote_code=True)(
            audio, text={INSTRUCTION!r}, max_new_tokens={NEW_TOKENS}
        )[0]["generated_text"]
        for folder in (source, again)
    ]
    answers.append({{"first": first, "second": second, "text": text}})
print(json.dumps([written, answers]))
"""


@pytest.mark.parametrize(
    ("auto_class", "expected"),
    [
        (AutoConfig, SalmonnConfig),
        (AutoModel, SalmonnForConditionalGeneration),
        (AutoModelForMultimodalLM, SalmonnForConditionalGeneration),
        (AutoModelForSeq2SeqLM, SalmonnForConditionalGeneration),
        (AutoProcessor, SalmonnProcessor),
        (AutoFeatureExtractor, SalmonnFeatureExtractor),
    ],
)
def test_auto_class_needs_no_trust_when_the_package_is_imported(
    auto_class: Any, expected: type, saved_folder: Path
) -> None:
    assert type(auto_class.from_pretrained(saved_folder)) is expected


@pytest.mark.parametrize("auto_class", [AutoModel, SalmonnForConditionalGeneration])
def test_hub_revision_is_loaded_with_its_adapter(
    auto_class: Any, saved_folder: Path, bucket_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    cached = tmp_path / f"models--{HUB_ID.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    for revision, commit in (("main", "0" * 40), ("tuned", "1" * 40)):
        (cached / "refs" / revision).write_text(commit)
        edited_copy(saved_folder, cached / "snapshots" / commit, ADAPTER_CONFIG, base_model_name_or_path=HUB_ID)
    for name in (WEIGHTS, ADAPTER):
        weights = {key: tensor + 1 for key, tensor in load_file(saved_folder / name).items()}
        save_file(weights, cached / "snapshots" / ("0" * 40) / name, metadata={"format": "pt"})
    options: dict[str, Any] = {"cache_dir": str(tmp_path), "local_files_only": True}
    tuned = auto_class.from_pretrained(HUB_ID, revision="tuned", **options).state_dict()
    newest = auto_class.from_pretrained(HUB_ID, **options).state_dict()
    expected = bucket_model.state_dict()
    assert tuned.keys() == newest.keys() == expected.keys()
    assert all(torch.equal(tuned[key], expected[key]) for key in expected)
    assert all(torch.equal(newest[key], expected[key] + 1) for key in expected)


def test_auto_model_loads_the_adapter(saved_folder: Path, bucket_model: SalmonnForConditionalGeneration) -> None:
    for auto_class in (AutoModel, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM):
        loaded = auto_class.from_pretrained(saved_folder)
        assert torch.allclose(prompt_logits(loaded), prompt_logits(bucket_model), atol=1e-5)


@pytest.fixture(scope="module")
def clean_process(
    saved_folder: Path, adapter_folder: Path, wav_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """Folder of what the process saved, and what it generated from the full, adapter-only and Hub sources.

    The first also answers in the stock pipeline for all modalities.
    """
    root = tmp_path_factory.mktemp("clean")
    packages = root / "packages"
    packages.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if "salmonn" not in entry.name.lower():
                (packages / entry.name).symlink_to(entry)
    cached = root / "home" / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    edited_copy(saved_folder, cached / "snapshots" / ("0" * 40), ADAPTER_CONFIG, base_model_name_or_path=HUB_ID)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"PYTHONPATH": str(packages), "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    arguments = [str(wav_file), str(root), str(saved_folder), str(adapter_folder), HUB_ID]
    result = subprocess.run(
        [sys.executable, "-S", "-c", CLEAN_PROCESS, *arguments],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    written, answers = json.loads(result.stdout.splitlines()[-1])
    if written is not None:
        answers[0]["text"].append(written.strip())
    return root, answers


@pytest.mark.parametrize("source", [0, 1, 2], ids=["full", "adapter-only", "hub"])
def test_folder_runs_and_saves_without_the_package(
    source: int,
    clean_process: tuple[Path, list[dict[str, Any]]],
    saved_folder: Path,
    adapter_folder: Path,
    wav_file: Path,
) -> None:
    root, answers = clean_process
    folder = adapter_folder if source == 1 else saved_folder
    model = SalmonnForConditionalGeneration.from_pretrained(folder)
    processor = SalmonnProcessor.from_pretrained(folder)
    inputs = processor(text=INSTRUCTION, audio=str(wav_file))
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answers[source]["first"] == answers[source]["second"] == ids.tolist()
    assert set(answers[source]["text"]) == {text}
    assert_loads_equal(root / str(source), model)


@pytest.mark.parametrize("source", [0, 1], ids=["full", "adapter-only"])
def test_folder_saved_without_the_package_has_the_same_code(
    source: int, clean_process: tuple[Path, list[dict[str, Any]]], saved_folder: Path, adapter_folder: Path
) -> None:
    folder, again = (saved_folder, adapter_folder)[source], clean_process[0] / str(source)
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.glob("*.py"):
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    for name in ("config.json", "processor_config.json"):
        expected, found = (json.loads((place / name).read_text()) for place in (folder, again))
        assert found["auto_map"] == expected["auto_map"]
        assert found.get("custom_pipelines") == expected.get("custom_pipelines")
