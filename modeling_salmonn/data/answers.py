"""Answers of a model: their text, and whether they came to an end."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig


@dataclass(frozen=True)
class Answer:
    """What the model said, and whether it came to an end by itself."""

    text: str
    finished: bool


def decode_answers(new_tokens: torch.Tensor, tokenizer: Any, config: GenerationConfig) -> list[Answer]:
    """The answers of a batch.

    Args:
        new_tokens (`torch.Tensor` of shape `(batch, new tokens)`): what `generate` added to the prompts.
        tokenizer: the model's.
        config: tells the tokens that end an answer.
    """
    ends = config.eos_token_id
    if ends is None:
        ends = []
    elif isinstance(ends, int):
        ends = [ends]
    end_tokens = torch.tensor([tokenizer.eos_token_id, *ends], device=new_tokens.device)
    texts = tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    finished = torch.isin(new_tokens, end_tokens).any(dim=1).tolist()
    return [Answer(text.strip(), end) for text, end in zip(texts, finished, strict=True)]
