"""The `audio-text` pipeline: audio and an instruction in, text out."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from inspect import signature
from itertools import repeat
from typing import Any

from transformers import GenerationConfig, GenerationMixin, Pipeline
from transformers.pipelines.base import GenericTensor
from transformers.utils.chat_template_utils import Chat

from .pipeline_batches_salmonn import LengthOrder, prepare_batches, split_batches
from .text_stream_salmonn import stream_text


DEFAULT_INSTRUCTION = "Please describe the audio."
DEFAULT_NEW_TOKENS = 200  # as the research code
LIBRARY_LENGTH = 20  # tokens with the prompt, the default `max_length` of transformers
CLIP_KEYS = ("array", "bytes", "path", "url")
SINGLE_TYPES = (str, bytes, bytearray, memoryview, Mapping, Chat)  # one item, although they can be iterated over
READING_PARAMETERS = ("sampling_rate", "allow_paths", "allow_urls")
BATCHING_PARAMETERS = ("batch_size", "num_workers")  # taken by the base class
TOKENIZERS = ("tokenizer", "assistant_tokenizer")  # `generate` takes them too, out of its kwargs


@dataclass(frozen=True)
class PipelineItem:
    """One question to the model.

    Args:
        messages: a whole conversation, or `None`.
        audio: otherwise, one clip or a list of clips; `None` for text alone.
        sampling_rate: rate in Hz that came with bare samples.
        text: the instruction that came with the item, such as a column of a data set.
        instruction: the one that the caller gave for this item; goes before `text`.
        index: its place among the items that were given together.
    """

    messages: Sequence[Any] | None = None
    audio: Any = None
    sampling_rate: int | None = None
    text: str | None = None
    instruction: str | None = None
    index: int = 0

    def conversation(self, is_batch: Any, instruction: str | None = None) -> Sequence[Any]:
        """Messages that ask it.

        Args:
            is_batch: tells lists of clips from one clip.
            instruction: for all items that have none of their own from the caller.
        """
        if self.messages is not None:
            return self.messages
        clips = [] if self.audio is None else [self.audio]
        if is_batch(self.audio):
            clips = list(self.audio)
        content: list[dict[str, Any]] = [{"type": "audio", "audio": clip} for clip in clips]
        if self.sampling_rate is not None:
            for part in content:
                part["sampling_rate"] = self.sampling_rate
        # what is neither text nor missing goes on to the processor, which tells what is wrong with it
        texts = (self.instruction, instruction, self.text, DEFAULT_INSTRUCTION)
        asked = next(text for text in texts if text is not None and not (isinstance(text, str) and text == ""))
        return [{"role": "user", "content": [*content, {"type": "text", "text": asked}]}]


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
        preprocess = {name: kwargs.pop(name) for name in ("text", *READING_PARAMETERS) if name in kwargs}
        generation = kwargs.pop("generate_kwargs", {}) | kwargs
        self._check_generation(generation)
        return preprocess, generation, {}

    def __call__(self, inputs: Any, *, text: str | Iterable[str] | None = None, **kwargs: Any) -> Any:
        """Answer about one clip or many.

        Args:
            inputs: a path, URL, bytes, open file, array, pair of array and rate, or `datasets` audio value; a dict
                with `audio` (one of these, or a list of clips for one instruction), maybe `text`, and other columns,
                which are not used; chat messages; or a list, a generator, a data set or a column of these.
            text: the instruction, or one for each item of a list. It goes before the `text` of dicts, which may be the
                transcript of a data set, here and where the pipeline was made with it.
            batch_size: how many items go through the model at once (default 1); clips of like length share a batch,
                but for those of a generator, which are answered as they come.
            num_workers: processes that read the clips and make the features of the next batches while the model
                answers (default 0: this one does it in between).
            sampling_rate: rate in Hz of arrays that do not carry their own.
            allow_paths, allow_urls: where clips may come from, as for the feature extractor: `allow_paths=False` for
                inputs of strangers, who then can read neither local files nor the machine's own network.
            **kwargs: generation options, such as `max_new_tokens`, `num_beams`, `stop_strings`, `lora_scale` or
                `streamer`. Without a length, here or in the model's settings, an answer has at most 200 tokens.

        Returns:
            `[{"generated_text": str}]` for one item, a list of these for a list, data set or column, an iterator of
            them for a generator.

        Raises:
            ValueError: if the instructions are not as many as the items, and for an item that cannot be used, with
                its number.
            TypeError: for an unknown argument, naming the closest known one.
        """
        self._check_batching(kwargs)
        # one answer or a list of them is decided by the form of the input, not by its length
        single = _is_single(inputs, self.processor.is_batch)
        instructions: Iterable[str | None] = repeat(text)  # type: ignore[arg-type]
        if text is not None and not isinstance(text, str):
            inputs, instructions = _pair(inputs, text, single)
        elif single:
            return super().__call__(_as_item(inputs, text), **kwargs)
        items = _read_items(inputs, instructions)
        if not hasattr(inputs, "__len__"):  # a generator may have no end, or wait for its next item
            return super().__call__(items, **kwargs)
        order = LengthOrder(items, kwargs.get("batch_size") or self._batch_size or 1, partial(self._seconds, kwargs))
        return order.restore(list(super().__call__(order.sorted_items(), **kwargs)))

    def stream(self, inputs: Any, *, text: str | None = None, **kwargs: Any) -> Iterator[str]:
        """Answer about one clip and yield the text piece by piece; arguments as for a call.

        Beams may still change all of their text, so that this is greedy whatever the model's settings say. Generation
        ends with the iterator: when it is closed, left or forgotten.

        Raises:
            ValueError: if there are several clips, whose answers would run into one another.
            TypeError: for an unknown argument, and for `streamer`.
        """
        if not _is_single(inputs, self.processor.is_batch):
            count = len(inputs) if hasattr(inputs, "__len__") else "any number of"
            if count != 1:
                raise ValueError(f"Got {count} clips to stream about; pass one at a time.")
        if "streamer" in kwargs:
            raise TypeError("stream makes a streamer of its own; leave streamer out, or call the pipeline with it.")
        self._check_batching(kwargs)
        options = {"num_beams": 1, **kwargs}
        generation = {name: value for name, value in options.items() if name not in BATCHING_PARAMETERS}
        self._sanitize_parameters(**generation)  # checks them now, not when the first piece is asked for
        return stream_text(
            self.processor.tokenizer, lambda streamer: self(inputs, text=text, streamer=streamer, **options)
        )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model with its processor."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def get_iterator(
        self, inputs: Iterable, num_workers: int, batch_size: int, preprocess: dict, forward: dict, postprocess: dict
    ) -> Iterator[list[dict[str, str]]]:
        """Run items in batches that the processor pads."""
        prepare = partial(_prepare_batch, self.processor, preprocess)
        for count, model_inputs in prepare_batches(split_batches(inputs, batch_size), prepare, num_workers):
            outputs = self.forward(model_inputs, **forward)
            answers = self.postprocess(outputs, **postprocess)
            own = len(answers) // count  # several, if `num_return_sequences` says so
            for start in range(0, len(answers), own):
                yield answers[start : start + own]

    def preprocess(self, inputs: Any, **preprocess: Any) -> dict[str, GenericTensor]:
        return _prepare(self.processor, inputs if isinstance(inputs, list) else [inputs], **preprocess)

    def _forward(self, model_inputs: dict[str, GenericTensor], **generate_kwargs: Any) -> dict[str, Any]:
        if self._lacks_length(generate_kwargs):
            generate_kwargs.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
        if "custom_generate" not in generate_kwargs:  # which may take none
            generate_kwargs.setdefault("tokenizer", self.processor.tokenizer)  # for `stop_strings`
        generated = self.model.generate(**model_inputs, **generate_kwargs)
        sequences = getattr(generated, "sequences", generated)  # of `return_dict_in_generate`
        return {"new_tokens": sequences[:, model_inputs["input_ids"].shape[1] :]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, str]]:
        texts = self.processor.batch_decode(model_outputs["new_tokens"], skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]

    def _lacks_length(self, options: dict[str, Any]) -> bool:
        """Whether the library's default of 20 tokens would cut answers short."""
        config = self.model.generation_config
        if "generation_config" in options or config.max_new_tokens is not None:
            return False
        # files of earlier versions may hold that default, of which no prompt with audio leaves anything
        return options.get("max_length") is None and config.max_length in (None, LIBRARY_LENGTH)

    def _check_batching(self, options: dict[str, Any]) -> None:
        batch_size = options.get("batch_size", self._batch_size)
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        num_workers = options.get("num_workers", self._num_workers)
        if num_workers is not None and (not isinstance(num_workers, int) or num_workers < 0):
            raise ValueError(f"num_workers must be a whole number of at least 0, got {num_workers!r}.")

    def _seconds(self, options: dict[str, Any], item: PipelineItem) -> float | None:
        """Length of the item's audio, as far as it is known without decoding."""
        given = {**self._preprocess_params, **options}
        reading = {name: given[name] for name in ("sampling_rate", "allow_paths") if name in given}
        try:
            return self.processor.audio_seconds(item.conversation(self.processor.is_batch), **reading)
        except ValueError:  # which is told when its batch is prepared
            return None

    def _check_generation(self, options: dict[str, Any]) -> None:
        """Options of `generate` are known, or they would only fail once the audio is read."""
        if "custom_generate" in options:
            return
        # all that `generate` takes: its settings, its own arguments, and those of the model
        known = {*vars(GenerationConfig()), *TOKENIZERS}
        for function in (GenerationMixin.generate, self.model.generate, self.model.forward):
            known |= {*signature(function).parameters}
        for name in options:
            if name in known:
                continue
            closest = get_close_matches(name, [*known, "text", *READING_PARAMETERS, *BATCHING_PARAMETERS], n=1)
            advice = f"did you mean {closest[0]!r}?" if closest else "leave it out."
            if name.startswith(("audio", "speech", "sound", "raw")):
                advice = "audio comes first, without a name."
            raise TypeError(f"The audio-text pipeline got an unknown argument {name!r}: {advice}")


