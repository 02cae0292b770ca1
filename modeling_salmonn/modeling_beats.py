"""BEATs, the encoder of sounds and music (arXiv 2212.09058), as a transformers model.

- fbank in, one vector per 16 x 16 patch out; patches run time-major, 8 frequency patches a step
- bidirectional bucketed relative position bias, computed once and gated by each layer's queries
- post-norm layers with deep-norm residuals
- a padded clip equals the clip alone: padding is zeroed before the position convolution and masked as keys
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_salmonn import BeatsConfig


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its weights; tensors are `(B, heads, T, head_dim)`, the mask is added."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class BeatsRelativePositionBias(nn.Module):
    """A learned bias per head and bucketed distance between two patches, shared by all layers."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.num_buckets = config.num_buckets
        self.max_distance = config.max_distance
        self.embedding = nn.Embedding(config.num_buckets, config.num_attention_heads)

    def buckets(self, distance: torch.Tensor) -> torch.Tensor:
        """Bucket of each signed distance: one half per sign, exact for short ones, logarithmic beyond."""
        per_sign = self.num_buckets // 2
        exact = per_sign // 2
        absolute = distance.abs()
        # float32 as in the reference: the buckets at the borders depend on it
        logarithmic = torch.log(absolute.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (logarithmic * (per_sign - exact)).long()).clamp(max=per_sign - 1)
        return (distance > 0).long() * per_sign + torch.where(absolute < exact, absolute, far)

    def forward(self, length: int, device: torch.device | None = None) -> torch.Tensor:
        """Bias `(heads, length, length)`; entry `[h, i, j]` depends on `j - i` alone, so each row is a view."""
        # the weight has no device of its own while it is offloaded
        distance = torch.arange(1 - length, length, device=device)
        by_distance = self.embedding(self.buckets(distance)).transpose(0, 1)  # (heads, 2 * length - 1)
        # windows of the distances: row i of the flipped ones holds 0 - i to length - 1 - i
        return by_distance.unfold(1, length, 1).flip(1)


class BeatsAttention(nn.Module):
    """Self attention with the relative position bias, gated per query."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        if config.gated_relative_position:
            self.gate_proj = nn.Linear(self.head_dim, 8)  # four outputs for each of the two gates
            self.gate_scale = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))

    def split_heads(self, projection: nn.Linear, hidden_states: torch.Tensor) -> torch.Tensor:
        """Heads of a projection: `(B, T, D)` to `(B, heads, T, head_dim)`."""
        # vLLM merges and shards the projections that it finds in `forward`, but not the bias that each head has
        return projection(hidden_states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def gate(self, query: torch.Tensor) -> torch.Tensor:
        """Factor `(B, heads, T, 1)` of the bias: two sigmoids, each of the sum of four outputs."""
        gates = self.gate_proj(query).unflatten(-1, (2, 4)).sum(-1).sigmoid()  # (B, heads, T, 2)
        first, second = gates.chunk(2, dim=-1)
        return first * (second * self.gate_scale - 1.0) + 2.0

    def bias_mask(
        self,
        query: torch.Tensor,
        position_bias: torch.Tensor,
        attention_mask: torch.Tensor | None,
        buffer: torch.Tensor | None,
    ) -> torch.Tensor:
        """What is added to the scores, `(B, heads, T, T)`: the largest tensor here, so it is made in one pass."""
        if not self.config.gated_relative_position:
            return position_bias.expand(query.shape[0], -1, -1, -1) + (0 if attention_mask is None else attention_mask)
        gate = self.gate(query)
        is_learned = gate.requires_grad or position_bias.requires_grad
        out = None if is_learned else buffer  # a gradient needs the mask of each layer
        if attention_mask is None:
            return torch.mul(gate, position_bias, out=out)
        return torch.addcmul(attention_mask, gate, position_bias, out=out)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mask_buffer: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query = self.split_heads(self.q_proj, hidden_states)
        key = self.split_heads(self.k_proj, hidden_states)
        value = self.split_heads(self.v_proj, hidden_states)

        mask = self.bias_mask(query, position_bias, attention_mask, mask_buffer)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        output, weights = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.out_proj(output.flatten(2)), weights  # (B, T, heads, head_dim) -> (B, T, hidden)


class BeatsLayer(GradientCheckpointingLayer):
    """A post-norm Transformer layer with deep-norm residuals."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        # alpha of an encoder in DeepNet, arXiv 2203.00555
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1.0
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor,
        attention_mask: torch.Tensor | None,
        mask_buffer: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states, position_bias, attention_mask, mask_buffer, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states * self.residual_scale + self.dropout(attended))
        expanded = self.activation_dropout(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states * self.residual_scale + self.dropout(self.fc2(expanded)))


class BeatsPositionConv(nn.Module):
    """Convolutional position embedding, weight-normalised over the kernel positions."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        kernel = config.conv_pos_kernel
        conv = nn.Conv1d(
            config.hidden_size, config.hidden_size, kernel, padding=kernel // 2, groups=config.conv_pos_groups
        )
        self.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
        self.surplus = 1 - kernel % 2  # an even kernel gives one frame too many
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        positions = self.conv(hidden_states.transpose(1, 2)).transpose(1, 2)  # (B, T, hidden) again
        return self.activation(positions[:, : hidden_states.shape[1]] if self.surplus else positions)


class BeatsPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of the BEATs models."""

    config_class = BeatsConfig
    config: BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    # a parametrised convolution has weights apart from its own bias
    _no_split_modules = ["BeatsLayer", "BeatsPositionConv"]
    _supports_sdpa = True
    _supports_flash_attn = False  # the gated bias is an additive mask
    _supports_flex_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": BeatsLayer, "attentions": BeatsAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv1d) and nn.utils.parametrize.is_parametrized(module):
            parametrizations: Any = module.parametrizations
            weight = parametrizations.weight
            std = math.sqrt(4.0 / (module.kernel_size[0] * module.in_channels))  # as in wav2vec 2.0
            init.normal_(weight.original1, mean=0.0, std=std)
            # the magnitude of each kernel position, so that the weight is what was drawn
            init.copy_(weight.original0, torch.linalg.vector_norm(weight.original1, dim=(0, 1), keepdim=True))
        elif isinstance(module, BeatsAttention) and self.config.gated_relative_position:
            init.ones_(module.gate_scale)


