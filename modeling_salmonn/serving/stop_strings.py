"""Stop strings of a request: texts that end an answer, and are no part of it."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria


MOST_STOPS = 4  # as OpenAI's own server takes
LONGEST_STOP = 64  # characters


class StopAtText(StoppingCriteria):
    """Ends an answer with the step in which its text comes to hold a stop string.

    The `stop_strings` of `generate` compare each string with the whole vocabulary before the first step, which can
    take seconds, and do not know characters of several tokens.

    Args:
        tokenizer: decodes answers.
        stops: the strings.
        prompt_tokens: tokens before the answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], prompt_tokens: int):
        self.tokenizer, self.stops, self.prompt_tokens = tokenizer, stops, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which of the answers are over.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, tokens)`): prompts and what has been answered.
            scores: not needed.

        Returns:
            `torch.Tensor` of shape `(batch,)`, bool.
        """
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_tokens :], skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)


class StopCutter:
    """Cuts a text that comes in pieces, and holds back what may be the beginning of a stop string.

    Args:
        stops: the strings.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = stops
        self.is_cut = False
        self._held = ""

    def add(self, piece: str) -> str:
        """What can be told of the text up to this piece, and has not been told yet."""
        if self.is_cut:
            return ""
        text = self._held + piece
        kept = cut_at_stop(text, self.stops)
        self.is_cut = kept != text
        held = 0 if self.is_cut else _stop_beginning(kept, self.stops)
        told, self._held = kept[: len(kept) - held], kept[len(kept) - held :]
        return told

    def end(self) -> str:
        """What was held back, once no more will come."""
        return self._held


def read_stops(value: Any) -> tuple[str, ...]:
    """The stop strings of a request's `stop`.

    Raises:
        ValueError: unless it is a string, a list of a few, or nothing.
    """
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(map(_is_stop, stops)):
        raise ValueError(
            f"stop must be a string, or a list of at most {MOST_STOPS}, each with 1 to {LONGEST_STOP} characters; got "
            f"{value!r:.80}."
        )
    return tuple(stops)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """A text up to its first stop string."""
    starts = [text.index(stop) for stop in stops if stop in text]
    return text[: min(starts, default=len(text))]


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= LONGEST_STOP


def _stop_beginning(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters of a text may be the beginning of a stop string."""
    longest = 0
    for stop in stops:
        lengths = [length for length in range(1, len(stop)) if text.endswith(stop[:length])]
        longest = max([longest, *lengths])
    return longest
