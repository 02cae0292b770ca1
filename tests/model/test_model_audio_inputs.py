"""The five audio inputs: lists of tensors as serving engines pass them, and errors where inputs disagree."""

from typing import Any

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.audio_inputs_salmonn import AUDIO_INPUTS


FEATURES = [name for name in AUDIO_INPUTS if name != "encoder_hidden_states"]


@pytest.fixture(scope="module")
def prompt(bucket_processor: SalmonnProcessor) -> dict[str, torch.Tensor]:
    clips = [make_clip(1.0, seed=1), make_clip(1.5, seed=2)]
    return dict(bucket_processor(text="Two clips?", audio=[clips], sampling_rate=SAMPLING_RATE))


@pytest.fixture(scope="module")
def features(prompt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in prompt.items() if name in AUDIO_INPUTS}


@torch.no_grad()
@pytest.mark.parametrize("form", ["one for all clips", "one for each clip"])
def test_lists_of_tensors_equal_one_tensor(
    form: str, bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    lists = {
        name: ([value] if form == "one for all clips" else list(value)) if name in AUDIO_INPUTS else value
        for name, value in prompt.items()
    }
    assert torch.equal(bucket_model(**lists).logits, bucket_model(**prompt).logits)
    expected = bucket_model.generate(**prompt, max_new_tokens=4)
    assert bucket_model.generate(**lists, max_new_tokens=4).tolist() == expected.tolist()
    audio = {name: value for name, value in lists.items() if name in AUDIO_INPUTS}
    speech, _ = bucket_model.get_encoder_states(**audio)
    assert len(speech) == 2


@torch.no_grad()
def test_one_clip_in_a_list_needs_no_row_of_its_own(
    bucket_model: SalmonnForConditionalGeneration, features: dict[str, torch.Tensor]
) -> None:
    expected = bucket_model.get_audio_features(**{name: value[:1] for name, value in features.items()})
    found = bucket_model.get_audio_features(**{name: [value[0]] for name, value in features.items()})
    assert torch.equal(found.pooler_output, expected.pooler_output)


def test_list_of_clips_of_different_length_raises(
    bucket_model: SalmonnForConditionalGeneration, features: dict[str, torch.Tensor]
) -> None:
    first, second = features["input_features"]
    with pytest.raises(ValueError, match=r"input_features is a list of 2 tensors of the shapes .*pad them"):
        bucket_model.get_audio_features(**features | {"input_features": [first, second[:, :100]]})


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("rows", [1, 3])
def test_inputs_with_another_number_of_clips_raise(
    rows: int, name: str, bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    changed = prompt | {name: torch.cat([prompt[name], prompt[name]])[:rows]}
    numbers = rf"({rows} rows.* 2;|2 rows.* {rows};)"
    for call in (bucket_model, bucket_model.generate):
        with pytest.raises(ValueError, match=numbers):
            call(**changed)
    with pytest.raises(ValueError, match=numbers):
        bucket_model.get_encoder_states(**{key: value for key, value in changed.items() if key in FEATURES})


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "input_features"])
@pytest.mark.parametrize("more", [-2, 2])
def test_inputs_on_another_time_axis_raise(
    more: int, name: str, bucket_model: SalmonnForConditionalGeneration, features: dict[str, torch.Tensor]
) -> None:
    value = features[name]
    frames = value.shape[1]
    padding = (0, 0, 0, more) if value.dim() == 3 else (0, more)
    with pytest.raises(ValueError, match=rf"{name} has {frames + more} frames, but input_features has {frames}"):
        bucket_model.get_audio_features(**features | {name: torch.nn.functional.pad(value, padding)})


def test_states_with_another_number_of_clips_raise(
    bucket_model: SalmonnForConditionalGeneration, features: dict[str, torch.Tensor]
) -> None:
    states = torch.cat(bucket_model.get_encoder_states(**features), dim=-1)
    with pytest.raises(ValueError, match="encoder_hidden_states has 1 rows, but input_features_mask has 2"):
        bucket_model.get_audio_features(
            encoder_hidden_states=states[:1], input_features_mask=features["input_features_mask"]
        )


