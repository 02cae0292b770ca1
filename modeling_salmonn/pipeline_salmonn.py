"""The `audio-text` pipeline: audio and an instruction in, text out."""

import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from inspect import signature
from itertools import islice, repeat
from typing import Any

from transformers import GenerationConfig, GenerationMixin, Pipeline
from transformers.pipelines.base import GenericTensor
from transformers.utils import logging

from .pipeline_items_salmonn import as_item, is_single, naming, read_items
from .text_stream_salmonn import stream_text


logger = logging.get_logger(__name__)

DEFAULT_NEW_TOKENS = 200  # as the research code
READING_PARAMETERS = ("sampling_rate", "allow_paths", "allow_urls")
BATCHING_PARAMETERS = ("batch_size", "num_workers")  # taken by the base class


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
            batch_size: how many items go through the model at once (default 1).
            sampling_rate: rate in Hz of arrays that do not carry their own.
            allow_paths, allow_urls: where clips may come from, as for the feature extractor: `allow_paths=False` for
                inputs of strangers, who then can read neither local files nor the machine's own network.
            **kwargs: generation options, such as `max_new_tokens`, `num_beams`, `lora_scale` or `streamer`.

        Returns:
            `[{"generated_text": str}]` for one item, a list of these for a list, data set or column, an iterator of
            them for a generator.

        Raises:
            ValueError: if the instructions are not as many as the items, and for an item that cannot be used, with
                its number.
            TypeError: for an unknown argument, naming the closest known one.
        """
        self._check_batching(kwargs)
        single = is_single(inputs, self.processor.is_batch)
        if text is not None and not isinstance(text, str):
            if not isinstance(text, Iterable) or isinstance(text, (bytes, Mapping)):
                raise ValueError(f"text must be a string or a list of strings, got {text!r:.80}.")
            items, instructions = [inputs] if single else list(inputs), list(text)
            if len(items) != len(instructions):
                raise ValueError(
                    f"Got {len(instructions)} instructions for {len(items)} clips; pass one, or one for each clip."
                )
            return list(super().__call__(read_items(items, instructions), **kwargs))
        if single:
            return super().__call__(as_item(inputs, text), **kwargs)
        answers = super().__call__(read_items(inputs, repeat(text)), **kwargs)
        return list(answers) if hasattr(inputs, "__len__") else answers

    def stream(self, inputs: Any, *, text: str | None = None, **kwargs: Any) -> Iterator[str]:
        """Answer about one clip and yield the text piece by piece; arguments as for a call.

        Beams may still change all of their text, so that this is greedy whatever the model's settings say. Generation
        ends with the iterator: when it is closed, left or forgotten.

        Raises:
            ValueError: if there are several clips, whose answers would run into one another.
            TypeError: for an unknown argument, and for `streamer`.
        """
        if not is_single(inputs, self.processor.is_batch):
            count = len(inputs) if hasattr(inputs, "__len__") else "any number of"
            if count != 1:
                raise ValueError(f"Got {count} clips to stream about; pass one at a time.")
        if "streamer" in kwargs:
            raise TypeError("stream makes a streamer of its own; leave streamer out, or call the pipeline with it.")
        self._check_batching(kwargs)
        options = {"num_beams": 1, **kwargs}
        self._sanitize_parameters(**{name: options[name] for name in options if name not in BATCHING_PARAMETERS})
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
        """Run items in batches that the processor pads; decoding is native code, so there are no workers."""
        items = iter(inputs)
        first = 0
        while batch := list(islice(items, batch_size)):
            model_inputs = self._preprocess_batch(batch, first, preprocess)
            outputs = self.forward(model_inputs, **forward)
            answers = self.postprocess(outputs, **postprocess)
            own = len(answers) // len(batch)  # several, if `num_return_sequences` says so
            yield from (answers[start : start + own] for start in range(0, len(answers), own))
            first += len(batch)

    def preprocess(self, inputs: Any, text: str | None = None, **reading: Any) -> dict[str, GenericTensor]:
        items = inputs if isinstance(inputs, list) else [inputs]
        conversations = [as_item(item).conversation(self.processor.is_batch, text) for item in items]
        return self.processor.apply_chat_template(
            conversations if len(conversations) > 1 else conversations[0],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            return_tensors="pt",
            processor_kwargs=reading,
        )

    def _preprocess_batch(self, batch: list[Any], first: int, preprocess: dict) -> dict[str, GenericTensor]:
        with naming(f"Item {first}" if len(batch) == 1 else f"Items {first} to {first + len(batch) - 1}"):
            return self.preprocess(batch, **preprocess)

    def _forward(self, model_inputs: dict[str, GenericTensor], **generate_kwargs: Any) -> dict[str, Any]:
        if "generation_config" not in generate_kwargs and self.model.generation_config.max_new_tokens is None:
            generate_kwargs.setdefault("max_new_tokens", DEFAULT_NEW_TOKENS)
        generated = self.model.generate(**model_inputs, **generate_kwargs)
        sequences = getattr(generated, "sequences", generated)  # of `return_dict_in_generate`
        return {"new_tokens": sequences[:, model_inputs["input_ids"].shape[1] :]}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, str]]:
        texts = self.processor.batch_decode(model_outputs["new_tokens"], skip_special_tokens=True)
        return [{"generated_text": text.strip()} for text in texts]

    def _check_batching(self, options: dict[str, Any]) -> None:
        batch_size = options.get("batch_size", self._batch_size)
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        if options.get("num_workers", self._num_workers):
            logger.warning_once("num_workers changes nothing: audio is decoded by native code in this process.")

    def _check_generation(self, options: dict[str, Any]) -> None:
        """Options of `generate` are known, or they would only fail once the audio is read."""
        if "custom_generate" in options:
            return
        known = {*vars(GenerationConfig())}
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


__all__ = ["AudioTextPipeline"]
