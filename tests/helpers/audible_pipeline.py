"""A tiny pipeline that hears, and clips for it."""

from collections.abc import Iterable
from pathlib import Path

import soundfile
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_model
from transformers import pipeline

from modeling_salmonn import AudioTextPipeline, SalmonnConfig, SalmonnProcessor


def audible_pipeline(config: SalmonnConfig, processor: SalmonnProcessor, new_tokens: int) -> AudioTextPipeline:
    """Its answers depend on the clip: the audio tokens are as large as the words."""
    model = tiny_model(config, lora=True)
    model.generation_config.max_new_tokens = new_tokens
    with torch.no_grad():
        model.model.projector.weight *= 20
    return pipeline("audio-text", model=model, processor=processor)


def write_clips(folder: Path, lengths: Iterable[float]) -> list[str]:
    """Files of so many seconds, each with a sound of its own."""
    paths = []
    for seed, seconds in enumerate(lengths):
        path = str(folder / f"clip {seed}.wav")
        soundfile.write(path, make_clip(seconds, seed=seed), SAMPLING_RATE)
        paths.append(path)
    return paths
