"""How many tokens a language model was made for, and a warning where a prompt is longer."""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Kinds of rotary embedding that stretch `max_position_embeddings`; the others are written with the stretched number.
STRETCHED_ROPE_TYPES = ("linear", "dynamic")


def max_positions(config: PreTrainedConfig) -> int | None:
    """Tokens that a language model can tell apart, stretched rotary embeddings counted in; `None` without an end."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [value for value in rope.values() if isinstance(value, dict)]  # of models with several kinds of layers
    return max(_stretched(positions, parameters) for parameters in (by_layer or [rope]))


def warn_if_too_long(
    config: PreTrainedConfig, tokens: int, new_tokens: int = 0, attention_mask: torch.Tensor | None = None
) -> None:
    """Say so, once for each pair of numbers, if a prompt or its answer goes beyond the language model's positions.

    Args:
        config: of the language model.
        tokens: of the prompt, audio tokens and padding included.
        new_tokens: that may be generated.
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): tells the padding.
    """
    # the common case first: it costs no look at the mask
    positions = max_positions(config)
    if positions is None or tokens + new_tokens <= positions:
        return
    if attention_mask is not None and attention_mask.dim() == 2:
        tokens = int(attention_mask.sum(-1).max())  # waits for the device, so only where it may matter
        if tokens + new_tokens <= positions:
            return
    if tokens > positions:
        length = f"The prompt has {tokens} tokens, audio tokens included,"
    else:
        length = f"The prompt has {tokens} tokens, {tokens + new_tokens} with {new_tokens} new ones,"
    logger.warning_once(
        f"{length} but the language model has {positions} positions (max_position_embeddings): beyond them its "
        "answers are not reliable. Shorten the audio or ask about parts of it."
    )


def _stretched(positions: int, rope: dict[str, Any]) -> int:
    factor = rope.get("factor") or 1.0
    if rope.get("rope_type") in STRETCHED_ROPE_TYPES:
        return int(positions * factor)
    # of yarn and its kin: written with the stretched number in most files, with the original one in some
    return max(positions, int((rope.get("original_max_position_embeddings") or 0) * factor))
