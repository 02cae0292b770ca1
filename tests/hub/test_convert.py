"""Conversion of the research code's files: what is written, and that nothing is where it fails."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ReferenceCase, convert_case, reference_folder
from conversions import FC1, LORA, altered_checkpoint, assert_fails, convert, writable_copy
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, WhisperForConditionalGeneration

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.convert import convert_checkpoint


OBSOLETE = [f"llama_model.base_model.model.model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(2)]
OBSOLETE += ["speech_Qformer.bert.embeddings.position_ids"]
OBSOLETE_BEATS = ["beats.encoder.layers.1.self_attn.relative_attention_bias.weight"]
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1017043\n"


class Malicious:
    """Pickles as a call that creates a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def case() -> Path:
    return reference_folder("tiny")


def test_convert_reports_every_key(tmp_path: Path, case: Path) -> None:
    report = convert(case, tmp_path / "converted")
    content = torch.load(case / "salmonn.pth", weights_only=True)["model"]
    assert report.mapped.keys() | set(report.obsolete) == content.keys()
    assert (len(report.mapped), sorted(report.obsolete)) == (69, sorted(OBSOLETE + OBSOLETE_BEATS))
    assert sorted(report.unused_beats_head) == ["classifier.bias", "classifier.weight"]
    assert report.trained_parameters == sum(content[key].numel() for key in report.mapped)
    assert json.loads((tmp_path / "converted" / "conversion_report.json").read_text()) == asdict(report)
    state = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "converted").state_dict()
    assert report.parameters == sum(tensor.numel() for tensor in state.values())
    for theirs, ours in report.mapped.items():
        assert torch.equal(content[theirs], state[ours.replace("_proj.weight", "_proj.base_layer.weight")]), theirs


def test_convert_without_beats_reports_every_key(tmp_path: Path) -> None:
    report = convert(reference_folder("nobeats"), tmp_path / "converted")
    assert (len(report.mapped), sorted(report.obsolete)) == (67, sorted(OBSOLETE))
    assert report.unused_beats_head == []
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert config["audio_config"] is None


@pytest.mark.parametrize("name", ["tiny", "nobeats"])
def test_convert_without_yaml_uses_the_stored_settings(name: str, tmp_path: Path) -> None:
    case = reference_folder(name)
    convert(case, tmp_path / "stored")
    convert(case, tmp_path / "given", config=case / "decode_config.yaml")
    stored, given = ((tmp_path / folder / "config.json").read_text() for folder in ("stored", "given"))
    assert stored == given
    expected = yaml.safe_load((case / "decode_config.yaml").read_text())["model"]
    assert json.loads(stored)["lora_rank"] == expected["lora_rank"]
    assert json.loads(stored)["lora_alpha"] == expected["lora_alpha"]


def test_convert_prefers_the_yaml_to_the_stored_settings(case: Path, tmp_path: Path) -> None:
    def alter(content: dict[str, Any]) -> None:
        content["config"]["model"] |= {"lora_alpha": 8, "second_per_window": 0.5, "second_stride": 0.2}

    checkpoint = altered_checkpoint(case, tmp_path / "altered.pth", alter)
    names = ("lora_alpha", "window_seconds", "stride_seconds")
    for folder, yaml_file, expected in (
        ("stored", None, [8, 0.5, 0.2]),
        ("given", case / "decode_config.yaml", [32, 0.333333, 0.333333]),
    ):
        convert(case, tmp_path / folder, checkpoint=checkpoint, config=yaml_file)
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert [config[name] for name in names] == expected
        extractor = SalmonnProcessor.from_pretrained(tmp_path / folder).feature_extractor
        assert [extractor.window_seconds, extractor.stride_seconds] == expected[1:]


def test_convert_reads_sharded_pickles_and_safetensors(case: Path, tmp_path: Path) -> None:
    convert(case, tmp_path / "from pickles")
    shards: dict[str, torch.Tensor] = {}
    for shard in case.glob("llama/*.bin"):
        shards |= torch.load(shard, weights_only=True)
    converted = load_file(tmp_path / "from pickles" / "model.safetensors")
    assert torch.equal(converted["lm_head.weight"], shards["lm_head.weight"].float())
    key = "layers.1.mlp.up_proj.weight"
    assert torch.equal(converted[f"model.language_model.{key}"], shards[f"model.{key}"].float())

    llm = writable_copy(case / "llama", tmp_path / "llama")
    for file in llm.glob("pytorch_model*"):
        file.unlink()
    LlamaForCausalLM.from_pretrained(case / "llama").save_pretrained(llm, max_shard_size="200KB")
    assert len(list(llm.glob("model-*.safetensors"))) > 1
    WhisperForConditionalGeneration.from_pretrained(case / "whisper").save_pretrained(tmp_path / "whisper")
    convert(case, tmp_path / "converted", llm=str(llm), whisper=str(tmp_path / "whisper"))
    again = load_file(tmp_path / "converted" / "model.safetensors")
    assert again.keys() == converted.keys()
    assert all(torch.equal(again[key], converted[key]) for key in converted)


