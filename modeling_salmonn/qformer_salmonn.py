"""The window-level Q-Former (paper, section 3.1): learned queries read a short window of fused frames.

Every window of every clip is one row of a batch, so a single call serves them all. Only the queries' branch
of BERT exists: no words, no positions, cross attention in every layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_salmonn import SalmonnQFormerConfig
from .modeling_beats import eager_attention


class SalmonnQFormerAttention(nn.Module):
    """Multi-head attention from the queries to a source, with BERT's post-norm residual."""

    def __init__(self, config: SalmonnQFormerConfig, source_size: int):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(source_size, config.hidden_size)
        self.value = nn.Linear(source_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def split_heads(self, projection: nn.Linear, states: torch.Tensor) -> torch.Tensor:
        """Heads of a projection: `(B, T, D)` to `(B, heads, T, head_dim)`."""
        # vLLM merges and shards keys and values that it finds in `forward`, but not the queries
        return projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, source: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.split_heads(self.query, hidden_states)
        key = self.split_heads(self.key, source)
        value = self.split_heads(self.value, source)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attended, weights = attend(self, query, key, value, None, dropout=dropout, scaling=self.scaling, **kwargs)
        attended = self.dropout(self.output(attended.flatten(2)))  # (B, queries, heads, head_dim) -> (B, queries, D)
        return self.layer_norm(hidden_states + attended), weights


class SalmonnQFormerLayer(GradientCheckpointingLayer):
    """Self attention of the queries, cross attention to the window, feed-forward."""

    def __init__(self, config: SalmonnQFormerConfig):
        super().__init__()
        assert config.encoder_hidden_size is not None  # checked by SalmonnQFormerModel
        self.self_attention = SalmonnQFormerAttention(config, config.hidden_size)
        self.cross_attention = SalmonnQFormerAttention(config, config.encoder_hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, windows: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        hidden_states, _ = self.self_attention(hidden_states, hidden_states, **kwargs)
        hidden_states, _ = self.cross_attention(hidden_states, windows, **kwargs)
        expanded = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.layer_norm(hidden_states + self.dropout(expanded))


class SalmonnQFormerModel(PreTrainedModel):
    """Turns windows of encoder frames into a fixed number of tokens each."""

    config_class = SalmonnQFormerConfig
    config: SalmonnQFormerConfig
    base_model_prefix = "qformer"
    main_input_name = "windows"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SalmonnQFormerModel"]  # its queries are a bare parameter, for which there is no hook
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": SalmonnQFormerLayer,
        "attentions": OutputRecorder(SalmonnQFormerAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(SalmonnQFormerAttention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: SalmonnQFormerConfig):
        super().__init__(config)
        if config.encoder_hidden_size is None:
            raise ValueError("SalmonnQFormerConfig.encoder_hidden_size is not set; give the width of a fused frame.")
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.hidden_size))
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList([SalmonnQFormerLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SalmonnQFormerModel):
            # drawn as BERT's weights are
            init.normal_(module.query_tokens, mean=0.0, std=self.config.initializer_range)

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, windows: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithCrossAttentions:
        """Read a batch of windows.

        Args:
            windows (`torch.Tensor` of shape `(windows, frames, encoder_hidden_size)`): fused encoder frames.

        Returns:
            Output with `last_hidden_state` of shape `(windows, num_query_tokens, hidden_size)`; `attentions` are those
            among the queries, `(windows, heads, queries, queries)`, `cross_attentions` those to the frames of the
            window, `(windows, heads, queries, frames)`, one of each per layer.
        """
        queries = self.dropout(self.layer_norm(self.query_tokens))  # (1, queries, hidden), the same for all windows
        hidden_states = queries.expand(windows.shape[0], -1, -1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, windows, **kwargs)
        return BaseModelOutputWithCrossAttentions(last_hidden_state=hidden_states)


__all__ = ["SalmonnQFormerModel"]
