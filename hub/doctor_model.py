"""Checks of what a folder's files hold: settings that work together, weights that fit them, and a model that answers.

Weights are read tensor by tensor.
"""

import copy
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoTokenizer, GenerationConfig

from modeling_salmonn.checkpoint_files_salmonn import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    CONNECTOR_FILE,
    GENERATION_FILE,
    is_finite,
    listing,
)
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.hub.assembly import build_extractor
from modeling_salmonn.hub.doctor_files import Finding, Subject
from modeling_salmonn.hub.golden_answers import golden_cases
from modeling_salmonn.hub.saved_folder import GOLDEN_FILE
from modeling_salmonn.lora_layers_salmonn import common_scaling, require_saved_options
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import AUDIO_TOKEN
from modeling_salmonn.processing.processor_files_salmonn import PROCESSOR_FILE
from modeling_salmonn.weight_names_salmonn import CONNECTOR_PREFIXES, is_adapter_name


TEMPLATE_FILE = "chat_template.jinja"
SENTENCE = "Please describe the audio."
ADAPTER = "default"  # what the layers call it
MAX_GOLDEN_TOKENS = 4096  # a folder must not keep us for hours
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_config(subject: Subject) -> Finding:
    """The config is one of SALMONN, its values work together, and those of the generation fit it."""
    model_type = subject.read_json(CONFIG_FILE).get("model_type")
    if model_type != SalmonnConfig.model_type:
        return "failed", f"{CONFIG_FILE} has model_type {model_type!r}, but '{SalmonnConfig.model_type}' is needed."
    text = subject.config.text_config
    if subject.has(GENERATION_FILE):
        generation = GenerationConfig.from_pretrained(subject.folder)
        for name in SPECIAL_TOKENS:
            value = getattr(generation, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not (isinstance(token, int) and 0 <= token < text.vocab_size):
                    needed = f"ids of the language model are from 0 to {text.vocab_size - 1}"
                    return "failed", f"{GENERATION_FILE} has {name} {value!r}, but {needed}; correct or delete it."
    return "ok", f"Language model of type {text.model_type}."


def check_weights(subject: Subject) -> Finding:
    """The weight files are readable and whole, of the config's dtype, finite, and not empty of values."""
    counts: Counter[tuple[str, str]] = Counter()  # of tensors, by file and type
    infinite, zero = [], []
    for name, key, lazy in subject.tensors():
        tensor = lazy[...]
        counts[name, str(tensor.dtype).removeprefix("torch.")] += 1
        if tensor.element_size() == 1:
            tensor = tensor.float()  # float8 has no any
        if not is_finite(tensor):
            infinite.append(key)
        elif tensor.ndim > 1 and ".lora_B." not in key and not tensor.any():  # LoRA begins with zeros in B
            zero.append(key)
    if infinite:
        return "failed", f"NaN or infinite values in {listing(infinite)}; convert or download again."
    shown = "; ".join(f"{name}: {count} {dtype}" for (name, dtype), count in counts.items())
    expected = str(subject.config.dtype).removeprefix("torch.")
    # LoRA may stay in float32 on a half-precision model.
    if {dtype for name, dtype in counts if name != ADAPTER_FILE} - {expected}:
        return "warning", f"config.json says {expected}, to which the tensors are converted when loaded: {shown}."
    if zero:
        return "warning", f"Nothing but zeros in {listing(zero)}; is this the trained model? {shown}."
    return "ok", f"All are finite. {shown}."


def check_keys(subject: Subject) -> Finding:
    """The files hold the tensors that the config describes: none missing, none too many, shapes equal."""
    if getattr(subject.config, "quantization_config", None) is not None:
        return "skipped", "Quantised weights have names of their own."
    expected, tied = _expected_tensors(subject)
    shapes, whole = {}, []
    for _, key, lazy in subject.tensors():
        shapes[key] = lazy.get_shape()
        if key in expected and expected[key].is_floating_point() and "F" not in lazy.get_dtype():  # such as I8
            whole.append(f"{key} {lazy.get_dtype()}")
    common = sorted(expected.keys() & shapes.keys())
    problems = {
        "missing": sorted(expected.keys() - shapes.keys() - tied),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "of another shape": [f"{key} {shapes[key]}" for key in common if shapes[key] != list(expected[key].shape)],
        "of whole numbers": whole,
    }
    shown = "; ".join(f"{len(keys)} {kind}: {listing(keys)}" for kind, keys in problems.items() if keys)
    if shown:
        return "failed", f"{shown}. The weights and the configs belong to different models; download both again."
    return "ok", f"{len(shapes)} keys: none missing, none unexpected."


def check_adapter(subject: Subject) -> Finding:
    """The LoRA adapter has the config's scaling, and `AutoModel` finds its base."""
    if not subject.has(ADAPTER_CONFIG_FILE):
        return "skipped", "The folder has no LoRA adapter."
    adapter = subject.read_json(ADAPTER_CONFIG_FILE)
    rank, alpha, base = adapter.get("r"), adapter.get("lora_alpha"), adapter.get("base_model_name_or_path")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        return "failed", f"{ADAPTER_CONFIG_FILE} has r {rank!r} and lora_alpha {alpha!r}, but numbers are needed."
    scaling = common_scaling(_with_adapter(subject), ADAPTER)
    if not math.isclose(scaling, subject.config.lora_scaling):
        needed = f"config.json says {subject.config.lora_scaling:g}; make lora_alpha and the rank agree"
        return "failed", f"{ADAPTER_CONFIG_FILE} has the scaling {scaling:g}, but {needed}."
    # From the Hub, AutoModel follows this name even where the repository holds the whole model.
    if subject.hub_id is not None and base != subject.hub_id:
        needed = f"set it to '{subject.hub_id}' in {ADAPTER_CONFIG_FILE} and upload that file"
        return "failed", f"AutoModel loads the base_model_name_or_path {base!r}, not this repository; {needed}."
    return "ok", f"Scaling {scaling:g}, rank {rank}, base_model_name_or_path {base!r}."


def check_tokenizer(subject: Subject) -> Finding:
    """The tokenizer loads, has the config's audio token, and gives back what it encodes."""
    with _told("The tokenizer cannot be loaded from tokenizer.json and tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(subject.folder, trust_remote_code=False)
    if tokenizer.pad_token is None:
        return "failed", "The tokenizer names no pad_token; is tokenizer_config.json whole? Save the processor again."
    settings = subject.read_json(PROCESSOR_FILE)
    token, expected = settings.get("audio_token", AUDIO_TOKEN), subject.config.audio_token_id
    found = tokenizer.get_vocab().get(token)
    if found != expected:
        return "failed", f"The audio token {token} has the id {found}, but config.json says audio_token_id {expected}."
    decoded = str(tokenizer.decode(tokenizer.encode(SENTENCE, add_special_tokens=False))).strip()
    if decoded != SENTENCE:
        return "warning" if decoded else "failed", f"{SENTENCE!r} comes back as {decoded!r}; is this its tokenizer?"
    file = subject.folder / TEMPLATE_FILE
    template = file.read_text(encoding="utf-8").strip() if file.is_file() else settings.get("chat_template")
    if not (template or tokenizer.chat_template):
        return "warning", f"No chat template ({TEMPLATE_FILE}): the Vicuna form is assumed."
    return "ok", f"{len(tokenizer)} tokens, {token} is {expected}, the chat template is there."


def check_audio_settings(subject: Subject) -> Finding:
    """The feature extractor cuts and counts as the model does."""
    with _told(f"The feature extractor cannot be loaded from {PROCESSOR_FILE}"):
        extractor, config = SalmonnFeatureExtractor.from_pretrained(subject.folder), subject.config
    usual = build_extractor(config)
    own, needed = asdict(extractor.audio_layout), asdict(config.audio_layout)  # in frames
    # The audio encoder was trained on fbanks of this mean and spread.
    for name in ("sampling_rate", "feature_size", "num_fbank_bins", "fbank_mean", "fbank_std"):
        own[name], needed[name] = getattr(extractor, name), getattr(usual, name)
    wrong = [f"{name} {own[name]}, not {needed[name]}" for name in needed if own[name] != needed[name]]
    if wrong:
        problem = f"The feature extractor has {listing(wrong)}"
        return "failed", f"{problem}; correct {PROCESSOR_FILE} or save the processor again."
    return "ok", f"{SAMPLING_RATE} Hz, windows of {config.window_seconds:g} s, as in config.json."


def check_generation(subject: Subject) -> Finding:
    """The model hears a second of a tone, gives finite logits, and answers."""
    start = time.perf_counter()
    model, processor = subject.loaded
    loaded = time.perf_counter()
    tone = torch.sin(2 * math.pi * 440 * torch.arange(SAMPLING_RATE) / SAMPLING_RATE)  # 440 Hz, 1 s
    inputs = processor(text=SENTENCE, audio={"array": tone.numpy(), "sampling_rate": SAMPLING_RATE}).to(subject.device)
    with torch.inference_mode():
        logits = model(**inputs).logits
    if not logits.isfinite().all():
        return "failed", f"The logits of a 1 s tone are NaN or infinite in {model.dtype}; save in bfloat16 or float32."
    heard = time.perf_counter()
    model.generate(**inputs, max_new_tokens=5, do_sample=False, num_beams=1)
    seconds = (loaded - start, heard - loaded, time.perf_counter() - heard)
    return "ok", "Loaded in {:.1f} s; 1 s of audio in {:.2f} s; 5 tokens in {:.2f} s.".format(*seconds)


def check_golden_answers(subject: Subject) -> Finding:
    """The recorded answers come out again, without sampling and with the beams of the folder's own settings."""
    if not subject.has(GOLDEN_FILE):
        return "skipped", f"The folder has no {GOLDEN_FILE}."
    cases, wrong = golden_cases(subject), []
    model, processor = subject.loaded
    for case in cases:
        inputs = processor(text=case["text"], audio=str(subject.folder / case["audio"])).to(subject.device)
        limit = case.get("max_new_tokens", model.generation_config.max_new_tokens)
        if limit is not None and (not isinstance(limit, int) or not 1 <= limit <= MAX_GOLDEN_TOKENS):
            return "failed", f"{GOLDEN_FILE} asks for {limit!r} tokens; give from 1 to {MAX_GOLDEN_TOKENS}."
        output = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        if answer != case["answer"].strip():
            wrong.append(f"{case['audio']} gives {answer!r}, not {case['answer'].strip()!r}")
    if wrong:
        return "failed", f"{len(wrong)} of {len(cases)} answers differ: {listing(wrong)}."
    return "ok", f"{len(cases)} of {len(cases)} answers are reproduced."


def _expected_tensors(subject: Subject) -> tuple[dict[str, torch.Tensor], set[str]]:
    """What the weight files should hold, without values, and the keys that tied weights leave out."""
    model = _without_values(subject)
    expected = dict(model.state_dict())
    if subject.has(CONNECTOR_FILE):  # the rest is of the bases
        expected = {key: tensor for key, tensor in expected.items() if key.startswith(CONNECTOR_PREFIXES)}
    if subject.has(ADAPTER_CONFIG_FILE):
        for key, tensor in _with_adapter(subject).state_dict().items():
            if is_adapter_name(key):
                expected[f"base_model.model.{key.replace(f'.{ADAPTER}.', '.')}"] = tensor
    return expected, set(model.all_tied_weights_keys)


def _without_values(subject: Subject) -> SalmonnForConditionalGeneration:
    with torch.device("meta"):
        return SalmonnForConditionalGeneration(copy.deepcopy(subject.config))


def _with_adapter(subject: Subject) -> SalmonnForConditionalGeneration:
    """The model without values, with the layers of the folder's adapter."""
    adapter = LoraConfig.from_pretrained(str(subject.folder))
    require_saved_options(adapter)
    with torch.device("meta"):
        return inject_adapter_in_model(adapter, _without_values(subject), ADAPTER)


@contextmanager
def _told(problem: str) -> Iterator[None]:
    """Say what could not be done, of whatever kind the library's error is."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{problem} ({type(error).__name__}: {error}); save the processor again.") from error