def test_convert_without_lora_gives_a_model_without_adapter(case: Path, tmp_path: Path) -> None:
    def alter(content: dict[str, Any]) -> None:
        content["model"] = {key: tensor for key, tensor in content["model"].items() if ".lora_" not in key}

    checkpoint = altered_checkpoint(case, tmp_path / "altered.pth", alter)
    assert len(convert(case, tmp_path / "converted", checkpoint=checkpoint).mapped) == 61
    assert not list((tmp_path / "converted").glob("adapter*"))
    assert SalmonnForConditionalGeneration.from_pretrained(tmp_path / "converted").config.lora_rank == 8


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_convert_to_half_precision_loads_as_such(dtype: str, case: Path, tmp_path: Path) -> None:
    convert(case, tmp_path / "converted", dtype=dtype)
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "converted" / "model.safetensors").values()} == {
        f"torch.{dtype}"
    }
    assert SalmonnForConditionalGeneration.from_pretrained(tmp_path / "converted").dtype == getattr(torch, dtype)


def test_convert_adapter_only_generates_the_recorded_ids(reference: ReferenceCase, tmp_path: Path) -> None:
    folder = convert_case(reference.folder, tmp_path / "converted", adapter_only=True)
    assert {path.name for path in folder.glob("*.safetensors")} == {
        "connector.safetensors",
        "adapter_model.safetensors",
    }
    model = SalmonnForConditionalGeneration.from_pretrained(folder)
    processor = SalmonnProcessor.from_pretrained(folder)
    for clip in ("short", "duck"):
        inputs = processor(text=reference.clips()[clip]["prompt"], audio=reference.audio(clip), formatted=True)
        ids = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
        assert ids.tolist() == reference.tensors[f"wav.{clip}.greedy_ids"][0, 1:].tolist()


def test_convert_adapter_only_names_local_bases_by_absolute_path(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case)
    convert(case, tmp_path / "converted", adapter_only=True, whisper="whisper", llm="llama", beats="beats.pt")
    monkeypatch.chdir(tmp_path)
    config = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "converted").config
    assert (config.speech_model_id, config.text_model_id) == (
        str(case.resolve() / "whisper"),
        str(case.resolve() / "llama"),
    )
    assert config.audio_model_id == str(case.resolve() / "beats.pt")


def test_convert_leaks_no_path_of_the_machine(reference: ReferenceCase) -> None:
    for file in reference.converted.rglob("*"):
        content = file.read_bytes()
        for path in (reference.folder, reference.folder.parent, reference.converted.parent, Path.home() / ".cache"):
            assert str(path).encode() not in content, f"{file.name} holds {path}"


def test_convert_writes_files_that_all_may_read(reference: ReferenceCase) -> None:
    assert reference.converted.stat().st_mode & 0o555 == 0o555
    assert [file.name for file in reference.converted.iterdir() if file.stat().st_mode & 0o444 != 0o444] == []
    assert not [path for path in reference.converted.parent.iterdir() if path.name.startswith(".")]