class BeatsModel(BeatsPreTrainedModel):
    """The BEATs encoder without a head."""

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            1, config.patch_embed_size, config.patch_size, stride=config.patch_size, bias=config.conv_bias
        )
        self.patch_layer_norm = nn.LayerNorm(config.patch_embed_size, eps=config.layer_norm_eps)
        self.patch_projection = (
            nn.Linear(config.patch_embed_size, config.hidden_size)
            if config.patch_embed_size != config.hidden_size
            else nn.Identity()
        )
        self.position_conv = BeatsPositionConv(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.relative_position_bias = BeatsRelativePositionBias(config)
        self.layers = nn.ModuleList([BeatsLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embedding

    def set_input_embeddings(self, value: nn.Conv2d) -> None:
        self.patch_embedding = value

    @property
    def patches_per_step(self) -> int:
        """Patches of one time step, one for each stretch of mel bins."""
        return self.config.num_mel_bins // self.config.patch_size

    def patch_mask(self, input_features_mask: torch.Tensor) -> torch.Tensor:
        """Mask of the patches that hold audio.

        Args:
            input_features_mask (`torch.Tensor` of shape `(batch, frames)`): 1 for audio, a prefix of each row.

        Returns:
            `torch.BoolTensor` of shape `(batch, patches)`: true for whole patches of audio; the rest of
            a patch that the clip alone would not have either is false.
        """
        patches = input_features_mask.long().sum(-1) // self.config.patch_size * self.patches_per_step
        total = input_features_mask.shape[-1] // self.config.patch_size * self.patches_per_step
        return torch.arange(total, device=input_features_mask.device) < patches[:, None]

    def embed_patches(self, input_features: torch.Tensor) -> torch.Tensor:
        """Patches `(batch, patches, hidden)` of an fbank `(batch, frames, mel)`, before any position."""
        image = input_features.to(self.patch_embedding.weight.dtype).unsqueeze(1)  # (B, 1, frames, mel)
        patches = self.patch_embedding(image)  # (B, channels, steps, patches_per_step)
        patches = patches.flatten(2).transpose(1, 2)  # (B, steps * patches_per_step, channels): time-major
        return self.patch_projection(self.patch_layer_norm(patches))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode a batch of fbanks.

        Args:
            input_features (`torch.Tensor` of shape `(batch, frames, mel)`): normalised Kaldi fbank, 10 ms a frame.
            input_features_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): 1 for audio, 0 for padding
                at the end.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch, patches, hidden)`; padded patches hold
            values without meaning (`patch_mask` tells which).
        """
        hidden_states = self.embed_patches(input_features)
        attention_mask = None
        if input_features_mask is not None:
            keep = self.patch_mask(input_features_mask)  # (B, patches)
            hidden_states = hidden_states * keep.unsqueeze(-1)
            lowest = torch.finfo(hidden_states.dtype).min  # not -inf, of which a row without keys makes NaN
            attention_mask = torch.where(keep, 0.0, lowest).to(hidden_states.dtype)[:, None, None, :]

        hidden_states = hidden_states + self.position_conv(hidden_states)
        hidden_states = self.dropout(self.layer_norm(hidden_states))
        position_bias = self.relative_position_bias(hidden_states.shape[1], hidden_states.device)
        # The masks of all layers in turn: fresh memory for each takes longer than what is written to it.
        # Checkpointing keeps what a layer is given, unchanged, for the backward pass.
        mask_buffer = None
        if not (self.training and self.gradient_checkpointing):
            mask_buffer = position_bias.new_empty(len(hidden_states), *position_bias.shape)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_bias, attention_mask, mask_buffer, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class BeatsForAudioClassification(BeatsPreTrainedModel):
    """BEATs with a multi-label head, as the AudioSet-fine-tuned checkpoints have it."""

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.beats = BeatsModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Tag a batch of fbanks.

        Args:
            input_features (`torch.Tensor` of shape `(batch, frames, mel)`): normalised Kaldi fbank.
            input_features_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): 1 for audio, 0 for padding.
            labels (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): 1 for each class that is heard.

        Returns:
            `SequenceClassifierOutput` with `logits` of shape `(batch, num_labels)`, the mean over the patches
            of audio; a sigmoid makes them probabilities. `loss` is the binary cross entropy.
        """
        outputs = self.beats(input_features, input_features_mask, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))  # (batch, patches, labels)
        if input_features_mask is None:
            logits = logits.mean(1)
        else:
            keep = self.beats.patch_mask(input_features_mask).unsqueeze(-1).to(logits.dtype)
            logits = (logits * keep).sum(1) / keep.sum(1)
        loss = None
        if labels is not None:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["BeatsForAudioClassification", "BeatsModel", "BeatsPreTrainedModel"]
