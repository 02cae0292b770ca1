"""The `audio-text` pipeline: everything it takes, and that a batch answers as its members alone."""

import io
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from audible_pipeline import audible_pipeline, write_clips
from conftest import SAMPLING_RATE, make_clip, tiny_model, tiny_processor
from datasets import Audio, Dataset
from transformers import GenerationConfig, LlamaForCausalLM, TextStreamer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_salmonn import (
    CHATML_CHAT_TEMPLATE,
    AudioTextPipeline,
    SalmonnConfig,
    SalmonnForConditionalGeneration,
    SalmonnProcessor,
)


QUESTION, OTHER_QUESTION = "What do you hear?", "Who speaks?"
NEW_TOKENS = 8
CLIP_SECONDS = (1.2, 2.5, 4.0)


class CountingStreamer:
    """Counts the new tokens."""

    def __init__(self) -> None:
        self.count = -1  # the prompt comes first

    def put(self, value: torch.Tensor) -> None:
        self.count += 1

    def end(self) -> None:
        pass


@pytest.fixture(scope="module")
def pipe(bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor) -> AudioTextPipeline:
    return audible_pipeline(bucket_config, bucket_processor, NEW_TOKENS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_clips(tmp_path_factory.mktemp("clips"), CLIP_SECONDS)


def expected_answer(pipe: AudioTextPipeline, messages: list[dict[str, Any]], **options: Any) -> list[dict[str, str]]:
    """What processor and model give without the pipeline."""
    processor: Any = pipe.processor
    model: Any = pipe.model
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    ids = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    return [{"generated_text": processor.decode(ids, skip_special_tokens=True).strip()}]


def user_message(*clips: str, text: str = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "audio", "path": clip} for clip in clips] + [text_part(text)]}


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def answers(pipe: AudioTextPipeline, clips: list[str]) -> list[list[dict[str, str]]]:
    """The answer about each clip alone; they differ, or the comparisons below would say nothing."""
    alone = [expected_answer(pipe, [user_message(clip)]) for clip in clips]
    assert len({answer[0]["generated_text"] for answer in alone}) == len(clips)
    return alone


