"""What a dry run reports."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from workspace import Workspace, make_workspace, quick_config

from modeling_salmonn.training.dry_run import build_empty, dry_run, estimate_memory
from modeling_salmonn.training.run import prepare
from modeling_salmonn.training.stages import prepare_stage, trained_parameters


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("dry"))


def test_report_counts_what_the_real_model_has(workspace: Workspace, tmp_path: Path) -> None:
    model = tiny_model(quick_config())
    prepare_stage(model)
    names = {name for part in trained_parameters(model).values() for name in part}
    trained = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    total = sum(parameter.numel() for parameter in model.parameters())
    report = dry_run(workspace.arguments(tmp_path), quick_config())
    row = next(line for line in report.splitlines() if line.startswith("all "))
    assert row.split()[1:3] == [f"{total:,}", f"{trained:,}"]


def test_memory_depends_on_the_settings(workspace: Workspace, tmp_path: Path) -> None:
    model = build_empty(quick_config(), torch.float32)
    prepare_stage(model)
    plain = estimate_memory(model, workspace.arguments(tmp_path))
    checkpointed = estimate_memory(model, workspace.arguments(tmp_path, gradient_checkpointing=True))
    larger = estimate_memory(model, workspace.arguments(tmp_path, per_device_train_batch_size=4))
    assert checkpointed["activations"] < plain["activations"]
    assert larger["activations"] == 2 * plain["activations"]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plain["gradients and optimiser"] == 12 * trained


def test_layers_that_accelerate_names_must_exist(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = workspace.arguments(tmp_path)
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer")
    assert "Layers to shard: 2 LlamaDecoderLayer." in dry_run(arguments, quick_config())
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer,WhisperDecoderLayer")
    with pytest.raises(ValueError, match=r"to shard the layers \['WhisperDecoderLayer'\], but only those of"):
        dry_run(arguments, quick_config())


def test_sharded_memory_is_that_of_a_sharded_model(workspace: Workspace, tmp_path: Path) -> None:
    model = build_empty(quick_config(), torch.float32)
    prepare_stage(model)
    whole = estimate_memory(model, workspace.arguments(tmp_path))
    estimated = estimate_memory(model, workspace.arguments(tmp_path), devices=3)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (3,)))
        parts = [parameter.to_local() for parameter in model.parameters()]
        trained = sum(parameter.to_local().numel() for parameter in model.parameters() if parameter.requires_grad)
    finally:
        torch.distributed.destroy_process_group()
    assert estimated["weights"] == sum(part.nbytes for part in parts)
    assert estimated["gradients and optimiser"] == 12 * trained
    assert whole["weights"] / 3 <= estimated["weights"] < whole["weights"] * 0.35
    assert estimated["activations"] == whole["activations"]


def test_dry_run_needs_no_data_and_writes_nothing(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = tmp_path / "stage.yaml"
    stage.write_text(f"config: {workspace.model}\noutput_dir: {tmp_path}/out\ntrain_data: nowhere.jsonl\n")
    assert prepare([str(stage), "dry_run=true"]) is None
    assert "2 LlamaDecoderLayer" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
