"""The `audio-text` pipeline: audio and an instruction in, text out."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from numbers import Real
from typing import Any

from transformers import Pipeline
from transformers.pipelines.base import GenericTensor
from transformers.utils.chat_template_utils import Chat

from .text_stream_salmonn import stream_text


DEFAULT_INSTRUCTION = "Please describe the audio."
DEFAULT_NEW_TOKENS = 200  # as the research code
PROCESSOR_PARAMETERS = ("text", "sampling_rate")
# Inputs that are one clip although they are sequences.
SINGLE_CLIP_TYPES = (str, bytes, dict, Chat)


class AudioTextPipeline(Pipeline):
    """Answers an instruction about a clip; also without audio, and for whole conversations.

    ```python
    pipe = pipeline("audio-text", model=path, trust_remote_code=True)
    pipe("duck.wav", text="What do you hear?")                       # [{"generated_text": "..."}]
    pipe(["duck.wav", "music.wav"], text="What do you hear?", batch_size=2)
    pipe({"audio": "duck.wav", "text": "What do you hear?"})
    pipe([{"role": "user", "content": [{"type": "audio", "path": "duck.wav"}, {"type": "text", "text": "What?"}]}])
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        preprocess = {name: kwargs.pop(name) for name in PROCESSOR_PARAMETERS if name in kwargs}
        return preprocess, kwargs.pop("generate_kwargs", {}) | kwargs, {}

    def __call__(self, inputs: Any, *, text: str | Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Answer about one clip or many.

        Args:
            inputs: a path, URL, bytes, array or `datasets` audio value; a dict with `audio` (one of these, or a list
                of clips for one instruction) and `text`; chat messages; or a list, a generator or a
                `datasets` column of these.
            text: the instruction, or one for each item of a list.
            batch_size: how many items go through the model at once (default 1).
            sampling_rate: rate in Hz of arrays that do not carry their own.
            **kwargs: generation options, such as `max_new_tokens`, `num_beams`, `lora_scale` or `streamer`.

        Returns:
            `[{"generated_text": str}]` for one item, a list of these for a list or column, an iterator of them
            for a generator.

        Raises:
            ValueError: if the instructions are not as many as the items.
        """
        if isinstance(text, (list, tuple)):
            inputs = self._pair(inputs, text)
        elif text is not None:
            kwargs["text"] = text
        if isinstance(inputs, list) and not inputs:
            return []
        if _is_column(inputs):  # decoded item by item, not all at once
            return list(super().__call__((item for item in inputs), **kwargs))
        return super().__call__(inputs, **kwargs)

    def stream(self, inputs: Any, *, text: str | None = None, **kwargs: Any) -> Iterator[str]:
        """Answer about one clip and yield the text piece by piece; arguments as for a call.

        Beams may still change all of their text, so that this is greedy whatever the model's settings say.

        Raises:
            ValueError: if there are several clips, whose answers would run into one another.
        """
        if isinstance(inputs, (list, tuple)) and len(inputs) > 1 and not _is_message(inputs[0]):
            raise ValueError(f"Got {len(inputs)} clips to stream about; stream about one after the other.")
        kwargs.setdefault("num_beams", 1)
        return stream_text(
            self.processor.tokenizer, lambda streamer: self(inputs, text=text, streamer=streamer, **kwargs)
        )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model with its processor."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def get_iterator(
        self, inputs: Iterable, num_workers: int, batch_size: int, preprocess: dict, forward: dict, postprocess: dict
    ) -> Iterator[list[dict[str, str]]]:
        """Run items in batches that the processor pads; decoding is native code, so there are no workers."""
        items = iter(inputs)
        while batch := list(islice(items, batch_size)):
            model_inputs = self.preprocess(batch, **preprocess)
            outputs = self.forward(model_inputs, **forward)
            answers = self.postprocess(outputs, **postprocess)
            own = len(answers) // len(batch)  # several, if `num_return_sequences` says so
            yield from (answers[start : start + own] for start in range(0, len(answers), own))

    def preprocess(
        self, inputs: Any, text: str | None = None, sampling_rate: int | None = None
    ) -> dict[str, GenericTensor]:
        items = inputs if isinstance(inputs, list) else [inputs]
        conversations = [_as_conversation(item, text, sampling_rate) for item in items]
        return self.processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
        )

    def _forward(self, model_inputs: dict[str, GenericTensor], **generate_kwargs: Any) -> dict[str, Any]:
        if "generation_config" not in generate_kwargs and self.model.generation_config.max_new_tokens is None:
            generate_kwargs.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
        sequences = self.model.generate(**model_inputs, **generate_kwargs)
        return {"new_tokens": sequences[:, model_inputs["input_ids"].shape[1] :]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, str]]:
        texts = self.processor.batch_decode(model_outputs["new_tokens"], skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]

    @staticmethod
    def _pair(inputs: Any, texts: Sequence[str]) -> list[dict[str, Any]]:
        items = [inputs] if isinstance(inputs, SINGLE_CLIP_TYPES) else list(inputs)
        if len(items) != len(texts):
            raise ValueError(f"Got {len(texts)} instructions for {len(items)} clips; pass one, or one for each clip.")
        return [{"audio": item, "text": instruction} for item, instruction in zip(items, texts, strict=True)]


def _is_column(inputs: Any) -> bool:
    """Whether this is a lazy sequence of clips, such as a column of a dataset."""
    is_sequence = isinstance(inputs, Sequence) or type(inputs).__name__ in ("Column", "KeyDataset")
    return is_sequence and not isinstance(inputs, (list, *SINGLE_CLIP_TYPES))


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and "role" in item


def _as_conversation(item: Any, text: str | None, sampling_rate: int | None) -> list[dict[str, Any]]:
    """The chat messages of one item, whatever form it came in."""
    if isinstance(item, Chat):
        return item.messages
    audio = item
    if isinstance(item, dict) and ("text" in item or "audio" in item):
        audio, text = item.get("audio"), item.get("text", text)
    if sampling_rate is not None and hasattr(audio, "shape"):
        audio = {"array": audio, "sampling_rate": sampling_rate}
    several = isinstance(audio, list) and not (audio and isinstance(audio[0], Real))  # numbers are samples
    clips = audio if several else [] if audio is None else [audio]
    content = [{"type": "audio", "audio": clip} for clip in clips]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text or DEFAULT_INSTRUCTION}]}]


__all__ = ["AudioTextPipeline"]
