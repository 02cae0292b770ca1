"""Generation: placeholders stay out of sight of what reads ids, whatever the name of the cache."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.generation_salmonn import CACHE_NAME, CACHE_NAMES


class RecordingProcessor(LogitsProcessor):
    """Sees all ids at every step and changes nothing."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(input_ids.clone())
        return scores


class RecordingCriterion(StoppingCriteria):
    """Sees all ids at every step and stops nothing."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.seen.append(input_ids.clone())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class StreamRecorder(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.flatten().tolist())

    def end(self) -> None:
        self.values.append([])


@pytest.fixture(scope="module")
def batch(bucket_processor: SalmonnProcessor) -> dict[str, torch.Tensor]:
    """Two prompts of different length, with two clips and with one."""
    clips = [[make_clip(1.0, seed=1), make_clip(3.0, seed=2)], [make_clip(2.0, seed=3)]]
    return dict(bucket_processor(text=["Two clips?", "One?"], audio=clips, sampling_rate=SAMPLING_RATE))


@pytest.fixture(scope="module")
def prompt(bucket_processor: SalmonnProcessor) -> dict[str, torch.Tensor]:
    return dict(bucket_processor(text="Again and again?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE))


@pytest.mark.parametrize(
    "options",
    [
        {"encoder_repetition_penalty": 1.5},
        {"encoder_no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2, "num_beams": 2},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_penalties_answer_prompts_with_placeholders_beyond_the_table(
    options: dict[str, Any], bucket_model: SalmonnForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    ids = batch["input_ids"]
    output = bucket_model.generate(**batch, max_new_tokens=6, **options)
    assert torch.equal(output[:, : ids.shape[1]], ids)
    assert int(output[:, ids.shape[1] :].max()) < bucket_model.config.text_config.vocab_size


def test_encoder_penalties_act_on_the_text_of_the_prompt_alone(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    text = set(prompt["input_ids"][0].tolist()) - {bucket_model.config.audio_token_id}
    options = {"max_new_tokens": 1, "output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    output = bucket_model.generate(**prompt, encoder_repetition_penalty=2.0, **options)
    changed = (output.scores[0] != output.logits[0])[0].nonzero().flatten().tolist()
    assert set(changed) == text
    banned = bucket_model.generate(**prompt, encoder_no_repeat_ngram_size=1, **options).scores[0][0].isneginf()
    assert set(banned.nonzero().flatten().tolist()) == text


def test_own_processors_and_criteria_see_ids_of_the_vocabulary_alone(
    bucket_model: SalmonnForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    processor, criterion = RecordingProcessor(), RecordingCriterion()
    options = {
        "logits_processor": LogitsProcessorList([processor]),
        "stopping_criteria": StoppingCriteriaList([criterion]),
    }
    bucket_model.generate(**batch, max_new_tokens=3, num_beams=2, **options)
    seen = processor.seen + criterion.seen
    assert len(seen) >= 6
    assert max(int(ids.max()) for ids in seen) < bucket_model.config.text_config.vocab_size
    text = batch["input_ids"] != bucket_model.config.audio_token_id
    first = processor.seen[0][::2]  # beams
    assert torch.equal(first[text], batch["input_ids"][text])


def test_streamer_gets_the_prompt_as_it_was(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    streamer = StreamRecorder()
    output = bucket_model.generate(**prompt, max_new_tokens=3, streamer=streamer)
    assert [token for value in streamer.values for token in value] == output[0].tolist()
    assert streamer.values[-1] == []


@pytest.mark.parametrize("options", [{"num_return_sequences": 3, "do_sample": True}, {"num_beams": 2}], ids=str)
def test_sequences_start_with_the_prompt_as_it_was(
    options: dict[str, Any], bucket_model: SalmonnForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    before = {name: value.clone() for name, value in batch.items()}
    output = bucket_model.generate(**batch, max_new_tokens=2, return_dict_in_generate=True, **options).sequences
    prompts = batch["input_ids"].repeat_interleave(len(output) // 2, dim=0)
    assert torch.equal(output[:, : prompts.shape[1]], prompts)
    assert all(torch.equal(batch[name], before[name]) for name in before)  # nothing of the caller's has changed


def test_prompt_lookup_equals_greedy_with_placeholders_to_copy(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    """The last tokens of the prompt stand in front of its placeholders too: they are what lookup proposes."""
    turns = "USER: <Speech><SpeechHere></Speech> Hm?\nUSER: <Speech>"
    inputs = bucket_processor(text=turns, audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    greedy = bucket_model.generate(**inputs, max_new_tokens=10)
    assert bucket_model.generate(**inputs, max_new_tokens=10, prompt_lookup_num_tokens=4).tolist() == greedy.tolist()


def test_placeholders_without_audio_raise_in_generate(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="Found 3 audio placeholders in the prompt, but the audio gives 0"):
        bucket_model.generate(input_ids=prompt["input_ids"], max_new_tokens=2)


@pytest.mark.parametrize("options", [{}, {"pad_token_id": 0}, {"num_beams": 2}], ids=str)
def test_padded_batch_is_answered_without_a_mask_as_with_it(
    options: dict[str, Any], bucket_model: SalmonnForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    assert 0 in batch["attention_mask"]
    others = {name: value for name, value in batch.items() if name != "attention_mask"}
    options = options | {"max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    expected = bucket_model.generate(**batch, **options)
    found = bucket_model.generate(**others, **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for one, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other)


def test_padding_of_the_callers_config_is_told_from_text(
    bucket_model: SalmonnForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    config = GenerationConfig(pad_token_id=9, eos_token_id=2, max_new_tokens=6)
    padding = batch["attention_mask"] == 0
    prompts = batch | {"input_ids": batch["input_ids"].masked_fill(padding, 9)}
    expected = bucket_model.generate(**prompts, generation_config=config)
    del prompts["attention_mask"]
    assert bucket_model.generate(**prompts, generation_config=config).tolist() == expected.tolist()


def test_rows_of_audio_alone_are_answered_without_a_mask_as_with_it(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    clips = [make_clip(1.0), make_clip(1.5, seed=2)]
    features = bucket_processor.feature_extractor(clips, sampling_rate=SAMPLING_RATE)
    counts = bucket_model.get_audio_features(**features).token_counts.tolist()
    ids = torch.zeros(2, max(counts), dtype=torch.long)  # of padding
    for row, count in zip(ids, counts, strict=True):
        row[-count:] = bucket_model.config.audio_token_id
    assert 0 in ids
    expected = bucket_model.generate(input_ids=ids, attention_mask=(ids != 0).long(), **features, max_new_tokens=6)
    assert bucket_model.generate(input_ids=ids, **features, max_new_tokens=6).tolist() == expected.tolist()


def test_labels_raise_in_generate(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs = bucket_processor(text="Hm?", audio=make_clip(1.0), text_target="a duck", sampling_rate=SAMPLING_RATE)
    with pytest.raises(ValueError, match=r"got labels: such prompts hold the answers.*SalmonnCollator\.prepare"):
        bucket_model.generate(**inputs, max_new_tokens=2)


def test_prompt_that_is_given_twice_raises(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="as inputs and as input_ids; pass them once"):
        bucket_model.generate(prompt["input_ids"], **prompt)


def test_guidance_by_a_prompt_without_audio_works(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    options = {"max_new_tokens": 3, "output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    output = bucket_model.generate(
        **prompt, guidance_scale=2.0, negative_prompt_ids=torch.tensor([[1, 70, 71]]), **options
    )
    assert not torch.allclose(output.scores[0], output.logits[0].log_softmax(-1), atol=1e-3)


def test_token_healing_with_audio_raises(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ValueError, match="token_healing writes prompts anew"):
        bucket_model.generate(**prompt, token_healing=True)


@pytest.mark.parametrize("chunk", [5, 50])
def test_prefill_in_chunks_keeps_the_audio_in_its_place(
    chunk: int, bucket_model: SalmonnForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    options = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    expected = bucket_model.generate(**batch, **options)
    found = bucket_model.generate(**batch, prefill_chunk_size=chunk, **options)
    assert torch.allclose(found.logits[0], expected.logits[0], atol=1e-4)


def forward_inputs(model: SalmonnForConditionalGeneration, **inputs: Any) -> list[set[str]]:
    """Names of what is given to the model at each step."""
    steps: list[set[str]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: steps.append({name for name, value in kwargs.items() if value is not None}),
        with_kwargs=True,
    )
    try:
        model.generate(**inputs)
    finally:
        hook.remove()
    return steps


def test_audio_goes_along_until_it_is_in_the_cache(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    first, *others = forward_inputs(bucket_model, **prompt, max_new_tokens=4)
    assert {"audio_embeds", "audio_positions", "input_ids"} <= first
    assert len(others) == 3
    assert not any("audio" in name or "feature" in name for step in others for name in step)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_cache_is_taken_under_either_name(
    name: str, bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    first = bucket_model.generate(**prompt, max_new_tokens=4, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[70, 71, 72]])], dim=1)
    second = prompt | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = bucket_model.generate(**second, max_new_tokens=4)
    cache = getattr(first, CACHE_NAME)
    steps = forward_inputs(bucket_model, **second, **{name: deepcopy(cache)}, max_new_tokens=1)
    assert not any("audio" in given for given in steps[0])
    assert bucket_model.generate(**second, **{name: cache}, max_new_tokens=4).tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", CACHE_NAMES)
def test_forward_takes_the_cache_under_either_name(
    name: str, bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    expected = bucket_model(**prompt).logits[:, -1]
    start = {key: value[:, :-1] if key in ("input_ids", "attention_mask") else value for key, value in prompt.items()}
    cache = getattr(bucket_model(**start, use_cache=True), CACHE_NAME)
    step = bucket_model(prompt["input_ids"][:, -1:], **{name: cache}).logits[:, -1]
    assert torch.allclose(step, expected, atol=1e-4)


def test_second_clip_joins_a_cached_prompt_of_which_only_the_new_ids_are_given(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor, prompt: dict[str, torch.Tensor]
) -> None:
    first = bucket_model.generate(**prompt, max_new_tokens=4, return_dict_in_generate=True)
    text = "USER: <Speech><SpeechHere></Speech> And now?\nASSISTANT:"
    tail = bucket_processor(
        text=text, audio=make_clip(1.4, seed=2), sampling_rate=SAMPLING_RATE, add_special_tokens=False
    )
    ids = torch.cat([first.sequences, tail["input_ids"]], dim=1)
    both = bucket_processor.feature_extractor([make_clip(1.0), make_clip(1.4, seed=2)], sampling_rate=SAMPLING_RATE)
    mask = torch.ones_like(ids)
    expected = bucket_model.generate(input_ids=ids, attention_mask=mask, **both, max_new_tokens=4)
    # the last token of the answer is not in the cache yet
    new = ids[:, getattr(first, CACHE_NAME).get_seq_length() :]
    inputs = dict(tail) | {"input_ids": new, "attention_mask": mask, CACHE_NAME: getattr(first, CACHE_NAME)}
    assert bucket_model.generate(**inputs, max_new_tokens=4)[0, -4:].tolist() == expected[0, -4:].tolist()


@pytest.fixture(scope="module")
def model_with_placeholder() -> tuple[SalmonnForConditionalGeneration, SalmonnProcessor]:
    """The placeholder has an embedding."""
    config = tiny_config(segment_seconds=2, trim_audio_tokens=True)
    model = tiny_model(config)
    model.resize_token_embeddings(270)
    return model, tiny_processor(config)


def test_embeddings_with_audio_need_no_ids_where_the_placeholder_has_one(
    model_with_placeholder: tuple[SalmonnForConditionalGeneration, SalmonnProcessor],
) -> None:
    model, processor = model_with_placeholder
    clips = [[make_clip(1.0, seed=1), make_clip(1.5, seed=2)], [make_clip(2.0, seed=3)]]
    inputs = dict(processor(text=["Two clips?", "One?"], audio=clips, sampling_rate=SAMPLING_RATE))
    ids = inputs.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, **inputs).logits
        assert torch.allclose(model(inputs_embeds=embeds, **inputs).logits, expected, atol=1e-5)
    answer = model.generate(input_ids=ids, **inputs, max_new_tokens=4)[:, ids.shape[1] :]
    assert model.generate(inputs_embeds=embeds, **inputs, max_new_tokens=4).tolist() == answer.tolist()


def test_embeddings_with_audio_need_ids_where_the_placeholder_has_none(
    bucket_model: SalmonnForConditionalGeneration, prompt: dict[str, torch.Tensor]
) -> None:
    others = {name: value for name, value in prompt.items() if name != "input_ids"}
    with pytest.raises(ValueError, match="no embedding to find in inputs_embeds; pass input_ids"):
        bucket_model.generate(inputs_embeds=bucket_model.model.embed_prompt(prompt["input_ids"]), **others)


def test_placeholder_with_an_embedding_is_hidden_too(
    model_with_placeholder: tuple[SalmonnForConditionalGeneration, SalmonnProcessor],
) -> None:
    model, processor = model_with_placeholder
    inputs = processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    options = {"max_new_tokens": 1, "output_logits": True, "output_scores": True, "return_dict_in_generate": True}
    output = model.generate(**inputs, encoder_repetition_penalty=2.0, **options)
    placeholder = model.config.audio_token_id
    assert output.scores[0][0, placeholder] == output.logits[0][0, placeholder]
