"""The whole model: a batch equals its members, generation, training, and what transformers expects of a model."""

from typing import Any

import numpy as np
import pytest
import soxr
import torch
from conftest import (
    SAMPLING_RATE,
    SEGMENT_CHOICES,
    TEXT_MODELS,
    make_clip,
    tiny_config,
    tiny_model,
    tiny_processor,
)

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.audio_positions_salmonn import find_positions, pad_tokens


LOGIT_TOLERANCE = 1e-4


def mixed_batch() -> tuple[list[str], list[list[dict[str, Any]]]]:
    """Prompts with 0 to 3 clips of 0.2 s to 70 s, mono and stereo, at 8 to 48 kHz."""

    def clip(seconds: float, rate: int, channels: int, seed: int) -> dict[str, Any]:
        samples = soxr.resample(make_clip(seconds, seed=seed), SAMPLING_RATE, rate)
        if channels == 2:
            samples = np.stack([samples, 0.5 * samples[::-1]], axis=1)
        return {"array": samples, "sampling_rate": rate}

    texts = ["What do you hear?", "Compare the clips, please.", "Say hello.", "And these three?", "Transcribe."]
    clips = [
        [clip(0.2, 16000, 1, 1)],
        [clip(3.3, 8000, 1, 2), clip(7.1, 44100, 2, 3)],
        [],
        [clip(1.0, 22050, 1, 4), clip(0.6, 48000, 2, 5), clip(12.0, 16000, 1, 6)],
        [clip(70.0, 16000, 1, 7)],
    ]
    return texts, clips


def drop_prompt(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("audio", [True, False], ids=["beats", "speech-only"])
@pytest.mark.parametrize("trim", [False, True], ids=["full", "trimmed"])
@pytest.mark.parametrize("segments", SEGMENT_CHOICES, ids=["official", "buckets"])
def test_batch_equals_alone_for_mixed_prompts(segments: Any, trim: bool, audio: bool) -> None:
    config = tiny_config(audio=audio, segment_seconds=segments, trim_audio_tokens=trim)
    model, processor = tiny_model(config), tiny_processor(config)
    texts, clips = mixed_batch()
    batch = processor(text=texts, audio=clips)
    with torch.no_grad():
        batch_logits = model(**batch).logits
        batch_tokens = model.get_audio_features(**drop_prompt(batch))
    batch_ids = model.generate(**batch, max_new_tokens=6)[:, batch["input_ids"].shape[1] :]
    start = 0
    for row, (text, own) in enumerate(zip(texts, clips, strict=True)):
        alone = processor(text=[text], audio=[own])
        length = alone["input_ids"].shape[1]
        with torch.no_grad():
            logits = model(**alone).logits
        assert (batch_logits[row, -length:] - logits[0]).abs().max() <= LOGIT_TOLERANCE
        new_ids = model.generate(**alone, max_new_tokens=6)[0, length:]
        assert batch_ids[row, : len(new_ids)].tolist() == new_ids.tolist()
        if own:
            tokens = model.get_audio_features(**drop_prompt(alone)).pooler_output
            assert (batch_tokens.pooler_output[start : start + len(tokens)] - tokens).abs().max() <= 1e-5
            start += len(tokens)
    assert start == len(batch_tokens.pooler_output) == int(batch_tokens.token_counts.sum())


def test_long_clip_gives_the_tokens_of_its_segments(
    model: SalmonnForConditionalGeneration, processor: SalmonnProcessor
) -> None:
    clip = make_clip(70.0, seed=3)
    extractor = processor.feature_extractor
    whole = model.get_audio_features(**extractor(clip, sampling_rate=SAMPLING_RATE)).pooler_output
    cuts = [clip[: 30 * SAMPLING_RATE], clip[30 * SAMPLING_RATE : 60 * SAMPLING_RATE], clip[60 * SAMPLING_RATE :]]
    parts = [model.get_audio_features(**extractor(cut, sampling_rate=SAMPLING_RATE)).pooler_output for cut in cuts]
    assert whole.shape[0] == 3 * 88
    assert (whole - torch.cat(parts)).abs().max() <= 1e-5


def test_trimmed_tokens_are_the_first_of_all_tokens() -> None:
    full, trimmed = tiny_config(), tiny_config(trim_audio_tokens=True)
    clip = make_clip(4.0)
    features = tiny_processor(full).feature_extractor(clip, sampling_rate=SAMPLING_RATE)
    all_tokens = tiny_model(full).get_audio_features(**features).pooler_output
    kept = tiny_model(trimmed).get_audio_features(**features).pooler_output
    assert len(all_tokens) == 88
    assert len(kept) == 12  # windows of 17 frames that start within the 200 frames of 4 s
    assert (all_tokens[:12] - kept).abs().max() <= 1e-6


def test_several_queries_give_neighbouring_tokens() -> None:
    config = tiny_config(num_query_tokens=3, segment_seconds=[2, 5], trim_audio_tokens=True)
    model, processor = tiny_model(config), tiny_processor(config)
    inputs = processor(text=["a", "b"], audio=[make_clip(1.0), make_clip(4.0)], sampling_rate=SAMPLING_RATE)
    with torch.no_grad():
        output = model(**inputs)
    assert output.audio_hidden_states.shape[0] == int((inputs["input_ids"] == processor.audio_token_id).sum())
    assert output.audio_hidden_states.shape[0] % 3 == 0


@pytest.mark.parametrize("text_model", TEXT_MODELS)
def test_language_models_of_other_families_answer(text_model: str) -> None:
    config = tiny_config(text_model, segment_seconds=2, trim_audio_tokens=True)
    model, processor = tiny_model(config), tiny_processor(config, chatml=True)
    inputs = processor(
        text=["One?", "Another one?"], audio=[make_clip(0.5), make_clip(1.5)], sampling_rate=SAMPLING_RATE
    )
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert output.shape == (2, inputs["input_ids"].shape[1] + 4)


def test_left_padding_equals_none(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs = bucket_processor(text="Hello?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    padded = dict(inputs)
    padded["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (9, 0), value=0)
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (9, 0), value=0)
    plain = bucket_model.generate(**inputs, max_new_tokens=8)
    assert bucket_model.generate(**padded, max_new_tokens=8)[:, 9:].tolist() == plain.tolist()


def count_calls(module: torch.nn.Module) -> list[int]:
    """Rows of every call that the module receives from now on."""
    rows: list[int] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(args[0] if args else next(iter(kwargs.values())))), with_kwargs=True
    )
    return rows


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 4}, {"use_cache": False}]
)
def test_generate_encodes_each_clip_once(bucket_config: Any, options: dict[str, Any]) -> None:
    model, processor = tiny_model(bucket_config), tiny_processor(bucket_config)
    speech, audio = count_calls(model.model.speech_encoder), count_calls(model.model.audio_encoder)
    inputs = processor(text=["a", "b"], audio=[make_clip(1.0), make_clip(1.2)], sampling_rate=SAMPLING_RATE)
    model.generate(**inputs, max_new_tokens=5, **options)
    assert speech == [2]
    assert audio == [2]


