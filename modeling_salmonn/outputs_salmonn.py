"""What the models return."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast


@dataclass
class SalmonnAudioOutput(BaseModelOutputWithPooling):
    """What the encoders and the Q-Former made of a batch of clips.

    Args:
        last_hidden_state: frames of the audio encoder (of the speech encoder in a speech-only model), zero where
            there is no audio, `(clips, frames, hidden)`.
        pooler_output: audio tokens of all clips one after the other, `(audio_tokens, text_hidden)`.
        token_counts: audio tokens of each clip, `(clips,)`.
    """

    token_counts: torch.Tensor | None = None


@dataclass
class SalmonnModelOutputWithPast(BaseModelOutputWithPast):
    """Output of `SalmonnModel`; `audio_hidden_states` are the audio tokens `(audio_tokens, text_hidden)`."""

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class SalmonnCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of `SalmonnForConditionalGeneration`; `audio_hidden_states` are the audio tokens."""

    audio_hidden_states: torch.Tensor | None = None


__all__ = ["SalmonnAudioOutput", "SalmonnCausalLMOutputWithPast", "SalmonnModelOutputWithPast"]
