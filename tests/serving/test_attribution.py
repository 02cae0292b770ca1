"""Which seconds an answer rests on: against finite differences, and what is said and drawn of it."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from conftest import SAMPLING_RATE, make_clip, tiny_config, tiny_model, tiny_processor
from transformers import BatchFeature, pipeline

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.serving.attribution import Explanation, answer_weights, explain, explain_messages, split_text
from modeling_salmonn.serving.attribution_figure import MAX_ROWS, draw_clip, plot_explanation, weights_over_time


QUESTION = "What do you hear?"
NEW_TOKENS = 5
SCALING = 0.05  # small enough for the slope, large enough for norms in float32


def clip(seconds: float) -> dict[str, Any]:
    return {"array": make_clip(seconds), "sampling_rate": SAMPLING_RATE}


def explain_clip(
    model: SalmonnForConditionalGeneration, processor: SalmonnProcessor, seconds: float, **options: Any
) -> Explanation:
    return explain(model, processor, clip(seconds), QUESTION, max_new_tokens=NEW_TOKENS, **options)


def prepare(processor: SalmonnProcessor) -> tuple[BatchFeature, torch.Tensor]:
    """Inputs of a short clip, and an answer that is no one's greedy choice."""
    inputs = processor(text=QUESTION, audio=clip(1.5))
    return inputs, torch.tensor(processor.tokenizer("A bee?", add_special_tokens=False)["input_ids"])


def encode(model: SalmonnForConditionalGeneration, inputs: BatchFeature) -> torch.Tensor:
    names = [name for name in inputs if name not in ("input_ids", "attention_mask")]
    with torch.no_grad():
        return model.get_audio_features(**{name: inputs[name] for name in names}).pooler_output


@torch.no_grad()
def log_probabilities(
    model: SalmonnForConditionalGeneration, inputs: BatchFeature, audio_tokens: torch.Tensor, answer: torch.Tensor
) -> torch.Tensor:
    """Of each token of the answer, from the logits of all positions."""
    ids = torch.cat([inputs["input_ids"][0], answer])
    predicted = model(input_ids=ids[None], audio_embeds=audio_tokens[None]).logits[0].log_softmax(-1)
    return torch.stack(
        [predicted[position - 1, ids[position]] for position in range(len(ids) - len(answer), len(ids))]
    )


def made_up(**changes: Any) -> Explanation:
    """A clip of 3.5 s in windows of 1 s, the last of which lies in padding."""
    explanation = Explanation(
        answer="Two words",
        token_texts=("Two", " words"),
        times=np.array([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [4.0, 5.0]]),
        weights=np.array([[1.0, 5.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.5, 0.5]]),
        total=np.array([0.1, 0.6, 0.1, 0.15, 0.05]),
        seconds=3.5,
    )
    return replace(explanation, **changes)


@pytest.mark.parametrize(
    ("options", "lora"),
    [({}, False), ({"audio": False}, True), ({"num_query_tokens": 2, "text_model": "qwen3"}, False)],
    ids=["both encoders", "speech only, LoRA", "two queries"],
)
def test_weights_equal_the_slope_of_scaling_an_audio_token(options: dict[str, Any], lora: bool) -> None:
    config = tiny_config(segment_seconds=[2, 5], trim_audio_tokens=True, **options)
    model, processor = tiny_model(config, lora=lora), tiny_processor(config)
    inputs, answer = prepare(processor)
    audio_tokens = 4 * encode(model, inputs).double()  # about as large as the embeddings of text
    model.double()
    slopes = []
    for token in range(len(audio_tokens)):
        louder, softer = audio_tokens.clone(), audio_tokens.clone()
        louder[token] *= 1 + SCALING
        softer[token] *= 1 - SCALING
        rise = log_probabilities(model, inputs, louder, answer) - log_probabilities(model, inputs, softer, answer)
        slopes.append(rise / (2 * SCALING))
    expected = torch.stack(slopes, dim=1).abs().float()
    weights = answer_weights(model, inputs, audio_tokens, answer)
    assert weights.shape == (len(answer), len(audio_tokens))
    assert expected.max() > 1e-6  # far above the rounding of doubles
    torch.testing.assert_close(weights, expected, rtol=0.01, atol=2e-3 * float(expected.max()))


