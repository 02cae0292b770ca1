"""What training learns: the answers behind prompts with their end, or what the assistant says in a chat."""

from collections.abc import Sequence
from typing import Any

import transformers
from packaging.version import Version
from transformers import BatchFeature

from .tokenizing_salmonn import TOKENIZING


IGNORED_LABEL = -100  # of the losses of torch and transformers
LOWEST_TRANSFORMERS = "5.18"  # earlier ones count the tokens of a clip as one, which misplaces the mask behind it


def require_placed_masks() -> None:
    """Refuse masks of the assistant that would be misplaced: they are labels of training.

    Raises:
        ImportError: if the installed transformers misplaces them behind audio.
    """
    if Version(Version(transformers.__version__).base_version) < Version(LOWEST_TRANSFORMERS):
        raise ImportError(
            f"return_assistant_tokens_mask needs transformers {LOWEST_TRANSFORMERS} or later, but "
            f"{transformers.__version__}, which misplaces the mask behind audio, is installed; run: "
            f'pip install "transformers>={LOWEST_TRANSFORMERS},<5.24"'
        )


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
    prompts = inputs.pop("input_ids")
    inputs.pop("attention_mask", None)
    if len(targets) != len(prompts):
        raise ValueError(f"Got {len(targets)} targets for {len(prompts)} texts; pass one target per text.")
    with TOKENIZING:
        answers = tokenizer(list(targets), add_special_tokens=False)["input_ids"]
    rows, labels = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        answer = [*answer, tokenizer.eos_token_id]
        rows.append([*prompt, *answer])
        labels.append([IGNORED_LABEL] * len(prompt) + answer)
    padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors=return_tensors)
    length = len(padded["input_ids"][0])
    labels = [row + [IGNORED_LABEL] * (length - len(row)) for row in labels]
    return BatchFeature({**padded, **inputs, **BatchFeature({"labels": labels}, tensor_type=return_tensors)})
