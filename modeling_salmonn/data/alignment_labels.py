"""Targets of the alignment loss: the words that are said in a clip, and those that describe it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase


IGNORED = -100


def alignment_labels(
    examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, torch.Tensor]:
    """Targets of the alignment loss for a batch of examples with one clip each.

    Args:
        examples: with `alignment_text` (words that are said, in order), `alignment_words` (words that describe the
            sound, in any order), or neither.
        tokenizer: the language model's.

    Returns:
        `alignment_labels` and `bag_labels`, `(clips, length)`, padded with -100.
    """
    columns = {"alignment_labels": "alignment_text", "bag_labels": "alignment_words"}
    labels = {}
    for name, column in columns.items():
        texts = [_with_leading_space(example.get(column)) for example in examples]
        rows = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"] or [IGNORED]) for text in texts]
        labels[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED).long()
    return labels


def needed_tokens(clips: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Windows that each clip's words need: one for each word piece, and one between two that are the same."""
    labels = alignment_labels(clips, tokenizer)["alignment_labels"]
    pieces = (labels != IGNORED).sum(-1)
    repeated = ((labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] != IGNORED)).sum(-1)
    return (pieces + repeated).tolist()


def count_targets(*labels: torch.Tensor) -> torch.Tensor:
    """How many target tokens some labels have."""
    return torch.stack([(label != IGNORED).sum() for label in labels]).sum()


def _with_leading_space(text: str | None) -> str:
    """Words as they look inside a sentence, whatever their place."""
    return f" {text.strip()}" if text and text.strip() else ""
