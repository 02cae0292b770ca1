"""Conversion of the research code's files into a Hub folder.

Every tensor of the checkpoint is either mapped or known to be obsolete, and every tensor of the model comes from a
file: anything else is an error that names the keys. No pickle is executed.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, decoders, normalizers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, WhisperConfig

from modeling_salmonn.base_weights_salmonn import (
    StateDict,
    load_audio_weights,
    load_speech_weights,
    load_text_weights,
    naming_base,
    read_official_beats,
    read_torch_file,
)
from modeling_salmonn.configuration_salmonn import BeatsConfig, SalmonnConfig
from modeling_salmonn.data.text_files import read_yaml_mapping
from modeling_salmonn.hub.model_card import write_model_card
from modeling_salmonn.hub.saved_folder import require_new_folder
from modeling_salmonn.hub.weight_checks import require_filled, require_floats_in_files, require_scales, require_sound
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


_LAYER = r"^speech_Qformer\.bert\.encoder\.layer\.(\d+)\."
_OUR_LAYER = r"model.qformer.layers.\1."
_LORA = r"^llama_model\.base_model\.model\.model\.layers\.(.*)\.lora_([AB])\.(?:default\.)?weight$"
RENAMES = (
    (r"^speech_query_tokens$", "model.qformer.query_tokens"),
    (r"^ln_(speech|audio)\.", r"model.ln_\1."),
    (r"^speech_llama_proj\.", "model.projector."),
    (r"^speech_Qformer\.bert\.embeddings\.LayerNorm\.", "model.qformer.layer_norm."),
    (_LAYER + r"attention\.self\.", _OUR_LAYER + "self_attention."),
    (_LAYER + r"attention\.output\.dense\.", _OUR_LAYER + "self_attention.output."),
    (_LAYER + r"attention\.output\.LayerNorm\.", _OUR_LAYER + "self_attention.layer_norm."),
    (_LAYER + r"crossattention\.self\.", _OUR_LAYER + "cross_attention."),
    (_LAYER + r"crossattention\.output\.dense\.", _OUR_LAYER + "cross_attention.output."),
    (_LAYER + r"crossattention\.output\.LayerNorm\.", _OUR_LAYER + "cross_attention.layer_norm."),
    (_LAYER + r"intermediate_query\.dense\.", _OUR_LAYER + "fc1."),
    (_LAYER + r"output_query\.dense\.", _OUR_LAYER + "fc2."),
    (_LAYER + r"output_query\.LayerNorm\.", _OUR_LAYER + "layer_norm."),
    (_LORA, r"model.language_model.layers.\1.lora_\2.default.weight"),
)
# Buffers that current code computes itself, and the one table that BEATs shares between layers.
OBSOLETE = re.compile(
    r"rotary_emb\.inv_freq$|position_ids$|^beats\.encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight$"
)
TOKENIZER_FILE = "tokenizer.model"


@dataclass
class ConversionReport:
    """What became of every key, written to `conversion_report.json`."""

    mapped: dict[str, str] = field(default_factory=dict)
    obsolete: list[str] = field(default_factory=list)
    unused_beats_head: list[str] = field(default_factory=list)
    parameters: int = 0
    trained_parameters: int = 0


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
    """Convert a research checkpoint.

    Args:
        whisper: folder or Hub id of the Whisper model.
        llm: folder or Hub id of the LLaMA or Vicuna model, with its tokenizer.
        checkpoint: `salmonn_v1.pth`, `salmonn_7b_v0.pth`, or one written by the research code's training.
        output: folder to create.
        beats: the BEATs `.pt` file; leave out for a checkpoint that was trained without.
        config: YAML of the research code; by default the one stored in the checkpoint.
        adapter_only: write only the trained tensors and name the bases.
        qformer_heads: heads of the Q-Former, which weights do not tell.
        dtype: "float32", "bfloat16" or "float16" of the saved weights.

    Returns:
        The report, which is also saved in the folder.

    Raises:
        ValueError: if a file cannot be read, a key is unknown or missing, a shape does not fit, or a tensor is
            damaged (whole numbers, NaN, infinity, zeros). Nothing is left in `output` then.
    """
    output = Path(output)
    require_new_folder(output)
    if not hasattr(torch, dtype) or dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}.")
    content = read_torch_file(checkpoint)
    if not isinstance(content.get("model"), dict):
        raise ValueError(f"{checkpoint} has the keys {sorted(content)}, but a SALMONN checkpoint has 'model'.")
    report = ConversionReport()
    trained = map_trained_weights(content["model"], report)
    require_sound({key: content["model"][key] for key in report.mapped}, str(checkpoint))
    require_scales(trained, str(checkpoint))
    _require_matrices(trained, checkpoint)
    settings = read_settings(config, content)
    with naming_base(f"{whisper} or {llm}"):
        processor = build_processor(llm, whisper, beats, settings, trained)
        model_config = build_config(whisper, beats, llm, settings, trained, processor, qformer_heads)
    model = build_model(model_config, whisper, beats, llm, trained, getattr(torch, dtype), report)
    if adapter_only:
        name_bases(model.config, whisper, beats, llm)
    _write_folder(output, model, processor, report, adapter_only)
    return report


def map_trained_weights(weights: Mapping[str, torch.Tensor], report: ConversionReport) -> StateDict:
    """Rename the checkpoint's tensors to those of `SalmonnForConditionalGeneration`.

    Raises:
        ValueError: for keys that are neither known nor obsolete.
    """
    mapped, unknown = {}, []
    for key, tensor in weights.items():
        name = _rename(str(key))
        if name is not None:
            mapped[name] = tensor
            report.mapped[key] = name
        elif OBSOLETE.search(str(key)):
            report.obsolete.append(key)
        else:
            unknown.append(str(key))
    if unknown:
        raise ValueError(f"The checkpoint has keys that SALMONN does not know: {sorted(unknown)}.")
    required = [
        "model.qformer.query_tokens",
        "model.qformer.layers.0.fc1.weight",
        "model.projector.weight",
        "model.ln_speech.weight",
    ]
    missing = [name for name in required if name not in mapped]
    if missing:
        raise ValueError(f"The checkpoint lacks {missing}; is it a SALMONN checkpoint with a window-level Q-Former?")
    return mapped


def _require_matrices(trained: StateDict, checkpoint: str | os.PathLike) -> None:
    """The tensors whose shapes tell the configuration have as many dimensions as they must."""
    dimensions = {"model.qformer.query_tokens": 3, "model.qformer.layers.0.fc1.weight": 2}
    dimensions |= {name: 2 for name in trained if ".lora_" in name}
    for name, count in dimensions.items():
        shape = tuple(trained[name].shape)
        if len(shape) != count or 0 in shape:
            raise ValueError(f"{checkpoint}: {name} has the shape {shape}, but {count} dimensions are needed.")


def read_settings(config: str | os.PathLike | None, content: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` section of the YAML file, or of the configuration stored in the checkpoint."""
    if config is None:
        stored = content.get("config")
        settings = stored.get("model", {}) if isinstance(stored, Mapping) else {}
        settings = settings if isinstance(settings, Mapping) else {}
    else:
        loaded, _ = read_yaml_mapping(config, "YAML file of the research code", "have a 'model' section")
        if not isinstance(loaded.get("model"), Mapping):
            raise ValueError(f"{config} has no 'model' section; give a YAML of the research code.")
        settings = loaded["model"]
    settings = dict(settings)
    if not settings.get("window_level_Qformer", True) or not settings.get("use_speech_Qformer", True):
        raise ValueError("This checkpoint was trained without the window-level Q-Former, which SALMONN needs.")
    return settings


