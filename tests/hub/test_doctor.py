"""The doctor: a healthy folder passes, and every defect is found by the check that is meant for it."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config, tiny_model, tiny_processor
from examinations import (
    ADAPTER,
    CONNECTOR,
    WEIGHTS,
    assert_found,
    change_extractor,
    change_json,
    change_weights,
    greedy_answer,
    named,
    write_golden,
)
from peft import LoraConfig
from rich.console import Console
from transformers import AutoModelForCausalLM, WhisperModel

from modeling_salmonn import SalmonnConfig
from modeling_salmonn.hub.doctor import Check, examine, is_healthy, print_report


# Run in a process of its own: the Hub client reads its settings when it is imported.
EXAMINE_SCRIPT = """
import dataclasses, json, sys
from modeling_salmonn.hub.doctor import examine
reports = {path: [dataclasses.asdict(check) for check in examine(path)] for path in sys.argv[1:]}
print("REPORTS", json.dumps(reports))
"""


@pytest.fixture
def folder(saved_folder: Path, tmp_path: Path) -> Path:
    """A healthy folder of the test's own, to be damaged."""
    copy = Path(shutil.copytree(saved_folder, tmp_path / "salmonn"))
    (copy / "hashes.json").unlink()  # or any damage to weights would be found there first
    return copy


