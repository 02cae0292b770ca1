"""`transformers.Trainer` as it is: going on from its checkpoints, and back to the best one, with the adapter."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_clip, tiny_config, tiny_model, tiny_processor
from model_bases import randomise_adapter
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel, Trainer, TrainingArguments

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration
from modeling_salmonn.audio_positions_salmonn import logger
from modeling_salmonn.data.collator import SalmonnCollator


STEPS = 4
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "save_steps": 1,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": "none",
    "use_cpu": True,
}


def quick_config(tied: bool = False) -> SalmonnConfig:
    config = tiny_config("qwen2", segment_seconds=[2, 5, 10, 30], trim_audio_tokens=True)
    if not tied:
        return config
    values = config.to_dict()
    values["text_config"]["tie_word_embeddings"] = True
    del values["tie_word_embeddings"]
    return SalmonnConfig(**values)


def trained_model(config: SalmonnConfig, seed: int = 0) -> SalmonnForConditionalGeneration:
    """A model with an adapter and a connector to train, as a user makes it before each run."""
    model = tiny_model(config)
    torch.manual_seed(seed)
    model.add_lora()
    model.model.projector.requires_grad_(True)
    return model


def examples() -> list[dict[str, Any]]:
    answers = ["one", "two", "three", "four", "five"]
    return [
        {"audio": make_clip(0.5, seed=seed), "instruction": "Listen.", "answer": answer}
        for seed, answer in enumerate(answers)
    ]


def trainer_of(model: Any, folder: Path, config: SalmonnConfig, **changes: Any) -> Trainer:
    processor = tiny_processor(config)
    settings = SETTINGS | {"output_dir": str(folder)} | changes
    return Trainer(
        model=model,
        args=TrainingArguments(**settings),
        data_collator=SalmonnCollator(processor),
        train_dataset=examples(),
        eval_dataset=examples()[:2],
        processing_class=processor,
    )


def with_placeholders(collator: SalmonnCollator, batch: Any) -> Any:
    """What the collator makes, with labels that are a copy of the prompts."""
    inputs = collator(batch)
    inputs["labels"] = inputs["input_ids"].clone()
    return inputs


def losses(trainer: Trainer) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    expected, found = first.state_dict(), second.state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Trainer` has no option for it: the model's own save, with another default."""
    save = SalmonnForConditionalGeneration.save_pretrained
    monkeypatch.setattr(
        SalmonnForConditionalGeneration,
        "save_pretrained",
        lambda self, *args, **kwargs: save(self, *args, **({"max_shard_size": "20KB"} | kwargs)),
    )


