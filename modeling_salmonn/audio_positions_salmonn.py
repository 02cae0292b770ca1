"""Where audio tokens go in a prompt, and prompts and labels without the placeholders that say so.

```
input_ids        7  A  A  A  9      A: placeholder, often beyond the embedding table
audio_positions     1  2  3         columns of each row, -1 in front of a row with fewer
without          7  7  7  7  9      a token that the row has anyway takes their place
```
"""

from typing import Any

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)


def require_prompts(input_ids: Any, attention_mask: Any, vocabulary: int, audio_token_id: int) -> None:
    """Check prompts before anything is computed: on a GPU an id without embedding is an assertion without a name.

    Args:
        input_ids, attention_mask: what the caller passed for tensors of shape `(batch, length)`.
        vocabulary: rows of the embedding table.
        audio_token_id: the placeholder, which may lie beyond it.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for another shape or dtype, empty prompts, and ids beyond the table.
    """
    for name, value in (("input_ids", input_ids), ("attention_mask", attention_mask)):
        if value is not None and not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; use return_tensors='pt'.")
        if value is not None and (value.dim() < 2 or 0 in value.shape):
            raise ValueError(f"{name} has the shape {tuple(value.shape)}, but (batch, length) is needed.")
    if input_ids.dtype.is_floating_point or input_ids.dtype == torch.bool or input_ids.dim() > 2:
        raise ValueError(
            f"input_ids is {input_ids.dtype} of the shape {tuple(input_ids.shape)}, but whole numbers of the shape "
            "(batch, length) are needed."
        )
    beyond = ((input_ids < 0) | (input_ids >= vocabulary)) & (input_ids != audio_token_id)
    if beyond.any():
        raise ValueError(
            f"input_ids has the id {int(input_ids[beyond][0])}, but the language model has {vocabulary} embeddings; "
            "use the model's own processor."
        )


def find_positions(input_ids: torch.Tensor | None, audio_token_id: int, start: int | torch.Tensor = 0) -> torch.Tensor:
    """Columns of the placeholders, `(batch, tokens)`, with -1 in front of rows that have fewer.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, length)`): prompts.
        audio_token_id: the placeholder.
        start: column of the first id, if earlier ones are left out because they are in the cache.

    Raises:
        ValueError: if there are no ids, but embeddings instead.
    """
    if input_ids is None:
        raise ValueError("audio_embeds beside inputs_embeds need audio_positions, the columns that they go to.")
    placeholders = input_ids == audio_token_id
    counts = placeholders.sum(-1)  # (batch,)
    length = int(counts.max()) if len(counts) else 0
    positions = input_ids.new_full((len(input_ids), length), -1)
    # the last ones of each row; a mask is filled row by row, in the order in which `nonzero` finds them
    filled = torch.arange(length, device=input_ids.device) >= (length - counts)[:, None]
    positions[filled] = placeholders.nonzero()[:, 1] + start
    return positions


def pad_tokens(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Audio tokens `(audio_tokens, hidden)` of all prompts as `(batch, tokens, hidden)`, zero where there is none."""
    filled = positions.to(tokens.device) >= 0
    padded = tokens.new_zeros(*positions.shape, tokens.shape[-1])
    padded[filled] = tokens
    return padded


def last_tokens(padded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The last tokens of each row of `(batch, tokens, hidden)`: as many as the row has positions, `(tokens, hidden)`.

    Earlier ones belong to a prefix that is in the cache already.
    """
    surplus = padded.shape[1] - positions.shape[1]
    if surplus < 0:
        require_equal_counts(positions.shape[1], padded.shape[1])
    return padded[:, surplus:][positions.to(padded.device) >= 0]


def select_positions(
    positions: torch.Tensor, start: int | torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which audio tokens lie in a stretch of the prompts, and where in it.

    Args:
        positions (`torch.Tensor` of shape `(batch, tokens)`): from `find_positions`.
        start: first column of the stretch, which is as many as the cache holds.
        length: columns of the stretch.

    Returns:
        Masks `(audio_tokens,)` over the tokens of all prompts, one after the other, and `(batch, length)`.
    """
    columns = positions - start
    inside = (columns >= 0) & (columns < length) & (positions >= 0)  # (batch, tokens)
    mask = torch.zeros(len(positions), length, dtype=torch.bool, device=positions.device)
    rows = inside.nonzero()[:, 0]
    mask[rows, columns[inside]] = True
    return inside[positions >= 0], mask


def without_placeholders(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, audio_token_id: int, pad_token_id: int | None = None
) -> torch.Tensor:
    """Prompts with the first text token of each row instead of its placeholders.

    That token is seen by penalties anyway; usually it begins a text and is never generated. In a row without text it
    is 0, or 1 where 0 is the padding.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, length)`): prompts.
        attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): tells the padding.
        audio_token_id: the placeholder.
        pad_token_id: tells the padding where there is no mask: `generate` then makes one of the ids.
    """
    text = input_ids != audio_token_id
    # not padding: penalties must not see it, nor `generate` take audio for it
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        text = text & attention_mask.bool()
    elif pad_token_id is not None:
        text = text & (input_ids != pad_token_id)
    first = input_ids.gather(1, text.int().argmax(-1, keepdim=True))  # (batch, 1)
    first = first.masked_fill(~text.any(-1, keepdim=True), 1 if pad_token_id == 0 else 0)
    return torch.where(input_ids == audio_token_id, first, input_ids)


def write_placeholders(sequences: torch.Tensor, prompt: torch.Tensor, audio_token_id: int) -> None:
    """Put the placeholders of the prompts back into what was generated from them, in place."""
    mask = (prompt == audio_token_id).to(sequences.device)
    mask = mask.repeat_interleave(len(sequences) // len(prompt), dim=0)  # several answers to a prompt
    sequences[:, : prompt.shape[1]].masked_fill_(mask, audio_token_id)


def require_equal_counts(placeholders: int, audio_tokens: int) -> None:
    """Check that each placeholder has its audio token; a `ValueError` tells both counts."""
    if placeholders != audio_tokens:
        raise ValueError(
            f"Found {placeholders} audio placeholders in the prompt, but the audio gives {audio_tokens} audio tokens; "
            "build text and audio in one call of the processor."
        )


def require_no_placeholders(input_ids: torch.Tensor, audio_token_id: int) -> None:
    """Check that prompts without audio have no placeholders, which would mean nothing there."""
    placeholders = input_ids == audio_token_id
    if torch.compiler.is_compiling():  # a graph cannot depend on ids; this raises a `RuntimeError` when it runs
        torch._assert_async(~placeholders.any(), "The prompt has audio placeholders, but there is no audio.")
    else:
        require_equal_counts(int(placeholders.sum()), 0)


def text_targets(labels: torch.Tensor, audio_token_id: int, is_counted: bool) -> torch.Tensor:
    """Labels without placeholders, which are no words to learn, and may have no logit.

    Args:
        labels (`torch.Tensor` of shape `(batch, length)`): may be a copy of the prompts.
        audio_token_id: the placeholder.
        is_counted: whether the caller has counted the labels, as `Trainer` does; told once if that is wrong.
    """
    placeholders = labels == audio_token_id
    # otherwise nothing waits for the device
    if is_counted and not torch.compiler.is_compiling() and placeholders.any():
        logger.warning_once(
            "labels have audio placeholders, which count as no targets, but are in num_items_in_batch: the loss that "
            "Trainer takes is too small. In labels set them to -100, as SalmonnCollator does."
        )
    return labels.masked_fill(placeholders, -100)
