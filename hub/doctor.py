"""Examination of a saved SALMONN folder: what `salmonn doctor` reports.

- a check returns a status and a sentence; whatever goes wrong inside it is a finding, never a traceback
- a check that needs another one is skipped if that one failed, and names it
- weights are read tensor by tensor, and pickles are never opened
"""

import copy
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.utils.sha import sha_fileobj
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_relative_imports

from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.pretrained_salmonn import CONNECTOR_FILE, CONNECTOR_PREFIXES
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import AUDIO_TOKEN, SalmonnProcessor


Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
Finding: TypeAlias = tuple[Status, str]
STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
REQUIRED_FILES = ("config.json", "processor_config.json", "tokenizer.json")
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG_FILE, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
HASHES_FILE, GOLDEN_FILE = "hashes.json", "golden_answers.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
LFS_HEADER = b"version https://git-lfs.github.com/spec/v1"
LFS_MAX_BYTES = 1024  # a pointer has three short lines
SENTENCE = "Please describe the audio."
LISTED = 5  # names spelled out before the rest is only counted


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    detail: str


@dataclass
class Subject:
    """The folder under examination, and what several checks need of it, read once."""

    folder: Path
    hub_id: str | None = None
    device: str = "cpu"

    @cached_property
    def config(self) -> Any:  # a SalmonnConfig, whose parts are typed as dicts too
        return SalmonnConfig.from_pretrained(self.folder)

    @cached_property
    def loaded(self) -> tuple[SalmonnForConditionalGeneration, SalmonnProcessor]:
        model = SalmonnForConditionalGeneration.from_pretrained(self.folder, use_safetensors=True)
        return model.to(self.device).eval(), SalmonnProcessor.from_pretrained(self.folder)

    @cached_property
    def weight_names(self) -> list[str]:
        """The weight files that loading reads, whether they are there or not."""
        names = [CONNECTOR_FILE if self.has(CONNECTOR_FILE) else WEIGHTS_FILE]
        if self.has(INDEX_FILE) and not self.has(names[0]):
            names = sorted(set(self.read_json(INDEX_FILE)["weight_map"].values()))
        has_adapter = self.has(ADAPTER_CONFIG_FILE) or self.has(ADAPTER_FILE)
        return names + ([ADAPTER_FILE] if has_adapter else [])

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def names(self) -> list[str]:
        """All files, those in folders below by their relative path."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def sha256(self, name: str) -> str:
        with (self.folder / name).open("rb") as file:
            return sha_fileobj(file).hex()

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} cannot be read as JSON ({error}); save or download it again.") from error
        if not isinstance(content, dict):
            raise ValueError(f"{name} holds a {type(content).__name__}, but an object is needed.")
        return content

    def tensors(self) -> Iterator[tuple[str, str, Any]]:
        """File, key and lazy slice of each tensor."""
        for name in self.weight_names:
            try:
                with safe_open(self.folder / name, "pt") as file:
                    yield from ((name, key, file.get_slice(key)) for key in file.keys())  # noqa: SIM118
            except SafetensorError as error:  # noqa: PERF203  tells which file
                raise ValueError(f"{name} is truncated or damaged ({error}); download it again.") from error


def examine(path: str, device: str = "cpu") -> list[Check]:
    """Examine a folder, or a Hub repository, which is downloaded without its pickles.

    Args:
        path: folder or Hub id.
        device: where the model is run, such as "cpu" or "cuda".

    Returns:
        The checks in the order of the report; only the first one if there is no such folder. Nothing is raised.
    """
    try:
        if is_local := Path(path).expanduser().is_dir():
            folder = Path(path).expanduser()
        else:
            folder = Path(snapshot_download(path, ignore_patterns=[f"*{suffix}" for suffix in PICKLE_SUFFIXES]))
    except Exception as error:  # the Hub client raises many kinds
        reason = f"{path} is no folder, and the Hub does not give it; check the name, the network and your token."
        return [Check("folder", "failed", f"{reason} ({_reason(error)})")]
    subject, checks = Subject(folder, None if is_local else path, device), [Check("folder", "ok", str(folder))]
    blocked: set[str] = set()
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        causes = [need for need in NEEDS.get(name, ("config",)) if need in blocked]
        try:
            finding: Finding = ("skipped", f"Needs what failed: {', '.join(causes)}.") if causes else check(subject)
        except Exception as error:  # whatever is wrong with a folder is a finding
            finding = "failed", _reason(error)
        checks.append(Check(name, *finding))
        if causes or finding[0] == "failed":
            blocked.add(name)
    return checks


def is_healthy(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.status != "failed" for check in checks)


def print_report(checks: Sequence[Check], console: Console) -> None:
    """Print the checks as a table, and the verdict below it."""
    table = Table("check", "status", "detail")
    for check in checks:
        table.add_row(check.name, Text(check.status, STYLES[check.status]), Text(check.detail))
    console.print(table)
    counts = Counter(check.status for check in checks)
    console.print(f"{counts['failed']} failed, {counts['warning']} warnings, {counts['skipped']} skipped.")


def check_files(subject: Subject) -> Finding:
    """The files that loading reads, weights and code aside, are there and are JSON."""
    if missing := [name for name in REQUIRED_FILES if not subject.has(name)]:
        return "failed", f"Missing {_listing(missing)}; save the model and its processor again, or download again."
    if not subject.has("generation_config.json"):
        return "warning", "Missing generation_config.json; answers then stop after transformers' default length."
    for name in (*REQUIRED_FILES, "generation_config.json"):
        subject.read_json(name)
    return "ok", f"{', '.join(REQUIRED_FILES)}, generation_config.json."


def check_config(subject: Subject) -> Finding:
    """The config is one of SALMONN, and its values work together."""
    model_type = subject.read_json("config.json").get("model_type")
    if model_type != SalmonnConfig.model_type:
        return "failed", f"config.json has model_type {model_type!r}, but '{SalmonnConfig.model_type}' is needed."
    return "ok", f"Language model of type {subject.config.text_config.model_type}."


def check_code(subject: Subject) -> Finding:
    """The code that `trust_remote_code` copies is complete."""
    config, processor = subject.read_json("config.json"), subject.read_json("processor_config.json")
    auto_maps = [part.get("auto_map") or {} for part in (config, processor, processor.get("feature_extractor") or {})]
    references = [reference for auto_map in auto_maps for reference in auto_map.values()]
    references += [pipeline["impl"] for pipeline in (config.get("custom_pipelines") or {}).values()]
    # "owner/name--module.Class" is code of another repository
    new = {reference.rsplit(".", 1)[0] for reference in references if "--" not in reference}
    modules: set[str] = set()
    while new := new - modules:
        modules |= new
        files = [subject.folder / f"{module}.py" for module in new if subject.has(f"{module}.py")]
        new = {module for file in files for module in get_relative_imports(file)}
    if not modules:
        return "warning", "No code is named: the folder loads only where the package modeling_salmonn is imported."
    if missing := sorted(f"{module}.py" for module in modules if not subject.has(f"{module}.py")):
        return "failed", f"Missing code {_listing(missing)}; save the model again, or copy it from the package."
    return "ok", f"{len(modules)} modules, with all that they import."


def check_weight_files(subject: Subject) -> Finding:
    """Every weight file is there, and an adapter-only folder names bases that are."""
    required = subject.weight_names + ([ADAPTER_CONFIG_FILE] if subject.has(ADAPTER_FILE) else [])
    if missing := [name for name in required if not subject.has(name)]:
        return "failed", f"Missing {_listing(missing)}; download the folder again, or save the model again."
    if not subject.has(CONNECTOR_FILE):
        return "ok", _listing(subject.weight_names)
    if full := [name for name in (WEIGHTS_FILE, INDEX_FILE) if subject.has(name)]:
        return "failed", f"{CONNECTOR_FILE} hides {full[0]}, which is not loaded then; delete the outdated one."
    parts = [part for part in ("speech", "audio", "text") if getattr(subject.config, f"{part}_config") is not None]
    bases = {f"{part}_model_id": getattr(subject.config, f"{part}_model_id") for part in parts}
    # The conversion names bases on its own machine by absolute paths.
    if lost := [key for key, base in bases.items() if not base or (os.path.isabs(base) and not os.path.exists(base))]:
        return "failed", f"config.json names no base that is here by {_listing(lost)}; set Hub ids or local paths."
    return "ok", f"{_listing(subject.weight_names)}; on the bases {', '.join(bases.values())}."


def check_git_lfs(subject: Subject) -> Finding:
    """No file is a Git-LFS pointer in place of its content."""
    small = [name for name in subject.names() if (subject.folder / name).stat().st_size < LFS_MAX_BYTES]
    if pointers := [name for name in small if (subject.folder / name).read_bytes().startswith(LFS_HEADER)]:
        return "failed", f"Pointers, not content: {_listing(pointers)}; run `git lfs pull`, or download again."
    return "ok", "No file is a Git-LFS pointer."


def check_hashes(subject: Subject) -> Finding:
    """SHA-256 of the weights, compared where the folder says what they are."""
    listed = subject.read_json(HASHES_FILE) if subject.has(HASHES_FILE) else {}
    found = {name: subject.sha256(name) for name in {*subject.weight_names, *listed}}
    if wrong := sorted(name for name, digest in listed.items() if found[name] != digest.lower()):
        return "failed", f"Other than {HASHES_FILE} says: {_listing(wrong)}; download again."
    shown = ", ".join(f"{name} {found[name][:12]}" for name in subject.weight_names)
    return "ok", f"{shown}; {'as in' if {*subject.weight_names} <= {*listed} else 'not all listed in'} {HASHES_FILE}."


def check_weights(subject: Subject) -> Finding:
    """The weight files are readable and whole, of the config's dtype, and finite."""
    dtypes: dict[str, Counter[str]] = {name: Counter() for name in subject.weight_names}
    infinite = []
    for name, key, lazy in subject.tensors():
        tensor = lazy[...]
        dtypes[name][str(tensor.dtype).removeprefix("torch.")] += 1
        if not (tensor if tensor.element_size() > 1 else tensor.float()).isfinite().all():  # float8 has no isfinite
            infinite.append(key)
    if infinite:
        return "failed", f"NaN or infinite values in {_listing(infinite)}; convert or download again."
    shown = "; ".join(f"{name}: {count} {dtype}" for name, found in dtypes.items() for dtype, count in found.items())
    expected = str(subject.config.dtype).removeprefix("torch.")
    # LoRA may stay in float32 on a half-precision model.
    if {dtype for name, found in dtypes.items() if name != ADAPTER_FILE for dtype in found} - {expected}:
        return "warning", f"config.json says {expected}, to which the tensors are converted when loaded: {shown}."
    return "ok", f"All are finite. {shown}."


