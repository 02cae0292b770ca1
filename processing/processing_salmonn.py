"""The SALMONN processor: audio features, prompt templates and placeholders, labels for training."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from .audio_segments_salmonn import MEL_FRAMES_PER_SECOND
from .feature_extraction_salmonn import SalmonnFeatureExtractor


AUDIO_TOKEN = "<SpeechHere>"
IGNORED_LABEL = -100
# Written into text from users where it spells a token of the vocabulary: invisible, and no longer that token.
ZERO_WIDTH_SPACE = "\u200b"

_CONTENT_MACRO = """\
{%- macro render(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'audio' -%}<Speech><SpeechHere></Speech>{{ ' ' }}
{%- elif part.type == 'text' -%}{{ part.text }}
{%- else -%}{{ raise_exception("SALMONN takes 'audio' and 'text' content, not '" ~ part.type ~ "'.") }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""

# The form of the official models: USER: <Speech>...</Speech> instruction\nASSISTANT: answer</s>
VICUNA_CHAT_TEMPLATE = (
    _CONTENT_MACRO
    + """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'USER: ' }}{{ render(message.content) }}{{ '\\nASSISTANT:' }}
{%- elif message.role == 'assistant' -%}
{%- generation -%}{{ ' ' }}{{ render(message.content) }}{{ eos_token }}{%- endgeneration -%}
{%- else -%}{{ render(message.content) }}{{ '\\n' }}
{%- endif -%}
{%- endfor -%}
"""
)
# For language models that were trained on <|im_start|>role ... <|im_end|>
CHATML_CHAT_TEMPLATE = (
    _CONTENT_MACRO
    + """\
{%- for message in messages -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{ render(message.content) }}{{ '<|im_end|>' }}{%- endgeneration -%}{{ '\\n' }}
{%- else -%}{{ render(message.content) }}{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
)


class SalmonnProcessor(ProcessorMixin):
    """Prepares prompts with audio for `SalmonnForConditionalGeneration`.

    Args:
        feature_extractor: a `SalmonnFeatureExtractor`.
        tokenizer: tokenizer of the language model; the audio placeholder is added to it if it is not there.
        chat_template: Jinja template, such as `VICUNA_CHAT_TEMPLATE` (the default) or `CHATML_CHAT_TEMPLATE`.
        audio_token: the placeholder in prompts; each becomes as many of them as the clip has audio tokens.
    """

    feature_extractor: SalmonnFeatureExtractor

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

    def __call__(  # type: ignore[override]
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        text_target: str | Sequence[str] | None = None,
        sampling_rate: int | None = None,
        wrap: bool = True,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one prompt or a batch.

        Args:
            text: instructions, or whole prompts that contain the audio placeholder. An instruction is wrapped into
                the chat template with its audio in front, and cannot inject placeholders or special tokens; a prompt
                is taken as it is.
            audio: one clip, a list of clips in the order of their placeholders, or one list of clips per text (empty
                for a text without audio). Without placeholders, a flat list gives one clip to each text, or all to
                a single text. Each clip is a path, URL, bytes, array, tensor or `datasets` value.
            text_target: answers to learn; adds them with the end token to `input_ids` and gives `labels`. Rows are
                then padded on the right.
            sampling_rate: rate in Hz of bare samples.
            wrap: whether to wrap texts without a placeholder; with `False` they are prompts too.
            return_tensors: "pt" or "np".
            **kwargs: options of the tokenizer, flat or in `text_kwargs` (`padding`, `padding_side`, ...).

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(batch, length)`, padded on the left, the features
            of the extractor with one row per clip, and `labels` if there are targets.

        Raises:
            ValueError: if clips and placeholders, or targets and texts, are not equally many, naming both counts;
                for audio that cannot be used.
        """
        if text is None and audio is None:
            raise ValueError("You need to provide at least one of text and audio.")
        prompts, clips = self._lay_out(text, audio, wrap)
        if clips is not None:
            clips = self.feature_extractor.fetch_audio(clips, sampling_rate)
        text_kwargs = self._text_kwargs(kwargs, prompts, training=text_target is not None)
        text_kwargs["return_tensors"] = None if text_target is not None else return_tensors
        inputs = super().__call__(
            text=prompts,
            audio=clips,
            text_kwargs=text_kwargs,
            audio_kwargs={"return_tensors": return_tensors, "sampling_rate": self.feature_extractor.sampling_rate},
            **kwargs,
        )
        if text_target is not None:
            return self._add_targets(inputs, text_target, return_tensors)
        return inputs

    def apply_chat_template(  # type: ignore[override]
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
        """
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if batched else [conversation]
        clean = [[self._clean_message(message, load_audio=tokenize) for message in messages] for messages in conversations]
        processor_kwargs = {"wrap": False, **(processor_kwargs or {})} if tokenize else processor_kwargs
        return super().apply_chat_template(
            clean if batched else clean[0], tokenize=tokenize, processor_kwargs=processor_kwargs, **kwargs
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
        """Nothing to do for the base class: `__call__` has read the clips and rendered the prompts."""
        return images, list(text) if text is not None else None, videos, audio

    def _lay_out(self, text: Any, audio: Any, wrap: bool) -> tuple[list[str] | None, list[Any] | None]:
        """Prompts with one placeholder per clip, and the clips in that order."""
        clips = _as_clips(audio)
        if text is None:
            return None, _flatten(clips)
        texts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(item, str) for item in texts):
            raise ValueError("text must be a string or a list of strings.")
        found = [item.count(self.audio_token) for item in texts]
        if wrap and not all(found):
            owned = self._assign_clips(clips, found)
            texts = [item if count else self._wrap(item, own) for item, count, own in zip(texts, found, owned, strict=True)]
        elif clips is not None and any(isinstance(clip, list) for clip in clips):
            self._assign_clips(clips, found)
        flat = _flatten(clips)
        placeholders, given = sum(item.count(self.audio_token) for item in texts), len(flat or [])
        if placeholders != given:
            raise ValueError(
                f"Found {placeholders} audio placeholders but {given} clips; pass one clip per placeholder "
                f"{self.audio_token}."
            )
        return texts, flat or None

    def _assign_clips(self, clips: list[Any] | None, found: list[int]) -> list[int]:
        """How many clips each text has; checks them against its placeholders, of which an instruction has none."""
        if clips is None:
            return [0] * len(found)
        if any(isinstance(clip, list) for clip in clips):
            if len(clips) != len(found):
                raise ValueError(f"Got lists of clips for {len(clips)} texts, but {len(found)} texts; pass one list each.")
            owned = [len(clip) if isinstance(clip, list) else 1 for clip in clips]
        elif len(found) == 1:
            owned = [len(clips)]
        elif len(clips) == len(found) and all(count <= 1 for count in found):
            owned = [1] * len(found)
        else:
            raise ValueError(
                f"Cannot tell which of {len(clips)} clips belong to which of {len(found)} texts; pass one clip per "
                "text, or a list of clips for each text."
            )
        for index, (own, count) in enumerate(zip(owned, found, strict=True)):
            if count and own != count:
                raise ValueError(f"Text {index} has {count} audio placeholders but {own} clips; pass one clip for each.")
        return owned

    def _wrap(self, instruction: str, num_clips: int) -> str:
        content = [{"type": "audio"}] * num_clips + [{"type": "text", "text": instruction}]
        return self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _clean_message(self, message: dict[str, Any], load_audio: bool) -> dict[str, Any]:
        content = message.get("content") or ""
        if isinstance(content, str):
            return message | {"content": self.escape(content)}
        return message | {"content": [self._clean_part(part, load_audio) for part in content]}

    def _clean_part(self, part: dict[str, Any], load_audio: bool) -> dict[str, Any]:
        if part.get("type") == "text":
            return part | {"text": self.escape(part["text"])}
        if part.get("type") != "audio":
            raise ValueError(f"SALMONN takes 'audio' and 'text' content, not '{part.get('type')}'.")
        if not load_audio:
            return {"type": "audio"}
        source = part.get("audio", part)
        samples = self.feature_extractor.fetch_audio(source, part.get("sampling_rate"))
        return {"type": "audio", "audio": samples.cpu().numpy() if isinstance(samples, torch.Tensor) else samples}

    def _text_kwargs(self, kwargs: dict[str, Any], prompts: list[str] | None, training: bool) -> dict[str, Any]:
        """Options of the tokenizer: padded on the left, with exactly one BOS where the tokenizer has one."""
        text_kwargs = {"padding": True, "padding_side": "left", **kwargs.pop("text_kwargs", {})}
        for name in ("padding", "padding_side", "add_special_tokens"):
            if name in kwargs:
                text_kwargs[name] = kwargs.pop(name)
        if training:
            text_kwargs["padding"] = False
        if prompts and text_kwargs.get("add_special_tokens", True) and self._tokenizer_adds_bos():
            prompts[:] = [prompt.removeprefix(self.tokenizer.bos_token) for prompt in prompts]
        return text_kwargs

    def _tokenizer_adds_bos(self) -> bool:
        return self.tokenizer.bos_token is not None and self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id

    def _add_targets(
        self, inputs: BatchFeature, text_target: str | Sequence[str], return_tensors: str | None
    ) -> BatchFeature:
        """Append answers and their end token; labels are -100 on the prompt and on padding."""
        targets = [text_target] if isinstance(text_target, str) else list(text_target)
        prompts = inputs["input_ids"]
        if len(targets) != len(prompts):
            raise ValueError(f"Got {len(targets)} targets for {len(prompts)} texts; pass one target per text.")
        end = self.tokenizer.eos_token_id
        escaped = [self.escape(target) for target in targets]
        answers = [ids + [end] for ids in self.tokenizer(escaped, add_special_tokens=False)["input_ids"]]
        rows = [list(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors=return_tensors)
        labels = [
            [IGNORED_LABEL] * len(prompt) + answer + [IGNORED_LABEL] * (len(padded["input_ids"][0]) - len(row))
            for prompt, answer, row in zip(prompts, answers, rows, strict=True)
        ]
        features = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        trained = BatchFeature({"labels": labels}, tensor_type=return_tensors)
        return BatchFeature({**padded, **features, **trained})


def _as_clips(audio: Any) -> list[Any] | None:
    """A list of clips, or of lists of clips; `None` if there is no audio."""
    if audio is None:
        return None
    if not isinstance(audio, (list, tuple)) or (len(audio) > 0 and isinstance(audio[0], (int, float))):
        return [audio]
    return [list(item) if _is_list_of_clips(item) else ([] if item is None else item) for item in audio]


def _is_list_of_clips(item: Any) -> bool:
    return isinstance(item, (list, tuple)) and not (len(item) > 0 and isinstance(item[0], (int, float)))


def _flatten(clips: Iterable[Any] | None) -> list[Any] | None:
    if clips is None:
        return None
    return [clip for item in clips for clip in (item if isinstance(item, list) and _is_list_of_clips(item) else [item])]


__all__ = ["CHATML_CHAT_TEMPLATE", "VICUNA_CHAT_TEMPLATE", "SalmonnProcessor"]
