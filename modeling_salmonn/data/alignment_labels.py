"""Targets of the alignment loss: the words that are said in a clip, and those that describe it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from modeling_salmonn.data.word_pieces import WordPieces, own_ids
from modeling_salmonn.processing.processing_salmonn import IGNORED_LABEL


def alignment_labels(
    examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, pieces: WordPieces | None = None
) -> dict[str, torch.Tensor]:
    """Targets of the alignment loss for a batch of examples with one clip each.

    Args:
        examples: with `alignment_text` (words that are said, in order), `alignment_words` (words that describe the
            sound, in any order), or neither.
        tokenizer: the language model's.
        pieces: what words that are said are spelled in; if not given, in the tokenizer's own pieces.

    Returns:
        `alignment_labels` and `bag_labels`, `(clips, length)`, padded with `IGNORED_LABEL`.
    """
    columns = {"alignment_labels": "alignment_text", "bag_labels": "alignment_words"}
    labels = {}
    for name, column in columns.items():
        rows = []
        for example in examples:
            words = (example.get(column) or "").strip()
            if pieces is not None and name == "alignment_labels":
                ids = pieces.encode(words)
            else:
                ids = own_ids(words, tokenizer)
            rows.append(torch.tensor(ids or [IGNORED_LABEL]))  # a clip without words must not shift the others
        labels[name] = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL).long()
    return labels


def needed_tokens(clips: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Windows that each clip's words need: one for each word piece, and one between two that are the same."""
    labels = alignment_labels(clips, tokenizer)["alignment_labels"]
    known = labels != IGNORED_LABEL
    # CTC spells two equal pieces in a row with a blank between them.
    repeated = (labels[:, 1:] == labels[:, :-1]) & known[:, 1:]
    return (known.sum(-1) + repeated.sum(-1)).tolist()


def count_targets(*labels: torch.Tensor) -> torch.Tensor:
    """How many target tokens some labels have."""
    return torch.stack([(label != IGNORED_LABEL).sum() for label in labels]).sum()
