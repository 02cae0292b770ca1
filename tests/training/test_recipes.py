"""The recipes and accelerate configurations that come with the package."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from conftest import ROOT

from modeling_salmonn.hub.assembly import load_config
from modeling_salmonn.training.arguments import parse_arguments
from modeling_salmonn.training.dry_run import build_empty, dry_run
from modeling_salmonn.training.stages import sharded_layers


FOLDER = ROOT / "recipes"
LARGE = [FOLDER / "salmonn" / f"stage{stage}.yaml" for stage in (1, 2, 3)]
RECIPES = [*LARGE, *(FOLDER / "salmonn_smol" / f"stage{stage}.yaml" for stage in (1, 2, 3))]
ACCELERATE = sorted((FOLDER / "accelerate").glob("*.yaml"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def words_of(recipe: Path) -> list[str]:
    """The launch command that a recipe opens with."""
    first = recipe.read_text().splitlines()[0]
    assert first.startswith("# ")
    return first.removeprefix("# ").split()


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_recipe_is_valid_and_opens_with_its_command(recipe: Path) -> None:
    parse_arguments([str(recipe)])
    words = words_of(recipe)
    assert words[-2:] == ["train", str(recipe.relative_to(ROOT))]
    if words[0] == "accelerate":
        launched = launch_command_parser().parse_args(words[2:])
        assert (launched.module, launched.training_script) == (True, "modeling_salmonn")
        assert launched.config_file is None or (ROOT / launched.config_file).is_file()
    else:
        assert words[0] == "salmonn"


@pytest.mark.parametrize("recipe", LARGE, ids=name_of)
def test_large_models_are_trained_in_little_memory(recipe: Path) -> None:
    arguments = parse_arguments([str(recipe)])
    assert arguments.gradient_checkpointing
    assert (arguments.dtype, arguments.bf16) == ("bfloat16", True)
    assert arguments.prediction_loss_only  # logits of answers alone


@pytest.mark.parametrize("recipe", LARGE, ids=name_of)
def test_large_models_keep_the_optimiser_of_the_research_code(recipe: Path) -> None:
    arguments = parse_arguments([str(recipe)])
    assert (arguments.learning_rate, arguments.weight_decay) == (3e-5, 0.05)
    assert (arguments.adam_beta1, arguments.adam_beta2) == (0.9, 0.999)
    if recipe.stem != "stage3":
        assert (arguments.warmup_steps, arguments.per_device_train_batch_size) == (3000, 8)
        assert 3e-5 * arguments.lr_scheduler_kwargs["min_lr_rate"] == pytest.approx(1e-5, rel=1e-2)
        assert 3e-5 * arguments.lr_scheduler_kwargs["warmup_lr_rate"] == pytest.approx(1e-6, rel=1e-2)


@pytest.mark.parametrize(
    ("size", "total", "trained"),
    [("salmonn-13b", 13_776_293_744, 33_332_992), ("salmonn-7b", 7_495_698_288, 30_186_240)],
)
def test_dry_run_counts_without_weights(size: str, total: int, trained: int) -> None:
    """The paper: about 33 M parameters are trained, 0.24 % of all."""
    arguments = parse_arguments([str(LARGE[0]), f"config={size}.json", "dry_run=true"])
    config = load_config(arguments.config)
    assert all(parameter.is_meta for parameter in build_empty(config, torch.bfloat16).parameters())
    report = dry_run(arguments, config)
    row = next(line for line in report.splitlines() if line.startswith("all "))
    assert row.split()[1:3] == [f"{total:,}", f"{trained:,}"]
    layers = 40 if size == "salmonn-13b" else 32
    assert f"Layers to shard: {layers} LlamaDecoderLayer." in report
    unsharded = float(report.split("together ")[1].split(".\n")[0])
    assert total * 2 / 2**30 < unsharded < total * 2 / 2**30 + 4  # bfloat16, and the little that is trained


def launch_arguments(path: Path) -> Any:
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(path), "-m", "modeling_salmonn", "train", "stage.yaml"])
    known = {action.dest for action in parser._actions}
    config = load_config_from_file(str(path))
    given = {**config.fsdp_config, **config.deepspeed_config}
    assert given
    assert given.keys() <= known
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize("path", ACCELERATE, ids=name_of)
def test_accelerate_configuration_is_valid(path: Path) -> None:
    arguments = launch_arguments(path)
    assert arguments.num_processes == 8
    assert arguments.mixed_precision == "bf16"
    assert arguments.use_fsdp == ("fsdp" in path.name)
    assert arguments.use_deepspeed == ("deepspeed" in path.name)
    assert words_of(path)[3] == str(path.relative_to(ROOT))
    if arguments.use_deepspeed:
        assert f"zero{arguments.zero_stage}" in path.name


def test_fsdp_wraps_layers_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = (path for path in ACCELERATE if "fsdp" in path.name)
    monkeypatch.setattr(os, "environ", os.environ | prepare_multi_gpu_env(launch_arguments(path)))
    model = build_empty(load_config(str(FOLDER / "salmonn" / "salmonn-13b.json")), torch.bfloat16)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.transformer_cls_names_to_wrap is None  # the trainer names them
    plugin.transformer_cls_names_to_wrap = list(sharded_layers(model))
    plugin.set_auto_wrap_policy(model)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {layer.__name__ for layer in wrapped} == set(sharded_layers(model))


def test_smol_configuration_has_the_layout_of_the_shipped_model() -> None:
    config = load_config(str(FOLDER / "salmonn_smol" / "config.json"))
    assert config.speech_model_id
    assert config.text_model_id
    shipped = load_config(str(ROOT / "hub" / "salmonn-smol"))
    for name in ("segment_seconds", "window_seconds", "stride_seconds", "trim_audio_tokens", "audio_token_id"):
        assert getattr(config, name) == getattr(shipped, name), name
    for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"):
        assert getattr(config, name) == getattr(shipped, name), name
    assert config.audio_config is None, "the generation that is shipped still has an audio encoder"
    saved = shipped.qformer_config.to_diff_dict()
    own = config.qformer_config.to_diff_dict()
    differing = ("dtype", "encoder_hidden_size")
    assert all(own.get(name) == saved[name] for name in saved if name not in differing)
