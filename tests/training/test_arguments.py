"""Settings of a stage: YAML, words of the command line, and what is said about mistakes."""

from pathlib import Path
from typing import Any

import pytest

from modeling_salmonn.training.arguments import SalmonnTrainingArguments, parse_arguments


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    path = tmp_path / "stage.yaml"
    path.write_text(f"seed: 2\noutput_dir: {tmp_path}/out\nlearning_rate: 1e-4\nmodel: some/model\n")
    return path


def parse(stage: Path, *words: str) -> SalmonnTrainingArguments:
    return parse_arguments([str(stage), *words])


def test_defaults_are_those_of_the_research_code(tmp_path: Path) -> None:
    arguments = SalmonnTrainingArguments(output_dir=str(tmp_path))
    assert (arguments.weight_decay, arguments.adam_beta1, arguments.adam_beta2) == (0.05, 0.9, 0.999)
    assert (arguments.learning_rate, arguments.warmup_steps) == (3e-5, 3000)
    shares = {"min_lr_rate": 1e-5 / 3e-5, "warmup_lr_rate": 1e-6 / 3e-5}
    assert arguments.lr_scheduler_kwargs == pytest.approx(shares)
    assert arguments.per_device_train_batch_size == 8


def test_other_schedules_get_no_settings_of_the_default_one(tmp_path: Path) -> None:
    arguments = SalmonnTrainingArguments(output_dir=str(tmp_path), lr_scheduler_type="cosine")
    assert arguments.lr_scheduler_kwargs is None


def test_one_process_for_several_devices_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SalmonnTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="One process sees 2 devices; start one for each with accelerate launch"):
        SalmonnTrainingArguments(str(tmp_path))


def test_zero_stage_3_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed", reason="only needed here")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ValueError, match="ZeRO stage 3 gathers each layer when a process needs it"):
        SalmonnTrainingArguments(str(tmp_path))


def test_each_process_collates_its_own_batches(tmp_path: Path) -> None:
    assert SalmonnTrainingArguments(output_dir=str(tmp_path)).accelerator_config.dispatch_batches is False


def test_numbers_that_yaml_takes_for_text_become_numbers(stage: Path) -> None:
    assert parse(stage).learning_rate == 1e-4


def test_words_win_over_the_file(stage: Path) -> None:
    arguments = parse(stage, "seed=3", "learning_rate=2e-5", "gradient_checkpointing=true", "run_name=7")
    assert (arguments.seed, arguments.learning_rate) == (3, 2e-5)
    assert arguments.gradient_checkpointing is True
    assert arguments.run_name == "7"


def test_words_may_hold_lists_and_mappings(stage: Path) -> None:
    arguments = parse(stage, "train_data=[a.json, {path: b.jsonl, task: asr}]", "task_weights={asr: 2}")
    assert arguments.train_data == ["a.json", {"path": "b.jsonl", "task": "asr"}]
    assert arguments.task_weights == {"asr": 2.0}


