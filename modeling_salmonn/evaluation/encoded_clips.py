"""Audio tokens of clips that were encoded before: a clip is asked about at many scales, and for its fallbacks too."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from modeling_salmonn.audio_inputs_salmonn import AUDIO_INPUTS
from modeling_salmonn.audio_positions_salmonn import find_positions, pad_tokens
from modeling_salmonn.lora_layers_salmonn import adapted_layers
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration


MOST_BYTES = 2 * 2**30  # 2,800 clips of 30 s at 7B and in half precision
LANGUAGE_MODEL = ("model.language_model.", "lm_head")


class EncodedClips:
    """Encodes the clips of batches, each once; its tokens depend neither on the LoRA scale nor on what is asked.

    Args:
        model: encodes clips; its encoders and its connector must stay as they are.
        most_bytes: of tokens that are kept in the memory of the host; clips beyond it are encoded each time.
    """

    def __init__(self, model: SalmonnForConditionalGeneration, most_bytes: int = MOST_BYTES):
        self.model = model
        self.most_bytes = most_bytes
        self._kept: dict[bytes, torch.Tensor] = {}  # (tokens, hidden) by the hash of the features
        self._bytes = 0

    @torch.no_grad()
    def encode(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of `generate` on the model's device, with audio tokens in the place of features.

        Args:
            inputs: of the processor. They stay as they are where there is no clip, and where an adapter sits on the
                encoders or the connector, so that tokens follow from the scale.
        """
        audio = {name: value for name, value in inputs.items() if name in AUDIO_INPUTS and value is not None}
        if not audio or not self._are_independent_of_scale():
            return {name: value.to(self.model.device) for name, value in inputs.items()}
        others = {name: value.to(self.model.device) for name, value in inputs.items() if name not in audio}
        tokens = self._tokens(audio)
        positions = find_positions(others["input_ids"], self.model.config.audio_token_id)
        return others | {"audio_embeds": pad_tokens(tokens, positions)}

    def _are_independent_of_scale(self) -> bool:
        return all(name.startswith(LANGUAGE_MODEL) for name in adapted_layers(self.model))

    def _tokens(self, audio: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Tokens `(audio_tokens, hidden)` of all clips one after the other."""
        keys = self._keys(audio)
        rows = {key: row for row, key in enumerate(keys) if key not in self._kept}  # each clip once
        found = {key: self._kept[key] for key in keys if key in self._kept}
        if rows:
            chosen = list(rows.values())
            new = {name: value[chosen].to(self.model.device) for name, value in audio.items()}
            output = self.model.get_audio_features(**new, return_dict=True)
            assert output.token_counts is not None
            found |= zip(rows, output.pooler_output.split(output.token_counts.tolist()), strict=True)
            for key in rows:
                self._keep(key, found[key])
        return torch.cat([found[key].to(self.model.device) for key in keys])

    def _keys(self, audio: Mapping[str, torch.Tensor]) -> list[bytes]:
        """A hash of each clip's features, without the padding that it owes to longer clips of its batch."""
        layout = self.model.config.audio_layout
        keys = []
        for row, length in enumerate(audio["input_features_mask"].long().sum(-1).tolist()):
            digest = hashlib.blake2b(str(length).encode())
            for name in sorted(audio):
                value = audio[name][row]
                axis = 1 if name == "input_features" else 0  # (mel, frames), and (frames, ...)
                own = value.narrow(axis, 0, layout.padded_length(length))
                digest.update(own.cpu().contiguous().numpy().tobytes())
            keys.append(digest.digest())
        return keys

    def _keep(self, key: bytes, tokens: torch.Tensor) -> None:
        if self._bytes + tokens.nbytes <= self.most_bytes:
            self._kept[key] = tokens.cpu().clone()  # a view would hold all of its batch
            self._bytes += tokens.nbytes