def check_keys(subject: Subject) -> Finding:
    """The files hold the tensors that the config describes: none missing, none too many, shapes equal."""
    if getattr(subject.config, "quantization_config", None) is not None:
        return "skipped", "Quantised weights have names of their own."
    expected, tied = _expected_shapes(subject)
    found = {key: lazy.get_shape() for _, key, lazy in subject.tensors()}
    common = sorted(expected.keys() & found.keys())
    problems = {
        "missing": sorted(expected.keys() - found.keys() - tied),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [f"{key} {found[key]}" for key in common if found[key] != expected[key]],
    }
    if shown := "; ".join(f"{len(keys)} {kind}: {_listing(keys)}" for kind, keys in problems.items() if keys):
        return "failed", f"{shown}. The weights and the configs belong to different models; download both again."
    return "ok", f"{len(found)} keys: none missing, none unexpected."


def check_pickles(subject: Subject) -> Finding:
    """Pickles can run code; a folder has no use for them."""
    if pickles := [name for name in subject.names() if name.endswith(PICKLE_SUFFIXES)]:
        return "warning", f"Pickles, which are never loaded: {_listing(pickles)}; delete them."
    return "ok", "No pickles." if subject.hub_id is None else "No pickles; a repository's are not downloaded."


def check_adapter(subject: Subject) -> Finding:
    """The LoRA adapter has the config's scaling, and `AutoModel` finds its base."""
    if not subject.has(ADAPTER_CONFIG_FILE):
        return "skipped", "The folder has no LoRA adapter."
    adapter = subject.read_json(ADAPTER_CONFIG_FILE)
    scaling, base = adapter["lora_alpha"] / adapter["r"], adapter.get("base_model_name_or_path")
    if scaling != subject.config.lora_scaling:
        needed = f"config.json says {subject.config.lora_scaling:g}; make lora_alpha and the rank agree"
        return "failed", f"{ADAPTER_CONFIG_FILE} has the scaling {scaling:g}, but {needed}."
    # From the Hub, AutoModel follows this name even where the repository holds the whole model.
    if subject.hub_id is not None and base != subject.hub_id:
        needed = f"set it to '{subject.hub_id}' in {ADAPTER_CONFIG_FILE} and upload that file"
        return "failed", f"AutoModel loads the base_model_name_or_path {base!r}, not this repository; {needed}."
    return "ok", f"Scaling {scaling:g}, rank {adapter['r']}, base_model_name_or_path {base!r}."