def test_beams_keep_the_audio_of_their_prompt(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    texts, clips = (
        ["Two clips?", "One clip?"],
        [[make_clip(1.0, seed=1), make_clip(3.0, seed=2)], [make_clip(2.0, seed=3)]],
    )
    batch = bucket_processor(text=texts, audio=clips, sampling_rate=SAMPLING_RATE)
    together = bucket_model.generate(**batch, max_new_tokens=6, num_beams=4)[:, batch["input_ids"].shape[1] :]
    for row, (text, own) in enumerate(zip(texts, clips, strict=True)):
        alone = bucket_processor(text=[text], audio=[own], sampling_rate=SAMPLING_RATE)
        ids = bucket_model.generate(**alone, max_new_tokens=6, num_beams=4)[0, alone["input_ids"].shape[1] :]
        assert together[row, : len(ids)].tolist() == ids.tolist()


def test_rows_stop_on_their_own(bucket_config: Any) -> None:
    model, processor = tiny_model(bucket_config), tiny_processor(bucket_config)
    inputs = processor(
        text=["a", "bb", "ccc"], audio=[make_clip(1.0, seed=s) for s in range(3)], sampling_rate=SAMPLING_RATE
    )
    length = inputs["input_ids"].shape[1]
    free = model.generate(**inputs, max_new_tokens=12)[:, length:]
    stop = int(free[0, 2])  # row 0 ends here; the research code would end all rows
    stopped = model.generate(**inputs, max_new_tokens=12, eos_token_id=stop)[:, length:]
    for row in range(3):
        expected = free[row].tolist()
        end = expected.index(stop) + 1 if stop in expected else len(expected)
        assert stopped[row, :end].tolist() == expected[:end]


def test_text_alone_is_answered_like_the_language_model(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs = bucket_processor(text=["No audio here.", "Nor here."])
    assert set(inputs) == {"input_ids", "attention_mask"}
    ids = inputs["input_ids"]
    with torch.no_grad():
        logits = bucket_model(**inputs).logits
        hidden = bucket_model.model.language_model(
            input_ids=ids, attention_mask=inputs["attention_mask"]
        ).last_hidden_state
    assert torch.equal(logits, bucket_model.lm_head(hidden))
    assert bucket_model.generate(**inputs, max_new_tokens=3).shape == (2, ids.shape[1] + 3)


def test_prepared_embeddings_equal_the_inputs(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs = bucket_processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    base = bucket_model.model
    with torch.no_grad():
        tokens = base.get_audio_features(**drop_prompt(inputs)).pooler_output
        embeds = base.embed_prompt(inputs["input_ids"])
        embeds = embeds.masked_scatter(base.get_placeholder_mask(inputs["input_ids"], embeds, tokens), tokens)
        from_embeds = bucket_model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
        assert torch.allclose(from_embeds, bucket_model(**inputs).logits, atol=1e-5)
    generated = bucket_model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=5)
    assert generated[0].tolist() == bucket_model.generate(**inputs, max_new_tokens=5)[0, -5:].tolist()


def test_audio_tokens_take_their_places_in_embeddings(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    clips = [make_clip(1.0), make_clip(3.0, seed=2)]
    inputs = bucket_processor(text=["Hm?", "And this one?"], audio=clips, sampling_rate=SAMPLING_RATE)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = find_positions(ids, bucket_model.config.audio_token_id)
    with torch.no_grad():
        expected = bucket_model(**inputs).logits
        tokens = bucket_model.get_audio_features(**drop_prompt(inputs)).pooler_output
        audio = {"audio_embeds": pad_tokens(tokens, positions), "audio_positions": positions}
        prepared = {"inputs_embeds": bucket_model.model.embed_prompt(ids), "attention_mask": mask, **audio}
        torch.testing.assert_close(bucket_model(**prepared).logits, expected)
    answer = bucket_model.generate(**inputs, max_new_tokens=5)[:, ids.shape[1] :]
    assert bucket_model.generate(**prepared, max_new_tokens=5).tolist() == answer.tolist()
    del prepared["audio_positions"]
    with pytest.raises(ValueError, match="audio_embeds beside inputs_embeds need audio_positions"):
        bucket_model(**prepared)


def test_generate_puts_audio_into_embeddings_that_come_with_their_ids(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs = bucket_processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    embeds = bucket_model.model.embed_prompt(inputs["input_ids"])
    options = {"max_new_tokens": 2, "output_logits": True, "return_dict_in_generate": True}
    expected = bucket_model.generate(**inputs, **options).logits
    for found, wanted in zip(
        bucket_model.generate(**inputs, inputs_embeds=embeds, **options).logits, expected, strict=True
    ):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_cache_of_a_first_turn_serves_the_second(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs = bucket_processor(text="First?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    first = bucket_model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    more = torch.tensor([[70, 71, 72]])
    ids = torch.cat([first.sequences, more], dim=1)
    second = dict(inputs) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    reused = bucket_model.generate(**second, past_key_values=first.past_key_values, max_new_tokens=4)
    assert reused.tolist() == bucket_model.generate(**second, max_new_tokens=4).tolist()


def test_second_clip_joins_a_cached_prompt(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    clips = [make_clip(1.0, seed=1), make_clip(1.4, seed=2)]
    turns = [{"role": "user", "content": [{"type": "audio", "audio": clips[0]}, {"type": "text", "text": "What?"}]}]
    start = bucket_processor.apply_chat_template(turns, tokenize=True, return_dict=True, add_generation_prompt=True)
    first = bucket_model.generate(**start, max_new_tokens=4, return_dict_in_generate=True)
    prompt = "USER: <Speech><SpeechHere></Speech> And now?\nASSISTANT:"
    options = {"sampling_rate": SAMPLING_RATE, "add_special_tokens": False}
    tail = bucket_processor(text=prompt, audio=clips[1], formatted=True, **options)
    ids = torch.cat([first.sequences, tail["input_ids"]], dim=1)
    both = bucket_processor.feature_extractor(clips, sampling_rate=SAMPLING_RATE)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **both}
    reused = bucket_model.generate(**inputs, past_key_values=first.past_key_values, max_new_tokens=4)
    assert reused.tolist() == bucket_model.generate(**inputs, max_new_tokens=4).tolist()


@pytest.mark.parametrize(
    "options", [{"prompt_lookup_num_tokens": 3}, {"assistant": True}], ids=["lookup", "assistant"]
)
def test_assisted_decoding_equals_greedy(bucket_config: Any, options: dict[str, Any]) -> None:
    model, processor = tiny_model(bucket_config), tiny_processor(bucket_config)
    inputs = processor(text="Again and again?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    if options.pop("assistant", False):
        torch.manual_seed(1)
        assistant = SalmonnForConditionalGeneration(bucket_config).eval()
        assistant.generation_config.num_assistant_tokens = 2
        options = {"assistant_model": assistant}
    greedy = model.generate(**inputs, max_new_tokens=10)
    assert model.generate(**inputs, max_new_tokens=10, **options).tolist() == greedy.tolist()


@pytest.mark.parametrize("cache", ["static", "dynamic", "quantized-free"])
def test_cache_implementations_agree(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor, cache: str
) -> None:
    inputs = bucket_processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    options = {"use_cache": False} if cache == "quantized-free" else {"cache_implementation": cache}
    options |= {"disable_compile": True} if cache == "static" else {}
    greedy = bucket_model.generate(**inputs, max_new_tokens=6)
    assert bucket_model.generate(**inputs, max_new_tokens=6, **options).tolist() == greedy.tolist()


def test_repetition_penalty_ignores_the_prompt(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs = bucket_processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    first = bucket_model.generate(**inputs, max_new_tokens=1)
    assert bucket_model.generate(**inputs, max_new_tokens=1, repetition_penalty=9.0).tolist() == first.tolist()
    free = bucket_model.generate(**inputs, max_new_tokens=12, repetition_penalty=1e4)[0, -12:].tolist()
    assert len(set(free)) == len(free)


def test_wrong_number_of_placeholders_raises(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    inputs = bucket_processor(text="Hm?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    shorter = dict(inputs) | {"input_ids": inputs["input_ids"].clone()}
    shorter["input_ids"][inputs["input_ids"] == bucket_processor.audio_token_id] = 7
    with pytest.raises(ValueError, match=r"Found 0 audio placeholders .* gives 3 audio tokens"):
        bucket_model(**shorter)
    with pytest.raises(ValueError, match=r"Found 0 audio placeholders .* gives 3 audio tokens"):
        bucket_model.generate(**shorter)
    with pytest.raises(ValueError, match=r"Found 3 audio placeholders .* gives 0 audio tokens"):
        bucket_model(input_ids=inputs["input_ids"])


def test_missing_audio_features_raise(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    features = bucket_processor.feature_extractor(make_clip(1.0), sampling_rate=SAMPLING_RATE)
    with pytest.raises(ValueError, match="audio_input_features is missing"):
        bucket_model.get_audio_features(input_features=features["input_features"])
    with pytest.raises(ValueError, match="which need 200 padded frames, but the features have 100"):
        bucket_model.get_audio_features(
            **{name: value[..., :100] if name == "input_features" else value for name, value in features.items()}
        )
    with pytest.raises(ValueError, match="pass input_ids along with input_features"):
        bucket_model.generate(**features)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        bucket_model(attention_mask=torch.ones(1, 3))


def test_loss_counts_answers_only(bucket_config: Any) -> None:
    model, processor = tiny_model(bucket_config), tiny_processor(bucket_config)
    texts, targets = ["What?", "A longer question?"], ["Birds.", "Rain on a roof."]
    clips = [make_clip(1.0, seed=1), make_clip(3.0, seed=2)]
    batch = processor(text=texts, audio=clips, text_target=targets, sampling_rate=SAMPLING_RATE)
    loss = model(**batch).loss
    total, count = 0.0, 0
    for text, target, clip in zip(texts, targets, clips, strict=True):
        alone = processor(text=text, audio=clip, text_target=target, sampling_rate=SAMPLING_RATE)
        answers = int((alone["labels"] != -100).sum())
        assert answers == len(target) + 1
        total, count = total + model(**alone).loss.item() * answers, count + answers
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_gradient_checkpointing_keeps_gradients(bucket_config: Any) -> None:
    processor = tiny_processor(bucket_config)
    batch = processor(text="What?", audio=make_clip(1.0), text_target="Birds.", sampling_rate=SAMPLING_RATE)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(bucket_config)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for config in (model.config.qformer_config, model.config.audio_config):
            config.attention_probs_dropout_prob = 0.0
        model(**batch).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert {"model.projector.weight", "model.qformer.query_tokens"} <= gradients[0].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_frozen_encoders_keep_no_graph_under_gradient_checkpointing(reentrant: bool, bucket_config: Any) -> None:
    processor = tiny_processor(bucket_config)
    batch = processor(text="What?", audio=make_clip(1.0), text_target="Birds.", sampling_rate=SAMPLING_RATE)
    model = tiny_model(bucket_config, lora=True).train()
    model.model.qformer.requires_grad_(True)
    model.model.projector.requires_grad_(True)  # with the adapter, all that the stages train
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})  # as plain Trainer does
    features = {name: value for name, value in batch.items() if "features" in name}
    assert not any(states.requires_grad for states in model.get_encoder_states(**features))
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    model.gradient_checkpointing_disable()
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(bucket_config: Any, dtype: torch.dtype) -> None:
    model, processor = tiny_model(bucket_config), tiny_processor(bucket_config)
    inputs = processor(text="What?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    with torch.no_grad():
        exact = model(**inputs).logits
        half = model.to(dtype)(**inputs).logits
    assert half.dtype == dtype
    assert torch.isfinite(half).all()
    assert (half.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(bucket_config: Any, implementation: str) -> None:
    model, processor = tiny_model(bucket_config), tiny_processor(bucket_config)
    inputs = processor(text="What?", audio=[[make_clip(1.0), make_clip(4.0)]], sampling_rate=SAMPLING_RATE)
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation(implementation)
        assert model.model.audio_encoder.config._attn_implementation == implementation
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)


def test_encoder_states_keep_the_clips_apart(
    bucket_model: SalmonnForConditionalGeneration, bucket_processor: SalmonnProcessor
) -> None:
    clips = [make_clip(1.5, seed=1), make_clip(33.0, seed=2)]
    features = bucket_processor.feature_extractor(clips, sampling_rate=SAMPLING_RATE)
    output = bucket_model.get_audio_features(**features, output_hidden_states=True)
    alone = bucket_processor.feature_extractor(clips[0], sampling_rate=SAMPLING_RATE)
    expected = bucket_model.get_audio_features(**alone, output_hidden_states=True)
    assert output.last_hidden_state.shape[0] == 2
    assert len(output.hidden_states) == len(expected.hidden_states) == 3
    length = expected.last_hidden_state.shape[1]
    assert torch.allclose(output.last_hidden_state[0, :length], expected.last_hidden_state[0], atol=1e-5)


def test_attentions_of_a_batch_hold_those_of_each_segment(bucket_config: Any) -> None:
    model, extractor = tiny_model(bucket_config), tiny_processor(bucket_config).feature_extractor
    model.set_attn_implementation("eager")
    clips = [make_clip(1.5, seed=1), make_clip(33.0, seed=2)]
    features = extractor(clips, sampling_rate=SAMPLING_RATE)
    cuts = [clips[0], clips[1][: 30 * SAMPLING_RATE], clips[1][30 * SAMPLING_RATE :]]
    layers = model.get_audio_features(**features, output_attentions=True).attentions
    assert len(layers) == 2
    for row, cut in enumerate(cuts):
        alone = model.get_audio_features(**extractor(cut, sampling_rate=SAMPLING_RATE), output_attentions=True)
        for layer, expected in zip(layers, alone.attentions, strict=True):
            patches = expected.shape[-1]
            assert (layer[row, :, :patches, :patches] - expected[0]).abs().max() <= 1e-5
            assert not layer[row, :, :, patches:].any()


def test_resized_embeddings_keep_working(bucket_config: Any) -> None:
    model, processor = tiny_model(bucket_config), tiny_processor(bucket_config)
    inputs = processor(text="What?", audio=make_clip(1.0), sampling_rate=SAMPLING_RATE)
    with torch.no_grad():
        before = model(**inputs).logits
        model.resize_token_embeddings(300)
        after = model(**inputs).logits
    assert model.config.text_config.vocab_size == 300
    assert torch.allclose(after[..., :261], before, atol=1e-6)


def test_encoders_stay_where_serving_engines_look(model: SalmonnForConditionalGeneration) -> None:
    config = model.config
    assert config.get_text_config() is config.text_config
    assert config.audio_config.max_source_positions == 1500
    assert model.model.language_model.config.model_type == "llama"
    assert model._supports_attention_backend
    assert model.get_input_embeddings() is model.model.language_model.embed_tokens
