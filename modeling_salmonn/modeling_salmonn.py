"""SALMONN (arXiv 2310.13289): a language model that hears speech, sounds and music.

```
log-mel -> Whisper encoder -> LayerNorm -+
                                         +-> windows -> Q-Former -> Linear -> audio tokens -> LLM (LoRA)
fbank   -> BEATs           -> LayerNorm -+
```

- a batch equals its members alone: padding never reaches a window, every segment has its own length
- audio is encoded once per `generate()` call, whatever the number of beams
- the LoRA adapter is a PEFT adapter of the language model; its scale can be changed at test time
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .audio_inputs_salmonn import AudioInputs, join_unused_weights, refuse_other_media, require_known_options
from .audio_positions_salmonn import (
    find_positions,
    last_tokens,
    require_equal_counts,
    require_no_placeholders,
    select_positions,
    text_targets,
)
from .audio_segments_salmonn import SegmentGroup, in_clip_order, place_segments, stack_attentions
from .configuration_salmonn import SalmonnConfig
from .context_length_salmonn import warn_if_too_long
from .generation_salmonn import CACHE_NAME, SalmonnGenerationMixin
from .lora_layers_salmonn import trainable_base_weights
from .modeling_beats import BeatsModel
from .pipeline_salmonn import AudioTextPipeline  # noqa: F401  saved with the model, so that the folder can run it
from .pretrained_salmonn import SalmonnPreTrainedModel
from .qformer_salmonn import SalmonnQFormerModel
from .weight_names_salmonn import forget_bases


@dataclass
class SalmonnAudioOutput(BaseModelOutputWithPooling):
    """What the encoders and the Q-Former made of a batch of clips.

    Args:
        last_hidden_state: frames of the audio encoder (of the speech encoder in a speech-only model), zero where
            there is no audio, `(clips, frames, hidden)`.
        pooler_output: audio tokens of all clips one after the other, `(audio_tokens, text_hidden)`.
        token_counts: audio tokens of each clip, `(clips,)`.
    """

    token_counts: torch.Tensor | None = None


@dataclass
class SalmonnModelOutputWithPast(BaseModelOutputWithPast):
    """Output of `SalmonnModel`; `audio_hidden_states` are the audio tokens `(audio_tokens, text_hidden)`."""

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class SalmonnCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output of `SalmonnForConditionalGeneration`; `audio_hidden_states` are the audio tokens."""

    audio_hidden_states: torch.Tensor | None = None


