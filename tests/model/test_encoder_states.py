"""Encoder states that were kept give the same model as the audio they came from."""

import pytest
import torch
from conftest import SAMPLING_RATE, SEGMENT_CHOICES, make_clip, tiny_config, tiny_model, tiny_processor

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor


def encoded(model: SalmonnForConditionalGeneration, processor: SalmonnProcessor, seconds: list[float]) -> tuple:
    """Usual inputs, and the same with the states of both encoders instead of features."""
    clips = [make_clip(length, seed=index) for index, length in enumerate(seconds)]
    text = ["What do you hear?"] * len(clips)
    usual = processor(text=text, audio=clips, sampling_rate=SAMPLING_RATE)
    features = {name: value for name, value in usual.items() if "features" in name}
    states = torch.cat(model.get_encoder_states(**features), dim=-1)
    lengths = usual["input_features_mask"].sum(-1).tolist()
    kept = dict(processor(text=text, audio_frames=lengths))
    kept |= {"encoder_hidden_states": states, "input_features_mask": usual["input_features_mask"]}
    return usual, kept


@pytest.mark.parametrize("audio", [True, False])
@pytest.mark.parametrize("segments", SEGMENT_CHOICES)
@torch.no_grad()
def test_encoder_states_give_the_same_logits_as_audio(segments: object, audio: bool) -> None:
    config = tiny_config(segment_seconds=segments, trim_audio_tokens=isinstance(segments, list), audio=audio)
    model, processor = tiny_model(config), tiny_processor(config)
    usual, kept = encoded(model, processor, [0.4, 3.3, 33.0])
    assert torch.equal(usual["input_ids"], kept["input_ids"])
    assert torch.equal(usual["attention_mask"], kept["attention_mask"])
    torch.testing.assert_close(model(**kept).logits, model(**usual).logits, atol=1e-5, rtol=1e-5)


def test_encoder_states_give_the_same_answer_as_audio(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    usual, kept = encoded(bucket_model, bucket_processor, [1.0, 4.2])
    for beams in (1, 2):
        options = {"max_new_tokens": 6, "num_beams": beams}
        assert torch.equal(bucket_model.generate(**kept, **options), bucket_model.generate(**usual, **options))


@torch.no_grad()
def test_encoder_states_may_lack_frames_that_no_window_reads(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    usual, kept = encoded(bucket_model, bucket_processor, [1.0, 1.2])
    cut = kept | {"encoder_hidden_states": kept["encoder_hidden_states"][:, :80]}
    assert kept["encoder_hidden_states"].shape[1] == 100
    torch.testing.assert_close(bucket_model(**cut).logits, bucket_model(**usual).logits, atol=1e-5, rtol=1e-5)


def test_encoder_states_of_another_width_raise(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    _, kept = encoded(bucket_model, bucket_processor, [1.0])
    narrow = kept | {"encoder_hidden_states": kept["encoder_hidden_states"][..., :7]}
    with pytest.raises(ValueError, match=r"encoder_hidden_states has the shape \(1, 100, 7\)"):
        bucket_model(**narrow)


def test_encoder_states_without_lengths_raise(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    _, kept = encoded(bucket_model, bucket_processor, [1.0])
    del kept["input_features_mask"]
    with pytest.raises(ValueError, match="needs input_features_mask"):
        bucket_model(**kept)


def test_audio_frames_with_targets_give_the_labels_of_audio(bucket_processor: SalmonnProcessor) -> None:
    clips = [make_clip(1.0), make_clip(2.5)]
    options = {"text": ["One?", "Two clips?"], "text_target": ["a tone", "two"]}
    usual = bucket_processor(audio=clips, sampling_rate=SAMPLING_RATE, **options)
    frames = usual["input_features_mask"].sum(-1).tolist()
    kept = bucket_processor(audio_frames=[[frames[0]], [frames[1]]], **options)
    assert set(kept) == {"input_ids", "attention_mask", "labels"}
    for name, value in kept.items():
        assert torch.equal(value, usual[name]), name


def test_audio_frames_serve_texts_without_audio(bucket_processor: SalmonnProcessor) -> None:
    mixed = bucket_processor(text=["Hello.", "What is it?"], audio_frames=[[], [150]], padding=True)
    counts = (mixed["input_ids"] == bucket_processor.audio_token_id).sum(-1).tolist()
    assert counts == [0, bucket_processor.feature_extractor.audio_layout.num_audio_tokens(150)]


def test_audio_frames_beside_audio_raise(bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match="takes the place of audio"):
        bucket_processor(text="What?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE, audio_frames=[100])


def test_audio_frames_of_too_few_clips_raise(bucket_processor: SalmonnProcessor) -> None:
    prompt = bucket_processor.audio_token * 2
    with pytest.raises(ValueError, match="2 audio placeholders"):
        bucket_processor(text=prompt, audio_frames=[100], formatted=True)