def check_tokenizer(subject: Subject) -> Finding:
    """The tokenizer loads, has the config's audio token, and gives back what it encodes."""
    tokenizer = AutoTokenizer.from_pretrained(subject.folder, trust_remote_code=False)
    settings = subject.read_json("processor_config.json")
    token, expected = settings.get("audio_token", AUDIO_TOKEN), subject.config.audio_token_id
    found = tokenizer.get_vocab().get(token)
    if found != expected:
        return "failed", f"The audio token {token} has the id {found}, but config.json says audio_token_id {expected}."
    decoded = str(tokenizer.decode(tokenizer.encode(SENTENCE, add_special_tokens=False))).strip()
    if decoded != SENTENCE:
        return "warning" if decoded else "failed", f"{SENTENCE!r} comes back as {decoded!r}; is this its tokenizer?"
    if not (subject.has("chat_template.jinja") or settings.get("chat_template") or tokenizer.chat_template):
        return "warning", "No chat template (chat_template.jinja): the Vicuna form is assumed."
    return "ok", f"{len(tokenizer)} tokens, {token} is {expected}, the chat template is there."


def check_audio_settings(subject: Subject) -> Finding:
    """The feature extractor cuts and counts as the model does."""
    extractor, config = SalmonnFeatureExtractor.from_pretrained(subject.folder), subject.config
    own, needed = asdict(extractor.audio_layout), asdict(config.audio_layout)  # in frames
    own |= {name: getattr(extractor, name) for name in ("sampling_rate", "feature_size", "num_fbank_bins")}
    needed |= {"sampling_rate": SAMPLING_RATE, "feature_size": config.speech_config.num_mel_bins}
    needed["num_fbank_bins"] = config.audio_config.num_mel_bins if config.audio_config is not None else 0
    if wrong := [f"{name} {own[name]}, not {needed[name]}" for name in needed if own[name] != needed[name]]:
        return "failed", f"The feature extractor has {_listing(wrong)}; make processor_config.json as config.json."
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
    cases, wrong = subject.read_json(GOLDEN_FILE)["cases"], []
    model, processor = subject.loaded
    for case in cases:
        inputs = processor(text=case["text"], audio=str(subject.folder / case["audio"])).to(subject.device)
        limit = case.get("max_new_tokens", model.generation_config.max_new_tokens)
        output = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        if answer != case["answer"].strip():
            wrong.append(f"{case['audio']} gives {answer!r}, not {case['answer'].strip()!r}")
    if wrong:
        return "failed", f"{len(wrong)} of {len(cases)} answers differ: {_listing(wrong)}."
    return "ok", f"{len(cases)} of {len(cases)} answers are reproduced."


