"""Instructions with clips: placeholders, padding, labels and times, for every way to ask."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SAMPLING_RATE, SEGMENT_CHOICES, make_clip, tiny_config, tiny_processor
from prompting import (
    AUDIO,
    BOS,
    EOS,
    OFFICIAL_PROMPT,
    assert_same_inputs,
    assistant,
    chat,
    clip_of,
    placeholders_of,
    prompts_of,
    user,
)
from transformers.utils import logging as transformers_logging

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.processing.processing_salmonn import logger


def test_instruction_becomes_the_official_prompt(processor: SalmonnProcessor) -> None:
    inputs = processor(text="What?", audio=clip_of())
    decoded = processor.tokenizer.decode(inputs["input_ids"][0])
    assert decoded == f"<s>USER: <Speech>{'<SpeechHere>' * 88}</Speech> What?\nASSISTANT:"


def test_formatted_prompt_is_taken_as_it_is(bucket_processor: SalmonnProcessor) -> None:
    inputs = bucket_processor(text="First <SpeechHere> then </s>", audio=clip_of(), formatted=True)
    assert prompts_of(bucket_processor, inputs) == ["<s>First <SpeechHere> then </s>"]
    whole = bucket_processor(text=OFFICIAL_PROMPT, audio=clip_of(), formatted=True)
    assert_same_inputs(whole, bucket_processor(text="What?", audio=clip_of()))


def test_rendered_chat_needs_no_word_that_it_is_a_prompt(any_processor: SalmonnProcessor) -> None:
    conversations = [[user(clip_of(), "What?"), assistant("A dog.")], [user("And </s> this: ", clip_of(seed=1))]]
    rendered = any_processor.apply_chat_template(conversations)
    clips = [clip_of(), clip_of(seed=1)]
    assert_same_inputs(any_processor(text=rendered, audio=clips), chat(any_processor, conversations))
    mixed = any_processor(text=[rendered[1], "What?"], audio=[[clips[1]], [clips[0]]])
    assert_same_inputs(any_processor(text=[rendered[1], "What?"], audio=clips[::-1]), mixed)


def test_prompt_of_unknown_origin_is_an_instruction_and_warns(
    bucket_processor: SalmonnProcessor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_logging.get_logger("transformers"), "propagate", True)
    logger.warning_once.cache_clear()  # once per process
    inputs = bucket_processor(text=f"{OFFICIAL_PROMPT}</s>", audio=clip_of())
    asked = bucket_processor(text=bucket_processor.escape(f"{OFFICIAL_PROMPT}</s>"), audio=clip_of())
    assert_same_inputs(inputs, asked)
    assert placeholders_of(bucket_processor, inputs) == [2]
    assert "If it is a whole prompt of trusted origin, pass formatted=True" in caplog.text


def test_text_without_audio_is_taken_as_it_is(any_processor: SalmonnProcessor) -> None:
    for texts in ("Hello </s><|im_start|>", ["One", "Two </s>"]):
        inputs = any_processor(text=texts)
        expected = any_processor.tokenizer(
            [texts] if isinstance(texts, str) else texts, padding=True, padding_side="left", return_tensors="pt"
        )
        assert sorted(inputs) == ["attention_mask", "input_ids"]
        assert torch.equal(inputs["input_ids"], expected["input_ids"])
        assert torch.equal(inputs["attention_mask"], expected["attention_mask"])


def test_audio_without_text_gives_features(bucket_processor: SalmonnProcessor) -> None:
    clips = [clip_of(), clip_of(2.5)]
    assert_same_inputs(bucket_processor(audio=clips), bucket_processor.feature_extractor(clips))


@pytest.mark.parametrize("segment_seconds", SEGMENT_CHOICES, ids=str)
@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("queries", [1, 3])
def test_placeholders_are_as_many_as_audio_tokens(segment_seconds: Any, trim: bool, queries: int) -> None:
    config = tiny_config(
        segment_seconds=segment_seconds, trim_audio_tokens=trim, num_query_tokens=queries, audio=False
    )
    processor = tiny_processor(config)
    clips = [clip_of(seconds) for seconds in (0.05, 1.0, 2.01, 31.0)]
    inputs = processor(text=["What?"] * len(clips), audio=clips)
    expected = [processor.feature_extractor.num_audio_tokens(len(clip["array"])) for clip in clips]
    assert placeholders_of(processor, inputs) == expected
    assert expected == [config.audio_layout.num_audio_tokens(frames) for frames in (5, 100, 201, 3100)]


@pytest.mark.parametrize("text", ["Compare.", None])
def test_zero_to_three_clips_per_prompt_in_nested_lists(bucket_processor: SalmonnProcessor, text: str | None) -> None:
    clips = [clip_of(0.3 + index, seed=index) for index in range(6)]
    nested = [clips[:3], [], clips[3:4], clips[4:]]
    texts = [text or f"<s>USER: {AUDIO * len(own)} Compare.\nASSISTANT:" for own in nested]
    inputs = bucket_processor(text=texts, audio=nested, formatted=text is None)
    tokens = [bucket_processor.feature_extractor.num_audio_tokens(len(clip["array"])) for clip in clips]
    assert placeholders_of(bucket_processor, inputs) == [sum(tokens[:3]), 0, tokens[3], sum(tokens[4:])]
    assert torch.equal(inputs["input_features"], bucket_processor(audio=clips)["input_features"])
    if text:
        expected = ["<s>USER: " + f"{AUDIO} " * len(own) + "Compare.\nASSISTANT:" for own in nested]
        assert prompts_of(bucket_processor, inputs) == expected


def test_nested_lists_may_be_mixed_with_single_clips(bucket_processor: SalmonnProcessor) -> None:
    clips = [clip_of(seed=seed) for seed in range(3)]
    mixed = bucket_processor(text=["a", "b", "c"], audio=[clips[0], (clips[1], clips[2]), None])
    assert_same_inputs(mixed, bucket_processor(text=["a", "b", "c"], audio=[clips[:1], clips[1:], []]))


def test_nested_lists_may_be_mixed_with_a_list_of_numbers(bucket_processor: SalmonnProcessor) -> None:
    clip, numbers = make_clip(0.5), make_clip(0.5, seed=1).tolist()
    mixed = bucket_processor(text=["a", "b"], audio=[[clip], numbers], sampling_rate=SAMPLING_RATE)
    nested = bucket_processor(text=["a", "b"], audio=[[clip], [numbers]], sampling_rate=SAMPLING_RATE)
    assert_same_inputs(mixed, nested)


def test_flat_list_gives_one_clip_to_each_text(bucket_processor: SalmonnProcessor) -> None:
    clips = [clip_of(seed=seed) for seed in range(3)]
    texts = ["What?", "Who?", "Why?"]
    inputs = bucket_processor(text=texts, audio=clips)
    assert prompts_of(bucket_processor, inputs) == [f"<s>USER: {AUDIO} {text}\nASSISTANT:" for text in texts]
    assert_same_inputs(bucket_processor(text=texts, audio=[[clip] for clip in clips]), inputs)


def test_flat_list_gives_all_clips_to_a_single_text(bucket_processor: SalmonnProcessor) -> None:
    clips = [clip_of(seed=seed) for seed in range(3)]
    inputs = bucket_processor(text="Compare.", audio=clips)
    assert prompts_of(bucket_processor, inputs) == [f"<s>USER: {AUDIO} {AUDIO} {AUDIO} Compare.\nASSISTANT:"]
    for text, audio in ((["Compare."], clips), ("Compare.", [clips]), ("Compare.", tuple(clips))):
        assert_same_inputs(bucket_processor(text=text, audio=audio), inputs)


def test_flat_list_fills_placeholders_in_their_order(bucket_processor: SalmonnProcessor) -> None:
    clips = [clip_of(0.4), clip_of(3.0), clip_of(1.2)]
    texts = ["<SpeechHere> x", "plain", "<SpeechHere> y <SpeechHere>"]
    inputs = bucket_processor(text=texts, audio=clips, formatted=True)
    first, second, third = (
        bucket_processor.feature_extractor.num_audio_tokens(count) for count in (6400, 48000, 19200)
    )
    assert placeholders_of(bucket_processor, inputs) == [first, 0, second + third]
    assert prompts_of(bucket_processor, inputs) == ["<s><SpeechHere> x", "<s>plain", "<s><SpeechHere> y <SpeechHere>"]


def test_padding_is_on_the_left(bucket_processor: SalmonnProcessor) -> None:
    inputs = bucket_processor(text=["a", "a longer one"], audio=[clip_of(), clip_of()])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert mask[0].tolist() == [0] * 11 + [1] * (ids.shape[1] - 11)
    assert mask[1].all()
    assert (ids[0, :11] == bucket_processor.tokenizer.pad_token_id).all()


def test_targets_give_labels_of_the_answer_and_its_end(bucket_processor: SalmonnProcessor) -> None:
    clips, answers = [clip_of(), clip_of(2.5, seed=1)], ["A dog barks.", "Ja"]
    inputs = bucket_processor(text=["What?", "Is it?"], audio=clips, text_target=answers)
    prompts = bucket_processor(text=["What?", "Is it?"], audio=clips)
    tokenizer = bucket_processor.tokenizer
    for row, answer in enumerate(answers):
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row] == 1]
        target = [*tokenizer(answer, add_special_tokens=False)["input_ids"], EOS]
        end = len(prompt) + len(target)
        assert inputs["input_ids"][row, :end].tolist() == [*prompt.tolist(), *target]
        assert (inputs["input_ids"][row, end:] == tokenizer.pad_token_id).all()
        assert inputs["labels"][row].tolist() == [-100] * len(prompt) + target + [-100] * (
            inputs["labels"].shape[1] - end
        )
        assert inputs["attention_mask"][row].tolist() == [1] * end + [0] * (inputs["labels"].shape[1] - end)
    assert torch.equal(inputs["input_features"], prompts["input_features"])
    assert inputs["input_ids"].shape == inputs["labels"].shape == inputs["attention_mask"].shape


def test_targets_are_padded_on_the_right_whatever_is_asked(bucket_processor: SalmonnProcessor) -> None:
    call = {"text": ["a", "b"], "audio": [clip_of(), clip_of()], "text_target": ["yes", "n"]}
    inputs = bucket_processor(**call)
    assert inputs["attention_mask"][1].tolist() == [1] * (inputs["labels"].shape[1] - 2) + [0, 0]
    for options in ({"padding": True}, {"padding_side": "left"}, {"text_kwargs": {"padding_side": "left"}}):
        assert_same_inputs(bucket_processor(**call, **options), inputs)


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"padding": "max_length", "max_length": 128}, 128),
        ({"pad_to_multiple_of": 64}, 64),
        ({"padding": "max_length", "max_length": 100, "pad_to_multiple_of": 64}, 128),
        ({"text_kwargs": {"padding": "max_length", "max_length": 128}}, 128),
        ({"common_kwargs": {"pad_to_multiple_of": 64}, "truncation": False}, 64),
        ({"padding": "max_length", "max_length": 4}, 50),  # as long as it is: nothing is cut
    ],
)
def test_targets_are_padded_as_asked(bucket_processor: SalmonnProcessor, options: dict[str, Any], length: int) -> None:
    call: dict[str, Any] = {"text": "What?", "audio": clip_of(), "text_target": "A dog."}
    shortest, inputs = bucket_processor(**call), bucket_processor(**call, **options)
    end = shortest["labels"].shape[1]
    assert inputs["labels"].shape == inputs["input_ids"].shape == inputs["attention_mask"].shape == (1, length)
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(inputs[name][:, :end], shortest[name])
    assert (inputs["labels"][:, end:] == -100).all()
    assert (inputs["attention_mask"][:, end:] == 0).all()


def test_targets_stay_unpadded_where_that_is_asked(bucket_processor: SalmonnProcessor) -> None:
    call: dict[str, Any] = {"text": ["a", "b"], "audio": [clip_of(), clip_of()], "padding": False}
    inputs = bucket_processor(**call, text_target=["yes", "noo"])
    assert inputs["attention_mask"].all()
    with pytest.raises(ValueError, match="Unable to create tensor"):
        bucket_processor(**call, text_target=["yes", "n"])


@pytest.mark.parametrize("place", [None, "text_kwargs", "common_kwargs"])
def test_targets_with_truncation_raise(bucket_processor: SalmonnProcessor, place: str | None) -> None:
    options: dict[str, Any] = {"truncation": True, "max_length": 64}
    with pytest.raises(ValueError, match=r"Got truncation=True with text_target, .*; leave truncation out"):
        bucket_processor(text="Hi", text_target="x" * 500, **({place: options} if place else options))


def test_target_may_be_one_string_or_empty(bucket_processor: SalmonnProcessor) -> None:
    inputs = bucket_processor(text="What?", audio=clip_of(), text_target="")
    assert inputs["labels"][0, -2:].tolist() == [-100, EOS]
    listed = bucket_processor(text=["What?"], audio=[clip_of()], text_target=["A dog."])
    assert_same_inputs(bucket_processor(text="What?", audio=clip_of(), text_target="A dog."), listed)


def test_targets_work_without_audio(bucket_processor: SalmonnProcessor) -> None:
    inputs = bucket_processor(text=["USER: Hi\nASSISTANT:", "Hi"], text_target=["Hello", "Hi"])
    assert sorted(inputs) == ["attention_mask", "input_ids", "labels"]
    labels = inputs["labels"][0]
    assert bucket_processor.tokenizer.decode(labels[labels != -100]) == "Hello</s>"
    assert (inputs["input_ids"] == BOS).sum(dim=1).tolist() == [1, 1]


def test_audio_token_times_are_one_per_placeholder(processor: SalmonnProcessor) -> None:
    clips = [clip_of(0.5), clip_of(70.0)]
    inputs = processor(text=["What?", "And?"], audio=clips)
    times = processor.audio_token_times(inputs)
    assert [tuple(rows.shape) for rows in times] == [(88, 2), (264, 2)]
    assert [len(rows) for rows in times] == placeholders_of(processor, inputs)
    long = times[1]
    torch.testing.assert_close(long[:2], torch.tensor([[0.0, 0.34], [0.34, 0.68]]))
    torch.testing.assert_close(long[[88, 176], 0], torch.tensor([30.0, 60.0]))
    torch.testing.assert_close(long[:, 1] - long[:, 0], torch.full((264,), 0.34))
    assert (long[:, 0].diff() > 0).all()
    torch.testing.assert_close(times[0], long[:88])


def test_audio_token_times_end_with_trimmed_audio(bucket_processor: SalmonnProcessor) -> None:
    inputs = bucket_processor(audio=[clip_of(0.5), clip_of(70.0)])
    short, long = bucket_processor.audio_token_times(inputs)
    torch.testing.assert_close(short, torch.tensor([[0.0, 0.34], [0.34, 0.68]]))
    assert len(long) == 88 + 88 + 29  # as many as fit into the last 10 s
    torch.testing.assert_close(long[-1], torch.tensor([60 + 28 * 0.34, 60 + 29 * 0.34]))
    arrays = bucket_processor(audio=[clip_of(0.5)], return_tensors="np")
    torch.testing.assert_close(bucket_processor.audio_token_times(arrays)[0], short)


def test_mixed_rates_are_read_from_each_clip(bucket_processor: SalmonnProcessor) -> None:
    rates = (8000, 16000, 22050, 48000)
    inputs = bucket_processor(text=["What?"] * 4, audio=[clip_of(1.0, rate) for rate in rates], sampling_rate=11025)
    assert inputs["input_features_mask"].sum(dim=1).tolist() == [100] * 4
    for row, rate in enumerate(rates):
        alone = bucket_processor(audio=make_clip(1.0, rate), sampling_rate=rate)
        assert torch.equal(inputs["input_features"][row], alone["input_features"][0])


def test_options_may_be_flat_or_nested(bucket_processor: SalmonnProcessor) -> None:
    call: dict[str, Any] = {"text": ["a", "longer"], "audio": [make_clip(0.5, 8000), make_clip(0.6, 8000)]}
    flat = bucket_processor(**call, sampling_rate=8000, padding_side="right")
    nested = bucket_processor(
        **call, audio_kwargs={"sampling_rate": 8000}, text_kwargs={"padding_side": "right", "padding": True}
    )
    assert_same_inputs(flat, nested)
    assert flat["input_features_mask"].sum(dim=1).tolist() == [50, 60]
    assert flat["attention_mask"][0].tolist() == [1] * (flat["input_ids"].shape[1] - 5) + [0] * 5


def test_target_may_be_flat_or_nested(bucket_processor: SalmonnProcessor) -> None:
    call: dict[str, Any] = {"text": "What?", "audio": make_clip(0.5, 8000)}
    flat = bucket_processor(**call, sampling_rate=8000, text_target="A dog.")
    text_options = {"text_target": "A dog."}
    nested = bucket_processor(**call, audio_kwargs={"sampling_rate": 8000}, text_kwargs=text_options)
    assert_same_inputs(flat, nested)
    assert text_options == {"text_target": "A dog."}


@pytest.mark.parametrize("target", [{}, {"text_target": ["yes", "n"]}])
def test_return_tensors_chooses_the_type(bucket_processor: SalmonnProcessor, target: dict[str, Any]) -> None:
    call: dict[str, Any] = {"text": ["a", "longer"], "audio": [clip_of(), clip_of()], **target}
    tensors = bucket_processor(**call)
    arrays = bucket_processor(**call, return_tensors="np")
    assert list(arrays) == list(tensors)
    for name, value in tensors.items():
        assert isinstance(value, torch.Tensor)
        assert isinstance(arrays[name], np.ndarray)
        assert np.array_equal(arrays[name], value.numpy())


def test_model_input_names_are_what_a_call_returns(bucket_processor: SalmonnProcessor) -> None:
    speech_only = tiny_processor(tiny_config(audio=False, segment_seconds=[2, 5, 10, 30]))
    for processor in (bucket_processor, speech_only):
        assert sorted(processor.model_input_names) == sorted(processor(text="What?", audio=clip_of()))
    assert "audio_input_features" not in speech_only.model_input_names


def test_saved_processor_loads_equal(any_processor: SalmonnProcessor, tmp_path: Path) -> None:
    any_processor.save_pretrained(tmp_path)
    loaded = SalmonnProcessor.from_pretrained(tmp_path)
    assert loaded.chat_template == any_processor.chat_template
    assert (loaded.audio_token, loaded.audio_token_id) == (any_processor.audio_token, any_processor.audio_token_id)
    assert loaded.feature_extractor.to_dict() == any_processor.feature_extractor.to_dict()
    call: dict[str, Any] = {"text": ["What?", "a </s> <SpeechHere>"], "audio": [clip_of(), clip_of(2.5)]}
    assert_same_inputs(loaded(**call), any_processor(**call))
    assert_same_inputs(loaded(**call, text_target=["x", "yz"]), any_processor(**call, text_target=["x", "yz"]))
    conversation = [user(clip_of(), "What?"), assistant("A dog."), user("Why?")]
    assert_same_inputs(chat(loaded, conversation), chat(any_processor, conversation))
    loaded.save_pretrained(tmp_path / "again")
    assert SalmonnProcessor.from_pretrained(tmp_path / "again").to_dict() == loaded.to_dict()


@pytest.mark.parametrize(
    ("text", "clips", "message"),
    [
        (f"{AUDIO} What?", None, "Found 1 audio placeholders but 0 clips"),
        ([f"{AUDIO} What?", f"{AUDIO} {AUDIO}"], None, "Found 3 audio placeholders but 0 clips"),
        (f"{AUDIO} What?", [1, 1], "Text 0 has 1 audio placeholders but 2 clips"),
        (f"{AUDIO} {AUDIO} What?", 1, "Text 0 has 2 audio placeholders but 1 clips"),
        (f"{AUDIO} {AUDIO} What?", [[1, 1, 1]], "Text 0 has 2 audio placeholders but 3 clips"),
        ([f"{AUDIO} What?", f"{AUDIO} And?"], [[1], [1, 1]], "Text 1 has 1 audio placeholders but 2 clips"),
        ([f"{AUDIO} What?", "And?"], [[], [1]], "Text 0 has 1 audio placeholders but 0 clips"),
        ([f"{AUDIO} What?"], [], "Text 0 has 1 audio placeholders but 0 clips"),
        (["What?", "And?"], [[1]], "Got 1 lists of clips for 2 texts"),
        ("What?", [[1], [1]], "Got 2 lists of clips for 1 texts"),
        (["What?", "And?"], 1, "which of 1 clips belong to which of 2 texts with 0 placeholders"),
        (["What?", "And?"], [1, 1, 1], "which of 3 clips belong to which of 2 texts with 0 placeholders"),
        ([f"{AUDIO} {AUDIO}", "And?"], [1], "which of 1 clips belong to which of 2 texts with 2 placeholders"),
        ([f"{AUDIO} {AUDIO}", "And?"], [1, 1, 1], "which of 3 clips belong to which of 2 texts with 2 placeholders"),
    ],
)
def test_clips_that_do_not_match_raise(
    bucket_processor: SalmonnProcessor, text: Any, clips: Any, message: str
) -> None:
    def fill(places: Any) -> Any:
        return [fill(place) for place in places] if isinstance(places, list) else clip_of()

    with pytest.raises(ValueError, match=message):
        bucket_processor(text=text, audio=None if clips is None else fill(clips), formatted=AUDIO in str(text))


@pytest.mark.parametrize(("targets", "count"), [(["a"], 1), (["a", "b", "c"], 3), ("a", 1), ([], 0)])
def test_targets_that_do_not_match_raise(bucket_processor: SalmonnProcessor, targets: Any, count: int) -> None:
    with pytest.raises(ValueError, match=f"Got {count} targets for 2 texts; pass one target per text"):
        bucket_processor(text=["a", "b"], audio=[clip_of(), clip_of()], text_target=targets)


@pytest.mark.parametrize("text", [5, [5], ["What?", None], [["What?"]], b"What?"])
@pytest.mark.parametrize("has_audio", [False, True])
def test_text_that_is_no_string_raises(bucket_processor: SalmonnProcessor, text: Any, has_audio: bool) -> None:
    with pytest.raises(ValueError, match="text must be a string or a list of strings"):
        bucket_processor(text=text, audio=clip_of() if has_audio else None)


def test_number_is_no_clip(bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match=r"audio must be a clip or a list of clips, got the number 2\.5"):
        bucket_processor(text="What?", audio=2.5)


@pytest.mark.parametrize("clips", [None, [], [[]]])
def test_empty_list_of_texts_raises(bucket_processor: SalmonnProcessor, clips: Any) -> None:
    with pytest.raises(ValueError, match="text is an empty list; pass at least one text"):
        bucket_processor(text=[], audio=clips)


@pytest.mark.parametrize("target", [5, [5], [None]])
def test_target_that_is_no_string_raises(bucket_processor: SalmonnProcessor, target: Any) -> None:
    with pytest.raises(ValueError, match="text_target must be a string or a list of strings"):
        bucket_processor(text="What?", audio=clip_of(), text_target=target)


def test_target_without_text_raises(bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match="text_target needs text"):
        bucket_processor(audio=clip_of(), text_target="A dog.")


def test_neither_text_nor_audio_raises(bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match="You need to provide at least one input to call SalmonnProcessor"):
        bucket_processor()


def test_unusable_clip_raises_with_its_index(bucket_processor: SalmonnProcessor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="audio 1 is empty: it has no samples"):
        bucket_processor(text=["a", "b"], audio=[clip_of(), {"array": np.zeros(0), "sampling_rate": SAMPLING_RATE}])
    with pytest.raises(ValueError, match=r"There is no audio file .*absent\.wav"):
        chat(bucket_processor, [user(tmp_path / "absent.wav", "What?")])


def test_truncated_audio_raises(bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match="Mismatch in `audio` token count between text and `input_ids`"):
        bucket_processor(text="What?", audio=clip_of(5.0), truncation=True, max_length=20)
