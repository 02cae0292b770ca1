"""The SALMONN processor: audio features, prompt templates and placeholders, labels for training."""

import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs, Unpack

from .assistant_masks_salmonn import require_placed_masks
from .chat_templates_salmonn import CHATML_CHAT_TEMPLATE, VICUNA_CHAT_TEMPLATE
from .feature_extraction_salmonn import SalmonnFeatureExtractor, is_batch


AUDIO_TOKEN = "<SpeechHere>"
IGNORED_LABEL = -100
# Written into text from users where it spells a token of the vocabulary: invisible, and no longer that token.
ZERO_WIDTH_SPACE = "\u200b"


class SalmonnProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Options of the processor and their defaults: padded on the left, torch tensors."""

    _defaults = {
        "text_kwargs": {"padding": True, "padding_side": "left"},
        "common_kwargs": {"return_tensors": "pt"},
    }


class SalmonnProcessor(ProcessorMixin):
    """Prepares prompts with audio for `SalmonnForConditionalGeneration`.

    Args:
        feature_extractor: a `SalmonnFeatureExtractor`.
        tokenizer: tokenizer of the language model; the audio placeholder is added to it if it is not there.
        chat_template: Jinja template, such as `VICUNA_CHAT_TEMPLATE` (the default) or `CHATML_CHAT_TEMPLATE`.
        audio_token: the placeholder in prompts; each becomes as many of them as the clip has audio tokens.
    """

    feature_extractor: SalmonnFeatureExtractor
    valid_processor_kwargs = SalmonnProcessorKwargs

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        audio_token: str = AUDIO_TOKEN,
    ):
        self.audio_token = audio_token
        tokenizer.add_tokens([audio_token], special_tokens=True)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or VICUNA_CHAT_TEMPLATE)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        **kwargs: Unpack[SalmonnProcessorKwargs],
    ) -> BatchFeature:
        """Prepare one prompt or a batch.

        Args:
            text: with audio, instructions, or whole prompts that contain the audio placeholder. An instruction is
                wrapped into the chat template with its audio in front, and cannot inject placeholders or special
                tokens; a prompt is taken as it is, and so is text without audio (`apply_chat_template` wraps it).
            audio: one clip, a list of clips in the order of their placeholders, or one list of clips per text (empty
                for a text without audio). Without placeholders, a flat list gives one clip to each text, or all to
                a single text. Each clip is a path, URL, bytes, array, tensor or `datasets` value.
            **kwargs: options, flat or in `text_kwargs` and `audio_kwargs`: `sampling_rate` is the rate in Hz of bare
                samples; `audio_frames` are the lengths in mel frames (10 ms) of clips that are encoded already, given
                like `audio` and instead of it: the result then has no features; `text_target` are the answers to
                learn, one per text: they are added to `input_ids` with the end token, give `labels`, and rows are
                padded on the right; all options of the tokenizer.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(batch, length)`, padded on the left, the features
            of the extractor with one row per clip, and `labels` if there are targets.

        Raises:
            ValueError: if clips and placeholders, or targets and texts, are not equally many, naming both counts;
                for audio that cannot be used.
        """
        options: dict[str, Any] = dict(kwargs)
        audio_frames = _take_option(options, "audio_frames", "audio_kwargs")
        if audio_frames is not None:
            text = self._expand_prompts(text, audio, audio_frames)
        targets = _take_option(options, "text_target", "text_kwargs")
        if targets is None:
            return self._prepare(text, audio, options, expanded=audio_frames is not None)
        if text is None:
            raise ValueError("text_target needs text: pass the prompts that the targets answer.")
        # Rows are padded once the targets are in place.
        return_tensors = _take_option(options, "return_tensors", "text_kwargs") or "pt"
        for name in ("padding", "padding_side"):
            _take_option(options, name, "text_kwargs")
        options["text_kwargs"] = {**options.get("text_kwargs", {}), "padding": False, "return_tensors": None}
        options["audio_kwargs"] = {**options.get("audio_kwargs", {}), "return_tensors": return_tensors}
        inputs = self._prepare(text, audio, options, expanded=audio_frames is not None)
        return self._add_targets(inputs, targets, return_tensors)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save tokenizer, extractor settings, chat template and the code that `trust_remote_code` runs."""
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            for part in (self, self.feature_extractor):  # written to the files, not meant to stay on the objects
                part.__dict__.pop("auto_map", None)

    def apply_chat_template(
        self, conversation: Any, tokenize: bool = False, processor_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Render chat messages, and with `tokenize=True, return_dict=True` prepare them for the model.

        Args:
            conversation: messages with `role` and `content`, or a list of such conversations. Content is text or a
                list of `{"type": "text", "text": ...}` and `{"type": "audio", "audio" | "path" | "url" | ...: ...}`
                parts. Text cannot inject placeholders or special tokens.
            tokenize: whether to return model inputs instead of text.
            processor_kwargs: options of `__call__`.
            **kwargs: as for every processor: `add_generation_prompt`, `return_dict`, `return_tensors`,
                `return_assistant_tokens_mask` (1 where the assistant speaks: the labels of multi-turn training).

        Raises:
            ValueError: for content of another type than text and audio, and for audio that cannot be used.
            ImportError: if the installed transformers would misplace the mask of the assistant.
        """
        if kwargs.get("return_assistant_tokens_mask"):
            require_placed_masks()
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if batched else [conversation]
        options = dict(processor_kwargs or {})  # the library writes into it
        # Of bare samples: they are brought to the extractor's rate here, and need no rate from then on.
        rates = [_take_option(given, "sampling_rate", "audio_kwargs") for given in (kwargs, options)]
        rate = next((given for given in rates if given is not None), None)
        clean = [
            [self._clean_message(message, rate, load_audio=tokenize) for message in messages]
            for messages in conversations
        ]
        return super().apply_chat_template(
            clean if batched else clean[0], tokenize=tokenize, processor_kwargs=options, **kwargs
        )

    def replace_audio_token(self, audio_inputs: dict[str, Any], audio_idx: int = 0, **kwargs: Any) -> str:
        """The placeholder, once per audio token of the clip."""
        frames = int(audio_inputs["input_features_mask"][audio_idx].sum())
        return self.audio_token * self.feature_extractor.audio_layout.num_audio_tokens(frames)

    def audio_token_times(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        """Which seconds of its clip each audio token covers.

        Args:
            inputs: what `__call__` returned.

        Returns:
            One tensor `(audio_tokens, 2)` per clip: start and end of the token's window in seconds. The windows of
            neighbouring tokens touch or overlap; the last ones may lie in the padding behind the clip.
        """
        layout = self.feature_extractor.audio_layout
        counts = [int(mask.sum()) for mask in inputs["input_features_mask"]]
        return [torch.tensor(layout.token_times(frames)) for frames in counts]

    def escape(self, text: str) -> str:
        """Text in which no token of the vocabulary is spelled out: placeholders and special tokens stay text."""
        for token in sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True):
            if len(token) > 1:
                text = text.replace(token, token[0] + ZERO_WIDTH_SPACE + token[1:])
        return text

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` returns for the model."""
        return ["input_ids", "attention_mask", *self.feature_extractor.model_input_names]

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Render instructions as prompts, and read the clips in the order of their placeholders."""
        clips = _as_clips(audio)
        prompts = None
        if text is not None:
            prompts = self._wrap_instructions(_as_texts(text, "text"), clips)
            if _option(kwargs, "add_special_tokens", "text_kwargs", True) and self._tokenizer_adds_bos():
                prompts = [prompt.removeprefix(self.tokenizer.bos_token) for prompt in prompts]
        samples = None
        if clips is not None:
            sampling_rate = _option(kwargs, "sampling_rate", "audio_kwargs", None)
            samples = self.feature_extractor.fetch_audio(_flatten(clips), sampling_rate) or None
        return images, prompts, videos, samples

    def validate_inputs(self, text: Any = None, audio: Any = None, **kwargs: Any) -> None:
        """Check that there is one clip per placeholder.

        Raises:
            ValueError: with both counts if there is not, or if there is neither text nor audio.
        """
        if text is not None:
            found, given = sum(prompt.count(self.audio_token) for prompt in text), len(audio or [])
            if found != given:
                raise ValueError(
                    f"Found {found} audio placeholders but {given} clips: the number of {self.audio_token} tokens in "
                    "the prompts should be the same as the number of clips; pass one clip per placeholder."
                )
        super().validate_inputs(text=text, audio=audio, **kwargs)

    def _process_audio(self, audio: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        return super()._process_audio(audio, **{**kwargs, "sampling_rate": self.feature_extractor.sampling_rate})

    def _tokenizer_adds_bos(self) -> bool:
        return (
            self.tokenizer.bos_token is not None and self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id
        )

    def _wrap_instructions(self, texts: list[str], clips: list[Any] | None) -> list[str]:
        """Texts that have audio but no placeholder become prompts; where all clips have one, there is none to wrap."""
        found = [text.count(self.audio_token) for text in texts]
        if clips is None or (any(found) and not _is_nested(clips) and sum(found) == len(clips)):
            return texts
        owned = self._assign_clips(clips, found)
        return [text if count else self._wrap(text, own) for text, count, own in zip(texts, found, owned, strict=True)]

    def _assign_clips(self, clips: list[Any], found: list[int]) -> list[int]:
        """How many clips each text has; checks them against its placeholders, of which an instruction has none."""
        if _is_nested(clips):
            if len(clips) != len(found):
                raise ValueError(f"Got {len(clips)} lists of clips for {len(found)} texts; pass one list for each.")
            owned = [len(clip) if is_batch(clip) else 1 for clip in clips]
        elif len(found) == 1:
            owned = [len(clips)]
        elif len(clips) == len(found) and all(count <= 1 for count in found):
            owned = [1] * len(found)
        else:
            raise ValueError(
                f"Cannot tell which of {len(clips)} clips belong to which of {len(found)} texts with {sum(found)} "
                f"placeholders: the number of {self.audio_token} tokens in the prompts should be the same as the "
                "number of clips; or pass one clip or one list of clips for each text."
            )
        for index, (own, count) in enumerate(zip(owned, found, strict=True)):
            if count and own != count:
                raise ValueError(
                    f"Text {index} has {count} audio placeholders but {own} clips: the number of {self.audio_token} "
                    "tokens in the prompts should be the same as the number of clips."
                )
        return owned

    def _wrap(self, instruction: str, num_clips: int) -> str:
        content = [{"type": "audio"}] * num_clips + [{"type": "text", "text": instruction}]
        return self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _clean_message(self, message: dict[str, Any], sampling_rate: int | None, load_audio: bool) -> dict[str, Any]:
        content = message.get("content") or ""
        if isinstance(content, str):
            return message | {"content": self.escape(content)}
        parts: list[dict[str, Any]] = []
        for is_text, group in groupby(content, key=lambda part: part.get("type") == "text"):
            if is_text:  # joined, since a token may be spelled across two parts
                parts.append({"type": "text", "text": self.escape("".join(_text_of(part) for part in group))})
            else:
                parts += [self._clean_part(part, sampling_rate, load_audio) for part in group]
        return message | {"content": parts}

    def _clean_part(self, part: dict[str, Any], sampling_rate: int | None, load_audio: bool) -> dict[str, Any]:
        if part.get("type") != "audio":
            raise ValueError(f"SALMONN takes 'audio' and 'text' content, not '{part.get('type')}'.")
        if not load_audio:
            return {"type": "audio"}
        source = part.get("audio", part)
        samples = self.feature_extractor.fetch_audio(source, part.get("sampling_rate", sampling_rate))
        return {"type": "audio", "audio": samples.cpu().numpy() if isinstance(samples, torch.Tensor) else samples}

    def _prepare(self, text: Any, audio: Any, options: dict[str, Any], expanded: bool) -> BatchFeature:
        """Inputs without targets; prompts whose placeholders are expanded already only need their ids."""
        if not expanded:
            return super().__call__(text=text, audio=audio, **options)
        merged = self._merge_kwargs(
            SalmonnProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **options
        )
        return BatchFeature(dict(self.tokenizer(text, **merged["text_kwargs"])))

    def _expand_prompts(self, text: Any, audio: Any, audio_frames: Any) -> list[str]:
        """Prompts with each placeholder repeated for a clip of which only the length is given."""
        if text is None or audio is not None:
            raise ValueError("audio_frames needs text and takes the place of audio; pass one of the two with text.")
        given = list(audio_frames) if isinstance(audio_frames, Sequence) else [audio_frames]
        lengths = [length for item in given for length in (item if isinstance(item, Sequence) else [item])]
        clips = [[None] * len(item) if isinstance(item, Sequence) else None for item in given]
        prompts = self._wrap_instructions(_as_texts(text, "text"), clips)
        found = sum(prompt.count(self.audio_token) for prompt in prompts)
        if found != len(lengths):
            raise ValueError(f"Found {found} audio placeholders but {len(lengths)} clips; pass one clip for each.")
        counts = iter(self.feature_extractor.audio_layout.num_audio_tokens(length) for length in lengths)
        if self._tokenizer_adds_bos():
            prompts = [prompt.removeprefix(self.tokenizer.bos_token) for prompt in prompts]
        pieces = [prompt.split(self.audio_token) for prompt in prompts]
        return [
            first + "".join(self.audio_token * next(counts) + piece for piece in others) for first, *others in pieces
        ]

    def _add_targets(
        self, inputs: BatchFeature, text_target: str | Sequence[str], return_tensors: str | None
    ) -> BatchFeature:
        """Append answers and their end token; labels are -100 on the prompt and on padding."""
        targets = _as_texts(text_target, "text_target")
        prompts = inputs["input_ids"]
        if len(targets) != len(prompts):
            raise ValueError(f"Got {len(targets)} targets for {len(prompts)} texts; pass one target per text.")
        end = self.tokenizer.eos_token_id
        escaped = [self.escape(target) for target in targets]
        answers = [[*ids, end] for ids in self.tokenizer(escaped, add_special_tokens=False)["input_ids"]]
        rows = [list(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors=return_tensors)
        labels = [
            [IGNORED_LABEL] * len(prompt) + answer + [IGNORED_LABEL] * (len(padded["input_ids"][0]) - len(row))
            for prompt, answer, row in zip(prompts, answers, rows, strict=True)
        ]
        features = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        trained = BatchFeature({"labels": labels}, tensor_type=return_tensors)
        return BatchFeature({**padded, **features, **trained})


def _as_texts(value: Any, name: str) -> list[str]:
    """A list of strings; a single string makes a list of one."""
    texts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a string or a list of strings.")
    return texts


def _text_of(part: dict[str, Any]) -> str:
    if not isinstance(part.get("text"), str):
        raise ValueError(f"the text of a message must be a string, got {part.get('text')!r}.")
    return part["text"]


def _as_clips(audio: Any) -> list[Any] | None:
    """A list of clips, or of lists of clips; `None` if there is no audio."""
    if audio is None:
        return None
    clips = list(audio) if is_batch(audio) else [audio]
    return [list(clip) if is_batch(clip) else ([] if clip is None else clip) for clip in clips]


def _is_nested(clips: list[Any]) -> bool:
    return any(is_batch(clip) for clip in clips)


def _flatten(clips: list[Any]) -> list[Any]:
    return [clip for item in clips for clip in (item if is_batch(item) else [item])]


def _option(kwargs: dict[str, Any], name: str, group: str, default: Any) -> Any:
    """An option that is given flat or in its group."""
    return kwargs.get(name, kwargs.get(group, {}).get(name, default))


def _take_option(kwargs: dict[str, Any], name: str, group: str) -> Any:
    """The same, and remove it."""
    nested = dict(kwargs.get(group, {}))
    value = kwargs.pop(name, nested.pop(name, None))
    if group in kwargs:
        kwargs[group] = nested
    return value


__all__ = ["CHATML_CHAT_TEMPLATE", "VICUNA_CHAT_TEMPLATE", "SalmonnProcessor"]
