"""The speech encoder: Whisper's, for segments of any length."""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


class SalmonnSpeechEncoder(WhisperEncoder):
    """Whisper's encoder that also takes segments shorter than 30 s, with the position table cut to them.

    LayerDrop is not applied: no released Whisper has it.
    """

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode log-mel features.

        Args:
            input_features (`torch.Tensor` of shape `(segments, mel, frames)`): 10 ms a frame, an even number of them.

        Returns:
            Output with `last_hidden_state` of shape `(segments, frames / 2, hidden)`.
        """
        hidden_states = nn.functional.gelu(self.conv1(input_features))
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).transpose(1, 2)
        # The module is called, not its weight read: where it is offloaded, the call loads it.
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        hidden_states = hidden_states + self.embed_positions(positions)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        for layer in self.layers:
            hidden_states = layer(hidden_states, None, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=self.layer_norm(hidden_states))