def test_config_is_found_beside_the_file(stage: Path) -> None:
    (stage.parent / "sizes.json").write_text("{}")
    assert parse(stage, "config=sizes.json").config == str(stage.parent / "sizes.json")
    assert parse(stage, "config=elsewhere.json").config == "elsewhere.json"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rte=1"], "Unknown key 'learning_rte' in the command line; did you mean 'learning_rate'?"),
        (["zzzzz=1"], "Unknown key 'zzzzz' in the command line; see SalmonnTrainingArguments"),
        (["learning_rate=fast"], "learning_rate is 'fast', but it needs float"),
        (["dtype=int8"], "dtype is 'int8', but it needs one of 'float32', 'bfloat16', 'float16'"),
        (["bf16=1"], "bf16 is 1, but it needs bool"),
        (["max_steps=true"], "max_steps is True, but it needs int"),
        (["max_steps=1.5"], "max_steps is 1.5, but it needs int"),
        (["train_lora=7"], "train_lora is 7, but it needs bool"),
        (["task_weights={asr: much}"], "task_weights.asr is 'much', but it needs float"),
        (["train_data=[3]"], r"train_data is \[3\], but it needs text or dict or list"),
        (["seed"], "Got the word 'seed'; settings are written key=value"),
        (["dtype=bfloat16"], "set bf16=true"),
        (["task_temperature=0"], "task_temperature must be positive"),
        (
            ["train_sampling_strategy=sequential"],
            "train_sampling_strategy is 'sequential', but examples are drawn by their",
        ),
        (["label_smoothing_factor=0.1"], "label_smoothing_factor would compare labels with the tokens before them"),
        (["max_bad_clips=-1"], "max_bad_clips must not be negative"),
        (["feature_cache=x", "train_audio_encoder=true"], "feature_cache holds outputs of frozen encoders"),
        (["learning_rate=.nan"], "learning_rate is nan, but it needs float"),
        (["learning_rate=.inf"], "learning_rate must be a finite number, got inf"),
        (["learning_rate=-1e-4"], "learning_rate must not be negative, got -0.0001"),
        (["learning_rate=true"], "learning_rate is True, but it needs float"),
        (["learning_rate=null"], "learning_rate is None, but it needs float"),
        (["learning_rate=[1]"], r"learning_rate is \[1\], but it needs float"),
        (["dtype=true"], "dtype is True, but it needs one of 'float32'"),
        (["stage=1"], "Unknown key 'stage' in the command line"),
        (["max_steps=" + "9" * 30], "max_steps is 9+, but it needs int"),
        (["task_weights={asr: .nan}"], "task_weights.asr is nan, but it needs float"),
        (["task_weights={1: 2}"], "the key 1 of task_weights is 1, but it needs text"),
        (["task_weights=[asr]"], r"task_weights is \['asr'\], but it needs mapping of text to float"),
        (["per_device_train_batch_size=0"], "per_device_train_batch_size must be positive, got 0"),
        (["gradient_accumulation_steps=0"], "gradient_accumulation_steps must be positive, got 0"),
        (["alignment_batch_size=0"], "alignment_batch_size must be positive, got 0"),
        (["max_audio_seconds=-1"], "max_audio_seconds must be positive, got -1.0"),
        (["examples_per_epoch=0"], "examples_per_epoch must be positive, got 0"),
        (["examples_per_epoch=1000000000000"], "examples_per_epoch must be at most 10,000,000"),
        (["overlap_examples=1000000000"], "overlap_examples must be at most 10,000,000"),
        (
            ["learning_rate=1e-6", "lr_scheduler_kwargs={min_lr: 1.0e-5}"],
            "has min_lr=1e-05, but the schedule ends there and learning_rate is 1e-06; give a lower one, or a share",
        ),
        (["learning_rate=0", "lr_scheduler_kwargs={min_lr: 0.0}"], "min_lr=0, but .* learning_rate is 0; give"),
        (["lr_scheduler_kwargs={min_lr: 1e-5}"], "has min_lr='1e-5', but a number is needed; YAML has 1.0e-5 for"),
        (["warmup_steps=-1"], "warmup_steps must not be negative, got -1.0"),
        (["train_data=[" + "[" * 1000], "Line 1 of train_data has more than 50 levels of nesting"),
        (["train_data={path: a.jsonl, task: 3}"], "task of the data source 'a.jsonl' is 3, but it needs text"),
        (["eval_data=[{pth: a.jsonl}]"], "needs 'path', and knows nothing but"),
    ],
)
def test_mistake_in_a_word_raises(stage: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(stage, *words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lerning_rate: 1", "Unknown key 'lerning_rate' in .*stage.yaml; did you mean 'learning_rate'?"),
        ("- 1", "holds a list; it needs to map keys to values"),
        ("a: [", "is not YAML"),
        (
            "seed: 1\n\nlearning_rate: true\n",
            r"In line 3 of .*stage\.yaml: learning_rate is True, but it needs float",
        ),
        ("seed: 1\nlerning_rate: 1\n", r"Unknown key 'lerning_rate' in line 2 of .*; did you mean 'learning_rate'"),
        ("seed: 1\nbf16: true\nseed: 2\n", r"Line 3 of .*stage\.yaml gives the key 'seed' again, after line 1"),
        ("bf16: true\n\tseed: 2\n", r"line 2 of .*stage\.yaml is not YAML: .*not with tabs"),
        ("train_data:\n  - {path: a.jsonl, weight: 2}\n", r"In line 1 of .*: The data source .* knows nothing but"),
        ("dtype: null\n", r"In line 1 of .*stage\.yaml: dtype is None, but it needs one of 'float32'"),
        ("model: 7\n", r"In line 1 of .*stage\.yaml: model is 7, but it needs text or null"),
        ("output_dir: 2024-01-01\n", r"In line 1 of .*: output_dir is datetime.date\(2024, 1, 1\), but it needs text"),
        ("", "holds nothing; it needs to map keys to values"),
        ("# \xe9\n", r"Line 1 of .*stage\.yaml is not UTF-8"),
        ("1: 2", "Unknown key 1 in"),
    ],
)
def test_mistake_in_the_file_raises(stage: Path, content: str, message: str) -> None:
    stage.write_text(content, encoding="latin-1")  # as old editors do
    with pytest.raises(ValueError, match=message):
        parse(stage)


@pytest.mark.parametrize("name", ["output_dir", "feature_cache"])
def test_folder_that_is_a_file_raises(name: str, stage: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name} is .*stage\.yaml, which is no folder; give one, or a new name"):
        parse(stage, f"{name}={stage}")


@pytest.mark.parametrize("words", [[], ["seed=1"]])
def test_words_without_a_file_raise(words: list[str]) -> None:
    with pytest.raises(ValueError, match="Name the YAML file"):
        parse_arguments(words)


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file .*none\.yaml"):
        parse_arguments([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("value", ["true", "path/to/checkpoint-3"])
def test_resuming_takes_a_folder_or_true(stage: Path, value: Any) -> None:
    expected = True if value == "true" else value
    assert parse(stage, f"resume_from_checkpoint={value}").resume_from_checkpoint == expected
