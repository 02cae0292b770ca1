"""Conversion of the research code's files into a Hub folder."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, WhisperConfig

from modeling_salmonn.base_weights_salmonn import (
    StateDict,
    load_speech_weights,
    load_text_weights,
    naming_base,
    read_official_beats,
)
from modeling_salmonn.configuration_salmonn import BeatsConfig, SalmonnConfig
from modeling_salmonn.hub.assembly import assemble_model, build_processor
from modeling_salmonn.hub.model_card import write_model_card
from modeling_salmonn.hub.research_checkpoint import ResearchCheckpoint
from modeling_salmonn.hub.saved_folder import require_new_folder
from modeling_salmonn.hub.weight_checks import require_filled, require_floats_in_files, require_sound
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.staged_saving_salmonn import replace_files
from modeling_salmonn.weight_names_salmonn import is_adapter_name


DTYPES = ("float32", "bfloat16", "float16")
REPORT_FILE = "conversion_report.json"


@dataclass(frozen=True)
class ConversionReport:
    """What became of every key, written to `conversion_report.json`."""

    mapped: dict[str, str]  # our name of each tensor by the name in the checkpoint
    obsolete: list[str]  # names in the checkpoint that nothing is needed of
    unused_beats_head: list[str]  # of the tagging head
    parameters: int
    trained_parameters: int


def convert_checkpoint(
    whisper: str,
    llm: str,
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    beats: str | None = None,
    config: str | os.PathLike | None = None,
    adapter_only: bool = False,
    qformer_heads: int = 12,
    dtype: str = "float32",
) -> ConversionReport:
    """Convert a research checkpoint; every tensor of the model comes from a file.

    Args:
        whisper: folder or Hub id of the Whisper model.
        llm: folder or Hub id of the LLaMA or Vicuna model, with its tokenizer.
        checkpoint: `salmonn_v1.pth`, `salmonn_7b_v0.pth`, or one written by the research code's training.
        output: folder to create; it holds the report that is returned, and nothing after an error.
        beats: the BEATs `.pt` file; leave out for a checkpoint that was trained without.
        config: YAML of the research code; by default the one stored in the checkpoint.
        adapter_only: write only the trained tensors and name the bases.
        qformer_heads: heads of the Q-Former, which weights do not tell.
        dtype: "float32", "bfloat16" or "float16" of the saved weights.

    Raises:
        ValueError: if a file cannot be read, a key is unknown or missing, a shape does not fit, or a tensor is
            damaged (whole numbers, NaN, infinity, zeros).
    """
    output = Path(output)
    require_new_folder(output)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}.")
    research = ResearchCheckpoint.read(checkpoint, config)
    _require_same_encoders(research, beats)
    audio_config, audio_weights = read_official_beats(beats) if beats else (None, {})
    require_sound(audio_weights, str(beats))
    with naming_base(f"{whisper} or {llm}"):
        model_config = build_config(research, whisper, llm, audio_config, qformer_heads)
        # Of files with several channels the research code takes the first.
        processor = build_processor(model_config, llm, channel=0)
    head, weights = [], {}
    for name, tensor in audio_weights.items():
        if name.startswith("classifier."):
            head.append(name)  # the tagging head stays behind
        else:
            weights[f"model.audio_encoder.{name}"] = tensor.to(getattr(torch, dtype))
    model = build_model(model_config, research, whisper, llm, weights, getattr(torch, dtype))
    if adapter_only:
        name_bases(model.config, whisper, beats, llm)
    report = ConversionReport(
        mapped=research.mapped,
        obsolete=research.obsolete,
        unused_beats_head=head,
        parameters=sum(tensor.numel() for tensor in model.parameters()),
        trained_parameters=sum(tensor.numel() for tensor in research.weights.values()),
    )
    with replace_files(output) as folder:
        processor.save_pretrained(folder)
        model.save_pretrained(folder, adapter_only=adapter_only)
        write_model_card(folder, output.name, model.config)
        (folder / REPORT_FILE).write_text(json.dumps(asdict(report), indent=2) + "\n")
        for file in folder.iterdir():  # safetensors writes files for the owner alone
            file.chmod(0o644)
    return report


def _require_same_encoders(research: ResearchCheckpoint, beats: str | None) -> None:
    if research.has_audio_encoder and beats is None:
        raise ValueError("The checkpoint was trained with BEATs; give its file with beats.")
    if beats is not None and not research.has_audio_encoder:
        raise ValueError("The checkpoint was trained without BEATs (it has no ln_audio); leave beats out.")


def build_config(
    research: ResearchCheckpoint, whisper: str, llm: str, audio_config: BeatsConfig | None, qformer_heads: int
) -> SalmonnConfig:
    """Configuration from the bases' configs, the research code's settings and the shapes of the trained tensors."""
    if audio_config is not None:
        audio_config.num_labels = 0  # without the tagging head
    speech_config, text_config = WhisperConfig.from_pretrained(whisper), AutoConfig.from_pretrained(llm)
    for base in (speech_config, text_config):
        base.name_or_path = ""  # a folder of this machine
    return SalmonnConfig(
        speech_config=speech_config,
        audio_config=audio_config,
        qformer_config=research.qformer_settings(qformer_heads),
        text_config=text_config,
        window_seconds=research.number("second_per_window", 0.333333),  # the code's own default
        stride_seconds=research.number("second_stride", 0.333333),
        **research.lora_settings(),
    )


def build_model(
    config: SalmonnConfig,
    research: ResearchCheckpoint,
    whisper: str,
    llm: str,
    audio_weights: StateDict,
    dtype: torch.dtype,
) -> SalmonnForConditionalGeneration:
    """The model with all weights in place, each of them needed, expected and sound."""
    lora = research.lora
    weights = {name: tensor.to(dtype) for name, tensor in research.connector.items()}
    require_sound(weights, f"The checkpoint's weights in {dtype}")  # again: float16 may be too narrow
    for base, load in ((whisper, load_speech_weights), (llm, load_text_weights)):
        loaded = load(base, dtype)
        require_floats_in_files(base)
        require_sound(loaded, base)
        weights |= loaded
    weights |= audio_weights
    model = assemble_model(config, weights, dtype)
    if lora:
        model.add_lora()
        _load_lora(model, lora)
    require_filled(weights | lora, "The weights")
    return model.eval()


def _load_lora(model: SalmonnForConditionalGeneration, lora: StateDict) -> None:
    problem = "The LoRA tensors do not fit the language model"
    expected = {name for name, _ in model.named_parameters() if is_adapter_name(name)}
    missing, unexpected = sorted(expected - lora.keys()), sorted(lora.keys() - expected)
    if missing or unexpected:
        raise ValueError(f"{problem}: missing {missing}, unexpected {unexpected}.")
    try:
        model.load_state_dict(lora, strict=False)
    except RuntimeError as error:  # of other shapes
        raise ValueError(f"{problem}: {error}") from error


def name_bases(config: SalmonnConfig, whisper: str, beats: str | None, llm: str) -> None:
    """Record where an adapter-only checkpoint finds its bases; local ones by absolute path."""
    for part, base in (("speech", whisper), ("audio", beats), ("text", llm)):
        if base is not None:
            setattr(config, f"{part}_model_id", os.path.abspath(base) if os.path.exists(base) else base)
