"""What training learns: the answers behind prompts with their end, or what the assistant says in a chat."""

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
from packaging.version import Version
from transformers import BatchFeature

from .processor_options_salmonn import take_options
from .tokenizing_salmonn import TOKENIZING


IGNORED_LABEL = -100  # of the losses of torch and transformers
PADDING_OPTIONS = ("padding", "max_length", "pad_to_multiple_of")
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


def take_padding(options: dict[str, Any]) -> dict[str, Any]:
    """Remove from the options of a call how its rows are to be padded, which waits for their answers.

    Args:
        options: flat, or in `text_kwargs` and `common_kwargs`; the side is dropped, since it is always the right.

    Returns:
        Options of `tokenizer.pad`; without a word on padding, to the longest row.

    Raises:
        ValueError: if rows are to be cut.
    """
    given = take_options(options, "text_kwargs", [*PADDING_OPTIONS, "padding_side", "truncation"])
    truncation = given["truncation"]
    if truncation not in (None, False, "do_not_truncate"):
        raise ValueError(
            f"Got truncation={truncation!r} with text_target, but an answer that is cut has no end to learn; leave "
            "truncation out, and shorten texts and targets that are too long."
        )
    padding = {name: given[name] for name in PADDING_OPTIONS}
    return padding | {"padding": True if given["padding"] is None else given["padding"]}


def add_targets(
    tokenizer: Any,
    inputs: BatchFeature,
    targets: Sequence[str],
    return_tensors: str | None,
    padding: Mapping[str, Any],
) -> BatchFeature:
    """Append answers and their end token to prompts.

    Args:
        tokenizer: of the language model.
        inputs: with the `input_ids` of prompts that are not padded.
        targets: one answer per prompt, without special tokens.
        return_tensors: type of the result.
        padding: what `take_padding` returned.

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
    padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors=return_tensors, **padding)
    for row, ids in zip(labels, padded["input_ids"], strict=True):
        row += [IGNORED_LABEL] * (len(ids) - len(row))
    return BatchFeature({**padded, **inputs, **BatchFeature({"labels": labels}, tensor_type=return_tensors)})
