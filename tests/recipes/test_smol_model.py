"""New generations of salmonn-smol: an untrained model on its bases."""

from pathlib import Path

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model
from model_bases import save_bases
from transformers import BatchFeature

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.smol_bases import SMOLLM2_FOLDER, WHISPER_FOLDER
from recipes.salmonn_smol.model import SETTINGS, write_new_smol


LAYOUT = {"segment_seconds": [2, 5, 10, 30], "trim_audio_tokens": True}


@pytest.fixture
def speech_model() -> SalmonnForConditionalGeneration:
    return tiny_model(tiny_config(audio=False, **LAYOUT), lora=True)


def inputs_of(processor: SalmonnProcessor) -> BatchFeature:
    clips = [make_clip(seconds, seed=index) for index, seconds in enumerate((0.7, 2.6))]
    return processor(text=["What do you hear?"] * 2, audio=clips, sampling_rate=SAMPLING_RATE)


def test_new_model_has_the_weights_of_its_bases_and_the_seed_s_connector(
    speech_model: SalmonnForConditionalGeneration, tmp_path: Path
) -> None:
    bases = save_bases(tiny_model(speech_model.config), tmp_path / "bases")
    for name, folder in (("speech_model_id", WHISPER_FOLDER), ("text_model_id", SMOLLM2_FOLDER)):
        Path(bases[name]).rename(tmp_path / "bases" / folder)
    byte_tokenizer(chatml=True).save_pretrained(tmp_path / "bases" / SMOLLM2_FOLDER)
    for name, seed in (("new", 0), ("again", 0), ("other", 1)):
        write_new_smol(tmp_path / "bases", tmp_path / name, seed)
    new, again, other = (
        SalmonnForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("new", "again", "other")
    )
    assert new.config.segment_seconds == SETTINGS["segment_seconds"]
    assert new.config.audio_config is None
    assert torch.equal(new.lm_head.weight, speech_model.lm_head.weight)
    for name, tensor in speech_model.model.speech_encoder.state_dict().items():
        assert torch.equal(new.model.speech_encoder.state_dict()[name], tensor)
    assert torch.equal(new.model.projector.weight, again.model.projector.weight)
    assert not torch.equal(new.model.projector.weight, other.model.projector.weight)
    assert "audio_input_features" not in inputs_of(SalmonnProcessor.from_pretrained(tmp_path / "new"))
