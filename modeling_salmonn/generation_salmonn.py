"""Generation with audio: it is encoded once, and what reads token ids never sees a placeholder.

```
prompt ids -+-> ids without placeholders -> logits processors, candidates, stopping criteria
            +-> audio_positions --+
clips --------> audio_embeds -----+-------> forward, until they are in the cache
```
"""

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from transformers import Cache, GenerationMixin
from transformers.generation import BaseStreamer, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from .audio_inputs_salmonn import AUDIO_INPUTS, AudioInputs
from .audio_positions_salmonn import (
    find_positions,
    pad_tokens,
    require_equal_counts,
    require_prompts,
    without_placeholders,
    write_placeholders,
)
from .context_length_salmonn import warn_if_too_long


# Both names are taken everywhere; this is the one that the installed transformers uses (5.24 has renamed it).
CACHE_NAMES = ("past_key_values", "cache")
CACHE_NAME = next(
    name for name in CACHE_NAMES if name in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
AUDIO_STATE = {*AUDIO_INPUTS, "audio_embeds", "audio_positions"}


class SalmonnGenerationMixin(GenerationMixin):
    """`generate` of `SalmonnForConditionalGeneration`."""

    config: Any
    device: Any
    generation_config: Any
    model: Any
    lora_scale: Any

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *, lora_scale: float | None = None, **kwargs: Any) -> Any:
        """Answer prompts; everything that `GenerationMixin.generate` offers, plus the LoRA scale.

        Args:
            inputs: prompts, same as `input_ids`.
            lora_scale: absolute LoRA scaling for this call (see `lora_scale()`), the trained one if not given.
            **kwargs: outputs of the processor and generation options. With `inputs_embeds`, placeholders are found in
                `input_ids`, or without these by their embedding, where they have one.

        Returns:
            Token ids that start with the prompt, or the dict that `return_dict_in_generate` asks for.

        Raises:
            ValueError: if placeholders and audio tokens are not equally many, audio inputs disagree, a prompt has ids
                that the language model has no embeddings for, or there are labels.
            TypeError: for prompts that are no tensors.
        """
        if kwargs.get("labels") is not None:
            raise ValueError(
                "generate got labels: such prompts hold the answers already. Make prompts without text_target, or by "
                "SalmonnCollator.prepare; `salmonn evaluate` scores answers."
            )
        if inputs is not None:
            if kwargs.get("input_ids") is not None:
                raise ValueError("Got prompts as inputs and as input_ids; pass them once.")
            kwargs["input_ids"] = inputs
        for name in CACHE_NAMES:
            if name in kwargs:
                kwargs[CACHE_NAME] = kwargs.pop(name)
        prompt = kwargs.get("input_ids")
        if prompt is not None and kwargs.get("inputs_embeds") is None:
            vocabulary = self.get_input_embeddings().num_embeddings
            # before anything is encoded
            require_prompts(prompt, kwargs.get("attention_mask"), vocabulary, self.config.audio_token_id)
        self._warn_about_length(kwargs)
        with self.lora_scale(lora_scale) if lora_scale is not None else nullcontext():
            kwargs = self._place_audio(kwargs)  # an adapter may sit on the encoders too
            output = super().generate(**kwargs)
        if prompt is not None and kwargs["input_ids"] is not prompt:  # its placeholders were hidden
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            write_placeholders(sequences, prompt, self.config.audio_token_id)
        return output

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Pass the audio until it is in the cache.

        Neither an assistant's first step nor, in transformers 5.16, a chunk of the prompt counts as a first
        iteration; but the one has an empty cache, and the other is not cut out of longer ids.
        """
        cache = past_key_values if cache is None else cache
        decoding = not is_first_iteration and kwargs.get("next_sequence_length") is not None
        if decoding and cache is not None and cache.get_seq_length() > 0:
            kwargs = {name: value for name, value in kwargs.items() if name not in AUDIO_STATE}
        kwargs[CACHE_NAME] = cache
        return super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )

    def _place_audio(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Encode the clips, and tell the model their places in the prompt by positions instead of placeholders."""
        # an assistant model is given the positions, with ids that have no placeholders
        ids, positions = kwargs.get("input_ids"), kwargs.get("audio_positions")
        clips = any(kwargs.get(name) is not None for name in AUDIO_INPUTS)
        audio = clips or any(kwargs.get(name) is not None for name in ("audio_embeds", "inputs_embeds"))
        if ids is not None and positions is None and (audio or not self.model.placeholder_has_embedding):
            positions = self._find_positions(ids, kwargs)
            kwargs = self._hide_placeholders(ids, positions, kwargs) if positions.shape[1] else kwargs
        if not clips:
            if positions is not None and not audio:  # placeholders without audio may be those of earlier turns alone
                uncached = positions >= _cached_length(kwargs)
                require_equal_counts(int(uncached.sum()), 0)
            return kwargs
        if kwargs.get("inputs_embeds") is not None:
            return self._fill_embeddings(ids, kwargs)
        if positions is None:
            raise ValueError("Audio needs the prompt it belongs to; pass input_ids along with input_features.")
        cached = _cached_length(kwargs)
        # a further turn: the clips of the earlier ones need not be encoded again
        if cached and bool((positions < cached).all()):
            return {name: value for name, value in kwargs.items() if name not in AUDIO_STATE}
        if kwargs.get("assistant_model") is not None:  # which has encoders of its own
            return kwargs
        tokens, kwargs = self._encode_audio(kwargs)
        require_equal_counts(int((positions >= 0).sum()), len(tokens))
        return kwargs | {"audio_embeds": pad_tokens(tokens, positions)}

    def _find_positions(self, input_ids: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        mask = kwargs.get("attention_mask")
        # a longer mask says that only the ids behind the cache are given
        start = mask.shape[1] - input_ids.shape[1] if mask is not None and _cached_length(kwargs) else 0
        return find_positions(input_ids, self.config.audio_token_id, max(start, 0))

    def _hide_placeholders(
        self, input_ids: torch.Tensor, positions: torch.Tensor, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Ids for everything that reads them; only a streamer, which shows the prompt, gets the placeholders."""
        config = kwargs.get("generation_config") or self.generation_config
        if kwargs.get("token_healing", getattr(config, "token_healing", None)):
            raise ValueError("token_healing writes prompts anew, without their audio; leave it out.")
        padding = kwargs.get("pad_token_id", config.pad_token_id)
        if padding is None:  # a config of the caller's leaves the rest to the model's
            padding = self.generation_config.pad_token_id
        hidden = without_placeholders(input_ids, kwargs.get("attention_mask"), self.config.audio_token_id, padding)
        kwargs = kwargs | {"input_ids": hidden, "audio_positions": positions}
        if kwargs.get("streamer") is not None:
            kwargs["streamer"] = _PromptStreamer(kwargs["streamer"], input_ids)
        return kwargs

    def _fill_embeddings(self, input_ids: torch.Tensor | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Embeddings reach the model without ids: audio tokens take their places here."""
        tokens, kwargs = self._encode_audio(kwargs)
        embeds = kwargs["inputs_embeds"]
        mask = self.model.get_placeholder_mask(input_ids, embeds, tokens).to(embeds.device)
        return kwargs | {"inputs_embeds": embeds.masked_scatter(mask, tokens.to(embeds.device, embeds.dtype))}

    def _encode_audio(self, kwargs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Audio tokens of all clips, and the arguments without the clips: beams repeat prompts, not clips."""
        audio = AudioInputs(**{name: kwargs.get(name) for name in AUDIO_INPUTS}).given()
        others = {name: value for name, value in kwargs.items() if name not in AUDIO_INPUTS}
        if self.device.type != "meta":  # where weights are offloaded, their hooks move the inputs
            audio = {name: value.to(self.device) for name, value in audio.items()}
        return self.model.get_audio_features(**audio, return_dict=True).pooler_output, others

    def _warn_about_length(self, kwargs: dict[str, Any]) -> None:
        prompt = kwargs.get("input_ids") if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        if prompt is None:
            return
        config = kwargs.get("generation_config") or self.generation_config
        new_tokens = kwargs.get("max_new_tokens") or getattr(config, "max_new_tokens", None)
        if new_tokens is None:  # which goes before the other limit
            length = kwargs.get("max_length") or getattr(config, "max_length", None) or 0
            new_tokens = max(0, length - prompt.shape[1])
        mask = kwargs.get("attention_mask")
        # a longer mask counts what is in the cache too
        tokens = prompt.shape[1] if mask is None else max(prompt.shape[1], mask.shape[-1])
        warn_if_too_long(self.config.get_text_config(), tokens, new_tokens, mask)

    def _get_logits_processor(
        self, generation_config: Any, input_ids_seq_length: int | None = None, *args: Any, **kwargs: Any
    ) -> LogitsProcessorList:
        """The stock processors; the repetition penalty skips the prompt, as in the research code."""
        processors = super()._get_logits_processor(generation_config, input_ids_seq_length, *args, **kwargs)
        for processor in processors:  # as far as the caller or the model's settings ask for one
            if isinstance(processor, RepetitionPenaltyLogitsProcessor):
                processor.prompt_ignore_length = input_ids_seq_length
        return processors


class _PromptStreamer(BaseStreamer):
    """Passes everything on, the prompt with its placeholders."""

    def __init__(self, streamer: BaseStreamer, prompt: torch.Tensor):
        self.streamer = streamer
        self.prompt: torch.Tensor | None = prompt.cpu()

    def put(self, value: torch.Tensor) -> None:
        """Hand on the prompt, which comes first, then each token."""
        self.streamer.put(value if self.prompt is None else self.prompt)
        self.prompt = None

    def end(self) -> None:
        """Hand on the end."""
        self.streamer.end()


def _cached_length(kwargs: dict[str, Any]) -> int:
    cache = kwargs.get(CACHE_NAME)
    return 0 if cache is None else int(cache.get_seq_length())
