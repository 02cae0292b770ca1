"""New generations of salmonn-smol: an untrained model, and an audio encoder that joins a model that had none."""

from pathlib import Path

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from model_bases import save_bases
from transformers import BatchFeature

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.hub.smol_bases import SMOLLM2_FOLDER, WHISPER_FOLDER
from modeling_salmonn.modeling_beats import BeatsForAudioClassification
from recipes.salmonn_smol.model import SETTINGS, add_beats, write_new_smol, write_with_beats


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