CHECKS = (
    check_files, check_git_lfs, check_pickles, check_config, check_code, check_tokenizer, check_audio_settings,
    check_adapter, check_weight_files, check_hashes, check_weights, check_keys, check_generation, check_golden_answers,
)  # fmt: skip
# What must not have failed before a check; the config, where nothing else is named.
NEEDS = {
    "hashes": ("weight files",),
    "weights": ("weight files", "git lfs"),
    "keys": ("weight files", "git lfs"),
    "generation": ("weight files", "git lfs", "weights", "keys"),
    "golden answers": ("generation",),
}


def _expected_shapes(subject: Subject) -> tuple[dict[str, list[int]], set[str]]:
    """Shape of every tensor that the weight files should hold, and the keys that tied weights leave out."""
    with torch.device("meta"):
        model = SalmonnForConditionalGeneration(copy.deepcopy(subject.config))
        shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        if subject.has(CONNECTOR_FILE):
            shapes = {key: shape for key, shape in shapes.items() if key.startswith(CONNECTOR_PREFIXES)}
        if subject.has(ADAPTER_CONFIG_FILE):
            model.add_adapter(LoraConfig.from_pretrained(str(subject.folder)))
            for key, tensor in model.state_dict().items():
                if ".lora_" in key:
                    shapes[f"base_model.model.{key.replace('.default.', '.')}"] = list(tensor.shape)
    return shapes, set(model.all_tied_weights_keys)


def _listing(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


__all__ = ["Check", "examine", "is_healthy", "print_report"]