def build_tokenizer(llm: str) -> Any:
    """The language model's tokenizer, with the segmentation that the research code gets.

    The slow LLaMA tokenizer of the research code starts every stretch of text between special tokens with a space.
    """
    tokenizer = AutoTokenizer.from_pretrained(llm)
    if "Llama" not in type(tokenizer).__name__:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    special = [tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    # The byte decoder gives up on a whole run of bytes if one is invalid; the ASCII ones are letters all the same.
    ascii_bytes = [decoders.Replace(f"<0x{byte:02X}>", chr(byte)) for byte in range(128)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), *ascii_bytes, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # The LLaMA class would build its own normaliser again when it is loaded.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.unk_token,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
    )


def build_processor(
    llm: str, whisper: str, beats: str | None, settings: Mapping[str, Any], trained: StateDict
) -> SalmonnProcessor:
    """Processor with the research code's windows; of files with several channels it takes the first, as that does."""
    extractor = SalmonnFeatureExtractor(
        feature_size=WhisperConfig.from_pretrained(whisper).num_mel_bins,
        num_fbank_bins=BeatsConfig().num_mel_bins if beats else 0,
        num_query_tokens=trained["model.qformer.query_tokens"].shape[1],
        channel=0,
        **_windows(settings),
    )
    return SalmonnProcessor(extractor, build_tokenizer(llm))


