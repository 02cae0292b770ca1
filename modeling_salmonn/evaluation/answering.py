"""Answers of a model in batches: greedy or sampled, at any LoRA scale, the same ones for the same seed.

A clip is encoded once, however often and at however many scales it is asked about.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature

from modeling_salmonn.data.answers import Answer, decode_answers
from modeling_salmonn.data.collator import SalmonnCollator
from modeling_salmonn.data.examples import Example
from modeling_salmonn.evaluation.encoded_clips import EncodedClips
from modeling_salmonn.hub.devices import AUTO, resolve_device
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Decoding:
    """How answers are made.

    Args:
        max_new_tokens: longest answer.
        lora_scale: LoRA scaling instead of the trained one.
        num_beams: beams of the search; 1 is greedy.
        sample: draw tokens instead of taking the likeliest ones.
        temperature, top_p: of the draws.
    """

    max_new_tokens: int = 200
    lora_scale: float | None = None
    num_beams: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 0.9

    def options(self) -> dict[str, Any]:
        """Options of `generate`."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "lora_scale": self.lora_scale,
            "num_beams": self.num_beams,
            "do_sample": self.sample,
        }
        if self.sample:
            # Top-k is off: the tokens drawn from are those of top-p alone.
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return options


class Answerer:
    """A model that answers batches of examples.

    Args:
        model: is put into eval mode; its encoders and its connector must stay as they are.
        processor: the model's.
    """

    def __init__(self, model: SalmonnForConditionalGeneration, processor: SalmonnProcessor):
        self.model = model.eval()
        self.processor = processor
        self.collator = SalmonnCollator(processor)
        self.encoded_clips = EncodedClips(self.model)

    @classmethod
    def from_pretrained(cls, model: str, dtype: str = "float32", device: str = AUTO) -> "Answerer":
        """Load a model.

        Args:
            model: folder or Hub id.
            dtype: type of the weights: `float32`, `bfloat16` or `float16`.
            device: as `resolve_device` takes it.

        Raises:
            ValueError: if the model is incomplete, or for another type or device.
        """
        require_dtype(dtype)
        place = resolve_device(device)
        loaded = SalmonnForConditionalGeneration.from_pretrained(model, dtype=getattr(torch, dtype))
        return cls(loaded.to(place), SalmonnProcessor.from_pretrained(model))

    @property
    def extractor(self) -> SalmonnFeatureExtractor:
        """Reads audio as the model needs it."""
        return self.processor.feature_extractor

    def answer(self, examples: Sequence[Example], decoding: Decoding, seed: object = 0) -> list[Answer]:
        """Answers to one batch.

        Args:
            examples: with `instruction` and `audio`, as `SalmonnCollator` takes them.
            decoding: how to answer.
            seed: of the draws; torch's own generators are left as they were.
        """
        return self.answer_prepared(self.prepare(examples), decoding, seed)

    @property
    def prepare(self) -> Callable[[Sequence[Example]], BatchFeature]:
        """Makes the inputs of a batch, also in a process that has no model."""
        return self.collator.prepare

    def answer_prepared(self, prepared: BatchFeature, decoding: Decoding, seed: object = 0) -> list[Answer]:
        """Answers to a batch of which `prepare` has made the inputs; otherwise as `answer`."""
        inputs = self.encoded_clips.encode(prepared)
        with torch.random.fork_rng():
            torch.manual_seed(random.Random(str(seed)).getrandbits(63))
            output = self.model.generate(**inputs, **decoding.options())
        new_tokens = output[:, inputs["input_ids"].shape[1] :]  # (batch, new tokens)
        return decode_answers(new_tokens, self.processor.tokenizer, self.model.generation_config)


def require_dtype(dtype: str) -> None:
    """Refuse a name that is none of the types that a model can have.

    Raises:
        ValueError: if it is not.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but it needs one of {', '.join(DTYPES)}.")