def _pair(inputs: Any, texts: Any, single: bool) -> tuple[list[Any], list[str]]:
    """Items, and as many instructions."""
    if not isinstance(texts, Iterable) or isinstance(texts, (bytes, Mapping)):
        raise ValueError(f"text must be a string or a list of strings, got {texts!r:.80}.")
    items, instructions = [inputs] if single else list(inputs), list(texts)
    if len(items) != len(instructions):
        raise ValueError(
            f"Got {len(instructions)} instructions for {len(items)} clips; pass one, or one for each clip."
        )
    return items, instructions


def _prepare(processor: Any, items: list[Any], text: str | None = None, **reading: Any) -> dict[str, GenericTensor]:
    """The model's inputs of items."""
    conversations = [_as_item(item).conversation(processor.is_batch, text) for item in items]
    # one conversation is passed as such, or errors would call it the first of a batch
    return processor.apply_chat_template(
        conversations if len(conversations) > 1 else conversations[0],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
        processor_kwargs=reading,
    )


def _prepare_batch(processor: Any, preprocess: dict[str, Any], batch: list[PipelineItem]) -> dict[str, GenericTensor]:
    """The same, also in a worker process, with errors that name the items."""
    indices = ", ".join(str(item.index) for item in batch)
    with _naming(f"Item {indices}" if len(batch) == 1 else f"Items {indices}"):
        return _prepare(processor, batch, **preprocess)


