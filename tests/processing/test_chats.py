"""Chats: templates, audio in its turns, options, and the mask of what the assistant says."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from audio_decoder import Decoder
from conftest import SAMPLING_RATE, make_clip
from packaging.version import Version
from prompting import AUDIO, OFFICIAL_PROMPT, assert_same_inputs, assistant, chat, clip_of, prompts_of, user

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.processing.training_labels_salmonn import LOWEST_TRANSFORMERS


def test_vicuna_template_renders_the_official_prompt(bucket_processor: SalmonnProcessor) -> None:
    conversation = [user(clip_of(), "What?")]
    for add_generation_prompt in (False, True):
        text = bucket_processor.apply_chat_template(conversation, add_generation_prompt=add_generation_prompt)
        assert text == OFFICIAL_PROMPT


def test_chatml_template_renders_the_chat(chatml_processor: SalmonnProcessor) -> None:
    conversation = [{"role": "system", "content": "Be brief."}, user(clip_of(), "What?"), assistant("A dog.")]
    head = f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{AUDIO} What?<|im_end|>\n"
    answer = "<|im_start|>assistant\nA dog.<|im_end|>\n"
    assert chatml_processor.apply_chat_template(conversation) == head + answer
    question = chatml_processor.apply_chat_template(conversation[:2], add_generation_prompt=True)
    assert question == head + "<|im_start|>assistant\n"
    assert chatml_processor.apply_chat_template(conversation[:2]) == head


def test_vicuna_template_renders_several_turns(bucket_processor: SalmonnProcessor) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        user(clip_of(), clip_of(seed=1), "Compare."),
        assistant("Alike."),
        {"role": "user", "content": "Why?"},
    ]
    assert bucket_processor.apply_chat_template(conversation) == (
        f"<s>Be brief.\nUSER: {AUDIO} {AUDIO} Compare.\nASSISTANT: Alike.</s>USER: Why?\nASSISTANT:"
    )


def test_instruction_equals_the_same_chat(any_processor: SalmonnProcessor) -> None:
    clips = [clip_of(), clip_of(2.5, seed=1)]
    expected = chat(any_processor, [user(*clips, "What?")], add_generation_prompt=True)
    assert_same_inputs(any_processor(text="What?", audio=clips), expected)


@pytest.mark.parametrize(
    "part",
    [
        lambda path: {"audio": path},
        lambda path: {"audio": str(path)},
        lambda path: {"audio": path.read_bytes()},
        lambda path: {"audio": {"path": str(path)}},
        lambda path: {"path": str(path)},
        lambda path: {"path": path},
        lambda path: {"bytes": path.read_bytes()},
        lambda path: {"audio": make_clip(1.5, 8000), "sampling_rate": 8000},
        lambda path: {"audio": make_clip(1.5, 8000).tolist(), "sampling_rate": 8000},
        lambda path: {"audio": torch.from_numpy(make_clip(1.5, 8000)), "sampling_rate": 8000},
        lambda path: {"audio": {"array": make_clip(1.5, 8000), "sampling_rate": 8000}},
        lambda path: {"array": make_clip(1.5, 8000), "sampling_rate": 8000},
    ],
)
def test_chat_takes_every_kind_of_audio(bucket_processor: SalmonnProcessor, wav_file: Path, part: Any) -> None:
    source = part(wav_file)
    is_file = "8000" not in str(source.get("sampling_rate", source.get("audio")))
    clip = wav_file if is_file else clip_of(1.5, 8000)
    message = {"role": "user", "content": [{"type": "audio", **source}, {"type": "text", "text": "What?"}]}
    assert_same_inputs(chat(bucket_processor, [message]), bucket_processor(text="What?", audio=clip))


def test_chat_of_several_turns_has_its_audio_in_order(any_processor: SalmonnProcessor) -> None:
    clips = [clip_of(seed=seed) for seed in range(3)]
    conversation = [
        user(clips[0], "What?"),
        assistant("A dog."),
        user("And this: ", clips[1], "or this: ", clips[2]),
        assistant("Cats."),
        user("Sure?"),
    ]
    inputs = chat(any_processor, conversation, add_generation_prompt=True)
    assert prompts_of(any_processor, inputs) == [
        any_processor.apply_chat_template(conversation, add_generation_prompt=True)
    ]
    assert torch.equal(inputs["input_features"], any_processor(audio=clips)["input_features"])


def test_chats_of_a_batch_equal_each_alone(any_processor: SalmonnProcessor) -> None:
    conversations = [[user(clip_of(), "What?")], [user("Hi")], [user(clip_of(seed=1), clip_of(seed=2), "And?")]]
    batch = chat(any_processor, conversations, add_generation_prompt=True)
    for row, conversation in enumerate(conversations):
        alone = chat(any_processor, conversation, add_generation_prompt=True)
        assert torch.equal(batch["input_ids"][row][batch["attention_mask"][row] == 1], alone["input_ids"][0])


class CountingDecoder(Decoder):
    """Counts how often it is decoded."""

    count = 0

    def get_all_samples(self) -> Any:
        self.count += 1
        return super().get_all_samples()


def test_each_clip_is_read_once(bucket_processor: SalmonnProcessor) -> None:
    decoder = CountingDecoder(torch.from_numpy(make_clip(0.5))[None], SAMPLING_RATE)
    for prepare in (
        lambda: chat(bucket_processor, [[user(decoder, "What?")], [user("Hi")]]),
        lambda: bucket_processor(text="What?", audio=decoder),
        lambda: bucket_processor(text="What?", audio=decoder, text_target="A dog."),
        lambda: bucket_processor.apply_transcription_request(decoder),
        lambda: bucket_processor.feature_extractor(decoder),
    ):
        decoder.count = 0
        prepare()
        assert decoder.count == 1


def test_loaded_clips_take_the_place_of_audio(any_processor: SalmonnProcessor) -> None:
    clips = [clip_of(), clip_of(2.5, seed=1)]
    loaded = any_processor.feature_extractor.load_clips(clips)
    assert_same_inputs(any_processor(text="What?", loaded_clips=loaded), any_processor(text="What?", audio=clips))
    with pytest.raises(ValueError, match="Got both audio and loaded_clips; pass one of the two"):
        any_processor(text="What?", audio=clips, loaded_clips=loaded)


def test_chat_content_may_be_absent(bucket_processor: SalmonnProcessor) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
    assert bucket_processor.apply_chat_template(messages) == "<s>USER: Hi\nASSISTANT: </s>"


def test_chat_leaves_its_messages_as_they_were(bucket_processor: SalmonnProcessor, wav_file: Path) -> None:
    conversation = [user(str(wav_file), "What is </s>?"), assistant("</s>")]
    options = {"padding_side": "right"}
    before = copy.deepcopy((conversation, options))
    chat(bucket_processor, conversation, processor_kwargs=options)
    assert (conversation, options) == before


@pytest.mark.parametrize(
    "options",
    [
        {"processor_kwargs": {"sampling_rate": 8000}},
        {"processor_kwargs": {"audio_kwargs": {"sampling_rate": 8000}}},
        {"sampling_rate": 8000},
    ],
    ids=["flat", "nested", "template_option"],
)
def test_chat_sampling_rate_is_that_of_bare_samples(
    bucket_processor: SalmonnProcessor, wav_file: Path, options: dict[str, Any]
) -> None:
    inputs = chat(bucket_processor, [user(make_clip(1.0, 8000), wav_file, "What?")], **options)
    expected = bucket_processor(text="What?", audio=[clip_of(1.0, 8000), wav_file])
    assert inputs["input_features_mask"].sum(dim=1).tolist() == [100, 150]  # files have a rate of their own
    assert_same_inputs(inputs, expected)


def test_chat_takes_options_of_the_processor(bucket_processor: SalmonnProcessor) -> None:
    conversations = [[user("Hi")], [user("Hello there")]]
    inputs = chat(bucket_processor, conversations, processor_kwargs={"padding_side": "right"}, return_tensors="np")
    assert isinstance(inputs["input_ids"], np.ndarray)
    assert inputs["attention_mask"][0].tolist() == sorted(inputs["attention_mask"][0].tolist(), reverse=True)


needs_placed_masks = pytest.mark.skipif(
    Version(transformers.__version__) < Version(LOWEST_TRANSFORMERS), reason="this transformers misplaces the mask"
)


@pytest.mark.parametrize("installed", ["5.16.1", "5.17.0"])
def test_assistant_mask_is_refused_where_transformers_misplaces_it(
    installed: str, bucket_processor: SalmonnProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "__version__", installed)
    with pytest.raises(ImportError, match=rf"needs transformers 5\.18 or later, but {re.escape(installed)}"):
        chat(bucket_processor, [user(clip_of(), "What?"), assistant("A dog.")], return_assistant_tokens_mask=True)


@needs_placed_masks
def test_assistant_mask_covers_answers_and_their_ends(any_processor: SalmonnProcessor) -> None:
    conversations = [
        [user(clip_of(2.5), "What?"), assistant("A dog."), user(clip_of(), "And?"), assistant("Zwei Bären 🐻.")],
        [user("Hi"), assistant("Hello")],
        [user(clip_of(), clip_of(seed=1), "What?")],
    ]
    inputs = chat(any_processor, conversations, return_assistant_tokens_mask=True)
    masks = torch.as_tensor(inputs["assistant_masks"])
    assert masks.shape == inputs["input_ids"].shape
    spoken = [
        any_processor.tokenizer.decode(ids[mask == 1]) for ids, mask in zip(inputs["input_ids"], masks, strict=True)
    ]
    start, end = (" ", "</s>") if any_processor.tokenizer.bos_token else ("", "<|im_end|>")
    assert spoken == [f"{start}A dog.{end}{start}Zwei Bären 🐻.{end}", f"{start}Hello{end}", ""]
    assert not masks[inputs["attention_mask"] == 0].any()


@needs_placed_masks
def test_assistant_mask_of_one_chat_equals_the_batch(any_processor: SalmonnProcessor) -> None:
    conversation = [user(clip_of(2.5), "What?"), assistant("A dog.")]
    alone = chat(any_processor, conversation, return_assistant_tokens_mask=True)
    batch = chat(any_processor, [conversation, [user("Hi")]], return_assistant_tokens_mask=True)
    assert list(alone["assistant_masks"][0]) == list(batch["assistant_masks"][0])


@pytest.mark.parametrize("content", [[{"type": "text", "text": 5}], [{"type": "text"}]])
def test_chat_text_that_is_no_string_raises(bucket_processor: SalmonnProcessor, content: Any) -> None:
    with pytest.raises(ValueError, match="the text of a message must be a string"):
        bucket_processor.apply_chat_template([{"role": "user", "content": content}])


@pytest.mark.parametrize("kind", ["image", "video", "input_audio", None])
@pytest.mark.parametrize("tokenize", [False, True])
def test_chat_content_of_another_type_raises(bucket_processor: SalmonnProcessor, kind: Any, tokenize: bool) -> None:
    messages = [{"role": "user", "content": [{"type": kind, "path": "cat.png"}, {"type": "text", "text": "What?"}]}]
    with pytest.raises(ValueError, match=f"SALMONN takes 'audio' and 'text' content, not '{kind}'"):
        bucket_processor.apply_chat_template(messages, tokenize=tokenize)


def test_chat_audio_without_source_raises(bucket_processor: SalmonnProcessor) -> None:
    with pytest.raises(ValueError, match=r"dict with the keys \['type'\]; it needs 'array', 'bytes' or 'path'"):
        chat(bucket_processor, [{"role": "user", "content": [{"type": "audio"}]}])
