"""Encoders run on the audio alone, in batches of like length: the states are those of everything padded at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import SAMPLING_RATE, SEGMENT_CHOICES, make_clip, tiny_config, tiny_model, tiny_processor
from torch import nn

from modeling_salmonn import SalmonnForConditionalGeneration


SECONDS = [5.0, 0.4, 33.0, 4.2, 17.0, 61.2]


def features_of(config: Any, seconds: list[float]) -> dict[str, torch.Tensor]:
    clips = [make_clip(length, seed=index) for index, length in enumerate(seconds)]
    return dict(tiny_processor(config).feature_extractor(clips, sampling_rate=SAMPLING_RATE))


@contextmanager
def recorded_shapes(module: nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of what an encoder is given."""
    shapes: list[tuple[int, ...]] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    yield shapes
    hook.remove()


@torch.no_grad()
def test_states_equal_those_of_all_padding() -> None:
    """BEATs on the whole padded batch, as the features come."""
    config = tiny_config()
    model, features = tiny_model(config), features_of(config, [5.0, 0.4, 30.0, 4.2, 17.0])
    beats, mask = model.model.audio_encoder, features["audio_input_features_mask"]
    keep = beats.patch_mask(mask).unsqueeze(-1)
    expected = beats(features["audio_input_features"], mask).last_hidden_state * keep
    _, states = model.get_encoder_states(**features)
    assert states.shape[:2] == (5, 1500)
    assert (states[:, : expected.shape[1]] - expected).abs().max() <= 1e-5
    assert not states[:, expected.shape[1] :].any()
    output = model.get_audio_features(**features)
    assert torch.equal(output.last_hidden_state, states)


@torch.no_grad()
def test_padding_is_not_encoded_by_beats() -> None:
    config = tiny_config()
    model, features = tiny_model(config), features_of(config, [5.0, 4.2, 17.0, 0.2])
    with recorded_shapes(model.model.audio_encoder) as shapes:
        model.get_audio_features(**features)
    # whole fbank windows of 17, 5 and 4.2 s; a clip below 1 s has those of 1 s
    assert shapes == [(1, 1698, 128), (2, 498, 128), (1, 98, 128)]


@pytest.mark.parametrize("audio", [True, False])
@pytest.mark.parametrize("segments", SEGMENT_CHOICES)
@pytest.mark.parametrize("most", [1, 2])
@torch.no_grad()
def test_tokens_do_not_depend_on_the_size_of_the_batches(segments: Any, audio: bool, most: int) -> None:
    config = tiny_config(segment_seconds=segments, trim_audio_tokens=True, audio=audio)
    features = features_of(config, SECONDS)
    expected = tiny_model(config).get_audio_features(**features)
    config.max_encoder_batch = most
    model: SalmonnForConditionalGeneration = tiny_model(config)
    with recorded_shapes(model.model.speech_encoder.conv1) as shapes:
        found = model.get_audio_features(**features)
    assert max(shape[0] for shape in shapes) == most
    assert sum(shape[0] for shape in shapes) == 9  # segments of the clips
    assert (found.pooler_output - expected.pooler_output).abs().max() <= 1e-5
    assert (found.last_hidden_state - expected.last_hidden_state).abs().max() <= 1e-5
    assert found.token_counts.tolist() == expected.token_counts.tolist()


def test_batch_of_no_segments_raises() -> None:
    with pytest.raises(ValueError, match="max_encoder_batch"):
        tiny_config(max_encoder_batch=0)


@torch.no_grad()
def test_clip_whose_mask_is_empty_has_no_states() -> None:
    config = tiny_config(segment_seconds=2)
    model, features = tiny_model(config), features_of(config, [1.5, 1.2])
    features["audio_input_features_mask"][1] = 0
    _, states = model.get_encoder_states(**features)
    assert states[0].any()
    assert not states[1].any()
    features["audio_input_features_mask"][0] = 0
    assert torch.isfinite(model.get_audio_features(**features).pooler_output).all()
