"""Batches: examples with a clip, an instruction and an answer become inputs and labels of the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature

from modeling_salmonn.data.alignment_labels import alignment_labels
from modeling_salmonn.data.encoder_cache import pad_states
from modeling_salmonn.data.text_files import kind_of, shown
from modeling_salmonn.data.word_pieces import WordPieces
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, is_batch
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


class SalmonnCollator:
    """Collates examples for `transformers.Trainer` (with `remove_unused_columns=False`).

    An example is a mapping with `instruction`, `answer`, and `audio`: a path, samples at 16 kHz, or anything else that
    the processor reads; a list of several clips, in the order of their placeholders; `None` for text alone. `Trainer`,
    this and the processor are all that fine-tuning needs.

    With an `EncoderCache` as `cache` the encoders' outputs are looked up by the example's `path`; with `alignment`
    batches have the labels of the alignment loss too, from `alignment_text`, spelled in `pieces` if there are any, and
    `alignment_words`.
    """

    def __init__(
        self,
        processor: SalmonnProcessor,
        cache: Any = None,
        alignment: bool = False,
        pieces: WordPieces | None = None,
    ):
        self.processor = processor
        self.cache = cache
        self.alignment = alignment
        self.pieces = pieces

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Inputs, padded on the right, with `labels`.

        Raises:
            ValueError: if an example lacks a column, or has text of another type.
        """
        answers = [_text_of(example, "answer", index) for index, example in enumerate(examples)]
        batch = dict(self.prepare(examples, text_target=answers))
        heard = [example for example in examples if self._has_clip(example)]
        if self.alignment and heard:  # the loss is over clips, which text alone has none of
            batch |= alignment_labels(heard, self.processor.tokenizer, self.pieces)
        return batch

    def prepare(self, examples: Sequence[Mapping[str, Any]], **options: Any) -> BatchFeature:
        """Inputs of the instructions alone, as `generate` takes them; options are the processor's.

        Raises:
            ValueError: if an example lacks a column, or has an instruction of another type.
        """
        texts = [_text_of(example, "instruction", index) for index, example in enumerate(examples)]
        if self.cache is not None:
            return self._prepare_cached(examples, texts, options)
        clips = []  # of each example: none, one, or several
        for index, example in enumerate(examples):
            audio = _column_of(example, "audio", index)
            if not is_batch(audio):
                audio = [] if audio is None else [audio]
            clips.append(list(audio))
        return self.processor(text=texts, audio=clips, sampling_rate=SAMPLING_RATE, **options)

    def _has_clip(self, example: Mapping[str, Any]) -> bool:
        return example.get("audio" if self.cache is None else "path") is not None

    def _prepare_cached(
        self, examples: Sequence[Mapping[str, Any]], texts: list[str], options: dict[str, Any]
    ) -> BatchFeature:
        found = []
        frame_counts = []  # of each example's clips: one, or none for text alone
        for example in examples:
            own = [self.cache.get(example["path"])] if self._has_clip(example) else []
            found += own
            frame_counts.append([mel_frames for _, mel_frames in own])
        # The processor lays out placeholders for clips that it does not get to hear.
        inputs = self.processor(text=texts, audio_frames=frame_counts, **options)
        if found:
            inputs.update(pad_states(found))
        return inputs


def _text_of(example: Any, name: str, index: int) -> str:
    value = _column_of(example, name, index)
    if not isinstance(value, str):
        raise ValueError(f"Example {index} of the batch has {shown(value)} ({kind_of(value)}) as {name!r}; give text.")
    return value


def _column_of(example: Any, name: str, index: int) -> Any:
    if not isinstance(example, Mapping):
        raise ValueError(
            f"Example {index} of the batch is {kind_of(example)}; it needs to be a mapping with 'audio', "
            "'instruction' and 'answer'."
        )
    if name not in example:
        alone = ", or None where there is text alone" if name == "audio" else ""
        raise ValueError(
            f"Example {index} of the batch lacks {name!r}: it has {sorted(map(str, example))}. Rename your columns, "
            f"and train with remove_unused_columns=False, so that each example has its {name!r}{alone}."
        )
    return example[name]
