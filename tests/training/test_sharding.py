"""FSDP2 shards and gathers in a group of one process as among many; what its processes have to wait for, in two."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_clip
from torch import distributed, multiprocessing
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from workspace import Workspace, config_without_dropout, make_workspace

from modeling_salmonn.training.checkpoints import read_weights
from modeling_salmonn.training.run import build_trainer
from modeling_salmonn.training.stages import load_trained, sharded_layers
from modeling_salmonn.training.trainer import SalmonnTrainer


# Lengths of the clips of two processes in seconds, of segments of one, of two, and of text alone.
BATCHES: dict[str, tuple[list[float | None], list[float | None]]] = {
    "as long": ([1.5, 1.5], [1.5, 1.5]),
    "of unlike lengths": ([1.5, 4.0, 8.0], [1.5, 1.5]),
    "text beside clips": ([1.5, 1.5], [None, None]),
}
PATIENCE = timedelta(seconds=60)  # of a process for the other


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("sharding"), config=config_without_dropout())


@pytest.fixture
def group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


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


def gradients_of(trainer: SalmonnTrainer) -> dict[str, torch.Tensor]:
    parameters = dict(trainer.model.named_parameters())
    return {name: whole(tensor.grad) for name, tensor in parameters.items() if tensor.grad is not None}


def step(trainer: SalmonnTrainer) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of one batch, and the weights after a step with them."""
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 1)])
    trainer.compute_loss(trainer.model.eval(), batch).backward()
    gradients = gradients_of(trainer)
    trainer.create_optimizer().step()
    return gradients, {name: whole(tensor).detach() for name, tensor in trainer.model.named_parameters()}


def learn(trainer: SalmonnTrainer, *batches: list[float | None]) -> dict[str, torch.Tensor]:
    """Gradients of batches of clips of these lengths, added up."""
    trainer.model.zero_grad()
    for batch in batches:
        trainer.compute_loss(trainer.model.train(), trainer.data_collator(make_examples(batch))).backward()
    return gradients_of(trainer)


def make_examples(seconds: list[float | None]) -> list[dict[str, Any]]:
    examples = []
    for index, length in enumerate(seconds):
        clip = None if length is None else make_clip(length, seed=index)
        examples.append({"audio": clip, "instruction": "What do you hear?", "answer": f"Sound number {index}."})
    return examples


def learn_sharded(rank: int, workspace: Workspace, folder: Path, changes: dict[str, Any]) -> None:
    """One of two processes with a batch each; the first writes the gradients, which are the mean of both."""
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=PATIENCE)
    trainer = build_trainer(workspace.arguments(folder / "run", **changes))
    shard(trainer)
    gradients = {name: learn(trainer, batches[rank]) for name, batches in BATCHES.items()}
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")
    distributed.destroy_process_group()


def test_sharded_model_learns_the_same(workspace: Workspace, tmp_path: Path, group: None) -> None:
    trainers = [build_trainer(workspace.arguments(tmp_path, adam_epsilon=1e-3)) for _ in range(2)]
    shard(trainers[1])
    plain, sharded = step(trainers[0]), step(trainers[1])
    for expected, found in zip(plain, sharded, strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_processes_share_what_each_has_heard(checkpointing: bool, workspace: Workspace, tmp_path: Path) -> None:
    changes = {"gradient_checkpointing": checkpointing}
    multiprocessing.spawn(learn_sharded, (workspace, tmp_path, changes), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    alone = build_trainer(workspace.arguments(tmp_path / "alone", **changes))
    for case, batches in BATCHES.items():
        expected = learn(alone, *batches)
        assert found[case].keys() == expected.keys()
        assert any("qformer" in name for name in expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[case][name], tensor / 2, rtol=1e-4, atol=1e-6, msg=f"{case}: {name}")


def test_checkpoint_is_loaded_into_a_sharded_model(workspace: Workspace, tmp_path: Path, group: None) -> None:
    first = build_trainer(workspace.arguments(tmp_path / "first", max_steps=1))
    first.train()
    second = build_trainer(workspace.arguments(tmp_path / "second"))
    shard(second)
    load_trained(second.model, read_weights(tmp_path / "first" / "checkpoint-1"))
    expected = dict(first.model.named_parameters())
    assert all(torch.equal(whole(tensor), expected[name]) for name, tensor in second.model.named_parameters())