def test_weights_are_zero_for_a_masked_token(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs, answer = prepare(bucket_processor)
    placeholders = (inputs["input_ids"][0] == bucket_processor.audio_token_id).nonzero()[:, 0]
    inputs["attention_mask"][0, placeholders[2]] = 0
    weights = answer_weights(bucket_model, inputs, encode(bucket_model, inputs), answer)
    masked = torch.arange(len(placeholders)) == 2
    assert (weights[:, masked] == 0).all()
    assert (weights[:, ~masked] > 0).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_explanation_is_of_the_pipelines_answer(
    attention: str, bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    model = deepcopy(bucket_model)
    model.set_attn_implementation(attention)
    instruction = "What is <SpeechHere>?"  # a placeholder that the user wrote is text
    explanation = explain(model, bucket_processor, clip(1.5), instruction, max_new_tokens=NEW_TOKENS, lora_scale=1.0)
    pipe = pipeline("audio-text", model=model, processor=bucket_processor)
    options = {"max_new_tokens": NEW_TOKENS, "lora_scale": 1.0}
    assert explanation.answer == pipe(clip(1.5), text=instruction, **options)[0]["generated_text"]
    assert "".join(explanation.token_texts).strip() == explanation.answer
    assert explanation.weights.shape == (len(explanation.token_texts), len(explanation.times))
    assert explanation.total.sum() == pytest.approx(1)
    np.testing.assert_allclose(explanation.total, explanation.weights.sum(0) / explanation.weights.sum(), rtol=1e-5)


def test_explanation_depends_on_the_lora_scale(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    trained = bucket_model.config.lora_scaling
    usual = explain_clip(bucket_model, bucket_processor, 1.5)
    np.testing.assert_allclose(
        explain_clip(bucket_model, bucket_processor, 1.5, lora_scale=trained).weights, usual.weights, rtol=1e-5
    )
    other = explain_clip(bucket_model, bucket_processor, 1.5, lora_scale=0.0)
    assert not np.allclose(other.total, usual.total, atol=1e-3)


@pytest.mark.parametrize("seconds", [0.4, 1.5, 31.2], ids=["short", "usual", "two segments"])
def test_times_are_those_of_the_layout(
    seconds: float, bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    explanation = explain_clip(bucket_model, bucket_processor, seconds)
    layout = bucket_processor.feature_extractor.audio_layout
    assert explanation.times.tolist() == [list(span) for span in layout.token_times(round(100 * seconds))]
    assert explanation.total.shape == (layout.num_audio_tokens(round(100 * seconds)),)
    assert explanation.seconds == pytest.approx(seconds)
    assert explanation.share_outside == 0
    start, end, share = explanation.main_span()
    assert 0 <= start < end <= seconds
    assert share >= 0.5


def test_weight_in_the_padding_is_told(model: SalmonnForConditionalGeneration, processor: SalmonnProcessor) -> None:
    explanation = explain_clip(model, processor, 1.5)  # 88 tokens, whatever the clip
    behind = [start >= 1.5 for start, _ in explanation.times]
    assert sum(behind) == 83
    assert explanation.share_outside == pytest.approx(explanation.total[behind].sum())
    assert explanation.share_outside > 0.01
    assert f"; {100 * explanation.share_outside:.0f} % of the weight lies in the padding" in explanation.summary()
    assert explanation.main_span()[1] <= 1.5


@pytest.mark.parametrize("lora_scale", [None, 2.0, -1.0], ids=["trained", "scaled", "refused"])
def test_the_model_is_left_as_it_was(
    lora_scale: float | None, bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    quiet = explain_clip(bucket_model, bucket_processor, 1.5)
    model = deepcopy(bucket_model).train()
    model.model.qformer.layers[0].eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    before = deepcopy(model)
    if lora_scale == -1.0:
        with pytest.raises(ValueError, match="must not be negative"):
            explain_clip(model, bucket_processor, 1.5, lora_scale=lora_scale)
    else:
        explanation = explain_clip(model, bucket_processor, 1.5, lora_scale=lora_scale)
        same = np.allclose(explanation.weights, quiet.weights, rtol=1e-4, atol=1e-6)
        assert same == (lora_scale is None)  # without dropout, although the model was in training
    modes = [(name, module.training) for name, module in model.named_modules()]
    assert modes == [(name, module.training) for name, module in before.named_modules()]
    for (name, parameter), earlier in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter, earlier), name
        assert parameter.requires_grad == earlier.requires_grad, name
        assert parameter.grad is None, name
    with torch.no_grad():
        inputs, answer = prepare(bucket_processor)
        audio_tokens = encode(model.eval(), inputs)
        unscaled = log_probabilities(model, inputs, audio_tokens, answer)
    torch.testing.assert_close(unscaled, log_probabilities(before.eval(), inputs, audio_tokens, answer))


def test_an_empty_answer_raises(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    model = deepcopy(bucket_model)
    model.generation_config.forced_eos_token_id = bucket_processor.tokenizer.eos_token_id
    with pytest.raises(ValueError, match="answer is empty"):
        explain(model, bucket_processor, clip(1.5), QUESTION, max_new_tokens=1)


@pytest.mark.parametrize("clips", [0, 2])
def test_conversation_without_one_clip_raises(
    clips: int, bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    content = [{"type": "audio", "audio": make_clip(1.5), "sampling_rate": SAMPLING_RATE}] * clips
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]
    with pytest.raises(ValueError, match=rf"seconds of one clip, but there are {clips}; give one"):
        explain_messages(bucket_model, bucket_processor, messages)


def test_a_model_that_ignores_the_audio_raises(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    model = deepcopy(bucket_model)
    for parameter in model.model.projector.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match="does not depend on the audio"):
        explain_clip(model, bucket_processor, 1.5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (1.0, 2.0, 0.6)),
        ({"total": np.array([0.2, 0.1, 0.1, 0.6, 0.0])}, (3.0, 3.5, 0.6)),  # cut at the clip's end
        ({"total": np.array([0.1, 0.1, 0.0, 0.0, 0.8])}, (0.0, 1.0, 0.1)),  # half of what is within the clip
        ({"total": np.full(5, 0.2), "seconds": 5.0}, (0.0, 3.0, 0.6)),
        ({"times": np.array([[0, 1], [0, 1], [0.5, 1.5], [0.5, 1.5], [1, 2]]), "seconds": 2.0}, (0.0, 1.0, 0.7)),
    ],
    ids=["one window", "last window", "padding", "even", "two queries"],
)
def test_main_span_is_the_shortest_with_half_of_the_weight(
    changes: dict[str, Any], expected: tuple[float, float, float]
) -> None:
    assert made_up(**changes).main_span() == pytest.approx(expected)


def test_summary_tells_where_the_weight_lies() -> None:
    line = "answer rests mostly on 1.0 to 2.0 s: 60 % of the weight in 29 % of the clip (attribution, not time stamps)"
    outside = "5 % of the weight lies in the padding behind it"
    assert made_up().summary() == f"Within the clip, the {line}; {outside}"
    little = made_up(total=np.array([0.1, 0.6, 0.1, 0.195, 0.005]))
    assert little.summary() == f"The {line}"


def test_a_window_that_begins_where_the_clip_ends_is_outside() -> None:
    times = np.array([[0.0, 0.1], [0.1, 0.2], [0.1 + 0.2, 0.4]])  # 0.30000000000000004
    explanation = made_up(times=times, total=np.array([0.25, 0.5, 0.25]), seconds=0.3)
    assert explanation.share_outside == 0.25
    assert replace(explanation, times=times - 1e-9).share_outside == 0.25


def test_weights_over_time_add_up_where_windows_overlap() -> None:
    explanation = made_up(times=np.array([[0.0, 0.03], [0.0, 0.03], [0.02, 0.05]]), seconds=0.04)
    weights = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]])
    assert weights_over_time(explanation, weights).tolist() == [[3, 3, 7, 4], [0, 0, 8, 8]]
    assert weights_over_time(explanation, weights[0]).tolist() == [3, 3, 7, 4]


