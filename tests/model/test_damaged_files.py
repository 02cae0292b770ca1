"""Loading: files that are damaged, or hold what cannot be, are named, with what to do."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from saved_folders import ADAPTER, ADAPTER_CONFIG, CONNECTOR, WEIGHTS
from transformers import pipeline

from modeling_salmonn import SalmonnForConditionalGeneration


INDEX = "model.safetensors.index.json"
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[:-10], "is truncated or damaged .*; download or save it again"),
    "cut in the header": (lambda content: content[:4], "is truncated or damaged .*; download or save it again"),
    "garbage": (lambda content: b"\xff" * 99, "is truncated or damaged .*; download or save it again"),
    "empty": (lambda content: b"", "is empty; download or save it again"),
    "pointer": (
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "is a Git-LFS pointer, not the .*; run `git lfs pull`",
    ),
}


@pytest.fixture(scope="module")
def sharded_folder(saved_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    SalmonnForConditionalGeneration.from_pretrained(saved_folder).save_pretrained(folder, max_shard_size="20KB")
    return folder


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(file: Path, alter: Callable[[bytes], bytes]) -> None:
    file.write_bytes(alter(file.read_bytes()))


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SalmonnForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["full", "shard", "connector", "adapter"])
def test_damaged_weights_are_named(
    kind: str, damage: str, saved_folder: Path, sharded_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    shard = sorted(path.name for path in sharded_folder.glob("model-*"))[2]
    folders = {"full": saved_folder, "shard": sharded_folder, "connector": adapter_folder, "adapter": adapter_folder}
    name = {"full": WEIGHTS, "shard": shard, "connector": CONNECTOR, "adapter": ADAPTER}[kind]
    alter, message = DAMAGES[damage]
    folder = copy_of(folders[kind], tmp_path)
    change(folder / name, alter)
    assert_refused(folder, f"copy/{name} {message}")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["speech", "audio", "text"])
def test_damaged_weights_of_a_base_are_named(part: str, damage: str, adapter_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(adapter_folder, tmp_path)
    base = Path(json.loads((folder / "config.json").read_text())[f"{part}_model_id"])
    shutil.copytree(base, tmp_path / "base")
    change_json(folder / "config.json", **{f"{part}_model_id": str(tmp_path / "base")})
    alter, message = DAMAGES[damage]
    change(tmp_path / "base" / WEIGHTS, alter)
    assert_refused(folder, f"base/{WEIGHTS} {message}")


def test_missing_shard_is_named(sharded_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(sharded_folder, tmp_path)
    shard = sorted(folder.glob("model-*"))[1]
    shard.unlink()
    assert_refused(folder, f"lacks {shard.name} of the .* files that {INDEX} names; download them again")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("full", WEIGHTS, f"has no {WEIGHTS}; download or save it again"),
        ("full", "config.json", r"has no config\.json; download or save it again"),
        ("shards", INDEX, f"has no {INDEX}"),
        ("adapter", CONNECTOR, f"has no {WEIGHTS}, nor {CONNECTOR} beside bases that are named"),
    ],
)
def test_missing_file_is_named(
    kind: str,
    name: str,
    message: str,
    saved_folder: Path,
    sharded_folder: Path,
    adapter_folder: Path,
    tmp_path: Path,
) -> None:
    folder = copy_of({"full": saved_folder, "shards": sharded_folder, "adapter": adapter_folder}[kind], tmp_path)
    (folder / name).unlink()
    assert_refused(folder, message)


def test_pipeline_names_the_file_that_is_missing(saved_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(saved_folder, tmp_path)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match=rf"Could not load model(.|\n)*copy has no {WEIGHTS}; download"):
        pipeline("audio-text", model=str(folder), trust_remote_code=True)


@pytest.mark.parametrize(
    "content", [b'{"a": ', b"[1]", b"", b"version https://git-lfs.github.com/spec/v1\n", b"[" * 10**5]
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", ADAPTER_CONFIG, INDEX])
def test_damaged_json_is_named(
    name: str, content: bytes, saved_folder: Path, sharded_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(sharded_folder if name == INDEX else saved_folder, tmp_path)
    (folder / name).write_bytes(content)
    assert_refused(folder, f"copy/{name} (cannot be read as JSON|holds a list|is empty|is a Git-LFS pointer)")


@pytest.mark.parametrize("weight_map", [3, ["a"], {"lm_head.weight": 3}])
def test_index_without_files_raises(weight_map: Any, sharded_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(sharded_folder, tmp_path)
    change_json(folder / INDEX, weight_map=weight_map)
    assert_refused(folder, f"{INDEX} has no weight_map from names to files")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": "8"}, "has r='8', but int is needed"),
        ({"r": None}, "has r=None, but int is needed"),
        ({"r": 0}, f"has r=0, which is not the rank of {ADAPTER}"),
        ({"r": 2**40}, f"has r={2**40}, which is not the rank of {ADAPTER}"),
        ({"lora_alpha": "x"}, "has lora_alpha='x', but int or float is needed"),
        ({"lora_dropout": "a"}, "has lora_dropout='a', but int or float is needed"),
        ({"target_modules": 3}, "has target_modules=3, but str or list is needed"),
        ({"target_modules": [1]}, r"has target_modules=\[1\], but names are needed"),
        ({"bias": 3}, "has bias=3, but str is needed"),
        ({"peft_type": "NOPE"}, "has peft_type='NOPE', which peft does not know"),
    ],
)
def test_adapter_config_of_wrong_types_raises(
    values: dict[str, Any], message: str, saved_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(saved_folder, tmp_path)
    change_json(folder / ADAPTER_CONFIG, **values)
    assert_refused(folder, f"{ADAPTER_CONFIG} {message}")


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("text_config", "num_hidden_layers"),
        ("speech_config", "encoder_layers"),
        ("audio_config", "num_hidden_layers"),
        ("qformer_config", "num_hidden_layers"),
    ],
)
@pytest.mark.parametrize("adapter_only", [False, True], ids=["full", "adapter"])
def test_more_layers_than_there_can_be_raise_before_they_are_made(
    part: str, field: str, adapter_only: bool, saved_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(adapter_folder if adapter_only else saved_folder, tmp_path)
    values = json.loads((folder / "config.json").read_text())[part]
    change_json(folder / "config.json", **{part: values | {field: 2**31}})
    assert_refused(folder, rf"has {part}\.{field}=2147483648, but its weights have no more than \d+ layers")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [
        ("full", WEIGHTS, "model.language_model.norm.weight"),
        ("full", ADAPTER, None),
        ("adapter", CONNECTOR, "model.projector.bias"),
        ("adapter", ADAPTER, None),
    ],
)
def test_weights_that_are_not_finite_raise(
    kind: str, name: str, key: str | None, value: float, saved_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(saved_folder if kind == "full" else adapter_folder, tmp_path)
    weights = load_file(folder / name)
    key = key or min(weights)
    weights[key].flatten()[-1] = value
    save_file(weights, folder / name, metadata={"format": "pt"})
    shown = key.removeprefix("base_model.model.").removesuffix(".weight")
    assert_refused(folder, f"copy hold NaN or infinite values in {shown}")


@pytest.mark.parametrize(
    ("kind", "name", "key"),
    [
        ("full", WEIGHTS, "model.language_model.norm.weight"),
        ("full", ADAPTER, None),
        ("adapter", CONNECTOR, "model.projector.bias"),
        ("base", WEIGHTS, "model.norm.weight"),
    ],
)
def test_weights_of_whole_numbers_raise(
    kind: str, name: str, key: str | None, saved_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    folder = copy_of(saved_folder if kind == "full" else adapter_folder, tmp_path)
    damaged = folder
    if kind == "base":
        base = json.loads((folder / "config.json").read_text())["text_model_id"]
        damaged = Path(shutil.copytree(base, tmp_path / "base"))
        change_json(folder / "config.json", text_model_id=str(damaged))
    weights = load_file(damaged / name)
    key = key or min(weights)
    weights[key] = (weights[key] * 100).to(torch.int8)
    save_file(weights, damaged / name, metadata={"format": "pt"})
    assert_refused(
        folder, rf"in {re.escape(name)} {re.escape(key)} is I8, not floating-point; download or save it again"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_largest_finite_weights_are_loaded(dtype: torch.dtype, saved_folder: Path, tmp_path: Path) -> None:
    model = SalmonnForConditionalGeneration.from_pretrained(saved_folder).to(dtype)
    torch.nn.init.constant_(model.model.projector.bias, torch.finfo(dtype).max)
    model.save_pretrained(tmp_path)
    loaded = SalmonnForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.projector.bias, model.model.projector.bias)


def test_base_that_is_not_finite_is_named(adapter_folder: Path, tmp_path: Path) -> None:
    folder = copy_of(adapter_folder, tmp_path)
    base = Path(json.loads((folder / "config.json").read_text())["text_model_id"])
    shutil.copytree(base, tmp_path / "base")
    weights = load_file(base / WEIGHTS)
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, tmp_path / "base" / WEIGHTS, metadata={"format": "pt"})
    change_json(folder / "config.json", text_model_id=str(tmp_path / "base"))
    assert_refused(folder, r"base hold NaN or infinite values in model\.language_model\.norm\.weight")


def test_state_dict_that_is_not_finite_raises() -> None:
    config = tiny_config(segment_seconds=[2, 5, 10, 30])
    weights = tiny_model(config).state_dict()
    weights["model.projector.bias"][0] = torch.inf
    with pytest.raises(ValueError, match=r"state dict hold NaN or infinite values in model\.projector\.bias"):
        SalmonnForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights)