def _as_item(value: Any, instruction: str | None = None) -> PipelineItem:
    """Read an item in any of the forms that `AudioTextPipeline.__call__` takes; a `ValueError` tells what is wrong."""
    if isinstance(value, PipelineItem):
        return value
    if value is None:
        raise ValueError("An item is None instead of audio; pass {'audio': None, 'text': ...} to ask without a clip.")
    if _is_message(value):
        raise ValueError("An item is a single chat message; pass a conversation as a list of messages.")
    messages = _messages_of(value)
    if messages is not None:
        if instruction is not None:
            raise ValueError("Chat messages hold their own instructions; leave text out, or put it into the messages.")
        if isinstance(value, Mapping) and value.get("audio") is not None:
            raise ValueError(
                "An item has both 'messages' and 'audio'; put the clips into the content of the messages."
            )
        return PipelineItem(messages)
    if isinstance(value, Mapping):
        return _read_row(value, instruction)
    if isinstance(value, (list, tuple)) and not value:
        raise ValueError("An item is an empty list of clips; pass {'audio': None, 'text': ...} to ask without one.")
    return PipelineItem(audio=value, instruction=instruction)


def _read_row(row: Mapping[str, Any], instruction: str | None) -> PipelineItem:
    """An item out of columns: a clip under `audio`, or the keys of one clip, beside `text` and columns of no use."""
    # `datasets` fills columns that a row lacks with None
    given = {name: field for name, field in row.items() if field is not None}
    text = given.pop("text", None)
    if "audio" in given:
        return PipelineItem(None, given["audio"], given.get("sampling_rate"), text, instruction)
    has_clip = any(name in given for name in CLIP_KEYS)
    if not has_clip and ("audio" in row or set(row) == {"text"}):
        return PipelineItem(text=text, instruction=instruction)
    if not has_clip and "text" in row:
        raise ValueError(
            f"An item has the fields {sorted(map(str, row))}, but no 'audio'; rename the one that holds the clip, "
            "or pass 'audio': None to ask without a clip."
        )
    return PipelineItem(audio=given, text=text, instruction=instruction)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which item an error is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _read_items(inputs: Any, instructions: Iterable[str | None]) -> Iterator[PipelineItem]:
    """Items one after the other, also those of a map-style `torch` data set; errors tell the number of the item."""
    values = inputs if isinstance(inputs, Iterable) else (inputs[index] for index in range(len(inputs)))
    for index, (value, instruction) in enumerate(zip(values, instructions, strict=False)):
        with _naming(f"Item {index}"):
            item = _as_item(value, instruction)
        yield replace(item, index=index)


def _is_single(inputs: Any, is_batch: Any) -> bool:
    """Whether the pipeline is called with one item, and gives one answer."""
    if _messages_of(inputs) is not None or isinstance(inputs, SINGLE_TYPES):
        return True
    if isinstance(inputs, Sequence):
        return not is_batch(inputs)
    # an array or tensor, an open file, an audio decoder of `datasets`
    is_clip = hasattr(inputs, "dtype") or hasattr(inputs, "read") or hasattr(inputs, "get_all_samples")
    return is_clip or not (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"))


def _messages_of(value: Any) -> Sequence[Any] | None:
    if isinstance(value, Chat):
        return value.messages
    if isinstance(value, Mapping):
        return value.get("messages")
    is_conversation = isinstance(value, (list, tuple)) and len(value) > 0 and _is_message(value[0])
    return value if is_conversation else None


def _is_message(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "role" in value
    return hasattr(value, "role") and hasattr(value, "content")


__all__ = ["AudioTextPipeline"]
