"""Assembling salmonn-smol, with small bases in the place of the real ones."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import soundfile
import torch
from byte_tokenizer import byte_tokenizer
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.build_smol import build_smol, smol_processor
from modeling_salmonn.hub.doctor import examine
from modeling_salmonn.hub.smol_bases import SMOLLM2_FOLDER, WHISPER_FOLDER
from recipes.salmonn_smol.model import SHIPPED_PREFIXES, ship_smol


@pytest.fixture(scope="module")
def trained() -> SalmonnForConditionalGeneration:
    config = tiny_config(
        segment_seconds=[2, 5, 10, 30],
        trim_audio_tokens=True,
        speech_model_id="speech",
        text_model_id="text",
    )
    return tiny_model(config, lora=True)


@pytest.fixture(scope="module")
def bases(trained: SalmonnForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ordinary folders of the frozen parts that `trained` has."""
    folder = tmp_path_factory.mktemp("bases")
    state = trained.state_dict()
    speech_config = deepcopy(trained.config.speech_config)
    speech_config.update({"decoder_attention_heads": 2, "decoder_ffn_dim": 32})
    whisper = WhisperForConditionalGeneration(speech_config)
    prefix = "model.speech_encoder."
    whisper.model.encoder.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    )
    whisper.save_pretrained(folder / WHISPER_FOLDER)
    WhisperFeatureExtractor().save_pretrained(folder / WHISPER_FOLDER)
    text = AutoModelForCausalLM.from_config(trained.config.text_config)
    prefix = "model.language_model."
    text.model.load_state_dict(
        {
            name.removeprefix(prefix).replace(".base_layer", ""): value
            for name, value in state.items()
            if name.startswith(prefix) and ".lora_" not in name
        }
    )
    text.lm_head.load_state_dict({"weight": state["lm_head.weight"]})
    text.save_pretrained(folder / SMOLLM2_FOLDER)
    byte_tokenizer(chatml=True).save_pretrained(folder / SMOLLM2_FOLDER)
    return folder


@pytest.fixture(scope="module")
def shipped(trained: SalmonnForConditionalGeneration, bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shipped") / "salmonn-smol"
    trained.save_pretrained(folder.parent / "trained")
    smol_processor(trained.config, bases / SMOLLM2_FOLDER).save_pretrained(folder.parent / "trained")
    (folder / "clips").mkdir(parents=True)
    soundfile.write(folder / "clips" / "tone.wav", make_clip(1.0), SAMPLING_RATE)
    (folder / "golden_answers.json").write_text(json.dumps({"cases": [{"audio": "clips/tone.wav", "text": "What?"}]}))
    ship_smol(folder.parent / "trained", folder)
    return folder


@torch.no_grad()
def test_built_folder_is_the_trained_model(
    tmp_path: Path, trained: SalmonnForConditionalGeneration, bases: Path, shipped: Path
) -> None:
    build_smol(tmp_path / "smol", bases=bases, shipped=shipped)
    model = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "smol")
    assert model.dtype == torch.float32
    # saving what is tuned names no language model of the Hub, which has other values
    assert model.config.text_model_id is None
    processor = SalmonnProcessor.from_pretrained(tmp_path / "smol")
    inputs = processor(text="What is it?", audio=make_clip(2.5), sampling_rate=SAMPLING_RATE)
    torch.testing.assert_close(model(**inputs).logits, trained(**inputs).logits, atol=0.05, rtol=0.05)


def test_shipped_folder_has_no_base_and_half_the_bits(shipped: Path) -> None:
    weights = load_file(shipped / "connector.safetensors")
    assert all(name.startswith(SHIPPED_PREFIXES) for name in weights)
    assert any(name.startswith("model.audio_encoder.") for name in weights)
    adapter = load_file(shipped / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in (*weights.values(), *adapter.values())} == {torch.float16}
    assert not list(shipped.glob("*.py"))


def test_trained_speech_encoder_is_not_lost_in_shipping(
    tmp_path: Path, trained: SalmonnForConditionalGeneration, shipped: Path
) -> None:
    shutil.copytree(shipped.parent / "trained", tmp_path / "trained")
    config = json.loads((tmp_path / "trained" / "config.json").read_text())
    (tmp_path / "trained" / "config.json").write_text(json.dumps(config | {"speech_model_id": None}))
    with pytest.raises(ValueError, match="was trained, but is not shipped"):
        ship_smol(tmp_path / "trained", tmp_path / "shipped")


def test_doctor_finds_the_built_folder_sound_with_its_answers(tmp_path: Path, bases: Path, shipped: Path) -> None:
    build_smol(tmp_path / "smol", bases=bases, shipped=shipped)
    found = {check.name: check.status for check in examine(str(tmp_path / "smol"))}
    assert found["golden answers"] == "ok"
    assert "failed" not in found.values()


def test_existing_output_raises_and_stays(tmp_path: Path, bases: Path, shipped: Path) -> None:
    kept = tmp_path / "smol" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        build_smol(tmp_path / "smol", bases=bases, shipped=shipped)
    assert kept.read_text() == "mine"


def test_link_in_place_of_the_output_raises_and_stays(tmp_path: Path, bases: Path, shipped: Path) -> None:
    (tmp_path / "smol").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link, which would be replaced"):
        build_smol(tmp_path / "smol", bases=bases, shipped=shipped)
    assert (tmp_path / "smol").is_symlink()


def test_whole_model_is_not_mixed_with_shipped_weights(tmp_path: Path, shipped: Path) -> None:
    folder = Path(shutil.copytree(shipped.parent / "trained", tmp_path / "trained"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match=r"has model\.safetensors: it holds a whole model"):
        ship_smol(folder, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_missing_weights_raise_and_leave_nothing(tmp_path: Path, bases: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks config\.json, connector\.safetensors"):
        build_smol(tmp_path / "smol", bases=bases, shipped=tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []
