"""A conversation about one clip of a stranger, within limits: what the demo does behind its page."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_salmonn.context_length_salmonn import max_positions
from modeling_salmonn.data.prompts import prompt_fields
from modeling_salmonn.data.tasks import load_tasks
from modeling_salmonn.pipeline_salmonn import DEFAULT_NEW_TOKENS, AudioTextPipeline
from modeling_salmonn.processing.audio_samples_salmonn import AudioTooLongError
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE
from modeling_salmonn.serving.attribution import Explanation, explain_messages


EXPLAINED_TOKENS = 40  # of an answer: each costs a pass backward, and a row of the picture

Turn = tuple[str, str]  # a question and the answer to it


@dataclass(frozen=True)
class ClipChat:
    """Answers to questions about a clip, each with those before it in mind.

    Args:
        pipe: of the model; it is shared by all who chat.
        max_seconds: longest clip.
        max_bytes: largest file.
        max_new_tokens: longest answer.
    """

    pipe: AudioTextPipeline
    max_seconds: float
    max_bytes: int
    max_new_tokens: int = DEFAULT_NEW_TOKENS

    @property
    def trained_scale(self) -> float | None:
        """The LoRA scale that the model was trained at; `None` without an adapter."""
        return self.pipe.model.config.lora_scaling if self.pipe.model.has_lora else None

    def read_clip(self, path: str | None) -> np.ndarray:
        """Read a file that was uploaded.

        Returns:
            `(samples,)`, mono at 16 kHz.

        Raises:
            ValueError: if there is none, or it is too large, too long, or no audio.
        """
        if path is None:
            raise ValueError("There is no clip yet: record one, upload a file, or take an example.")
        file = Path(path)
        if file.stat().st_size > self.max_bytes:
            raise ValueError(f"The file is larger than {self.max_bytes / 2**20:g} MB; cut or compress it.")
        extractor = copy(self.pipe.processor.feature_extractor)
        extractor.max_audio_seconds = self.max_seconds
        try:
            samples: np.ndarray = extractor.fetch_audio(file.read_bytes())
        except AudioTooLongError as error:
            raise ValueError(f"The clip is longer than {self.max_seconds:g} s; cut it.") from error
        except ValueError as error:
            raise ValueError(f"The clip cannot be read: {error}") from error
        return samples

    def stream_answer(
        self, waveform: np.ndarray, turns: Sequence[Turn], question: str, lora_scale: float | None = None
    ) -> Iterator[str]:
        """Answer a question greedily, piece by piece.

        Args:
            waveform: of `read_clip`.
            turns: what was asked and answered before about the same clip.
            question: what is asked now.
            lora_scale: LoRA scaling instead of the trained one.

        Returns:
            Iterator over what has been said up to then.

        Raises:
            ValueError: if there is no question, or the conversation is longer than the language model can read.
        """
        messages = self._messages(waveform, turns, question)
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        if lora_scale is not None:
            options["lora_scale"] = lora_scale
        return _growing_text(self.pipe.stream(messages, **options))

    def explain_answer(
        self, waveform: np.ndarray, turns: Sequence[Turn], lora_scale: float | None = None
    ) -> Explanation:
        """Tell which seconds the last answer rests on, as `stream_answer` gives it; of a long one, its beginning.

        Raises:
            ValueError: if there is no answer yet, or none that can be explained.
        """
        if not turns:
            raise ValueError("There is no answer to explain yet: ask something first.")
        *before, (question, _) = turns
        messages = self._messages(waveform, before, question)
        new_tokens = min(self.max_new_tokens, EXPLAINED_TOKENS)
        return explain_messages(self.pipe.model, self.pipe.processor, messages, new_tokens, lora_scale)

    def _messages(self, waveform: np.ndarray, turns: Sequence[Turn], question: str) -> list[dict[str, Any]]:
        """The conversation for the chat template: the clip comes once, with the first question."""
        if not question.strip():
            raise ValueError("There is no question: write one, or choose a task.")
        clip = {"type": "audio", "audio": waveform, "sampling_rate": SAMPLING_RATE}
        messages: list[dict[str, Any]] = []
        for asked, answer in turns:
            messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        messages[0]["content"].insert(0, clip)
        self._require_room(messages)
        return messages

    def _require_room(self, messages: list[dict[str, Any]]) -> None:
        positions = max_positions(self.pipe.model.config.get_text_config())
        tokens = self.pipe.preprocess([messages])["input_ids"].shape[1]
        if positions is not None and tokens + self.max_new_tokens > positions:
            raise ValueError(
                f"The conversation has {tokens} tokens, and with an answer of {self.max_new_tokens} more than the "
                f"{positions} that the model can read; clear it, or take a shorter clip."
            )


def _growing_text(pieces: Iterator[str]) -> Iterator[str]:
    said = ""
    for piece in pieces:
        said += piece
        yield said.strip()


def task_instructions() -> list[tuple[str, str]]:
    """Name and instruction of each bundled task that asks the same about any clip."""
    return [
        (task.name.replace("_", " "), task.instruction)
        for task in load_tasks().values()
        if not prompt_fields(task.instruction)
    ]
