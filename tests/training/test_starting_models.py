"""The model that a stage starts from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from transformers import LlamaForCausalLM, WhisperConfig, WhisperModel
from workspace import Workspace, make_workspace, quick_config

from modeling_salmonn import BeatsModel, SalmonnForConditionalGeneration
from modeling_salmonn.training.run import build_trainer, load_model, load_processor, train


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper, BEATs and a language model as folders, and a configuration that names them."""
    folder = tmp_path_factory.mktemp("bases")
    config = quick_config()
    torch.manual_seed(0)
    speech = WhisperConfig(**(config.speech_config.to_dict() | {"decoder_ffn_dim": 16, "decoder_attention_heads": 2}))
    WhisperModel(speech).save_pretrained(folder / "speech")
    BeatsModel(config.audio_config).save_pretrained(folder / "audio")
    LlamaForCausalLM(config.text_config).save_pretrained(folder / "text")
    byte_tokenizer().save_pretrained(folder / "text")
    for part in ("speech", "audio", "text"):
        setattr(config, f"{part}_model_id", str(folder / part))
    config.save_pretrained(folder)
    return folder


def test_new_model_is_put_together_from_its_bases(bases: Path, workspace: Workspace, tmp_path: Path) -> None:
    arguments = workspace.arguments(tmp_path, model=None, config=str(bases))
    processor = load_processor(arguments)
    model = load_model(arguments, processor)
    language_model = LlamaForCausalLM.from_pretrained(bases / "text")
    assert torch.equal(model.lm_head.weight, language_model.lm_head.weight)
    speech = WhisperModel.from_pretrained(bases / "speech").encoder.state_dict()
    assert all(torch.equal(tensor, speech[name]) for name, tensor in model.model.speech_encoder.state_dict().items())
    assert model.config.audio_token_id == processor.audio_token_id
    assert model.model.projector.weight.std() > 0
    assert processor.feature_extractor.segment_seconds == [2, 5, 10, 30]


def test_stages_follow_each_other(bases: Path, workspace: Workspace, tmp_path: Path) -> None:
    first = workspace.arguments(tmp_path / "stage1", model=None, config=str(bases), max_steps=2)
    train(first)
    files = {path.name for path in (tmp_path / "stage1").iterdir()}
    assert "connector.safetensors" in files
    assert "model.safetensors" not in files
    trained = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "stage1").state_dict()
    second = build_trainer(workspace.arguments(tmp_path / "stage2", model=str(tmp_path / "stage1")))
    assert all(torch.equal(tensor, trained[name]) for name, tensor in second.model.state_dict().items())
    second.train()
    assert not all(torch.equal(tensor, trained[name]) for name, tensor in second.model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_model_id": None}, "The configuration names no language model"),
        ({"speech_model_id": None}, "does not name the speech base"),
        ({"model_type": "llama"}, "configures a llama; SALMONN's own config.json is needed"),
    ],
)
def test_configuration_that_names_no_base_raises(
    change: dict[str, Any], message: str, bases: Path, workspace: Workspace, tmp_path: Path
) -> None:
    content = json.loads((bases / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | change))
    arguments = workspace.arguments(tmp_path, model=None, config=str(tmp_path / "config.json"))
    with pytest.raises(ValueError, match=message):
        load_model(arguments, load_processor(arguments))


def test_missing_configuration_raises(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="/none holds no configuration that can be read"):
        load_processor(workspace.arguments(tmp_path, model=None, config="/none"))
