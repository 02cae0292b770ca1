"""Equal to the research code: every recorded stage of both reference cases."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import ReferenceCase

from modeling_salmonn import SalmonnForConditionalGeneration, SalmonnProcessor
from modeling_salmonn.weight_names_salmonn import CONNECTOR_PREFIXES


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
    return processor(text=reference.clips()[clip]["prompt"], audio=reference.audio(clip), formatted=True)


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


def beam_search(
    model: SalmonnForConditionalGeneration, inputs: dict[str, torch.Tensor], num_beams: int, **options: Any
) -> list[int]:
    """The new tokens of the beam that wins under the length count of the research code's library.

    transformers 4.28 counts the BOS in the length of a hypothesis and leaves its end token out: a finished one is as
    long as today, one that was cut at `max_new_tokens` is one longer. Nothing else differs.
    """
    output = model.generate(
        **inputs,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    penalty = options.get("length_penalty", 1.0)
    end = model.generation_config.eos_token_id
    candidates = []
    for ids, score in zip(
        output.sequences[:, inputs["input_ids"].shape[1] :].tolist(), output.sequences_scores, strict=True
    ):
        tokens = ids[: ids.index(end) + 1] if end in ids else ids
        length = len(tokens)
        recorded_length = length if tokens[-1] == end else length + 1
        candidates.append((score.item() * (length / recorded_length) ** penalty, tokens))
    return max(candidates)[1]


def test_beam_ids_equal_research_code(
    reference: ReferenceCase, processor: SalmonnProcessor, model: SalmonnForConditionalGeneration
) -> None:
    for name, _ in recorded_clips(reference):
        tokens = beam_search(model, prompt_inputs(reference, processor, name), num_beams=4, max_new_tokens=20)
        assert tokens == reference.tensors[f"wav.{name}.beam4_ids"][0, 1:].tolist(), name


def test_generation_options_equal_research_code(
    reference: ReferenceCase, processor: SalmonnProcessor, model: SalmonnForConditionalGeneration
) -> None:
    recorded = reference.golden["gen_options"]
    inputs = processor(text=recorded["prompt"], audio=reference.audio(recorded["wav"]), formatted=True)
    for name, run in recorded["runs"].items():
        options = dict(run["options"])
        if "min_length" in options:  # there the BOS counts as a token
            options["min_new_tokens"] = options.pop("min_length") - 1
        if options["num_beams"] > 1:
            tokens = beam_search(model, inputs, **options)
        else:
            tokens = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
        assert tokens == reference.tensors[f"gen.{name}.ids"][0, 1:].tolist(), name


def test_lora_scales_equal_research_code(
    reference: ReferenceCase, processor: SalmonnProcessor, model: SalmonnForConditionalGeneration
) -> None:
    recorded = reference.golden["gen_options"]
    inputs = processor(text=recorded["prompt"], audio=reference.audio(recorded["wav"]), formatted=True)
    assert model.config.lora_scaling == reference.golden["lora_scaling"]
    for name, factor in (("lora_half", 0.5), ("lora_off", 0.0)):
        scale = factor * model.config.lora_scaling
        with model.lora_scale(scale), torch.no_grad():
            logits = model(**inputs).logits[:, -1]
        expected = reference.tensors[f"gen.{name}.first_step_logits"][:, :-1]
        assert (logits - expected).abs().max() <= LOGIT_TOLERANCE
        tokens = model.generate(**inputs, max_new_tokens=20, lora_scale=scale)[0, inputs["input_ids"].shape[1] :]
        assert tokens.tolist() == reference.tensors[f"gen.{name}.greedy_ids"][0, 1:].tolist()


@torch.no_grad()
def test_teacher_forced_logits_equal_research_code(
    reference: ReferenceCase, processor: SalmonnProcessor, model: SalmonnForConditionalGeneration
) -> None:
    for name, run in reference.golden["single"].items():
        inputs = processor(text=run["prompt"], audio=reference.audio(name), text_target=run["text"], formatted=True)
        output = model(**inputs)
        expected_labels = reference.tensors[f"single.{name}.labels"]
        assert inputs["labels"].tolist() == expected_labels.tolist()
        key = f"single.{name}.logits"
        if key in reference.tensors:
            assert (output.logits - reference.tensors[key][..., :-1]).abs().max() <= LOGIT_TOLERANCE
            without_pad_row = model.loss_function(
                logits=reference.tensors[key][..., :-1], labels=expected_labels, vocab_size=output.logits.shape[-1]
            )
            assert output.loss.item() == pytest.approx(without_pad_row.item(), abs=LOGIT_TOLERANCE)
        else:
            assert (
                output.logits[:, ::16] - reference.tensors[f"{key}.every16"][..., :-1]
            ).abs().max() <= LOGIT_TOLERANCE


def test_batch_loss_equals_research_code(reference: ReferenceCase, model: SalmonnForConditionalGeneration) -> None:
    """On the recorded embeddings: their right-padded prompts are a fault that the processor does not repeat."""
    batch = {name: reference.tensors[f"batch.{name}"] for name in ("inputs_embeds", "attention_mask", "labels")}
    with torch.no_grad():
        loss = model(**batch).loss
    assert loss.item() == pytest.approx(reference.tensors["batch.loss_without_pad_row"].item(), abs=LOGIT_TOLERANCE)
    for name, factor in (("lora_half", 0.5), ("lora_off", 0.0)):
        with model.lora_scale(factor * model.config.lora_scaling), torch.no_grad():
            logits = model(**batch).logits[:1]
        first = reference.golden["batch"]["first_target_column"] - 1
        expected = reference.tensors[f"batch.{name}.target_logits_row0"][..., :-1]
        assert (logits[0, first:-1] - expected).abs().max() <= LOGIT_TOLERANCE


def pad_row_loss(
    reference: ReferenceCase, model: SalmonnForConditionalGeneration, inputs_embeds: torch.Tensor
) -> torch.Tensor:
    """The recorded loss: over one more class, the pad row that the research code adds at random."""
    hidden = model.model(
        inputs_embeds=inputs_embeds, attention_mask=reference.tensors["batch.attention_mask"]
    ).last_hidden_state
    pad_logits = hidden @ reference.tensors["pad_row.lm_head"][:, None]
    logits = torch.cat([model.lm_head(hidden), pad_logits], dim=-1)
    return model.loss_function(
        logits=logits, labels=reference.tensors["batch.labels"], vocab_size=model.lm_head.out_features + 1
    )


def to_research_names(model: SalmonnForConditionalGeneration, reference: ReferenceCase) -> dict[str, str]:
    report = json.loads((reference.converted / "conversion_report.json").read_text())
    return {ours: theirs for theirs, ours in report["mapped"].items()}


def test_gradients_equal_research_code(reference: ReferenceCase) -> None:
    """All trained tensors of the speech-only case; with BEATs, LoRA alone: the research code feeds padding there."""
    model = SalmonnForConditionalGeneration.from_pretrained(reference.converted)
    processor = SalmonnProcessor.from_pretrained(reference.converted)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(CONNECTOR_PREFIXES) or ".lora_" in name)
    embeds = reference.tensors["batch.inputs_embeds"]
    if not reference.has_beats:
        annotation = json.loads((reference.folder / "annotation.json").read_text())["annotation"]
        clips = [join_clips(reference, entry) for entry in annotation]
        features = processor.feature_extractor(clips, sampling_rate=16000)
        tokens = model.get_audio_features(**features).pooler_output.view(len(clips), 88, -1)
        start = 1 + reference.tensors["batch.prompt_before_ids"].shape[1]
        embeds = torch.cat([embeds[:, :start], tokens, embeds[:, start + 88 :]], dim=1)
    loss = pad_row_loss(reference, model, embeds)
    assert loss.item() == pytest.approx(reference.tensors["batch.loss"].item(), abs=LOGIT_TOLERANCE)
    loss.backward()
    names = to_research_names(model, reference)
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        expected = reference.golden["batch"]["grad_norm"][names[name]]
        if expected > 1e-6:  # key biases have none: a softmax does not see them
            assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-3), name
            compared += 1
        recorded = reference.tensors.get(f"batch.grad.{names[name]}")
        if recorded is not None:
            assert torch.allclose(parameter.grad, recorded, rtol=1e-3, atol=1e-5), name
    assert compared >= (8 if reference.has_beats else 50)


def join_clips(reference: ReferenceCase, entry: dict[str, Any]) -> np.ndarray:
    """The clips of one annotation with 0.1 s of silence between them, first channel."""
    pieces: list[np.ndarray] = []
    for path in [entry["path"], *entry.get("expand_wav", [])]:
        samples = soundfile.read(reference.folder / path, dtype="float32", always_2d=True)[0][:, 0]
        pieces += [np.zeros(1600, dtype=np.float32)] * bool(pieces) + [samples]
    return np.concatenate(pieces)
