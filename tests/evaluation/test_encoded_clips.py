"""Clips that are asked about several times are encoded once, and the answers stay what they were."""

from typing import Any

import pytest
import torch
from conftest import make_clip, tiny_config, tiny_model, tiny_processor
from counted_segments import counted_segments
from peft import LoraConfig

from modeling_salmonn import SalmonnConfig, SalmonnForConditionalGeneration
from modeling_salmonn.evaluation.answering import Answerer, Decoding
from modeling_salmonn.evaluation.encoded_clips import EncodedClips


CLIPS = [make_clip(seconds, seed=index) for index, seconds in enumerate((0.6, 3.0, 1.4))]
DECODING = Decoding(max_new_tokens=6)
SCALES = (0.0, 2.0, None)


@pytest.fixture
def answerer(bucket_config: SalmonnConfig) -> Answerer:
    return Answerer(tiny_model(bucket_config, lora=True), tiny_processor(bucket_config))


def examples(*rows: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"instruction": instruction, "audio": audio} for instruction, audio in rows]


def direct_answers(answerer: Answerer, batch: list[dict[str, Any]], scale: float | None) -> list[str]:
    """What the model says to the features themselves."""
    inputs = answerer.prepare(batch)
    output = answerer.model.generate(**inputs, lora_scale=scale, max_new_tokens=6, num_beams=1, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in answerer.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def test_answers_at_several_scales_are_those_of_the_features(answerer: Answerer) -> None:
    batch = examples(("What?", CLIPS[0]), ("Who sings?", CLIPS[1]), ("Hello.", None), ("Compare.", CLIPS[1:]))
    said = set()
    for scale in SCALES:
        expected = direct_answers(answerer, batch, scale)
        with counted_segments() as counts:
            answers = answerer.answer(batch, Decoding(max_new_tokens=6, lora_scale=scale))
        assert [answer.text for answer in answers] == expected
        assert counts == ({"speech": 3, "audio": 3} if scale == SCALES[0] else {})  # one of the clips comes twice
        said.add(tuple(expected))
    assert len(said) == len(SCALES)


def test_clip_is_known_in_other_batches_and_under_other_instructions(answerer: Answerer) -> None:
    with counted_segments() as counts:
        answerer.answer(examples(("What?", CLIPS[0])), DECODING)
        answerer.answer(examples(("Who?", CLIPS[1]), ("And now?", CLIPS[0])), DECODING)  # padded to the longer one
        answerer.answer(examples(("How?", CLIPS[2]), ("Why?", CLIPS[1])), DECODING)
    assert counts == {"speech": 3, "audio": 3}


def test_clips_that_differ_in_a_sample_are_two(answerer: Answerer) -> None:
    changed = CLIPS[0].copy()
    changed[len(changed) // 2] += 0.1
    with counted_segments() as counts:
        answerer.answer(examples(("What?", CLIPS[0]), ("What?", changed)), DECODING)
    assert counts == {"speech": 2, "audio": 2}


def test_clips_beyond_the_limit_are_encoded_each_time(answerer: Answerer) -> None:
    batch = examples(*[("What?", clip) for clip in CLIPS])
    tokens = [answerer.extractor.num_audio_tokens(len(clip)) for clip in CLIPS]
    first_two = sum(tokens[:2]) * answerer.model.config.text_config.hidden_size * 4  # bytes
    answerer.encoded_clips = EncodedClips(answerer.model, most_bytes=first_two)
    first = answerer.answer(batch, DECODING)
    with counted_segments() as counts:
        assert answerer.answer(batch, DECODING) == first
    assert counts == {"speech": 1, "audio": 1}


@pytest.fixture
def adapted_everywhere(bucket_config: SalmonnConfig) -> SalmonnForConditionalGeneration:
    model = tiny_model(bucket_config)
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return model.eval()


def test_tokens_that_follow_from_the_scale_are_encoded_at_each(
    adapted_everywhere: SalmonnForConditionalGeneration, bucket_config: SalmonnConfig
) -> None:
    answerer = Answerer(adapted_everywhere, tiny_processor(bucket_config))
    batch = examples(("What?", CLIPS[0]))
    with counted_segments() as counts:
        for scale in (0.0, 9.0):
            expected = direct_answers(answerer, batch, scale)
            answers = answerer.answer(batch, Decoding(max_new_tokens=6, lora_scale=scale))
            assert [answer.text for answer in answers] == expected
    assert counts == {"speech": 4, "audio": 4}


def test_speech_only_model_encodes_once_too() -> None:
    config = tiny_config(audio=False)
    answerer = Answerer(tiny_model(config), tiny_processor(config))
    batch = examples(("What?", CLIPS[0]), ("Who?", CLIPS[1]))
    with counted_segments() as counts:
        first, again = (answerer.answer(batch, DECODING) for _ in range(2))
    assert first == again
    assert counts == {"speech": 2}
