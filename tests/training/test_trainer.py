"""The trainer: its loss, its optimiser, its checkpoints, and what training leaves alone."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, EarlyStoppingCallback
from workspace import CLIPS, Workspace, config_without_dropout, make_workspace

from modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.training.arguments import SalmonnTrainingArguments
from modeling_salmonn.training.run import build_trainer
from modeling_salmonn.training.trainer import SalmonnTrainer, keep_label_positions
from modeling_salmonn.weight_names_salmonn import part_of


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("trainer"), config=config_without_dropout())


@pytest.fixture
def trainer(workspace: Workspace, tmp_path: Path) -> SalmonnTrainer:
    return build_trainer(workspace.arguments(tmp_path))


def batch_of(trainer: SalmonnTrainer, rows: list[int]) -> dict[str, torch.Tensor]:
    return trainer.data_collator([trainer.train_dataset[row] for row in rows])


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    return found


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-4, atol=1e-6, msg=name)


def test_logits_of_labels_alone_give_the_same_loss_and_gradients(trainer: SalmonnTrainer) -> None:
    batch = batch_of(trainer, [0, 1, 2])
    for count in (None, torch.tensor(40)):
        options = {} if count is None else {"num_items_in_batch": count}
        plain = trainer.model(**batch, **options)
        plain.loss.backward()
        expected = gradients(trainer.model)
        kept = trainer.model(**keep_label_positions(batch), **options)
        kept.loss.backward()
        assert torch.allclose(kept.loss, plain.loss, rtol=1e-5)
        assert_close(gradients(trainer.model), expected)
    assert len(kept.logits) == (batch["labels"][:, 1:] != -100).sum()


def test_training_computes_few_logits(trainer: SalmonnTrainer) -> None:
    batch = batch_of(trainer, [0, 1])
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert len(outputs.logits) == (batch["labels"] != -100).sum()
    assert outputs.past_key_values is None
    trainer.args.prediction_loss_only = False
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert outputs.logits.shape[1] == batch["input_ids"].shape[1]


@pytest.mark.parametrize("alignment_weight", [0.0, 0.5])
def test_gradient_accumulation_equals_one_large_batch(
    alignment_weight: float, workspace: Workspace, tmp_path: Path
) -> None:
    weights = []
    for name, size, steps in (("large", 4, 1), ("small", 1, 4)):
        arguments = workspace.arguments(
            tmp_path / name,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=2,
            adam_epsilon=1e-3,  # so that rounding is not blown up to a whole step
            save_strategy="no",
            train_data=spoken_words(workspace),
            alignment_weight=alignment_weight,
        )
        trainer = build_trainer(arguments)
        if trainer.alignment_head is not None:
            trainer.alignment_head.negatives = 20_000  # the whole vocabulary, whatever the batch
        trainer.train()
        weights.append(dict(trainer.model.named_parameters()))
    assert_close(*weights)


def test_training_changes_what_the_stage_trains_and_nothing_else(trainer: SalmonnTrainer) -> None:
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {part_of(name) for name in changed} == {"connector", "lora"}
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    # a softmax over a single query leaves its weights without a gradient
    idle = {name for name in trained if ".self_attention.query." in name or ".self_attention.key." in name}
    assert trained - idle <= changed <= trained


def test_parts_have_learning_rates_of_their_own(workspace: Workspace, tmp_path: Path) -> None:
    arguments = workspace.arguments(
        tmp_path, learning_rate=1.0, connector_learning_rate=0.0, lora_learning_rate=3.0, train_speech_encoder=True
    )
    trainer = build_trainer(arguments)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates, decays = defaultdict(set), defaultdict(set)
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            rates[part_of(names[id(parameter)])].add(group["lr"])
            decays[group["weight_decay"]].add(names.pop(id(parameter)))
    assert rates == {"connector": {0.0}, "lora": {3.0}, "speech_encoder": {1.0}}
    assert decays.keys() == {0.0, 0.05}
    assert "model.ln_speech.weight" in decays[0.0]
    assert all(name.endswith("bias") or "norm" in name or ".ln_" in name for name in decays[0.0])
    left = {name for name in names.values() if part_of(name) not in ("audio_encoder", "language_model")}
    assert left == {"model.speech_encoder.embed_positions.weight"}
    assert {part_of(name) for name in names.values() if name not in left} == {"audio_encoder", "language_model"}


def learning_rates(arguments: SalmonnTrainingArguments, steps: int) -> list[float]:
    """The rate of each step of a run."""
    trainer = build_trainer(arguments)
    trainer.create_optimizer_and_scheduler(num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return rates


@pytest.mark.parametrize("learning_rate", [3e-5, 1e-6])
def test_learning_rate_falls_to_a_third(learning_rate: float, workspace: Workspace, tmp_path: Path) -> None:
    rates = learning_rates(workspace.arguments(tmp_path, learning_rate=learning_rate, warmup_steps=10), 100)
    assert max(rates) == pytest.approx(learning_rate)
    assert rates[-1] == pytest.approx(learning_rate / 3, rel=1e-2)
    assert rates[0] == pytest.approx(learning_rate / 30)


@pytest.mark.parametrize(
    ("settings", "is_told"),
    [
        ({"warmup_steps": 3000}, True),
        ({"warmup_steps": 200}, True),
        ({"warmup_steps": 199}, False),
        ({"warmup_steps": 0.05}, False),
        ({"warmup_steps": 3000, "lr_scheduler_type": "constant"}, False),
        ({"warmup_steps": 3000, "lr_scheduler_type": "constant_with_warmup"}, True),
    ],
)
def test_run_that_ends_within_its_warm_up_is_told(
    settings: dict[str, Any],
    is_told: bool,
    workspace: Workspace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = build_trainer(workspace.arguments(tmp_path, **settings))
    with caplog.at_level("WARNING", "modeling_salmonn"):
        trainer.create_optimizer_and_scheduler(num_training_steps=200)
    message = f"warmup_steps is {settings['warmup_steps']}, but the run has 200 steps and would not reach its learning"
    assert (message in caplog.text) == is_told


def test_learning_rate_follows_the_research_code(workspace: Workspace, tmp_path: Path) -> None:
    rates = learning_rates(workspace.arguments(tmp_path, learning_rate=3e-5, warmup_steps=3000), 9000)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[1500] == pytest.approx((1e-6 + 3e-5) / 2, rel=1e-2)
    assert max(rates) == rates[2999] == pytest.approx(3e-5)
    assert rates[5999] == pytest.approx(2e-5, rel=1e-2)
    assert min(rates[3000:]) == rates[-1] == pytest.approx(1e-5)


def test_gradient_checkpointing_changes_no_gradient_and_keeps_no_graph_of_encoders(
    workspace: Workspace, tmp_path: Path
) -> None:
    losses, found, graphs = [], [], []
    for checkpointing in (False, True):
        arguments = workspace.arguments(
            tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, max_steps=1, save_strategy="no"
        )
        trainer = build_trainer(arguments)
        encoders = (trainer.model.model.speech_encoder, trainer.model.model.audio_encoder)
        for encoder in encoders:
            encoder.register_forward_hook(
                lambda module, inputs, output: graphs.append(output.last_hidden_state.requires_grad)
            )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        trainer.model.train()
        trainer.compute_loss(trainer.model, batch_of(trainer, [0, 1])).backward()
        found.append(gradients(trainer.model))
    assert trainer.model.model.language_model.layers[0].gradient_checkpointing
    assert losses[0] == losses[1]
    assert_close(*found)
    assert graphs
    assert not any(graphs)


def test_encoders_of_the_recipes_run_in_half_precision_and_keep_no_graph(workspace: Workspace, tmp_path: Path) -> None:
    arguments = workspace.arguments(tmp_path, dtype="bfloat16", bf16=True, gradient_checkpointing=True, max_steps=1)
    trainer = build_trainer(arguments)
    weights, states = set(), []
    for encoder in (trainer.model.model.speech_encoder, trainer.model.model.audio_encoder):
        weights |= {parameter.dtype for parameter in encoder.parameters()}
        encoder.layers[0].register_forward_hook(lambda module, inputs, output: states.append(output))
    trainer.train()
    assert weights == {torch.bfloat16}
    assert states
    for output in states:
        hidden = output[0] if isinstance(output, tuple) else output
        assert (hidden.dtype, hidden.grad_fn) == (torch.bfloat16, None)


def test_low_precision_bases_are_trained_in_mixed_precision(workspace: Workspace, tmp_path: Path) -> None:
    arguments = workspace.arguments(
        tmp_path,
        dtype="bfloat16",
        bf16=True,
        max_steps=2,
        eval_data=str(workspace.manifest),
        eval_strategy="steps",
        eval_steps=1,
        sample_new_tokens=2,
    )
    trainer = build_trainer(arguments)
    trainer.train()
    types = {(part_of(name), parameter.dtype) for name, parameter in trainer.model.named_parameters()}
    assert ("lora", torch.float32) in types
    assert ("connector", torch.float32) in types
    assert ("language_model", torch.bfloat16) in types
    with safe_open(tmp_path / "checkpoint-2" / "adapter_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118  not a dict


def test_evaluation_is_by_task_and_over_all(workspace: Workspace, tmp_path: Path) -> None:
    trainer = build_trainer(workspace.arguments(tmp_path, eval_data=str(workspace.manifest)))
    metrics = trainer.evaluate()
    expected = (metrics["eval_asr_loss"] + metrics["eval_audio_caption_loss"]) / 2
    assert metrics["eval_loss"] == pytest.approx(expected)
    assert metrics["eval_asr_loss"] != metrics["eval_audio_caption_loss"]
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


def named_bases(workspace: Workspace, folder: Path) -> Path:
    """The same model, whose configuration names its bases."""
    model = SalmonnForConditionalGeneration.from_pretrained(workspace.model)
    for part in ("speech", "audio", "text"):
        setattr(model.config, f"{part}_model_id", f"some/{part}")
    model.save_pretrained(folder)
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((workspace.model / name).read_bytes())
    return folder


@pytest.mark.parametrize("trained", ["adapter", "encoder"])
def test_checkpoints_hold_only_what_is_trained_where_bases_are_named(
    trained: str, workspace: Workspace, tmp_path: Path
) -> None:
    model = named_bases(workspace, tmp_path / "named")
    arguments = workspace.arguments(
        tmp_path / "out", model=str(model), max_steps=1, train_speech_encoder=trained == "encoder"
    )
    build_trainer(arguments).train()
    files = {path.name for path in (tmp_path / "out" / "checkpoint-1").iterdir()}
    adapter = {"connector.safetensors", "adapter_model.safetensors", "adapter_config.json"}
    weights = {name for name in files if name.startswith("model") and name.endswith(".safetensors")}
    if trained == "adapter":
        assert adapter <= files
        assert weights == set()
    else:
        assert "connector.safetensors" not in files
        assert weights == {"model.safetensors"}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "complete.json"} <= files


@pytest.mark.usefixtures("own_caches")
def test_pushed_model_is_the_trained_one(hub: HubServer, workspace: Workspace, tmp_path: Path) -> None:
    repo_id = "me/trained-in-a-test"
    trainer = build_trainer(workspace.arguments(tmp_path, push_to_hub=True, hub_model_id=repo_id, max_steps=1))
    trainer.train()
    trainer.push_to_hub()
    pushed, trained = AutoModel.from_pretrained(repo_id).state_dict(), trainer.model.state_dict()
    assert pushed.keys() == trained.keys()
    assert all(torch.equal(pushed[name], trained[name]) for name in trained)
    assert trainer.model.config.name_or_path == str(workspace.model)


@pytest.mark.usefixtures("own_caches")
def test_checkpoints_are_pushed_with_all_that_is_trained(hub: HubServer, workspace: Workspace, tmp_path: Path) -> None:
    model = str(named_bases(workspace, tmp_path / "named"))
    repo_id, output = "me/pushed-while-it-trains", tmp_path / "out"
    options = {"push_to_hub": True, "hub_model_id": repo_id, "hub_always_push": True, "max_steps": 2}
    trainer = build_trainer(workspace.arguments(output, model=model, **options))
    trainer.train()  # without a save at its end
    pushed = Path(snapshot_download(repo_id))
    last = {file.name: file for file in (output / "checkpoint-2").iterdir()}
    assert {"connector.safetensors", "adapter_model.safetensors", "modeling_salmonn.py"} <= last.keys()
    for name in last:
        if Path(name).suffix in (".safetensors", ".py"):
            assert (pushed / name).read_bytes() == last[name].read_bytes(), name
    assert not {"trainer_state.json", "optimizer.pt"} & {file.name for file in pushed.iterdir()}


def test_a_trained_encoder_is_kept_by_later_stages(workspace: Workspace, tmp_path: Path) -> None:
    folders = [str(named_bases(workspace, tmp_path / "named")), str(tmp_path / "first"), str(tmp_path / "second")]
    for model, output, trained in ((*folders[:2], True), (*folders[1:], False)):
        trainer = build_trainer(workspace.arguments(output, model=model, max_steps=1, train_speech_encoder=trained))
        trainer.train()
        trainer.save_model()
    name = "model.speech_encoder.layers.0.fc1.weight"
    before, first, second = (load_file(Path(folder) / "model.safetensors")[name] for folder in folders)
    assert not torch.equal(before, first)
    assert torch.equal(first, second)


@pytest.mark.parametrize("trained", ["head", "whole"])
def test_what_was_trained_elsewhere_is_kept_by_later_stages(
    trained: str, workspace: Workspace, tmp_path: Path
) -> None:
    named = named_bases(workspace, tmp_path / "named")
    model = SalmonnForConditionalGeneration.from_pretrained(named)
    if trained == "head":
        model.add_lora()
        model.lm_head.weight.requires_grad_(True)
    else:
        model.train()
    with torch.no_grad():
        model.lm_head.weight += 1.0
    model.save_pretrained(named)
    build_trainer(workspace.arguments(tmp_path / "out", model=str(named), max_steps=1)).save_model()
    head = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "out").lm_head.weight
    assert torch.equal(head, model.lm_head.weight)


def test_older_checkpoints_are_deleted_once_a_newer_one_is_complete(workspace: Workspace, tmp_path: Path) -> None:
    build_trainer(workspace.arguments(tmp_path, save_total_limit=2)).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    assert all(json.loads((path / "complete.json").read_text()) for path in tmp_path.glob("checkpoint-*"))


def trainer_with_best_first(workspace: Workspace, output: Path, metric: str, max_steps: int) -> SalmonnTrainer:
    """A run that takes the highest loss for the best, which is that of the first step."""
    arguments = workspace.arguments(
        output,
        eval_data=str(workspace.manifest),
        eval_strategy="steps",
        eval_steps=1,
        max_steps=max_steps,
        per_device_train_batch_size=CLIPS,  # each step then lowers the loss of all
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=True,
    )
    return build_trainer(arguments)


def test_best_checkpoint_is_loaded_in_the_end(workspace: Workspace, tmp_path: Path) -> None:
    trainer = trainer_with_best_first(workspace, tmp_path, "eval_asr_loss", max_steps=3)
    trainer.train()
    losses = [entry["eval_asr_loss"] for entry in trainer.state.log_history if "eval_asr_loss" in entry]
    assert losses[0] > losses[-1]
    assert trainer.evaluate()["eval_asr_loss"] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("metric", ["eval_loss", "eval_asr_loss"])
@pytest.mark.parametrize("patience", [1, 2])
def test_training_stops_early_by_the_loss_of_all_sets_or_of_one(
    metric: str, patience: int, workspace: Workspace, tmp_path: Path
) -> None:
    trainer = trainer_with_best_first(workspace, tmp_path, metric, max_steps=4)
    trainer.add_callback(EarlyStoppingCallback(patience))
    trainer.train()
    assert trainer.state.global_step == 1 + patience


def spoken_words(workspace: Workspace) -> str:
    """The manifest with words to align with."""
    rows = [json.loads(line) for line in workspace.manifest.read_text().splitlines()]
    file = workspace.folder / "aligned.jsonl"
    words = ["abc"[: 1 + index % 3] for index in range(len(rows))]
    rows = [row | {"alignment_text": word} for row, word in zip(rows, words, strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_evaluation_tells_the_loss_of_the_language_model_alone(workspace: Workspace, tmp_path: Path) -> None:
    data = spoken_words(workspace)
    losses = []
    for weight in (0.0, 0.5):
        arguments = workspace.arguments(tmp_path, train_data=data, eval_data=data, alignment_weight=weight)
        losses.append(build_trainer(arguments).evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_alignment_loss_is_added_and_its_head_is_trained(workspace: Workspace, tmp_path: Path) -> None:
    changes = {"train_data": spoken_words(workspace), "max_steps": 2}
    plain = build_trainer(workspace.arguments(tmp_path / "plain", **changes))
    plain.train()
    aligned = build_trainer(workspace.arguments(tmp_path / "aligned", alignment_weight=0.5, **changes))
    before = [parameter.clone() for parameter in aligned.alignment_head.parameters()]
    aligned.train()
    first, second = (trainer.state.log_history[0]["loss"] for trainer in (plain, aligned))
    assert second > first + 0.1
    pairs = zip(before, aligned.alignment_head.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs)
    resumed = build_trainer(workspace.arguments(tmp_path / "resumed", alignment_weight=0.5, **changes))
    resumed.train(resume_from_checkpoint=str(tmp_path / "aligned" / "checkpoint-1"))
    assert resumed.state.log_history[1]["loss"] == aligned.state.log_history[1]["loss"]
    pairs = zip(resumed.alignment_head.parameters(), aligned.alignment_head.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
