"""Floating-point operations of each part, counted from its shapes."""

import math

from transformers import PreTrainedConfig, WhisperConfig

from modeling_salmonn import BeatsConfig, SalmonnConfig


def layer_flop(length: int, width: int, expanded: int) -> float:
    """Encoder layer: q, k, v, out are 2 T D^2 each; scores and values 2 T^2 D each; feed-forward two times 2 T D F."""
    return 8 * length * width**2 + 4 * length**2 * width + 4 * length * width * expanded


def spectrum_flop(frames: int, fft_samples: int, num_bins: int) -> float:
    """Per frame a real FFT, 5/2 N log2 N, and the filter bank, 2 (N/2 + 1) bins."""
    return frames * (2.5 * fft_samples * math.log2(fft_samples) + 2 * (fft_samples // 2 + 1) * num_bins)


def speech_flop(config: WhisperConfig, frames: int) -> float:
    """Two convolutions of kernel 3 (2 * 3 * C_in * C_out per frame, the second at half the rate) and the layers."""
    width, length = config.d_model, frames // 2
    convolutions = 6 * frames * config.num_mel_bins * width + 6 * length * width**2
    return convolutions + config.encoder_layers * layer_flop(length, width, config.encoder_ffn_dim)


def beats_flop(config: BeatsConfig, frames: int) -> float:
    """Patches (2 * 16^2 * E), projection (2 E D), position convolution (2 K D^2 / groups), gate (2 D * 8), layers."""
    width, patch, embedding = config.hidden_size, config.patch_size, config.patch_embed_size
    length = frames // patch * (config.num_mel_bins // patch)
    front = 2 * patch**2 * embedding + 2 * embedding * width
    positions = 2 * config.conv_pos_kernel * width**2 // config.conv_pos_groups
    layers = layer_flop(length, width, config.intermediate_size) + length * 16 * width
    return length * (front + positions) + config.num_hidden_layers * layers


def qformer_flop(config: SalmonnConfig, windows: int, window_frames: int) -> float:
    """Queries: 6 products of 2 Q D^2 and the feed-forward, frames: 2 products of 2 F E D, then the projection."""
    qformer, queries = config.qformer_config, config.qformer_config.num_query_tokens
    width, expanded = qformer.hidden_size, qformer.intermediate_size
    self_attention = 8 * queries * width**2 + 4 * queries**2 * width
    cross_attention = 4 * queries * width**2 + 4 * window_frames * width * (qformer.encoder_hidden_size + queries)
    layers = qformer.num_hidden_layers * (self_attention + cross_attention + 4 * queries * width * expanded)
    return windows * (layers + 2 * queries * width * config.text_config.hidden_size)


def text_flop(config: PreTrainedConfig, new: int, cached: int) -> float:
    """New tokens after a cache, with one position of logits; N, M: widths of the query heads and of the key heads."""
    width, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    query_width, key_width = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    projections = 4 * width * (query_width + key_width)  # q and out: 2 D N each; k and v: 2 D M each
    feed_forward = 6 * width * config.intermediate_size  # gate, up, down: 2 D F each
    pairs = new * cached + new * (new + 1) // 2  # causal; scores and values: 2 N each
    layers = config.num_hidden_layers * (new * (projections + feed_forward) + 4 * query_width * pairs)
    return layers + 2 * width * config.vocab_size
