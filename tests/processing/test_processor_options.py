"""Options: what the processor would drop is an error that names what was meant."""

from pathlib import Path
from typing import Any

import pytest
from conftest import make_clip
from prompting import chat, clip_of, user

from modeling_salmonn import SalmonnProcessor


AUDIO_ALIASES = ["speech", "sound", "sounds", "raw_speech", "audios", "input_audio", "raw_audio", "clips", "wav"]


@pytest.mark.parametrize("name", AUDIO_ALIASES)
def test_audio_by_another_name_raises(bucket_processor: SalmonnProcessor, name: str) -> None:
    for text in ("What?", None):
        with pytest.raises(TypeError, match=f"unknown argument '{name}': did you mean 'audio'"):
            bucket_processor(text=text, **{name: clip_of()})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("raw_speech", "audio"), ("samplingrate", "sampling_rate"), ("return_tensor", "return_tensors")],
)
def test_extractor_option_that_is_not_known_raises(bucket_processor: SalmonnProcessor, name: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"SalmonnFeatureExtractor got an unknown argument '{name}': .*'{meant}'"):
        bucket_processor.feature_extractor(make_clip(0.5), **{"sampling_rate": 16000, name: 16000})
    options: dict[str, Any] = {"return_attention_mask": True, "truncation": False, "padding": "longest"}
    bucket_processor.feature_extractor(make_clip(0.5), sampling_rate=16000, **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"images": ["cat.png"]}, "got 'images', but SALMONN takes text and audio alone"),
        ({"videos": ["cat.mp4"]}, "got 'videos', but SALMONN takes text and audio alone"),
        ({"texts": "What?"}, "unknown argument 'texts': did you mean 'text'"),
        ({"samplingrate": 8000}, "unknown argument 'samplingrate': did you mean 'sampling_rate'"),
        ({"sample_rate": 8000}, "unknown argument 'sample_rate': did you mean 'sampling_rate'"),
        ({"text_targets": ["a"]}, "unknown argument 'text_targets': did you mean 'text_target'"),
        ({"xyzzy": 1}, "unknown argument 'xyzzy': leave it out"),
        ({"audio_kwargs": {"rate": 8000}}, "audio_kwargs of SalmonnProcessor got an unknown argument 'rate'"),
        ({"audio_kwargs": {"raw_speech": [0.0]}}, "unknown argument 'raw_speech': did you mean 'audio'"),
        ({"text_kwargs": {5: True}}, "text_kwargs of SalmonnProcessor got an unknown argument 5: leave it out"),
        ({"audio_kwargs": 8000}, "audio_kwargs of SalmonnProcessor must be a dict of options, got 8000"),
        ({"text_kwargs": None}, "text_kwargs of SalmonnProcessor must be a dict of options, got None"),
        ({"text_kwargs": {"paddding": True}}, "unknown argument 'paddding': did you mean 'padding'"),
    ],
    ids=str,
)
def test_option_that_is_not_known_raises(
    bucket_processor: SalmonnProcessor, options: dict[str, Any], error: str
) -> None:
    text = {} if "texts" in options else {"text": "What?"}
    with pytest.raises(TypeError, match=error):
        bucket_processor(**text, audio=clip_of(), **options)
    for tokenize in (False, True):
        with pytest.raises(TypeError, match=error):
            bucket_processor.apply_chat_template([user("Hi")], tokenize=tokenize, processor_kwargs=options)


@pytest.mark.parametrize("tokenize", [False, True])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"add_generation_promt": True}, "'add_generation_promt': did you mean 'add_generation_prompt'"),
        ({"audios": ["a.wav"]}, "'audios': did you mean 'audio'"),
        ({"audio": "a.wav"}, "unknown argument 'audio': .* in chats is in the messages"),
        ({"enable_thinking": False}, "unknown argument 'enable_thinking'"),
    ],
)
def test_template_option_that_is_not_known_raises(
    any_processor: SalmonnProcessor, options: dict[str, Any], error: str, tokenize: bool
) -> None:
    with pytest.raises(TypeError, match=error):
        any_processor.apply_chat_template([user("Hi")], tokenize=tokenize, **options)


def test_template_has_options_of_its_own(bucket_processor: SalmonnProcessor) -> None:
    template = "{% if shout %}{{ messages[0].content[0].text | upper }}{% endif %}"
    assert bucket_processor.apply_chat_template([user("Hi")], template, shout=True) == "HI"


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_tools_that_the_template_would_drop_raise(any_processor: SalmonnProcessor, name: str) -> None:
    with pytest.raises(ValueError, match=f"The chat template has no place for {name}"):
        any_processor.apply_chat_template([user("Hi")], **{name: [{"name": "search"}]})
    any_processor.apply_chat_template([user("Hi")], **{name: None})


def test_options_of_the_library_are_known(bucket_processor: SalmonnProcessor) -> None:
    options: dict[str, Any] = {"return_mm_token_type_ids": True, "pad_to_multiple_of": 8, "images": None}
    options |= {"videos": None, "common_kwargs": {"return_tensors": "pt"}, "return_attention_mask": True}
    inputs = bucket_processor(text="What?", audio=make_clip(0.5, 8000), sampling_rate=8000, **options)
    assert inputs["input_ids"].shape[1] % 8 == 0
    assert "mm_token_type_ids" in inputs
    assert chat(bucket_processor, [user("Hi")], padding="max_length", max_length=40)["input_ids"].shape == (1, 40)


def test_processor_is_told_where_clips_may_come_from(bucket_processor: SalmonnProcessor, wav_file: Path) -> None:
    for place in (None, "audio_kwargs", "common_kwargs"):
        options: dict[str, Any] = {"allow_paths": False} if place is None else {place: {"allow_paths": False}}
        with pytest.raises(ValueError, match="allow_paths"):
            bucket_processor(text="What?", audio=str(wav_file), **options)
        with pytest.raises(ValueError, match="allow_paths"):
            bucket_processor(text=["What?"], audio=[[{"path": str(wav_file)}]], text_target=["Yes."], **options)
        with pytest.raises(ValueError, match="allow_paths"):
            bucket_processor.apply_transcription_request(wav_file, **options)
        for given in (options, {"processor_kwargs": options}):
            with pytest.raises(ValueError, match="allow_paths"):
                chat(bucket_processor, [user(wav_file, "What?")], **given)
    chat(bucket_processor, [user(wav_file.read_bytes(), "What?")], allow_paths=False, allow_urls=False)


def test_truncation_of_expanded_prompts_raises(bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match="Mismatch in `audio` token count between text and `input_ids`"):
        bucket_processor(text="What?", audio_frames=[500], truncation=True, max_length=20)