class SalmonnSpeechEncoder(WhisperEncoder):
    """Whisper's encoder that also takes segments shorter than 30 s, with the position table cut to them.

    LayerDrop is not applied: no released Whisper has it.
    """

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, input_features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode log-mel features.

        Args:
            input_features (`torch.Tensor` of shape `(segments, mel, frames)`): 10 ms a frame, an even number of them.

        Returns:
            Output with `last_hidden_state` of shape `(segments, frames / 2, hidden)`.
        """
        # (segments, mel, frames) -> (segments, hidden, frames) -> (segments, frames / 2, hidden)
        hidden_states = nn.functional.gelu(self.conv1(input_features))
        hidden_states = nn.functional.gelu(self.conv2(hidden_states)).transpose(1, 2)
        # The module is called, not its weight read: where it is offloaded, the call loads it.
        positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        hidden_states = hidden_states + self.embed_positions(positions)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        for layer in self.layers:
            hidden_states = layer(hidden_states, None, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=self.layer_norm(hidden_states))


class SalmonnModel(SalmonnPreTrainedModel):
    """The encoders, the Q-Former and the language model without its head."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]  # of a folder of the whole

    def __init__(self, config: SalmonnConfig):
        super().__init__(config)
        speech_config, audio_config = config.speech_config, config.audio_config
        self.speech_encoder = SalmonnSpeechEncoder(speech_config)
        self.ln_speech = nn.LayerNorm(speech_config.d_model)
        self.audio_encoder = None
        if audio_config is not None:
            if "flash" in (audio_config._attn_implementation or ""):
                audio_config._attn_implementation = "sdpa"  # its gated bias is a mask, which flash cannot take
            self.audio_encoder = BeatsModel(audio_config)
            self.ln_audio = nn.LayerNorm(audio_config.hidden_size)
        self.qformer = SalmonnQFormerModel(config.qformer_config)
        self.projector = nn.Linear(config.qformer_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.audio_layout = config.audio_layout
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_input_features: torch.Tensor | None = None,
        audio_input_features_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SalmonnAudioOutput:
        """Turn clips into audio tokens (paper, section 3.1).

        Args:
            input_features (`torch.Tensor` of shape `(clips, mel, frames)`): Whisper log-mel of each clip's padded
                segments one after the other, 10 ms a frame.
            input_features_mask (`torch.Tensor` of shape `(clips, frames)`, *optional*): 1 for as many frames as the
                clip has audio; all of them if not given.
            audio_input_features (`torch.Tensor` of shape `(clips, frames, mel)`): BEATs fbank on the same time axis.
                Not used by a speech-only model.
            audio_input_features_mask (`torch.Tensor` of shape `(clips, frames)`, *optional*): 1 for the fbank frames
                of each segment.
            encoder_hidden_states (`torch.Tensor` of shape `(clips, encoder_frames, speech + audio)`, *optional*): what
                `get_encoder_states` returned, instead of the features; frames that no window reads may be cut off.
            **kwargs: passed to the encoders (`output_hidden_states`, `output_attentions`).

        Returns:
            `SalmonnAudioOutput` with `pooler_output` of shape `(audio_tokens, text_hidden)`, clip after clip.

        Raises:
            ValueError: if the model has an audio encoder and `audio_input_features` is not given, the features are
                shorter than the mask says, or the inputs disagree in clips or frames.
            TypeError: for unknown arguments.
        """
        require_known_options(kwargs)
        audio = AudioInputs(
            input_features,
            input_features_mask,
            audio_input_features,
            audio_input_features_mask,
            encoder_hidden_states,
        )
        lengths, groups = self._plan_segments(audio)
        tokens: list[torch.Tensor] = []  # of each segment, (windows, queries, text_hidden)
        encoded: list[Any] = []
        for group in groups:
            if audio.encoder_hidden_states is None:
                states, output = self._encode_segments(group, audio, **kwargs)
                encoded.append(output)
            else:
                states = group.cut_states(audio.encoder_hidden_states)
            windows = self._select_windows(self._normalise(states), group)
            group_tokens = self.projector(self.qformer(windows).last_hidden_state)
            tokens += group_tokens.split([self.audio_layout.num_windows(segment) for segment in group.segments])

        num_tokens = [self.audio_layout.num_audio_tokens(length) for length in lengths]
        pooled = torch.cat(in_clip_order(groups, tokens)).flatten(0, 1)  # the queries of a window stay together
        return SalmonnAudioOutput(
            pooler_output=pooled,
            token_counts=torch.tensor(num_tokens, device=pooled.device),
            **self._gather_encoder_outputs(len(lengths), groups, encoded),
        )

    @torch.no_grad()
    def get_encoder_states(
        self,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_input_features: torch.Tensor | None = None,
        audio_input_features_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """What the encoders make of clips, before any trained weight; side by side: `encoder_hidden_states`.

        Args:
            input_features, input_features_mask, audio_input_features, audio_input_features_mask: see
                `get_audio_features`. An encoder whose features are not given does not run.

        Returns:
            `(clips, encoder_frames, width)` of the speech encoder, then of the audio encoder, 20 ms a frame, zero
            where there is no audio.

        Raises:
            ValueError: if there are no features at all.
        """
        audio = AudioInputs(input_features, input_features_mask, audio_input_features, audio_input_features_mask)
        if audio.input_features is None and audio.audio_input_features is None:
            raise ValueError("Audio needs input_features or audio_input_features.")
        lengths, groups = self._plan_features(audio)
        streams: list[list[torch.Tensor]] = []
        if audio.input_features is not None:
            outputs = [self._encode_speech(group, audio.input_features) for group in groups]
            streams.append([output.last_hidden_state for output in outputs])
        if audio.audio_input_features is not None:
            streams.append([self._encode_audio(group, audio).last_hidden_state for group in groups])
        return tuple(place_segments(len(lengths), groups, states) for states in streams)

    def _plan_segments(self, audio: AudioInputs) -> tuple[list[int], list[SegmentGroup]]:
        """Mel frames of each clip, and the segments of all clips in the groups that are encoded together."""
        if audio.encoder_hidden_states is not None:
            self._check_encoder_states(audio.encoder_hidden_states)
            if audio.input_features_mask is None:
                raise ValueError(
                    "encoder_hidden_states needs input_features_mask with one row per clip, for their lengths."
                )
            lengths = audio.input_features_mask.long().sum(-1).tolist()
            return lengths, self.audio_layout.plan(lengths, self.config.max_encoder_batch)
        if audio.input_features is None:
            raise ValueError("Audio needs input_features or encoder_hidden_states.")
        if self.audio_encoder is not None and audio.audio_input_features is None:
            raise ValueError(
                "audio_input_features is missing: this model has an audio encoder; use its own processor."
            )
        return self._plan_features(audio)

    def _plan_features(self, audio: AudioInputs) -> tuple[list[int], list[SegmentGroup]]:
        """The same from features, of either encoder."""
        speech, sounds, mask = audio.input_features, audio.audio_input_features, audio.input_features_mask
        mel_bins = {"input_features": self.config.speech_config.num_mel_bins}
        if self.audio_encoder is not None:
            mel_bins["audio_input_features"] = self.config.audio_config.num_mel_bins
        audio.check_mel_bins(mel_bins)
        if speech is not None:
            clips, frames = speech.shape[0], speech.shape[-1]
        else:
            assert sounds is not None  # checked by the caller
            clips, frames = sounds.shape[:2]
        lengths = [frames] * clips if mask is None else mask.long().sum(-1).tolist()
        for clip, length in enumerate(lengths):
            needed = self.audio_layout.padded_length(length)
            if needed > frames:
                raise ValueError(
                    f"Clip {clip} has {length} frames of audio, which need {needed} padded frames, but the features "
                    f"have {frames}; pad each segment to one of {self.audio_layout.segment_frames} frames, as the "
                    "extractor does."
                )
        audio.check_frames()
        return lengths, self.audio_layout.plan(lengths, self.config.max_encoder_batch)

    def _check_encoder_states(self, states: torch.Tensor) -> None:
        width = self.config.qformer_config.encoder_hidden_size
        if states.shape[-1] != width:
            raise ValueError(
                f"encoder_hidden_states has the shape {tuple(states.shape)}, but (clips, frames, {width}) is needed; "
                "take it from get_encoder_states of a model with the same encoders."
            )

    def _encode_segments(self, group: SegmentGroup, audio: AudioInputs, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        """States `(segments, frames, speech + audio)` of a group, and the main encoder's output."""
        assert audio.input_features is not None  # checked by _plan_segments
        if self.audio_encoder is None:
            speech = self._encode_speech(group, audio.input_features, **kwargs)
            return speech.last_hidden_state, speech
        speech = self._encode_speech(group, audio.input_features)
        sounds = self._encode_audio(group, audio, **kwargs)
        device = speech.last_hidden_state.device
        return torch.cat([speech.last_hidden_state, sounds.last_hidden_state.to(device)], dim=-1), sounds

    def _encode_speech(self, group: SegmentGroup, features: torch.Tensor, **kwargs: Any) -> Any:
        # (segments, mel, frames)
        mel = group.cut_features(features, axis=1).to(self.speech_encoder.conv1.weight.dtype)
        return self.speech_encoder(mel, **kwargs)

    def _encode_audio(self, group: SegmentGroup, audio: AudioInputs, **kwargs: Any) -> Any:
        """BEATs' output, with states on the frames of the speech encoder, zero where there is no audio."""
        assert self.audio_encoder is not None
        assert audio.audio_input_features is not None
        fbank, mask = group.cut_features(audio.audio_input_features), audio.audio_input_features_mask
        if mask is not None:  # padding has no part in the states of the audio, so the longest clip sets the pace
            mask = group.cut_features(mask)
            frames = max(int(mask.long().sum(-1).max()), self.audio_encoder.config.patch_size)
            fbank, mask = fbank[:, :frames], mask[:, :frames]
        output = self.audio_encoder(fbank, mask, **kwargs)
        states = output.last_hidden_state
        if mask is not None:  # a clip alone has zeros, not encoded padding, where its audio ends
            states = states * self.audio_encoder.patch_mask(mask).unsqueeze(-1)
        # BEATs has 8 patches for 16 mel frames, so as many as Whisper has frames, but whole ones alone;
        # negative padding cuts states that are longer
        output.last_hidden_state = nn.functional.pad(states, (0, 0, 0, group.encoder_frames - states.shape[1]))
        return output

    def _normalise(self, states: torch.Tensor) -> torch.Tensor:
        """LayerNorm of each encoder's states; frames without audio, which are all zero, stay so."""
        norms = [self.ln_speech] if self.audio_encoder is None else [self.ln_speech, self.ln_audio]
        # not of the weights, which are empty where they are offloaded in parts or sharded
        widths = [norm.normalized_shape[0] for norm in norms]
        streams = states.to(self.ln_speech.weight.dtype).split(widths, dim=-1)
        normed = []
        for norm, part in zip(norms, streams, strict=True):
            normed.append(norm(part) * part.any(-1, keepdim=True))  # LayerNorm would make its bias of zeros
        return torch.cat(normed, dim=-1)  # (segments, frames, speech + audio)

    def _select_windows(self, fused: torch.Tensor, group: SegmentGroup) -> torch.Tensor:
        """Windows `(windows, window_frames, features)` of the segments, those that `trim_audio_tokens` keeps."""
        layout = self.audio_layout
        # (segments, windows, window_frames, features): a view
        views = fused.unfold(1, layout.window_frames, layout.stride_frames).transpose(2, 3)
        counts = [layout.num_windows(segment) for segment in group.segments]
        if min(counts) == views.shape[1]:
            return views.flatten(0, 1)
        keep = torch.arange(views.shape[1]) < torch.tensor(counts)[:, None]
        return views[keep.to(views.device)]

    @staticmethod
    def _gather_encoder_outputs(clips: int, groups: list[SegmentGroup], encoded: list[Any]) -> dict[str, Any]:
        """Put the segments' encoder states back in place, `(clips, frames, hidden)`."""
        if not encoded:
            return {}
        last = [output.last_hidden_state for output in encoded]
        gathered: dict[str, Any] = {"last_hidden_state": place_segments(clips, groups, last)}
        if encoded[0].hidden_states is not None:
            layers = zip(*(output.hidden_states for output in encoded), strict=True)  # of each group, layer by layer
            gathered["hidden_states"] = tuple(place_segments(clips, groups, layer) for layer in layers)
        if encoded[0].attentions is not None:
            layers = zip(*(output.attentions for output in encoded), strict=True)
            gathered["attentions"] = tuple(stack_attentions(groups, layer) for layer in layers)
        return gathered

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, audio_features: torch.Tensor | None
    ) -> torch.Tensor:
        """Where audio tokens go, as a mask of the shape of `inputs_embeds`.

        Raises:
            ValueError: if the placeholders in the prompt are not as many as the audio tokens.
        """
        if input_ids is None:
            if not self.placeholder_has_embedding:
                raise ValueError("The audio placeholder has no embedding to find in inputs_embeds; pass input_ids.")
            # as every model of transformers finds placeholders in embeddings: by equality
            audio_id = torch.tensor(self.config.audio_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(audio_id)).all(-1)
        else:
            mask = input_ids == self.config.audio_token_id
        require_equal_counts(int(mask.sum()), 0 if audio_features is None else audio_features.shape[0])
        return mask.unsqueeze(-1).expand_as(inputs_embeds)

    @property
    def placeholder_has_embedding(self) -> bool:
        """Whether the placeholder lies within the embedding table; in converted models it lies beyond."""
        return self.config.audio_token_id < self.config.get_text_config().vocab_size

    def embed_prompt(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of the text; placeholders beyond the table get those of id 0 until audio takes their place."""
        if not self.placeholder_has_embedding:
            input_ids = input_ids.masked_fill(input_ids == self.config.audio_token_id, 0)
        return self.get_input_embeddings()(input_ids)

    def _place_audio(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        start: int | torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings with audio tokens in their places, and the tokens that had a place behind `start`."""
        if positions is None:
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, tokens).to(inputs_embeds.device)
        else:
            require_equal_counts(int((positions >= 0).sum()), len(tokens))
            inside, columns = select_positions(positions.to(inputs_embeds.device), start, inputs_embeds.shape[1])
            tokens = tokens[inside.to(tokens.device)]
            mask = columns.unsqueeze(-1).expand_as(inputs_embeds)
        tokens = tokens.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(mask, tokens), tokens

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_input_features: torch.Tensor | None = None,
        audio_input_features_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        audio_positions: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SalmonnModelOutputWithPast:
        """Run the language model on text and audio; see `SalmonnForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if input_ids is not None:
            inputs_embeds = self.embed_prompt(input_ids)
        assert inputs_embeds is not None
        refuse_other_media(kwargs)
        if inputs_embeds.shape[1] > 1 and not torch.compiler.is_compiling():
            warn_if_too_long(self.config.get_text_config(), inputs_embeds.shape[1], attention_mask=attention_mask)
        cache = past_key_values if cache is None else cache
        clips = (
            input_features,
            input_features_mask,
            audio_input_features,
            audio_input_features_mask,
            encoder_hidden_states,
        )
        audio_tokens, positions = None, audio_positions
        if audio_embeds is not None:  # `generate` has encoded the clips
            if positions is None:
                positions = find_positions(input_ids, self.config.audio_token_id, _cached_length(cache))
            audio_tokens = last_tokens(audio_embeds, positions)
        elif any(value is not None for value in clips):
            audio_tokens = self.get_audio_features(*clips, return_dict=True).pooler_output
        if audio_tokens is not None:
            start = _cached_length(cache)
            inputs_embeds, audio_tokens = self._place_audio(input_ids, inputs_embeds, audio_tokens, positions, start)
        # not in single steps, which are generated tokens; a placeholder with an embedding may be a word of the text
        elif input_ids is not None and input_ids.shape[1] > 1 and not self.placeholder_has_embedding:
            require_no_placeholders(input_ids, self.config.audio_token_id)
        if audio_tokens is None and self.training:
            parts = [part for name, part in self.named_children() if name != "language_model"]
            inputs_embeds = join_unused_weights(inputs_embeds, parts)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE_NAME: cache},
            **kwargs,
        )
        return SalmonnModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=audio_tokens,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


class SalmonnForConditionalGeneration(SalmonnPreTrainedModel, SalmonnGenerationMixin):
    """SALMONN with its language-model head: answers instructions about audio."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: SalmonnConfig):
        super().__init__(config)
        self.model = SalmonnModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def train(self, mode: bool = True) -> Any:
        """Set the mode, as of every module; in training the config no longer names bases of which weights are trained.

        Of a model that is trained as a whole nothing else tells: torch requires all gradients from the beginning.
        """
        if mode:
            forget_bases(self.config, trainable_base_weights(self))
        return super().train(mode)

    def get_audio_features(
        self, input_features: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> SalmonnAudioOutput:
        """See `SalmonnModel.get_audio_features`."""
        return self.model.get_audio_features(input_features, *args, **kwargs)

    def get_encoder_states(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """See `SalmonnModel.get_encoder_states`."""
        return self.model.get_encoder_states(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        audio_input_features: torch.Tensor | None = None,
        audio_input_features_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        audio_positions: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SalmonnCausalLMOutputWithPast:
        """Predict the next token after each position.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): prompt with one placeholder per audio token.
            input_features, input_features_mask, audio_input_features, audio_input_features_mask,
                encoder_hidden_states: the clips of all prompts in order, one row each; see
                `SalmonnModel.get_audio_features`.
            attention_mask (`torch.Tensor` of shape `(batch, length)`): 0 for padding, on either side.
            inputs_embeds (`torch.Tensor` of shape `(batch, length, text_hidden)`): instead of `input_ids`.
            audio_embeds (`torch.Tensor` of shape `(batch, tokens, text_hidden)`): audio tokens of each prompt,
                padded on the left, instead of the features; `generate` passes them.
            audio_positions (`torch.LongTensor` of shape `(batch, tokens)`): column of each audio token, counted from
                the start of the cache, -1 where `audio_embeds` is padding; `generate` passes them along with ids
                that have no placeholders. Found in `input_ids` if not given; needed beside `inputs_embeds`.
            past_key_values, cache: the cache, under its name before and since transformers 5.24.
            labels (`torch.LongTensor` of shape `(batch, length)`): targets, -100 where there is none; shifted inside.
                Placeholders count as none; `Trainer` counts them in the loss it takes, so make them -100 for it.
            logits_to_keep: only compute the logits of this many last positions (0: all), of these positions, or of
                those where a boolean `(batch, length)` is true; the logits are then `(positions, vocabulary)`.

        Returns:
            `SalmonnCausalLMOutputWithPast` with `loss` (if labels are given) and `logits` of shape
            `(batch, length, vocabulary)`.

        Raises:
            ValueError: if placeholders and audio tokens are not equally many, or the places of `audio_embeds` are not
                known.
            TypeError: for sound or pictures under other names.
        """
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            audio_input_features=audio_input_features,
            audio_input_features_mask=audio_input_features_mask,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            audio_embeds=audio_embeds,
            audio_positions=audio_positions,
            cache=past_key_values if cache is None else cache,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(_kept_positions(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            is_counted = kwargs.get("num_items_in_batch") is not None
            targets = text_targets(labels, self.config.audio_token_id, is_counted)
            loss = self.loss_function(logits=logits, labels=targets, vocab_size=vocab_size, **kwargs)
        return SalmonnCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


def _cached_length(cache: Cache | None) -> int | torch.Tensor:
    return 0 if cache is None else cache.get_seq_length()


def _kept_positions(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]
    return hidden_states[logits_to_keep] if logits_to_keep.ndim == 2 else hidden_states[:, logits_to_keep]


__all__ = ["SalmonnForConditionalGeneration", "SalmonnModel"]
