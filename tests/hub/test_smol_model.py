"""An audio encoder that joins a model that had none."""

from pathlib import Path

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from transformers import BatchFeature

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.smol_model import add_beats, write_with_beats
from modeling_salmonn.modeling_beats import BeatsForAudioClassification


LAYOUT = {"segment_seconds": [2, 5, 10, 30], "trim_audio_tokens": True}


@pytest.fixture
def speech_model() -> SalmonnForConditionalGeneration:
    return tiny_model(tiny_config(audio=False, **LAYOUT), lora=True)


@pytest.fixture
def tagger() -> BeatsForAudioClassification:
    torch.manual_seed(1)
    return BeatsForAudioClassification(tiny_config().audio_config).eval()


def inputs_of(processor: SalmonnProcessor) -> BatchFeature:
    clips = [make_clip(seconds, seed=index) for index, seconds in enumerate((0.7, 2.6))]
    return processor(text=["What do you hear?"] * 2, audio=clips, sampling_rate=SAMPLING_RATE)


@torch.no_grad()
def test_model_answers_as_before_until_it_is_trained(
    speech_model: SalmonnForConditionalGeneration, tagger: BeatsForAudioClassification
) -> None:
    both = add_beats(speech_model, tagger.beats).eval()
    before = speech_model(**inputs_of(tiny_processor(speech_model.config))).logits
    after = both(**inputs_of(tiny_processor(both.config))).logits
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    keys = both.model.qformer.layers[0].cross_attention.key
    assert keys.in_features == 16 + 24
    assert not keys.weight[:, 16:].any()


def test_new_columns_are_trained(
    speech_model: SalmonnForConditionalGeneration, tagger: BeatsForAudioClassification
) -> None:
    both = add_beats(speech_model, tagger.beats).requires_grad_(True)
    inputs = inputs_of(tiny_processor(both.config))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == both.config.audio_token_id, -100)
    both(**inputs, labels=labels).loss.backward()
    assert both.model.qformer.layers[0].cross_attention.value.weight.grad[:, 16:].abs().max() > 0


@torch.no_grad()
def test_folder_holds_both_encoders(
    speech_model: SalmonnForConditionalGeneration, tagger: BeatsForAudioClassification, tmp_path: Path
) -> None:
    speech_model.save_pretrained(tmp_path / "speech")
    tiny_processor(speech_model.config, chatml=True).save_pretrained(tmp_path / "speech")
    tagger.save_pretrained(tmp_path / "tagger")
    write_with_beats(tmp_path / "speech", tmp_path / "tagger", tmp_path / "both")
    both = SalmonnForConditionalGeneration.from_pretrained(tmp_path / "both").eval()
    processor = SalmonnProcessor.from_pretrained(tmp_path / "both")
    assert "<|im_start|>" in processor.chat_template
    assert "audio_input_features" in inputs_of(processor)
    for name, weight in tagger.beats.state_dict().items():
        assert torch.equal(both.model.audio_encoder.state_dict()[name], weight)


def test_second_audio_encoder_is_refused(tagger: BeatsForAudioClassification) -> None:
    with pytest.raises(ValueError, match="has an audio encoder already"):
        add_beats(tiny_model(tiny_config(**LAYOUT)), tagger.beats)