def test_convert_writes_a_model_card_with_the_name_of_the_folder(case: Path, tmp_path: Path) -> None:
    (tmp_path / "salmonn-7b-tiny").mkdir()  # an empty folder may be there
    convert(case, tmp_path / "salmonn-7b-tiny")
    card = (tmp_path / "salmonn-7b-tiny" / "README.md").read_text()
    assert "\n# salmonn-7b-tiny\n" in card
    assert 'model="salmonn-7b-tiny"' in card


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda weights: weights.update(surplus=torch.zeros(1)), r"does not know: \['surplus'\]"),
        (lambda weights: weights.pop("speech_query_tokens"), r"lacks \['model\.qformer\.query_tokens'\]"),
        (lambda weights: weights.pop("ln_speech.weight"), r"lacks \['model\.ln_speech\.weight'\]"),
        (lambda weights: weights.pop("speech_llama_proj.bias"), r"missing \['model\.projector\.bias'\]"),
        (lambda weights: weights.pop(FC1.format(0)), r"model\.qformer\.layers\.0\.fc1\.weight"),
        (lambda weights: weights.pop(FC1.format(1)), r"missing \['model\.qformer\.layers\.1\.fc1\.weight'\]"),
        (lambda weights: weights.pop("ln_audio.bias"), r"missing \['model\.ln_audio\.bias'\]"),
        (
            lambda weights: weights.update({"speech_llama_proj.weight": torch.zeros(64, 95)}),
            r"model\.projector\.weight\b.*\b95\b",
        ),
        (lambda weights: weights.pop(LORA.format("A")), r"LoRA tensors do not fit .* missing \['.*q_proj\.lora_A"),
        (lambda weights: weights.update({LORA.format("B"): torch.zeros(32, 8)}), "LoRA tensors do not fit"),
        (lambda weights: weights.update({LORA.format("A"): torch.zeros(4, 64)}), r"several ranks \[4, 8\]"),
    ],
    ids=[
        "unknown key", "no queries", "no norm", "no bias", "no first fc1", "no second fc1", "no audio bias", "shape",
        "no lora", "lora shape", "lora rank",
    ],
)  # fmt: skip
def test_convert_when_tensors_do_not_fit_raises(
    alter: Callable[[dict[str, torch.Tensor]], Any], message: str, case: Path, tmp_path: Path
) -> None:
    checkpoint = altered_checkpoint(case, tmp_path / "altered.pth", lambda content: alter(content["model"]))
    assert_fails(message, case, tmp_path / "output", checkpoint=checkpoint)


def test_convert_with_heads_that_do_not_divide_raises(case: Path, tmp_path: Path) -> None:
    message = r"SalmonnQFormerConfig\.hidden_size 96 is not divisible by num_attention_heads 7"
    assert_fails(message, case, tmp_path, qformer_heads=7)


def test_convert_with_another_whisper_raises(case: Path, tmp_path: Path) -> None:
    other = reference_folder("nobeats")  # its Q-Former has another width
    assert_fails("do not fit", case, tmp_path, checkpoint=other / "salmonn.pth", beats=None)


def test_convert_without_the_beats_it_was_trained_with_raises(case: Path, tmp_path: Path) -> None:
    assert_fails("was trained with BEATs; give its file", case, tmp_path, beats=None)


def test_convert_with_beats_it_was_trained_without_raises(case: Path, tmp_path: Path) -> None:
    beats = str(case / "beats.pt")
    assert_fails("was trained without BEATs .* leave beats out", reference_folder("nobeats"), tmp_path, beats=beats)


def test_convert_with_swapped_files_raises(case: Path, tmp_path: Path) -> None:
    assert_fails(r"salmonn\.pth has the keys .* 'cfg' and 'model'", case, tmp_path, beats=str(case / "salmonn.pth"))
    assert_fails("keys that SALMONN does not know", case, tmp_path, checkpoint=case / "beats.pt")
    torch.save({"weights": {}}, tmp_path.parent / "other.pth")
    assert_fails(
        r"has the keys \['weights'\], .* has 'model'", case, tmp_path, checkpoint=tmp_path.parent / "other.pth"
    )


