"""FSDP2 in a group of one process: its hooks shard and gather as among many."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from workspace import Workspace, make_workspace

from modeling_salmonn.training.checkpoints import read_weights
from modeling_salmonn.training.run import build_trainer
from modeling_salmonn.training.stages import load_trained, sharded_layers
from modeling_salmonn.training.trainer import SalmonnTrainer


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("sharding"))


@pytest.fixture
def group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def shard(trainer: SalmonnTrainer) -> None:
    """As accelerate does it for the layers that the trainer names."""
    layers = sharded_layers(trainer.model)
    for module in list(trainer.model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module)
    fully_shard(trainer.model)
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def step(trainer: SalmonnTrainer) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of one batch, and the weights after a step with them."""
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 1)])
    trainer.compute_loss(trainer.model.eval(), batch).backward()
    parameters = dict(trainer.model.named_parameters())
    gradients = {name: whole(tensor.grad) for name, tensor in parameters.items() if tensor.grad is not None}
    trainer.create_optimizer().step()
    return gradients, {name: whole(tensor).detach() for name, tensor in parameters.items()}


def test_sharded_model_learns_the_same(workspace: Workspace, tmp_path: Path, group: None) -> None:
    trainers = [build_trainer(workspace.arguments(tmp_path, adam_epsilon=1e-3)) for _ in range(2)]
    shard(trainers[1])
    plain, sharded = step(trainers[0]), step(trainers[1])
    for expected, found in zip(plain, sharded, strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_checkpoint_is_loaded_into_a_sharded_model(workspace: Workspace, tmp_path: Path, group: None) -> None:
    first = build_trainer(workspace.arguments(tmp_path / "first", max_steps=1))
    first.train()
    second = build_trainer(workspace.arguments(tmp_path / "second"))
    shard(second)
    load_trained(second.model, read_weights(tmp_path / "first" / "checkpoint-1"))
    expected = dict(first.model.named_parameters())
    assert all(torch.equal(whole(tensor), expected[name]) for name, tensor in second.model.named_parameters())
