"""Equal to the research code: every recorded stage of both reference cases."""

from collections.abc import Iterator

import pytest
import torch
from conftest import ReferenceCase

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor


LOGIT_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(reference: ReferenceCase) -> SalmonnForConditionalGeneration:
    return SalmonnForConditionalGeneration.from_pretrained(reference.converted)


@pytest.fixture(scope="module")
def processor(reference: ReferenceCase) -> SalmonnProcessor:
    return SalmonnProcessor.from_pretrained(reference.converted)


def recorded_clips(reference: ReferenceCase) -> Iterator[tuple[str, dict]]:
    """Clips of at most 30 s: the research code cuts longer ones, this package does not."""
    return ((name, clip) for name, clip in reference.clips().items() if name != "long")


def prompt_inputs(reference: ReferenceCase, processor: SalmonnProcessor, clip: str) -> dict[str, torch.Tensor]:
    return processor(text=reference.clips()[clip]["prompt"], audio=reference.audio(clip))


def test_tokenizer_equals_research_code(reference: ReferenceCase, processor: SalmonnProcessor) -> None:
    for text, ids in reference.golden["tokenizer"]["encode_no_special"]:
        if "[PAD]" not in text:  # the research code adds this token, which no prompt uses
            assert processor.tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text


def test_features_equal_research_code(reference: ReferenceCase, processor: SalmonnProcessor) -> None:
    extractor = processor.feature_extractor
    for name, _ in recorded_clips(reference):
        features = extractor(reference.audio(name))
        reference.compare(f"wav.{name}.log_mel", features["input_features"], 1e-3, time_axis=2)
        if reference.has_beats:
            frames = int(features["audio_input_features_mask"].sum())
            normalised = features["audio_input_features"][:, :frames]
            reference.compare(f"wav.{name}.fbank_norm", normalised, 1e-4)
            raw = normalised.double() * (2 * extractor.fbank_std) + extractor.fbank_mean
            reference.compare(f"wav.{name}.fbank", raw, 1e-3)


@torch.no_grad()
def test_encoders_and_qformer_equal_research_code(
    reference: ReferenceCase, processor: SalmonnProcessor, model: SalmonnForConditionalGeneration
) -> None:
    recorded: dict[str, torch.Tensor] = {}
    base = model.model
    hooks = [
        base.speech_encoder.register_forward_hook(lambda *call: recorded.update(whisper=call[-1].last_hidden_state)),
        base.qformer.register_forward_hook(
            lambda module, args, output: recorded.update(windows=args[0], queries=output.last_hidden_state)
        ),
    ]
    if reference.has_beats:
        hooks.append(
            base.audio_encoder.register_forward_hook(lambda *call: recorded.update(beats=call[-1].last_hidden_state))
        )
    for name, _ in recorded_clips(reference):
        tokens = model.get_audio_features(**processor.feature_extractor(reference.audio(name))).pooler_output
        reference.compare(f"wav.{name}.whisper_out", recorded["whisper"], LOGIT_TOLERANCE)
        if reference.has_beats:
            length = reference.golden["shapes"][f"wav.{name}.beats_out"][1]
            reference.compare(f"wav.{name}.beats_out", recorded["beats"][:, :length], LOGIT_TOLERANCE)
        reference.compare(f"wav.{name}.qformer_in", recorded["windows"], LOGIT_TOLERANCE, time_axis=0)
        reference.compare(f"wav.{name}.qformer_out.first8windows", recorded["queries"][:8], LOGIT_TOLERANCE)
        reference.compare(f"wav.{name}.audio_tokens", tokens[None], LOGIT_TOLERANCE)
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_prompts_equal_research_code(
    reference: ReferenceCase, processor: SalmonnProcessor, model: SalmonnForConditionalGeneration
) -> None:
    for name, _ in recorded_clips(reference):
        inputs = prompt_inputs(reference, processor, name)
        ids = inputs["input_ids"][0]
        text = ids[ids != processor.audio_token_id].tolist()
        before = reference.tensors[f"wav.{name}.prompt_before_ids"][0].tolist()
        after = reference.tensors[f"wav.{name}.prompt_after_ids"][0].tolist()
        assert text == [processor.tokenizer.bos_token_id, *before, *after]
        tokens = model.get_audio_features(
            **{key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
        ).pooler_output
        embeds = model.model.embed_prompt(inputs["input_ids"])
        mask = model.model.get_placeholder_mask(inputs["input_ids"], embeds, tokens)
        if f"wav.{name}.inputs_embeds" in reference.tensors:
            reference.compare(f"wav.{name}.inputs_embeds", embeds.masked_scatter(mask, tokens), LOGIT_TOLERANCE)
        logits = model(**inputs).logits[:, -1]
        expected = reference.tensors[f"wav.{name}.first_step_logits"][:, :-1]  # without the research code's pad row
        assert (logits - expected).abs().max() <= LOGIT_TOLERANCE


def test_greedy_ids_equal_research_code(
    reference: ReferenceCase, processor: SalmonnProcessor, model: SalmonnForConditionalGeneration
) -> None:
    for name, _ in recorded_clips(reference):
        inputs = prompt_inputs(reference, processor, name)
        output = model.generate(**inputs, max_new_tokens=20)
        new_tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert new_tokens == reference.tensors[f"wav.{name}.greedy_ids"][0, 1:].tolist(), name


def test_beam_ids_equal_research_code(
    reference: ReferenceCase, processor: SalmonnProcessor, model: SalmonnForConditionalGeneration
) -> None:
    different = []
    for name, _ in recorded_clips(reference):
        inputs = prompt_inputs(reference, processor, name)
        output = model.generate(**inputs, max_new_tokens=20, num_beams=4)
        new_tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
        if new_tokens != reference.tensors[f"wav.{name}.beam4_ids"][0, 1:].tolist():
            different.append((name,new_tokens,reference.tensors[f"wav.{name}.beam4_ids"][0, 1:].tolist()))
    assert not different