def test_features_of_another_extractor_raise(
    bucket_model: SalmonnForConditionalGeneration, features: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="input_features has 128 mel bins, but the encoder of this model needs 80"):
        bucket_model.get_audio_features(**features | {"input_features": torch.zeros(2, 128, 200)})
    with pytest.raises(ValueError, match=r"audio_input_features has 80 mel bins, but .* needs 128"):
        bucket_model.get_audio_features(**features | {"audio_input_features": torch.zeros(2, 200, 80)})
    with pytest.raises(TypeError, match=r"input_features must be a torch\.Tensor, got ndarray"):
        bucket_model.get_audio_features(**features | {"input_features": features["input_features"].numpy()})
    with pytest.raises(ValueError, match=r"input_features has the shape \(80, 200\), but \(clips, mel, frames\)"):
        bucket_model.get_audio_features(**features | {"input_features": features["input_features"][0]})


@pytest.mark.parametrize("name", ["audio_input_features", "input_features_mask"])
def test_audio_inputs_without_the_speech_features_raise(
    name: str, bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    inputs = {key: prompt[key] for key in ("input_ids", "attention_mask", name)}
    for call in (bucket_model, bucket_model.generate):
        with pytest.raises(ValueError, match="Audio needs input_features or encoder_hidden_states"):
            call(**inputs)


@pytest.mark.parametrize("name", ["speech", "sound", "raw_speech", "images", "pixel_values", "audio", "input_values"])
def test_sound_and_pictures_under_other_names_raise(
    name: str, bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    unknown: dict[str, Any] = {name: torch.zeros(1, 16000)}
    text = bucket_processor(text="No audio?")
    with pytest.raises(TypeError, match=rf"Unknown inputs \['{name}'\]; clips are passed as input_features"):
        bucket_model(**text, **unknown)
    with pytest.raises(ValueError, match=name):  # the library's own message
        bucket_model.generate(**text, **unknown)
    with pytest.raises(TypeError, match=rf"Unknown arguments \['{name}'\]"):
        bucket_model.get_audio_features(**unknown)


def test_labels_that_copy_the_prompt_leave_its_audio_out(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    ids = prompt["input_ids"]
    without = ids.masked_fill(ids == bucket_model.config.audio_token_id, -100)
    with torch.no_grad():
        expected = bucket_model(**prompt, labels=without).loss
        assert torch.equal(bucket_model(**prompt, labels=ids).loss, expected)
    assert torch.isfinite(expected)


def test_lists_of_what_makes_no_tensors_raise(
    bucket_model: SalmonnForConditionalGeneration, features: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(TypeError, match="input_features is a list of what makes no tensors"):
        bucket_model.get_audio_features(**features | {"input_features": ["clip"]})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"input_ids": [[1, 2]]}, r"input_ids must be a torch\.Tensor, got list; use return_tensors='pt'"),
        ({"input_ids": "Two clips?"}, r"input_ids must be a torch\.Tensor, got str"),
        ({"input_ids": torch.tensor([1, 2])}, r"input_ids has the shape \(2,\), but \(batch, length\) is needed"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, r"input_ids has the shape \(1, 0\), but"),
        ({"input_ids": torch.tensor([[1.0, 2.0]])}, r"input_ids is torch\.float32 of the shape \(1, 2\), but whole"),
        (
            {"input_ids": torch.tensor([[1, 262]])},
            "input_ids has the id 262, but the language model has 261 emb",
        ),
        ({"input_ids": torch.tensor([[1, -5]])}, "input_ids has the id -5, but the language model has 261 embeddings"),
        ({"attention_mask": [1, 1]}, r"attention_mask must be a torch\.Tensor, got list"),
        ({"attention_mask": torch.tensor(1)}, r"attention_mask has the shape \(\), but \(batch, length\) is needed"),
    ],
)
def test_prompts_that_cannot_be_read_raise(
    bucket_model: SalmonnForConditionalGeneration, changes: dict[str, Any], error: str, prompt: dict[str, torch.Tensor]
) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        bucket_model.generate(**prompt | changes, max_new_tokens=2)