def build_config(
    whisper: str,
    beats: str | None,
    llm: str,
    settings: Mapping[str, Any],
    trained: StateDict,
    processor: SalmonnProcessor,
    qformer_heads: int,
) -> SalmonnConfig:
    """Configuration from the bases' configs, the research code's settings and the shapes of the trained tensors."""
    has_audio = "model.ln_audio.weight" in trained
    if has_audio != (beats is not None):
        raise ValueError(
            "The checkpoint was trained with BEATs; give its file with beats."
            if has_audio
            else "The checkpoint was trained without BEATs (it has no ln_audio); leave beats out."
        )
    lora_ranks = {tensor.shape[0] for name, tensor in trained.items() if ".lora_A." in name}
    if len(lora_ranks) > 1:
        raise ValueError(f"The LoRA tensors have several ranks {sorted(lora_ranks)}; one is expected.")
    rank = lora_ranks.pop() if lora_ranks else settings.get("lora_rank", 8)
    targets = sorted({name.split(".lora_A.")[0].rsplit(".", 1)[1] for name in trained if ".lora_A." in name})
    audio_config = read_official_beats(beats)[0] if beats else None
    if audio_config is not None:
        audio_config.num_labels = 0  # the tagging head stays behind
    speech_config, text_config = WhisperConfig.from_pretrained(whisper), AutoConfig.from_pretrained(llm)
    for base in (speech_config, text_config):
        base.name_or_path = ""  # a folder of this machine
    query_tokens = trained["model.qformer.query_tokens"]
    qformer_layers = {name.split(".")[3] for name in trained if name.startswith("model.qformer.layers.")}
    return SalmonnConfig(
        speech_config=speech_config,
        audio_config=audio_config,
        qformer_config={
            "hidden_size": query_tokens.shape[2],
            "num_hidden_layers": len(qformer_layers),
            "num_attention_heads": qformer_heads,
            "intermediate_size": trained["model.qformer.layers.0.fc1.weight"].shape[0],
            "num_query_tokens": query_tokens.shape[1],
        },
        text_config=text_config,
        audio_token_id=processor.audio_token_id,
        lora_rank=rank,
        lora_alpha=_number(settings, "lora_alpha", 32),
        lora_dropout=_number(settings, "lora_dropout", 0.1),
        lora_target_modules=targets or ["q_proj", "v_proj"],
        **_windows(settings),
    )


def build_model(
    config: SalmonnConfig,
    whisper: str,
    beats: str | None,
    llm: str,
    trained: StateDict,
    dtype: torch.dtype,
    report: ConversionReport,
) -> SalmonnForConditionalGeneration:
    """The model with all weights in place.

    Raises:
        ValueError: if a weight is missing, unexpected, or of another shape.
    """
    lora = {name: tensor for name, tensor in trained.items() if ".lora_" in name}
    weights = {name: tensor.to(dtype) for name, tensor in trained.items() if name not in lora}
    require_sound(weights, f"The checkpoint's weights in {dtype}")
    for base, load in ((whisper, load_speech_weights), (llm, load_text_weights)):
        loaded = load(base, dtype)
        require_floats_in_files(base)
        require_sound(loaded, base)
        weights |= loaded
    if beats is not None:
        require_sound(read_official_beats(beats)[1], beats)
        weights |= load_audio_weights(beats, dtype)
        head = [key for key in read_official_beats(beats)[1] if key.startswith("classifier.")]
        report.unused_beats_head = head
    model = SalmonnForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    if lora:
        model.add_lora()
        expected = {name for name, _ in model.named_parameters() if ".lora_" in name}
        if expected != lora.keys():
            raise ValueError(
                f"The LoRA tensors do not fit the language model: missing {sorted(expected - lora.keys())}, "
                f"unexpected {sorted(lora.keys() - expected)}."
            )
        try:
            model.load_state_dict(lora, strict=False)
        except RuntimeError as error:
            raise ValueError(f"The LoRA tensors do not fit the language model: {error}") from error
    require_filled(weights | lora, "The weights")
    model.generation_config = build_generation_config(config)
    report.parameters = sum(tensor.numel() for tensor in model.parameters())
    report.trained_parameters = sum(tensor.numel() for tensor in trained.values())
    return model.eval()


def build_generation_config(config: SalmonnConfig) -> GenerationConfig:
    """The research code's limits; greedy, its four beams are one argument away (`num_beams=4`)."""
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id if text.pad_token_id is not None else text.eos_token_id,
        max_new_tokens=200,
    )


def name_bases(config: SalmonnConfig, whisper: str, beats: str | None, llm: str) -> None:
    """Record where an adapter-only checkpoint finds its bases; local ones by absolute path."""
    for part, base in (("speech", whisper), ("audio", beats), ("text", llm)):
        if base is not None:
            setattr(config, f"{part}_model_id", os.path.abspath(base) if os.path.exists(base) else base)


def _rename(key: str) -> str | None:
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return None


def _windows(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "window_seconds": _number(settings, "second_per_window", 0.333333),
        "stride_seconds": _number(settings, "second_stride", 0.333333),
    }


def _number(settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} in the model section must be a number, got {value!r}.")
    return value


def _write_folder(
    output: Path,
    model: SalmonnForConditionalGeneration,
    processor: SalmonnProcessor,
    report: ConversionReport,
    adapter_only: bool,
) -> None:
    """Write beside the target and rename, so that an interrupted run leaves no half folder under its name."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        processor.save_pretrained(staging)
        model.save_pretrained(staging, adapter_only=adapter_only)
        write_model_card(staging, model.config)
        (staging / "conversion_report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
        if output.exists():
            output.rmdir()
        staging.chmod(0o755)
        for file in staging.iterdir():  # safetensors writes files for the owner alone
            file.chmod(0o644)
        staging.rename(output)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


__all__ = ["ConversionReport", "convert_checkpoint"]