def test_convert_into_a_folder_with_files_raises(case: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty; choose another folder"):
        convert(case, tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt exists and is not empty"):
        convert(case, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_convert_replaces_what_a_killed_conversion_has_left(case: Path, tmp_path: Path) -> None:
    (tmp_path / ".unfinished_save").mkdir()
    (tmp_path / ".unfinished_save" / "model.safetensors").write_bytes(b"half")
    convert(case, tmp_path)
    SalmonnForConditionalGeneration.from_pretrained(tmp_path)
    assert not (tmp_path / ".unfinished_save").exists()


def test_convert_into_a_link_raises(case: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(ValueError, match="link is a link, which would be replaced"):
        convert(case, tmp_path / "link")


def test_convert_below_a_file_raises_before_it_reads(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"cannot be made: .*file is no folder"):
        convert_checkpoint("absent", "absent", "absent", tmp_path / "file" / "converted")


@pytest.mark.parametrize("dtype", ["int8", "float64", "bf16", ""])
def test_convert_to_another_dtype_raises(dtype: str, case: Path, tmp_path: Path) -> None:
    assert_fails("dtype must be float32, bfloat16 or float16, got", case, tmp_path, dtype=dtype)


@pytest.mark.parametrize("argument", ["checkpoint", "beats"])
@pytest.mark.parametrize("plain", [False, True], ids=["torch", "pickle"])
def test_convert_runs_no_pickled_code(argument: str, plain: bool, case: Path, tmp_path: Path) -> None:
    content = {"model": {"ln_speech.weight": Malicious(tmp_path / "created")}, "cfg": {}}
    file = tmp_path / "malicious.pth"
    if plain:
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file)
    message = r"malicious\.pth cannot be read .* contain pickled code, which is never executed"
    assert_fails(message, case, tmp_path / "output", **{argument: str(file)})
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("argument", ["whisper", "llm"])
def test_convert_runs_no_pickled_code_of_a_base(argument: str, case: Path, tmp_path: Path) -> None:
    base = writable_copy(case / argument.replace("llm", "llama"), tmp_path / "base")
    for file in base.glob("*.bin"):
        torch.save({"proj_out.weight": Malicious(tmp_path / "created")}, file)
    assert_fails(str(base), case, tmp_path / "output", **{argument: str(base)})
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("argument", ["whisper", "llm"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_convert_with_a_damaged_base_raises(argument: str, name: str, case: Path, tmp_path: Path) -> None:
    base = writable_copy(case / argument.replace("llm", "llama"), tmp_path / "base")
    for file in base.glob("pytorch_model*"):
        file.unlink()
    (base / name).write_text(LFS_POINTER)
    assert_fails(str(base), case, tmp_path / "output", **{argument: str(base)})


@pytest.mark.parametrize("argument", ["whisper", "llm"])
def test_convert_when_a_base_lacks_a_key_raises(argument: str, case: Path, tmp_path: Path) -> None:
    base = writable_copy(case / argument.replace("llm", "llama"), tmp_path / "base")
    weights: dict[str, torch.Tensor] = {}
    for file in base.glob("*.bin*"):
        weights |= torch.load(file, weights_only=True) if file.suffix == ".bin" else {}
        file.unlink()
    key = next(key for key in sorted(weights) if "layers.1" in key and key.endswith(".weight"))
    del weights[key]
    save_file({name: tensor.clone() for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    assert_fails(
        rf"weights of {base} do not fit its config: missing", case, tmp_path / "output", **{argument: str(base)}
    )


@pytest.mark.parametrize("argument", ["checkpoint", "beats"])
@pytest.mark.parametrize("damage", ["half", "pointer", "empty"])
def test_convert_with_a_damaged_file_raises(argument: str, damage: str, case: Path, tmp_path: Path) -> None:
    whole = (case / ("beats.pt" if argument == "beats" else "salmonn.pth")).read_bytes()
    contents = {"half": whole[: len(whole) // 2], "pointer": LFS_POINTER.encode(), "empty": b""}
    file = tmp_path / "damaged.pt"
    file.write_bytes(contents[damage])
    message = r"damaged\.pt cannot be read .* damaged, a Git-LFS pointer"
    assert_fails(message, case, tmp_path / "output", **{argument: str(file)})


@pytest.mark.parametrize("argument", ["checkpoint", "beats", "whisper", "llm", "config"])
def test_convert_with_a_missing_file_raises(argument: str, case: Path, tmp_path: Path) -> None:
    missing = tmp_path / "absent"
    assert_fails(str(missing), case, tmp_path / "output", **{argument: str(missing)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", r"line 1 of .*settings\.yaml is not YAML: expected ',' or ']'"),
        ("a: 1\nmodel: " + "[" * 1000, r"Line 2 of .*settings\.yaml has more than 50 levels of nesting"),
        ("model: 1\n" * 100_000, r"settings\.yaml has 900,000 characters; YAML of ours has at most 100,000"),
        ("model: {}\nmodel: {}", r"Line 2 of .*settings\.yaml gives the key 'model' again, after line 1"),
        ("- 1", r"settings\.yaml holds a list; it needs to have a 'model' section"),
        ("generate: {}", r"settings\.yaml has no 'model' section"),
        ("model: {window_level_Qformer: false}", "trained without the window-level Q-Former"),
        ("model: {use_speech_Qformer: false}", "trained without the window-level Q-Former"),
        ("model: {second_per_window: 31}", "window_seconds 31 is longer than the shortest segment"),
        ("model: {second_stride: 0}", "stride_seconds must give at least one frame"),
    ],
)
def test_convert_with_wrong_settings_raises(text: str, message: str, case: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    assert_fails(message, case, tmp_path / "output", config=tmp_path / "settings.yaml")