def test_one_path_gives_one_answer(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    assert pipe(clips[0], text=QUESTION) == answers[0]
    assert pipe(Path(clips[1]), text=QUESTION) == answers[1]


def test_bytes_and_samples_give_the_answer_of_the_file(
    pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    samples, rate = soundfile.read(clips[0], dtype="float32")
    assert pipe(Path(clips[0]).read_bytes(), text=QUESTION) == answers[0]
    assert pipe({"array": samples, "sampling_rate": rate}, text=QUESTION) == answers[0]
    assert pipe({"audio": {"array": samples, "sampling_rate": rate}, "text": QUESTION}) == answers[0]
    assert pipe(samples, text=QUESTION, sampling_rate=rate) == answers[0]
    assert pipe(torch.from_numpy(samples), text=QUESTION, sampling_rate=rate) == answers[0]


def test_sampling_rate_of_arrays_is_used(pipe: AudioTextPipeline) -> None:
    samples = make_clip(2.5, rate=8000)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="WAV", subtype="FLOAT")
    expected = pipe(buffer.getvalue(), text=QUESTION)
    assert pipe(samples, text=QUESTION, sampling_rate=8000) == expected
    assert pipe([samples, samples], text=QUESTION, sampling_rate=8000, batch_size=2) == [expected, expected]
    assert pipe(samples, text=QUESTION, sampling_rate=16000) != expected


def test_dict_holds_audio_and_text(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    assert pipe({"audio": clips[0], "text": QUESTION}) == answers[0]
    other = expected_answer(pipe, [user_message(clips[0], text=OTHER_QUESTION)])
    assert pipe({"audio": clips[0], "text": OTHER_QUESTION}) == other != answers[0]
    assert pipe({"audio": clips[0]}, text=QUESTION) == answers[0]


def test_dict_may_hold_several_clips(pipe: AudioTextPipeline, clips: list[str]) -> None:
    expected = expected_answer(pipe, [user_message(*clips[:2])])
    assert pipe({"audio": clips[:2], "text": QUESTION}) == expected


def test_text_without_audio_is_answered(pipe: AudioTextPipeline) -> None:
    expected = expected_answer(pipe, [user_message()])
    assert pipe({"text": QUESTION}) == expected
    assert pipe({"audio": None, "text": QUESTION}) == expected


def test_audio_without_text_gets_the_default_instruction(pipe: AudioTextPipeline, clips: list[str]) -> None:
    assert pipe(clips[0]) == expected_answer(pipe, [user_message(clips[0], text="Please describe the audio.")])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_list_gives_the_answers_of_its_members_alone(
    batch_size: int, pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    assert pipe(clips, text=QUESTION, batch_size=batch_size) == answers


def test_list_of_dicts_may_mix_texts_and_audio(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    items = [
        {"audio": clips[2], "text": OTHER_QUESTION},
        {"text": QUESTION},
        {"audio": clips[0], "text": QUESTION},
    ]
    alone = [pipe(item) for item in items]
    assert alone[2] == answers[0]
    for batch_size in (1, 2, 3):
        assert pipe(items, batch_size=batch_size) == alone


def test_empty_list_gives_an_empty_list(pipe: AudioTextPipeline) -> None:
    assert pipe([]) == []
    assert pipe([], text=QUESTION, batch_size=2) == []
    assert pipe([], text=[]) == []


def test_tuple_gives_a_list(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    assert pipe(tuple(clips), text=QUESTION, batch_size=2) == answers


@pytest.mark.parametrize("batch_size", [1, 2])
def test_generator_is_read_on_demand(
    batch_size: int, pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    read: list[str] = []

    def items() -> Iterator[str]:
        for clip in clips:
            read.append(clip)
            yield clip

    result = pipe(items(), text=QUESTION, batch_size=batch_size)
    assert isinstance(result, Iterator)
    assert len(read) <= 1  # the first item tells whether these are messages
    assert next(result) == answers[0]
    assert len(read) == batch_size
    assert list(result) == answers[1:]


def test_generator_of_dicts_is_answered(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    assert list(pipe({"audio": clip, "text": QUESTION} for clip in clips)) == answers


def test_empty_generator_gives_nothing(pipe: AudioTextPipeline) -> None:
    assert list(pipe((clip for clip in ()), text=QUESTION)) == []


def test_dataset_column_is_answered(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    dataset = Dataset.from_dict({"audio": clips}).cast_column("audio", Audio(decode=False))
    for column in (dataset["audio"], KeyDataset(dataset, "audio")):
        result = pipe(column, text=QUESTION, batch_size=2)
        assert isinstance(result, list)
        assert result == answers


def test_decoded_dataset_column_is_answered(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    pytest.importorskip("torchcodec")
    dataset = Dataset.from_dict({"audio": clips}).cast_column("audio", Audio(sampling_rate=SAMPLING_RATE))
    assert pipe(dataset["audio"], text=QUESTION, batch_size=2) == answers


def test_text_list_belongs_to_the_clips_in_order(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    other = pipe(clips[1], text=OTHER_QUESTION)
    assert other != answers[1]
    result = pipe(clips, text=[QUESTION, OTHER_QUESTION, QUESTION], batch_size=2)
    assert result == [answers[0], other, answers[2]]
    assert pipe(clips[0], text=[QUESTION]) == [answers[0]]


@pytest.mark.parametrize("texts", [[QUESTION], [QUESTION] * 4, []])
def test_text_list_of_another_length_raises(texts: list[str], pipe: AudioTextPipeline, clips: list[str]) -> None:
    with pytest.raises(ValueError, match=f"Got {len(texts)} instructions for 3 clips; pass one, or one for each"):
        pipe(clips, text=texts)


def test_messages_are_answered(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    assert pipe([user_message(clips[0])]) == answers[0]


@pytest.mark.parametrize("key", ["audio", "path"])
def test_messages_with_several_turns_and_clips_are_answered(
    key: str, pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    first = {"role": "user", "content": [{"type": "audio", key: clip} for clip in clips[:2]] + [text_part(QUESTION)]}
    turns = [
        {"role": "system", "content": "Answer briefly."},
        first,
        {"role": "assistant", "content": [text_part("A tone.")]},
        {"role": "user", "content": [text_part("And now?"), {"type": "audio", key: clips[2]}]},
    ]
    expected = expected_answer(pipe, turns)
    assert expected not in answers
    assert pipe(turns) == expected
    swapped = [turns[0], first | {"content": [*first["content"][1::-1], text_part(QUESTION)]}, *turns[2:]]
    assert pipe(swapped) == expected_answer(pipe, swapped) != expected


def test_conversations_in_a_list_or_generator_are_answered_alone(
    pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    conversations = [[user_message(clip)] for clip in clips]
    assert pipe(conversations, batch_size=2) == answers
    assert list(pipe(conversation for conversation in conversations)) == answers


def test_generation_options_reach_the_model(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    variants: list[dict[str, Any]] = [{"max_new_tokens": 3}, {"num_beams": 3}, {"lora_scale": 0.0}]
    messages = [user_message(clips[0])]
    rows: list[int] = []  # beams may end in the greedy answer, but there are three
    hook = pipe.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: rows.append(len(logits)))
    for options in variants:
        expected = expected_answer(pipe, messages, **options)
        assert expected != answers[0] or "num_beams" in options, options
        rows.clear()
        assert pipe(clips[0], text=QUESTION, **options) == expected
        assert pipe(clips[0], text=QUESTION, generate_kwargs=options) == expected
        assert rows[-1] == options.get("num_beams", 1)
    hook.remove()
    assert pipe(clips[0], text=QUESTION) == answers[0]


def test_generation_options_of_the_pipeline_are_its_defaults(
    pipe: AudioTextPipeline, clips: list[str], answers: list
) -> None:
    short = pipeline("audio-text", model=pipe.model, processor=pipe.processor, max_new_tokens=3, text=QUESTION)
    assert short(clips[0]) == expected_answer(pipe, [user_message(clips[0])], max_new_tokens=3)
    assert short(clips[0], max_new_tokens=NEW_TOKENS) == answers[0]
    given = GenerationConfig(max_new_tokens=3, eos_token_id=2, pad_token_id=0)
    assert pipe(clips[0], text=QUESTION, generation_config=given) == short(clips[0])


@pytest.mark.parametrize(("configured", "expected"), [(None, 200), (5, 5)])
def test_answer_length_is_that_of_the_config_or_the_research_code(
    configured: int | None, expected: int, bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor
) -> None:
    model = tiny_model(bucket_config)
    model.generation_config.max_new_tokens = configured
    model.generation_config.eos_token_id = None
    counter = CountingStreamer()
    pipeline("audio-text", model=model, processor=bucket_processor)({"text": QUESTION}, streamer=counter)
    assert counter.count == expected


@pytest.mark.parametrize(
    ("configured", "options", "expected"),
    [
        ({}, {"max_length": 60}, 60),
        ({"max_length": 70}, {}, 70),
        ({"max_length": 70}, {"max_length": 60}, 60),
        ({"max_length": 20}, {}, None),
        ({}, {"max_length": None}, None),
    ],
    ids=["call", "config", "call over config", "default of the library", "none"],
)
def test_longest_text_is_that_of_the_call_or_the_config(
    configured: dict[str, int],
    options: dict[str, Any],
    expected: int | None,
    bucket_config: SalmonnConfig,
    bucket_processor: SalmonnProcessor,
) -> None:
    model = tiny_model(bucket_config)
    model.generation_config.update(eos_token_id=None, **configured)
    pipe = pipeline("audio-text", model=model, processor=bucket_processor)
    counter = CountingStreamer()
    pipe({"text": QUESTION}, streamer=counter, **options)
    messages = [{"role": "user", "content": QUESTION}]
    prompt = bucket_processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert counter.count == (200 if expected is None else expected - len(prompt[0]))
    answer = pipe({"text": QUESTION}, **options)[0]["generated_text"]
    assert "".join(pipe.stream({"text": QUESTION}, **options)).strip() == answer


def test_several_answers_to_an_item_stay_together(pipe: AudioTextPipeline, clips: list[str]) -> None:
    options = {"text": QUESTION, "num_beams": 2, "num_return_sequences": 2}
    alone = [pipe(clip, **options) for clip in clips]
    assert [len(answers) for answers in alone] == [2, 2, 2]
    assert pipe(clips, batch_size=2, **options) == alone


def test_stream_yields_the_answer_in_pieces(pipe: AudioTextPipeline, clips: list[str], answers: list) -> None:
    pieces = pipe.stream(clips[0], text=QUESTION)
    assert isinstance(pieces, Iterator)
    read = list(pieces)
    assert all(read)
    assert "".join(read).strip() == answers[0][0]["generated_text"]
    short = "".join(pipe.stream([user_message(clips[0])], max_new_tokens=3)).strip()
    assert short == pipe(clips[0], text=QUESTION, max_new_tokens=3)[0]["generated_text"]


def test_stream_yields_several_pieces(pipe: AudioTextPipeline) -> None:
    letter, space = (pipe.tokenizer.encode(text, add_special_tokens=False) for text in ("a", " "))
    options = {
        "max_new_tokens": 6,
        "prefix_allowed_tokens_fn": lambda _, ids: space if ids[-1] == letter[0] else letter,
    }
    pieces = list(pipe.stream({"text": "Sing."}, **options))
    assert "".join(pieces).strip() == "a a a"
    assert len(pieces) > 1


def spell_out(tokenizer: Any, text: str) -> Any:
    """Has the model answer with a text, again and again."""
    letters = tokenizer.encode(text, add_special_tokens=False)
    following = dict(zip(letters, letters[1:] + letters[:1], strict=True))
    return lambda _, ids: [following.get(int(ids[-1]), letters[0])]


@pytest.mark.parametrize("own", [False, True], ids=["by default", "given"])
def test_answer_ends_with_a_stop_string(own: bool, pipe: AudioTextPipeline, clips: list[str]) -> None:
    options: dict[str, Any] = {"text": QUESTION, "max_new_tokens": 20, "stop_strings": ["cd"]}
    options["prefix_allowed_tokens_fn"] = spell_out(pipe.tokenizer, "abcdef")
    if own:
        options["tokenizer"] = pipe.tokenizer
    assert pipe(clips[0], **options) == [{"generated_text": "abcd"}]
    assert pipe(clips[:2], **options) == [[{"generated_text": "abcd"}]] * 2
    assert "".join(pipe.stream(clips[0], **options)).strip() == "abcd"


def test_assistant_with_a_tokenizer_of_its_own_answers(
    pipe: AudioTextPipeline, bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor
) -> None:
    config = deepcopy(bucket_config.text_config)
    config.update({"vocab_size": config.vocab_size + 4})
    assistant = LlamaForCausalLM(config).eval()
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    tokenizer = deepcopy(bucket_processor.tokenizer)
    assisted = pipe({"text": QUESTION}, assistant_model=assistant, assistant_tokenizer=tokenizer, **options)
    assert assisted == pipe({"text": QUESTION}, **options)


def test_stream_is_greedy_where_the_model_searches_with_beams(
    bucket_config: SalmonnConfig, bucket_processor: SalmonnProcessor, clips: list[str]
) -> None:
    model = tiny_model(bucket_config)
    model.generation_config.update(num_beams=3, max_new_tokens=5)
    beams = pipeline("audio-text", model=model, processor=bucket_processor)
    greedy = beams(clips[0], text=QUESTION, num_beams=1)[0]["generated_text"]
    assert "".join(beams.stream(clips[0], text=QUESTION)).strip() == greedy


def test_stream_about_several_clips_raises(pipe: AudioTextPipeline, clips: list[str]) -> None:
    with pytest.raises(ValueError, match="Got 3 clips to stream about"):
        next(pipe.stream(clips, text=QUESTION))


def test_stream_when_audio_is_missing_raises(pipe: AudioTextPipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no audio file .*absent\.wav"):
        list(pipe.stream(str(tmp_path / "absent.wav"), text=QUESTION))


def test_stream_when_generation_fails_raises(pipe: AudioTextPipeline, clips: list[str]) -> None:
    with pytest.raises(ValueError, match="lora_scale must not be negative"):
        list(pipe.stream(clips[0], text=QUESTION, lora_scale=-1.0))


def test_streamer_gets_the_answer(
    pipe: AudioTextPipeline, clips: list[str], answers: list, capsys: pytest.CaptureFixture[str]
) -> None:
    streamer = TextStreamer(pipe.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    assert pipe(clips[0], text=QUESTION, streamer=streamer) == answers[0]
    assert capsys.readouterr().out.strip() == answers[0][0]["generated_text"]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_missing_file_raises_with_its_name(
    batch_size: int, pipe: AudioTextPipeline, clips: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no audio file .*absent\.wav"):
        pipe([clips[0], str(tmp_path / "absent.wav")], text=QUESTION, batch_size=batch_size)


def test_undecodable_file_raises_with_its_name(pipe: AudioTextPipeline, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("This is not audio.")
    with pytest.raises(ValueError, match=r"notes\.wav cannot be decoded"):
        pipe(str(tmp_path / "notes.wav"), text=QUESTION)


def test_silent_samples_are_answered(pipe: AudioTextPipeline) -> None:
    silence = np.zeros(SAMPLING_RATE, dtype=np.float32)
    assert isinstance(pipe(silence, text=QUESTION, sampling_rate=SAMPLING_RATE)[0]["generated_text"], str)


def test_saved_folder_runs_as_pipeline(
    saved_folder: Path,
    bucket_model: SalmonnForConditionalGeneration,
    bucket_processor: SalmonnProcessor,
    wav_file: Path,
) -> None:
    loaded = pipeline("audio-text", model=str(saved_folder), trust_remote_code=True)
    expected = pipeline("audio-text", model=bucket_model, processor=bucket_processor)
    options: dict[str, Any] = {"text": QUESTION, "max_new_tokens": NEW_TOKENS}
    assert loaded(str(wav_file), **options) == expected(str(wav_file), **options)


def test_saved_pipeline_loads_with_its_processor(bucket_config: SalmonnConfig, tmp_path: Path) -> None:
    processor = tiny_processor(bucket_config, chatml=True)
    pipeline("audio-text", model=tiny_model(bucket_config), processor=processor).save_pretrained(tmp_path)
    loaded = pipeline("audio-text", model=str(tmp_path), trust_remote_code=True)
    assert loaded.processor.chat_template == CHATML_CHAT_TEMPLATE
    assert loaded.processor.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
