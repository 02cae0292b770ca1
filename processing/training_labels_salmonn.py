"""Labels for training: the answers behind the prompts, with their end."""

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature


IGNORED_LABEL = -100


def add_targets(
    tokenizer: Any, inputs: BatchFeature, targets: Sequence[str], return_tensors: str | None
) -> BatchFeature:
    """Append answers and their end token to prompts.

    Args:
        tokenizer: of the language model.
        inputs: with the `input_ids` of prompts that are not padded.
        targets: one answer per prompt, without special tokens.
        return_tensors: type of the result.

    Returns:
        The inputs, padded on the right, with `labels`: -100 on prompts and padding.

    Raises:
        ValueError: if answers and prompts are not equally many.
    """
    prompts = inputs["input_ids"]
    if len(targets) != len(prompts):
        raise ValueError(f"Got {len(targets)} targets for {len(prompts)} texts; pass one target per text.")
    tokens = tokenizer(list(targets), add_special_tokens=False)["input_ids"]
    answers = [[*ids, tokenizer.eos_token_id] for ids in tokens]
    rows = [list(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
    padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors=return_tensors)
    labels = [
        [IGNORED_LABEL] * len(prompt) + answer + [IGNORED_LABEL] * (len(padded["input_ids"][0]) - len(row))
        for prompt, answer, row in zip(prompts, answers, rows, strict=True)
    ]
    features = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    trained = BatchFeature({"labels": labels}, tensor_type=return_tensors)
    return BatchFeature({**padded, **features, **trained})


__all__ = ["IGNORED_LABEL", "add_targets"]
