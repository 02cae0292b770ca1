"""The parts of a model as folders of their own, which adapter-only folders name."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, WhisperConfig, WhisperModel

from modeling_salmonn import SalmonnForConditionalGeneration


def randomise_adapter(model: SalmonnForConditionalGeneration, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)


def save_bases(model: SalmonnForConditionalGeneration, folder: Path) -> dict[str, str]:
    """Whisper, BEATs and the language model as folders of their own; returns the config values that name them."""
    parts, config = model.model, model.config
    decoder = {"decoder_attention_heads": 2, "decoder_ffn_dim": 16, "max_target_positions": 8}
    whisper = WhisperModel(WhisperConfig(**(config.speech_config.to_dict() | decoder)))
    whisper.encoder.load_state_dict(parts.speech_encoder.state_dict())
    text_model = AutoModelForCausalLM.from_config(config.text_config)
    text_model.model.load_state_dict(parts.language_model.state_dict())
    text_model.lm_head.load_state_dict(model.lm_head.state_dict())
    bases = {"speech_model_id": whisper, "text_model_id": text_model}
    bases |= {"audio_model_id": parts.audio_encoder} if parts.audio_encoder is not None else {}
    for name, base in bases.items():
        base.save_pretrained(folder / name)
    return {name: str(folder / name) for name in bases}