def test_token_texts_hold_whole_characters() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("Ö 鸭?", add_special_tokens=False)["input_ids"]
    assert split_text(tokenizer, ids) == ("", "Ö", " ", "", "", "鸭", "?")
    assert split_text(tokenizer, ids[:4]) == ("", "Ö", " ", "\ufffd")


@pytest.mark.parametrize("rows", [2, MAX_ROWS, MAX_ROWS + 1])
def test_picture_has_a_row_for_each_token_unless_there_are_many(rows: int, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    picture = tmp_path / "folder" / "why.png"
    explanation = made_up(token_texts=("duck",) * rows, weights=np.eye(rows, 5))
    plot_explanation(explanation, make_clip(3.5), picture)
    height, width, _ = image.imread(picture, format="png").shape
    assert width > 1000
    assert (400 < height < 800) if rows != MAX_ROWS else (1400 < height < 1800)


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_picture_takes_any_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    texts = ("$\\frac", " $", "\n", "", "鸭\x00", "_^{")
    explanation = made_up(answer="".join(texts) * 30, token_texts=texts, weights=np.eye(6, 5))
    plot_explanation(explanation, make_clip(3.5), tmp_path / "why.png")
    assert (tmp_path / "why.png").stat().st_size > 10_000


def test_clip_is_drawn_over_its_seconds() -> None:
    pytest.importorskip("matplotlib")
    figure = draw_clip(make_clip(3.5), width=6.0)
    (panel,) = figure.axes
    assert panel.get_xlim() == (0, 3.5)
    assert figure.get_figwidth() == 6.0


def test_picture_of_a_real_explanation_takes_a_tensor(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    explanation = explain_clip(bucket_model, bucket_processor, 0.4)
    plot_explanation(explanation, torch.from_numpy(make_clip(0.4)), tmp_path / "why.png")
    assert (tmp_path / "why.png").stat().st_size > 10_000