@pytest.mark.parametrize(("tied", "shards"), [(False, False), (True, True)], ids=["one-file", "tied-shards"])
def test_resumed_run_equals_the_whole_one(
    tied: bool, shards: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if shards:
        request.getfixturevalue("small_shards")
    config = quick_config(tied)
    whole = trainer_of(trained_model(config), tmp_path / "whole", config)
    whole.train()
    resumed = trainer_of(trained_model(config, seed=1), tmp_path / "resumed", config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert len(list((tmp_path / "whole" / "checkpoint-2").glob("model*.safetensors"))) > 1 or not shards
    assert losses(resumed) == losses(whole)
    assert_same_weights(resumed.model, whole.model)


def test_best_model_is_loaded_in_the_end(tmp_path: Path) -> None:
    config = quick_config()
    trainer = trainer_of(
        trained_model(config),
        tmp_path,
        config,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first one, since the loss falls
    )
    trainer.train()
    best = Path(str(trainer.state.best_model_checkpoint))
    assert best.name != f"checkpoint-{STEPS}"
    assert_same_weights(trainer.model, SalmonnForConditionalGeneration.from_pretrained(best))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-4)


def test_best_of_large_models_is_loaded_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = PreTrainedModel.save_pretrained
    monkeypatch.setattr(save, "__defaults__", tuple("20KB" if at == "50GB" else at for at in save.__defaults__ or ()))
    config = quick_config()
    options: dict[str, Any] = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = trainer_of(trained_model(config), tmp_path, config, **options)
    trainer.train()
    best = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-1")
    assert_same_weights(trainer.model, best)
    best.save_pretrained(tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").glob("model-*.safetensors"))) > 1


def test_saved_model_is_a_folder_for_inference(tmp_path: Path) -> None:
    config = quick_config()
    trainer = trainer_of(trained_model(config), tmp_path, config, max_steps=1)
    trainer.train()
    trainer.save_model()
    names = load_file(tmp_path / "model.safetensors").keys()
    assert names == tiny_model(config).state_dict().keys()
    loaded = SalmonnForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_weights(loaded, trainer.model)


def test_model_that_is_trained_as_a_whole_no_longer_names_its_bases(tmp_path: Path) -> None:
    config = quick_config()
    model = tiny_model(config)
    model.config.update({"speech_model_id": "whisper", "audio_model_id": "beats", "text_model_id": "qwen"})
    trainer = trainer_of(model, tmp_path, config, max_steps=1, eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        saved = SalmonnConfig.from_pretrained(folder)
        assert (saved.speech_model_id, saved.audio_model_id, saved.text_model_id) == (None, None, None)


def test_checkpoint_loads_with_its_adapter(tmp_path: Path) -> None:
    config = quick_config()
    model = trained_model(config)
    randomise_adapter(model)
    model.save_pretrained(tmp_path / "checkpoint-7")
    assert_same_weights(SalmonnForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-7"), model)


def test_checkpoint_that_lost_its_adapter_files_raises(tmp_path: Path) -> None:
    trained_model(quick_config()).save_pretrained(tmp_path / "checkpoint-7")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "checkpoint-7" / name).unlink()
    with pytest.raises(ValueError, match=r"unexpected \['model\.language_model\.layers\.0\.self_attn\.q_proj\.lora_A"):
        SalmonnForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-7")


@pytest.mark.parametrize("size", ["50GB", "20KB"], ids=["one-file", "shards"])
def test_resuming_from_weights_without_the_adapter_raises(size: str, tmp_path: Path) -> None:
    config = quick_config()
    model = trained_model(config)
    model.save_pretrained(tmp_path / "saved", max_shard_size=size)
    trainer = trainer_of(model, tmp_path / "out", config)
    with pytest.raises(ValueError, match=r"hold no adapter \(model\.language_model.*from_pretrained\(folder\), then"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "saved"))


def test_resuming_an_adapter_without_a_place_for_it_raises(tmp_path: Path) -> None:
    config = quick_config()
    trained_model(config).save_pretrained(tmp_path / "checkpoint-1")
    trainer = trainer_of(tiny_model(config), tmp_path / "out", config)
    with pytest.raises(ValueError, match=r"no place .*lora_A.*; add the same one first, with add_lora\(\)"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_connector_beside_a_frozen_adapter_is_resumed(tmp_path: Path) -> None:
    config = quick_config()

    def model() -> SalmonnForConditionalGeneration:
        made = tiny_model(config, lora=True)
        made.requires_grad_(False)
        made.model.projector.requires_grad_(True)
        return made

    whole = trainer_of(model(), tmp_path / "whole", config)
    whole.train()
    resumed = trainer_of(model(), tmp_path / "resumed", config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    assert_same_weights(resumed.model, whole.model)


def test_partial_weights_are_loaded_into_a_model_with_an_adapter() -> None:
    model = trained_model(quick_config())
    projector = {"model.projector.bias": torch.ones_like(model.model.projector.bias)}
    result = model.load_state_dict(projector, strict=False)
    assert result.unexpected_keys == []
    assert torch.equal(model.model.projector.bias, projector["model.projector.bias"])
    plain = {"model.language_model.layers.0.self_attn.q_proj.weight": torch.zeros(32, 32)}
    assert model.load_state_dict(plain, strict=False).unexpected_keys == []
    assert not model.model.language_model.layers[0].self_attn.q_proj.base_layer.weight.any()


def test_own_state_dict_is_loaded_strictly() -> None:
    model = trained_model(quick_config())
    other = trained_model(quick_config(), seed=1)
    randomise_adapter(other)
    model.load_state_dict(deepcopy(other.state_dict()))
    assert_same_weights(model, other)


def test_model_wrapped_by_peft_is_resumed(tmp_path: Path) -> None:
    config = quick_config()

    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        targets = r"(.*\.)?language_model\..*\.(q_proj|v_proj)"
        lora = LoraConfig(r=4, target_modules=targets, modules_to_save=["projector"])
        return get_peft_model(tiny_model(config), lora)

    whole = trainer_of(model(0), tmp_path / "whole", config)
    whole.train()
    resumed = trainer_of(model(1), tmp_path / "resumed", config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(resumed) == losses(whole)
    assert_same_weights(resumed.model, whole.model)


@pytest.mark.parametrize("copied", [True, False])
def test_placeholders_that_are_counted_as_targets_are_told_once(
    copied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    type(logger).warning_once.cache_clear()
    caplog.set_level("WARNING", logger=logger.name)
    config = quick_config()
    trainer = trainer_of(trained_model(config), tmp_path, config, max_steps=2)
    if copied:
        trainer.data_collator = partial(with_placeholders, trainer.data_collator)
    trainer.train()
    told = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert len(told) == copied
    assert all("set them to -100" in message for message in told)


def test_placeholders_among_labels_are_not_told_without_a_count_of_them(caplog: pytest.LogCaptureFixture) -> None:
    type(logger).warning_once.cache_clear()
    caplog.set_level("WARNING", logger=logger.name)
    config = quick_config()
    inputs = with_placeholders(SalmonnCollator(tiny_processor(config)), examples()[:2])
    assert torch.isfinite(tiny_model(config)(**inputs).loss)
    assert not caplog.records
