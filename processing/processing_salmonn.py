"""The SALMONN processor: audio features, prompt templates and placeholders, labels for training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData, Unpack
from transformers.utils import logging

from .audio_io_salmonn import is_batch
from .chat_messages_salmonn import read_conversations, read_messages
from .chat_templates_salmonn import CHATML_CHAT_TEMPLATE, VICUNA_CHAT_TEMPLATE
from .feature_extraction_salmonn import LoadedClip, SalmonnFeatureExtractor
from .processor_files_salmonn import explain_failed_loading
from .processor_options_salmonn import (
    READING_OPTIONS,
    SalmonnProcessorKwargs,
    check_options,
    check_template_options,
    take_options,
)
from .prompt_texts_salmonn import (
    FormattedPrompt,
    as_clips,
    as_row,
    as_texts,
    assign_clips,
    escape_tokens,
    is_audio,
    is_formatted,
    is_list,
)
from .staged_saving_salmonn import refuse_unfinished, replace_files
from .tokenizing_salmonn import TOKENIZING, puts_bos
from .training_labels_salmonn import IGNORED_LABEL, add_targets, require_placed_masks, take_padding


logger = logging.get_logger(__name__)

AUDIO_TOKEN = "<SpeechHere>"
TRANSCRIPTION_PROMPT = "What does the speaker say? Reply with the words only."


class SalmonnProcessor(ProcessorMixin):
    """Prepares prompts with audio for `SalmonnForConditionalGeneration`.

    Args:
        feature_extractor: a `SalmonnFeatureExtractor`.
        tokenizer: tokenizer of the language model; the audio placeholder is added to it if it is not there.
        chat_template: Jinja template, such as `VICUNA_CHAT_TEMPLATE` (the default) or `CHATML_CHAT_TEMPLATE`.
        audio_token: the placeholder in prompts; each becomes as many of them as the clip has audio tokens.
        default_transcription_prompt: instruction of `apply_transcription_request`.
    """

    feature_extractor: SalmonnFeatureExtractor
    valid_processor_kwargs = SalmonnProcessorKwargs
    is_batch = staticmethod(is_batch)

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        audio_token: str = AUDIO_TOKEN,
        default_transcription_prompt: str = TRANSCRIPTION_PROMPT,
    ):
        self.audio_token = audio_token
        self.default_transcription_prompt = default_transcription_prompt
        tokenizer.add_tokens([audio_token], special_tokens=True)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        if tokenizer.pad_token is None:  # as in Llama, on which Vicuna is built
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template or VICUNA_CHAT_TEMPLATE)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        *,
        formatted: bool = False,
        loaded_clips: Sequence[LoadedClip] | None = None,
        **kwargs: Unpack[SalmonnProcessorKwargs],
    ) -> BatchFeature:
        """Prepare one prompt or a batch.

        Args:
            text: with audio, instructions: each is wrapped into the chat template with its audio in front, and cannot
                inject placeholders or special tokens. Text without audio is taken as it is, special tokens included
                (`apply_chat_template` wraps it). Samples in the first place are audio to be transcribed, as for
                `apply_transcription_request`.
            audio: one clip, a list of clips in the order of their placeholders, or one list of clips per text (empty
                for a text without audio). A flat list gives one clip to each instruction, or all to a single one.
                Each clip is a path, URL, bytes, array, tensor or `datasets` value.
            formatted: the texts are whole prompts of trusted origin, taken as they are: the audio is put at their
                placeholders, and special tokens are live. What `apply_chat_template` rendered needs no word.
            loaded_clips: what the extractor's `load_clips` returned, in the order of the placeholders and instead of
                `audio`, so that clips need not be read again.
            **kwargs: options, flat or in `text_kwargs` and `audio_kwargs`: `sampling_rate` is the rate in Hz of bare
                samples; `allow_paths` and `allow_urls` say where clips may come from, as for the feature extractor;
                `audio_frames` are the lengths in mel frames (10 ms) of clips that are encoded already, given
                like `audio` and instead of it: the result then has no features; `text_target` are the answers to
                learn, one per text: they are added to `input_ids` with the end token, give `labels`, and rows are
                padded on the right and never cut; all options of the tokenizer.

        Returns:
            `BatchFeature` with `input_ids` and `attention_mask` `(batch, length)`, padded on the left, the features
            of the extractor with one row per clip, and `labels` if there are targets.

        Raises:
            ValueError: if clips and placeholders, or targets and texts, are not equally many, naming both counts;
                for audio that cannot be used, and for targets with `truncation`.
            TypeError: for an unknown option, naming the closest known one.
        """
        options: dict[str, Any] = dict(kwargs)
        check_options(options)
        if not isinstance(formatted, bool):
            raise TypeError(f"formatted must be True or False, got {formatted!r:.80}.")
        if is_audio(text):
            if audio is not None or loaded_clips is not None:
                raise ValueError("Got audio both in the place of text and as audio; pass text=..., audio=...")
            return self.apply_transcription_request(text, **options)
        targets = take_options(options, "text_kwargs", ["text_target"])["text_target"]
        if targets is None:
            return self._prepare(text, audio, loaded_clips, formatted, options)
        if text is None:
            raise ValueError("text_target needs text: pass the prompts that the targets answer.")
        padding = take_padding(options)
        return_tensors = take_options(options, "text_kwargs", ["return_tensors"])["return_tensors"] or "pt"
        options["text_kwargs"] = {**options.get("text_kwargs", {}), "padding": False, "return_tensors": None}
        options["audio_kwargs"] = {**options.get("audio_kwargs", {}), "return_tensors": return_tensors}
        inputs = self._prepare(text, audio, loaded_clips, formatted, options)
        answers = [self.escape(target) for target in as_texts(targets, "text_target")]
        return add_targets(self.tokenizer, inputs, answers, return_tensors, padding)

    def apply_transcription_request(
        self, audio: Any, prompt: str | Sequence[str | None] | None = None, tokenize: bool = True, **kwargs: Any
    ) -> BatchFeature | list[str]:
        """Prepare clips for speech recognition.

        Args:
            audio: one clip or a list of clips, each a row of its own.
            prompt: the instruction, or one for each clip; `None` for `default_transcription_prompt`.
            tokenize: whether to return model inputs instead of prompts, which `__call__` takes with the same audio.
            **kwargs: options of `__call__`, such as `sampling_rate`.

        Raises:
            ValueError: if there are no clips, or not as many instructions.
        """
        clips, _ = as_clips(audio)
        if not clips:
            raise ValueError("There is no audio to transcribe; pass at least one clip.")
        given = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt] * len(clips)
        if len(given) != len(clips):
            raise ValueError(f"Got {len(given)} prompts for {len(clips)} clips; pass one, or one for each clip.")
        prompts = as_texts([self.default_transcription_prompt if own is None else own for own in given], "prompt")
        if not tokenize:
            return [self._wrap(own, 1) for own in prompts]
        return self(text=prompts, audio=[[clip] for clip in clips], **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load a processor, as for every transformers model.

        Raises:
            ValueError: if the folder was being saved to when the process ended, or lacks a file, or one is damaged.
        """
        refuse_unfinished(pretrained_model_name_or_path)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except Exception:  # of transformers and tokenizers, many of which name no file
            explain_failed_loading(Path(pretrained_model_name_or_path) / kwargs.get("subfolder", ""))
            raise

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save tokenizer, extractor settings, chat template and the code that `trust_remote_code` runs."""
        if push_to_hub:
            kwargs.setdefault("repo_id", Path(save_directory).name)
        try:
            with replace_files(save_directory) as staging:
                files = super().save_pretrained(str(staging), push_to_hub=push_to_hub, **kwargs)
            return [os.path.join(save_directory, os.path.relpath(file, staging)) for file in files]
        finally:
            for part in (self, self.feature_extractor):  # written to the files, not meant to stay on the objects
                part.__dict__.pop("auto_map", None)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render chat messages, and with `tokenize=True, return_dict=True` prepare them for the model.

        Args:
            conversation: messages with `role` (system, user or assistant) and `content`, or a list of such
                conversations. Content is text or a list of `{"type": "text", "text": ...}` and
                `{"type": "audio", "audio" | "path" | "url" | ...: ...}` parts, also in the form of OpenAI's clients
                (see `read_messages`). Text cannot inject placeholders or special tokens.
            chat_template: another template, or the name of one.
            tokenize: whether to return model inputs instead of text.
            processor_kwargs: options of `__call__`.
            **kwargs: as for every processor: `add_generation_prompt`, `return_dict`, `return_tensors`,
                `return_assistant_tokens_mask` (1 where the assistant speaks: the labels of multi-turn training).

        Raises:
            ValueError: for roles, fields and content that are not known, and for audio that cannot be used.
            TypeError: for an unknown option, naming the closest known one.
            ImportError: if the installed transformers would misplace the mask of the assistant.
        """
        if kwargs.get("return_assistant_tokens_mask"):
            require_placed_masks()
        conversations, batched = read_conversations(conversation)
        options = dict(processor_kwargs or {})  # the library writes into it
        check_options(options)
        check_template_options(kwargs, f"{chat_template or self.chat_template}")
        # Clips are read here, so the options of reading are taken from both places where they may be given.
        inner = take_options(options, "audio_kwargs", READING_OPTIONS)
        reading = take_options(kwargs, "audio_kwargs", READING_OPTIONS)
        for name in READING_OPTIONS:
            reading[name] = inner[name] if reading[name] is None else reading[name]
        cleaned: list[Any] = []
        clips: list[LoadedClip] = []
        for index, messages in enumerate(conversations):
            try:
                texts, parts = read_messages(messages, self.escape)
                if tokenize:
                    clips += [self._load_part(part.source, part.sampling_rate, reading) for part in parts]
            except ValueError as error:
                name = f"Conversation {index}: " if batched else ""
                raise ValueError(f"{name}{error}") from error
            cleaned.append(texts)
        # The library renders the messages and calls this processor; the clips go by it, since it would read them anew.
        rendered = super().apply_chat_template(
            cleaned if batched else cleaned[0],
            chat_template=chat_template,
            tokenize=tokenize,
            processor_kwargs=options | {"formatted": True, "loaded_clips": clips or None},
            **kwargs,
        )
        if tokenize:
            return rendered
        return [FormattedPrompt(prompt) for prompt in rendered] if batched else FormattedPrompt(rendered)

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

    def audio_seconds(self, messages: Sequence[Any], sampling_rate: int | None = None, **reading: Any) -> float | None:
        """Seconds of audio in a conversation, as `SalmonnFeatureExtractor.audio_seconds` tells; `None` if unknown."""
        _, parts = read_messages(messages, str)
        rates = [sampling_rate if part.sampling_rate is None else part.sampling_rate for part in parts]
        measure = self.feature_extractor.audio_seconds
        lengths = [measure(part.source, rate, **reading) for part, rate in zip(parts, rates, strict=True)]
        return None if None in lengths else sum(seconds for seconds in lengths if seconds is not None)

    def escape(self, text: str) -> str:
        """Text in which no added token but white space is spelled out: placeholders and special tokens stay text."""
        return escape_tokens(text, self.tokenizer.get_added_vocab())

    @property
    def model_input_names(self) -> list[str]:
        """Names of what `__call__` returns for the model."""
        return ["input_ids", "attention_mask", *self.feature_extractor.model_input_names]

    def prepare_inputs_layout(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Nothing is left to do: `__call__` has made prompts of texts and read the clips."""
        return images, text, videos, audio

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

    def _get_num_multimodal_tokens(self, audio_lengths: Sequence[int] | None = None, **kwargs: Any) -> MultiModalData:
        """Audio tokens of clips whose lengths in samples at the extractor's rate are known; engines plan by it."""
        if audio_lengths is not None and not hasattr(audio_lengths, "__len__"):
            raise ValueError(f"audio_lengths must be a list of numbers of samples, got {audio_lengths!r:.80}.")
        count = self.feature_extractor.num_audio_tokens
        return MultiModalData(num_audio_tokens=None if audio_lengths is None else [count(n) for n in audio_lengths])

    def _process_audio(self, audio: Sequence[LoadedClip], **kwargs: Any) -> tuple[Any, list[str]]:
        """Features of clips, if their samples are known, and what takes the place of each placeholder."""
        layout = self.feature_extractor.audio_layout
        replacements = [self.audio_token * layout.num_audio_tokens(clip.num_frames) for clip in audio]
        if audio[0].samples is None:  # of `audio_frames`
            return {}, replacements
        return self.feature_extractor.extract(audio, layout, kwargs.get("return_tensors")), replacements

    def _adds_bos(self, options: dict[str, Any]) -> bool:
        """Whether the tokenizer puts a BOS in front: by itself, and by the options of this call."""
        given = take_options(dict(options), "text_kwargs", ["add_special_tokens"])["add_special_tokens"]
        return self.tokenizer.bos_token is not None and given in (None, True) and puts_bos(self.tokenizer)

    def _as_prompts(self, text: Any, num_clips: int | None, owned: Sequence[int] | None, formatted: bool) -> list[str]:
        """Whole prompts: instructions are wrapped with their clips, of which there may be none (`None`)."""
        texts = as_texts(text, "text")
        if not texts:
            raise ValueError("text is an empty list; pass at least one text.")
        if num_clips is None:
            return texts
        placeholders = [text.count(self.audio_token) if formatted or is_formatted(text) else None for text in texts]
        counts = assign_clips(num_clips, owned, placeholders, self.audio_token)
        prompts = []
        for text, found, count in zip(texts, placeholders, counts, strict=True):
            prompts.append(self._wrap(text, count) if found is None else text)
        return prompts

    def _wrap(self, instruction: str, num_clips: int) -> str:
        if self.audio_token in instruction:
            logger.warning_once(
                f"An instruction spells {self.audio_token}, which is read as plain text, with the audio in front of "
                "it. If it is a whole prompt of trusted origin, pass formatted=True."
            )
        # The template decides where audio goes; it escapes the instruction on its way.
        content = [{"type": "audio"}] * num_clips + [{"type": "text", "text": instruction}]
        return self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _load_part(self, clip: Any, own_rate: int | None, reading: dict[str, Any]) -> LoadedClip:
        rate = reading["sampling_rate"] if own_rate is None else own_rate
        return self.feature_extractor.load_clip(clip, **reading | {"sampling_rate": rate})

    def _prepare(
        self,
        text: Any,
        audio: Any,
        clips: Sequence[LoadedClip] | None,
        formatted: bool,
        options: dict[str, Any],
    ) -> BatchFeature:
        """Inputs without targets: of audio, of clips that are loaded, or of text alone."""
        reading = take_options(options, "audio_kwargs", ["audio_frames", *READING_OPTIONS])
        frames = reading.pop("audio_frames")
        if frames is not None and (text is None or audio is not None or clips is not None):
            raise ValueError("audio_frames needs text and takes the place of audio; pass one of the two with text.")
        if audio is not None and clips is not None:
            raise ValueError("Got both audio and loaded_clips; pass one of the two.")
        sources, owned = as_clips(audio)
        if frames is not None:
            lengths, owned = as_row(frames, is_list)
            clips = [LoadedClip(None, length) for length in lengths]
        prompts = None
        if text is not None:
            num_clips = len(sources if clips is None else clips)
            is_text_alone = audio is None and clips is None
            prompts = self._as_prompts(text, None if is_text_alone else num_clips, owned, formatted)
            if self._adds_bos(options):  # the templates render one, too
                prompts = [prompt.removeprefix(self.tokenizer.bos_token) for prompt in prompts]
        if clips is None:  # once all else has been checked, since it may take long
            clips = self.feature_extractor.load_clips(sources, **reading)
        if prompts is None:
            return super().__call__(audio=clips or None, **options)
        # Lengths are all that prompts need: no thread waits for the features of another.
        lengths = [LoadedClip(None, clip.num_frames) for clip in clips]
        with TOKENIZING:
            inputs = super().__call__(text=prompts, audio=lengths or None, **options)
        if clips:
            inputs.update(super().__call__(audio=clips, **options))
        return inputs


__all__ = ["CHATML_CHAT_TEMPLATE", "IGNORED_LABEL", "VICUNA_CHAT_TEMPLATE", "SalmonnProcessor"]