@pytest.fixture(scope="module")
def adapter_only_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only what is trained, beside the bases that it names."""
    root = tmp_path_factory.mktemp("adapter_only")
    config = tiny_config(audio=False, segment_seconds=[2, 30])
    config.speech_config.decoder_attention_heads = 2
    WhisperModel(config.speech_config).save_pretrained(root / "whisper")
    AutoModelForCausalLM.from_config(config.text_config).save_pretrained(root / "llama")
    config.speech_model_id, config.text_model_id = str(root / "whisper"), str(root / "llama")
    tiny_model(config, lora=True).save_pretrained(root / "salmonn", adapter_only=True)
    tiny_processor(config).save_pretrained(root / "salmonn")
    (root / "salmonn" / "hashes.json").unlink()
    return root / "salmonn"


def assert_all_ok(folder: Path) -> list[Check]:
    checks = examine(str(folder))
    assert [check for check in checks if check.status != "ok" and check.name != "golden answers"] == []
    assert named(checks, "golden answers").status == "skipped"
    assert is_healthy(checks)
    return checks


def test_healthy_folder_passes_every_check(saved_folder: Path) -> None:
    checks = assert_all_ok(saved_folder)
    assert len({check.name for check in checks}) == 16
    assert "Loaded in" in named(checks, "generation").detail


def test_healthy_adapter_only_folder_passes(adapter_only_folder: Path) -> None:
    checks = assert_all_ok(adapter_only_folder)
    assert str(adapter_only_folder.parent / "whisper") in named(checks, "weight files").detail


def test_healthy_folder_without_adapter_passes(tmp_path: Path) -> None:
    config = tiny_config(audio=False, segment_seconds=[2, 30])
    tiny_model(config).save_pretrained(tmp_path)
    tiny_processor(config).save_pretrained(tmp_path)
    checks = examine(str(tmp_path))
    assert is_healthy(checks)
    assert named(checks, "adapter").status == "skipped"


def test_folder_that_does_not_exist_fails(tmp_path: Path) -> None:
    (check,) = examine(str(tmp_path / "nowhere"))
    assert (check.name, check.status) == ("folder", "failed")
    assert "nowhere is no folder, and the Hub does not give it" in check.detail


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer.json"])
def test_missing_file_fails(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_found(folder, "files", "failed", f"Missing {name}")


def test_missing_generation_config_warns(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert_found(folder, "files", "warning", "generation_config.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json"])
def test_damaged_json_fails(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    assert_found(folder, "files", "failed", f"{name} cannot be read as JSON")


def test_damaged_config_skips_what_needs_it(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    checks = assert_found(folder, "files", "failed", "config.json cannot be read as JSON")
    assert named(checks, "config").status == "failed"
    assert named(checks, "pickles").status == "ok"
    skipped = {check.name for check in checks if check.status == "skipped"}
    assert {"tokenizer", "weight files", "keys", "generation", "golden answers"} <= skipped


def test_config_of_another_model_fails(folder: Path) -> None:
    change_json(folder / "config.json", model_type="whisper")
    assert_found(folder, "config", "failed", "'whisper'", "'salmonn' is needed")


def test_missing_code_of_a_relative_import_fails(folder: Path) -> None:
    (folder / "qformer_salmonn.py").unlink()
    assert_found(folder, "code", "failed", "qformer_salmonn.py", "save the model again")


def test_missing_code_of_the_pipeline_fails(folder: Path) -> None:
    (folder / "pipeline_salmonn.py").unlink()
    assert_found(folder, "code", "failed", "pipeline_salmonn.py")


@pytest.mark.parametrize("name", [WEIGHTS, ADAPTER, "adapter_config.json"])
def test_missing_weight_file_fails_and_skips_generation(folder: Path, name: str) -> None:
    (folder / name).unlink()
    checks = assert_found(folder, "weight files", "failed", f"Missing {name}")
    assert not is_healthy(checks)
    generation = named(checks, "generation")
    assert generation.status == "skipped"
    assert "weight files" in generation.detail


def test_missing_shard_fails(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    model = tiny_model(tiny_config(segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True), lora=True)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert_all_ok(folder)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert_found(folder, "weight files", "failed", f"Missing {shard.name}")


def test_connector_beside_full_weights_fails(folder: Path, adapter_only_folder: Path) -> None:
    shutil.copy(adapter_only_folder / CONNECTOR, folder)
    assert_found(folder, "weight files", "failed", f"{CONNECTOR} hides {WEIGHTS}")


def test_base_of_another_machine_fails(adapter_only_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter_only_folder, tmp_path / "salmonn"))
    change_json(folder / "config.json", text_model_id="/nowhere/vicuna", speech_model_id=None)
    assert_found(folder, "weight files", "failed", "speech_model_id, text_model_id", "set Hub ids")


def test_git_lfs_pointer_is_explained(folder: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 26000000000\n"
    (folder / WEIGHTS).write_text(pointer)
    checks = assert_found(folder, "git lfs", "failed", WEIGHTS, "git lfs pull")
    assert {named(checks, name).status for name in ("weights", "keys", "generation")} == {"skipped"}


def test_truncated_weights_fail_and_skip_generation(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    checks = assert_found(folder, "weights", "failed", f"{WEIGHTS} is truncated or damaged", "download")
    assert named(checks, "generation").status == "skipped"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_fails(folder: Path, value: float) -> None:
    change_weights(folder / WEIGHTS, lambda weights: weights["model.projector.bias"][:1].fill_(value))
    checks = assert_found(folder, "weights", "failed", "NaN or infinite values in model.projector.bias;")
    assert named(checks, "keys").status == "ok"
    assert named(checks, "generation").status == "skipped"


def test_weights_of_another_dtype_warn(folder: Path) -> None:
    change_weights(
        folder / WEIGHTS, lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"].half()})
    )
    assert_found(folder, "weights", "warning", "config.json says float32", "1 float16")


def test_missing_key_fails(folder: Path) -> None:
    change_weights(folder / WEIGHTS, lambda weights: weights.pop("lm_head.weight"))
    assert_found(folder, "keys", "failed", "1 missing: lm_head.weight")


def test_many_missing_keys_are_counted(folder: Path) -> None:
    change_weights(folder / ADAPTER, dict.clear)
    checks = assert_found(folder, "keys", "failed", "8 missing: base_model.model.model.language_model.layers.0.")
    assert "and 3 more" in named(checks, "keys").detail


def test_unexpected_key_fails(folder: Path) -> None:
    change_weights(folder / WEIGHTS, lambda weights: weights.update(surplus=torch.zeros(1)))
    assert_found(folder, "keys", "failed", "1 unexpected: surplus")


def test_unexpected_key_of_a_base_in_the_connector_fails(adapter_only_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter_only_folder, tmp_path / "salmonn"))
    change_weights(folder / CONNECTOR, lambda weights: weights.update({"lm_head.weight": torch.zeros(261, 32)}))
    assert_found(folder, "keys", "failed", "1 unexpected: lm_head.weight")


def test_tensor_of_another_shape_fails(folder: Path) -> None:
    change_weights(folder / WEIGHTS, lambda weights: weights.update({"model.projector.bias": torch.zeros(3)}))
    assert_found(folder, "keys", "failed", "1 of another shape: model.projector.bias [3]")


def test_damaged_byte_of_a_saved_folder_is_found(saved_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved_folder, tmp_path / "salmonn"))
    assert_found(folder, "hashes", "ok", "as in hashes.json")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-4] ^= 1  # of the lowest byte of a value
    (folder / WEIGHTS).write_bytes(content)
    assert_found(folder, "hashes", "failed", f"Other than hashes.json says: {WEIGHTS}")


def test_hashes_are_compared(folder: Path) -> None:
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, ADAPTER)}
    (folder / "hashes.json").unlink(missing_ok=True)
    assert_found(folder, "hashes", "ok", f"{WEIGHTS} {hashes[WEIGHTS][:12]}", "not all listed in hashes.json")
    (folder / "hashes.json").write_text(json.dumps(hashes))
    assert_found(folder, "hashes", "ok", f"{WEIGHTS} {hashes[WEIGHTS][:12]}", "as in hashes.json")
    change_json(folder / "hashes.json", **{ADAPTER: "0" * 64})
    assert_found(folder, "hashes", "failed", f"Other than hashes.json says: {ADAPTER}")


def test_damaged_bytes_are_found_by_their_hash(folder: Path) -> None:
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS, ADAPTER)}
    (folder / "hashes.json").write_text(json.dumps(hashes))
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert_found(folder, "hashes", "failed", f"Other than hashes.json says: {WEIGHTS}; download again")


@pytest.mark.parametrize(
    ("hashes", "words"),
    [
        ({"lost.safetensors": "0" * 64}, "lists lost.safetensors, which the folder lacks"),
        ({WEIGHTS: 7}, f"Other than hashes.json says: {WEIGHTS}"),
        ([], "hashes.json holds a list"),
    ],
)
def test_hashes_of_other_files_fail(hashes: Any, words: str, folder: Path) -> None:
    (folder / "hashes.json").write_text(json.dumps(hashes))
    assert_found(folder, "hashes", "failed", words)


def test_save_that_was_stopped_fails(folder: Path) -> None:
    (folder / "unfinished_save.json").write_text("{}")
    assert_found(folder, "weight files", "failed", "A save was stopped half-way", "save again")


def test_whole_numbers_in_place_of_weights_fail(folder: Path) -> None:
    name = "model.projector.weight"
    change_weights(folder / WEIGHTS, lambda weights: weights.update({name: weights[name].to(torch.int8)}))
    assert_found(folder, "keys", "failed", f"1 of whole numbers: {name} I8")


def test_matrix_of_zeros_warns(folder: Path) -> None:
    change_weights(folder / WEIGHTS, lambda weights: weights["model.projector.weight"].zero_())
    assert_found(folder, "weights", "warning", "Nothing but zeros in model.projector.weight")


@pytest.mark.parametrize(("name", "value"), [("eos_token_id", [2, 261]), ("pad_token_id", -1), ("bos_token_id", "1")])
def test_special_token_that_the_model_does_not_have_fails(name: str, value: Any, folder: Path) -> None:
    change_json(folder / "generation_config.json", **{name: value})
    assert_found(folder, "config", "failed", f"generation_config.json has {name} {value!r}", "from 0 to 260")


def test_config_of_wrong_values_fails(folder: Path) -> None:
    change_json(folder / "config.json", lora_rank="8")
    assert_found(folder, "config", "failed", "SalmonnConfig.lora_rank must be int, got '8'")


def test_pickle_warns(folder: Path) -> None:
    (folder / "old").mkdir()
    (folder / "old" / "pytorch_model.bin").write_bytes(b"not even a pickle")
    checks = assert_found(folder, "pickles", "warning", os.path.join("old", "pytorch_model.bin"), "never loaded")
    assert is_healthy(checks)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "alpha_pattern": {"q_proj": 12, "v_proj": 12}},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}},
        {"r": 4, "lora_alpha": 8, "use_dora": True},
        {"r": 4, "lora_alpha": 8, "target_modules": ["projector"], "lora_bias": True},
    ],
    ids=["rslora", "alpha_pattern", "rank_pattern", "dora", "bias"],
)
def test_folder_of_every_adapter_that_is_saved_passes(
    options: dict[str, Any], bucket_config: SalmonnConfig, tmp_path: Path
) -> None:
    model = tiny_model(bucket_config)
    model.add_adapter(LoraConfig(**{"target_modules": r".*language_model\..*\.(q|v)_proj"} | options))
    model.save_pretrained(tmp_path)
    tiny_processor(bucket_config).save_pretrained(tmp_path)
    checks = assert_all_ok(tmp_path)
    assert f"Scaling {model.config.lora_scaling:g}," in named(checks, "adapter").detail


def test_wrong_adapter_scaling_fails(folder: Path) -> None:
    change_json(folder / "adapter_config.json", lora_alpha=16)
    assert_found(folder, "adapter", "failed", "scaling 2", "config.json says 4", "agree")


def test_wrong_audio_token_id_fails(folder: Path) -> None:
    change_json(folder / "config.json", audio_token_id=300)
    assert_found(folder, "tokenizer", "failed", "<SpeechHere> has the id 261", "audio_token_id 300")


def test_missing_chat_template_warns(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert_found(folder, "tokenizer", "warning", "No chat template")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("window_seconds", 0.5, "window_frames 25, not 17"),
        ("stride_seconds", 0.5, "stride_frames 25, not 17"),
        ("segment_seconds", 30.0, "segment_frames (3000,), not (200, 500, 1000, 3000)"),
        ("trim_audio_tokens", False, "trim_audio_tokens False, not True"),
        ("feature_size", 128, "feature_size 128, not 80"),
        ("num_fbank_bins", 0, "num_fbank_bins 0, not 128"),
        ("fbank_mean", 0.0, "fbank_mean 0.0, not 15.41663"),
        ("fbank_std", float("nan"), "fbank_std"),
        ("sampling_rate", 8000, "The encoders need sampling_rate 16000, got 8000"),
    ],
)
def test_extractor_unlike_the_model_fails(folder: Path, setting: str, value: Any, words: str) -> None:
    change_extractor(folder, **{setting: value})
    assert_found(folder, "audio settings", "failed", words)


def test_golden_answer_is_reproduced(folder: Path, wav_file: Path) -> None:
    answer = greedy_answer(folder, wav_file, max_new_tokens=6)
    write_golden(folder, wav_file, answer=f" {answer}\n", max_new_tokens=6)
    assert_found(folder, "golden answers", "ok", "1 of 1 answers")


def test_wrong_golden_answer_fails(folder: Path, wav_file: Path) -> None:
    write_golden(folder, wav_file, answer="a dog barks", max_new_tokens=6)
    assert_found(folder, "golden answers", "failed", "1 of 1 answers differ", "audio/clip.wav", "not 'a dog barks'")


def test_golden_answers_of_another_form_fail(folder: Path) -> None:
    (folder / "golden_answers.json").write_text("[]")
    assert_found(folder, "golden answers", "failed", "golden_answers.json holds a list, but an object is needed")


def test_golden_answer_about_a_clip_elsewhere_fails(folder: Path, wav_file: Path) -> None:
    write_golden(folder, wav_file, answer="a dog barks")
    shutil.copy(wav_file, folder.parent / "clip.wav")
    change_json(folder / "golden_answers.json", cases=[{"audio": "../clip.wav", "text": "What?", "answer": "a dog"}])
    assert_found(folder, "golden answers", "failed", "names the clip '../clip.wav', which is not in the folder")


def examine_offline(cache: Path, *hub_ids: str) -> dict[str, list[Check]]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-c", EXAMINE_SCRIPT, *hub_ids]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in output.splitlines() if line.startswith("REPORTS "))
    reports = json.loads(line.removeprefix("REPORTS "))
    return {hub_id: [Check(**check) for check in report] for hub_id, report in reports.items()}


def test_hub_ids_are_examined_from_the_cache_when_offline(folder: Path, tmp_path: Path) -> None:
    for name, base in (("good", "someone/good"), ("bad", "someone/good")):
        repository = tmp_path / "cache" / f"models--someone--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        snapshot = shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
        change_json(Path(snapshot) / "adapter_config.json", base_model_name_or_path=base)
    reports = examine_offline(tmp_path / "cache", "someone/good", "someone/bad", "someone/absent")

    assert is_healthy(reports["someone/good"])
    assert named(reports["someone/good"], "generation").status == "ok"
    adapter = named(reports["someone/bad"], "adapter")
    assert adapter.status == "failed"
    assert "set it to 'someone/bad' in adapter_config.json" in adapter.detail
    (absent,) = reports["someone/absent"]
    assert absent.status == "failed"
    assert "someone/absent is no folder, and the Hub does not give it" in absent.detail


def test_report_shows_every_check_with_its_brackets() -> None:
    checks = [
        Check("keys", "failed", "shape [3] instead"),
        Check("files", "warning", "[bold]"),
        Check("code", "ok", ""),
    ]
    output = io.StringIO()
    print_report(checks, Console(file=output, width=100))
    text = output.getvalue()
    assert "shape [3] instead" in text
    assert "[bold]" in text
    assert "1 failed, 1 warnings, 0 skipped" in text
    assert not is_healthy(checks)
