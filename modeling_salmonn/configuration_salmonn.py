"""Configurations of SALMONN and of its parts."""

from .versions_salmonn import find_mismatch  # isort: skip  # noqa: F401  first: importing it warns
from dataclasses import field
from typing import Any

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, WhisperConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from .audio_segments_salmonn import ENCODER_FRAMES_PER_SECOND, MEL_FRAMES_PER_ENCODER_FRAME, AudioLayout
from .config_checks_salmonn import (
    MAX_LAYERS,
    MAX_QUERIES,
    MAX_TOKEN_ID,
    activation,
    between,
    checked,
    finite,
    layer_names,
    library_config,
    positive,
    require_known_options,
    require_plausible_sizes,
    require_usable_part,
    size,
)


# Where the classes of a saved folder are found by `trust_remote_code`.
AUTO_MAP = {
    "AutoConfig": "configuration_salmonn.SalmonnConfig",
    "AutoModel": "modeling_salmonn.SalmonnForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_salmonn.SalmonnForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_salmonn.SalmonnForConditionalGeneration",
}
CUSTOM_PIPELINES = {
    "audio-text": {
        "impl": "pipeline_salmonn.AudioTextPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}
# `transformers serve` asks this table, by the type and then by the class, whether a model hears; the configuration is
# all of a folder's code that has run by then.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["salmonn"] = "SalmonnForConditionalGeneration"
# Language models whose logits are more than one matrix product: our plain head would be silently wrong.
UNSUPPORTED_HEAD_FIELDS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


@checked
class BeatsConfig(PreTrainedConfig):
    """Configuration of the BEATs audio encoder (arXiv 2212.09058); the defaults are BEATs_iter3+.

    Args:
        hidden_size: width of the Transformer.
        num_hidden_layers: Transformer layers.
        num_attention_heads: heads of a layer; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layers.
        patch_embed_size: channels of the patch convolution, before the projection to `hidden_size`.
        patch_size: side of a square patch, in frames and mel bins.
        num_mel_bins: bins of the fbank.
        conv_bias: whether the patch convolution has a bias.
        conv_pos_kernel: kernel of the convolutional position embedding.
        conv_pos_groups: groups of that convolution.
        num_buckets: buckets of the relative position bias.
        max_distance: distance in patches beyond which all share a bucket.
        gated_relative_position: whether the bias is gated by the query.
        deep_norm: whether residuals are scaled by `(2 * num_hidden_layers) ** 0.25`.
        max_source_positions: frames (50 Hz) of the longest segment, read by serving engines.
        num_labels: classes of the tagging head, 0 for none (`PreTrainedConfig` keeps their names).
    """

    model_type = "beats"
    base_config_key = "audio_config"

    # `size(default)` and its kin are fields that check their values, also when these are set later
    hidden_size: int = size(768)
    num_hidden_layers: int = size(12, MAX_LAYERS)
    num_attention_heads: int = size(12)
    intermediate_size: int = size(3072)
    patch_embed_size: int = size(512)
    patch_size: int = size(16)
    num_mel_bins: int = size(128)
    conv_bias: bool = False
    conv_pos_kernel: int = size(128)
    conv_pos_groups: int = size(16)
    num_buckets: int = size(320)
    max_distance: int = size(800)
    gated_relative_position: bool = True
    deep_norm: bool = True
    hidden_act: str = activation("gelu")
    hidden_dropout: float | int = between(0.0, 0, 1)
    attention_dropout: float | int = between(0.0, 0, 1)
    activation_dropout: float | int = between(0.0, 0, 1)
    layer_norm_eps: float | int = positive(1e-5)
    initializer_range: float | int = positive(0.02)
    max_source_positions: int = size(1500)  # 30 s

    def __post_init__(self, **kwargs: Any) -> None:
        require_known_options(self, kwargs)
        super().__post_init__(**kwargs)
        self.validate_sizes()

    def validate_sizes(self) -> None:
        """Refuse sizes that do not divide one another; also run by the library when it saves."""
        _require_heads(self)
        if self.num_mel_bins % self.patch_size:
            raise ValueError(
                f"BeatsConfig.num_mel_bins {self.num_mel_bins} is not divisible by patch_size {self.patch_size}."
            )
        # a quarter of the buckets are exact, and the logarithm of the rest needs a distance beyond these
        if self.num_buckets < 4 or self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"BeatsConfig.num_buckets {self.num_buckets} must be at least 4, and max_distance {self.max_distance} "
                "more than a quarter of it: that many distances have buckets of their own."
            )


@checked
class SalmonnQFormerConfig(PreTrainedConfig):
    """Configuration of the window-level Q-Former (paper, section 3.1); the defaults are the official ones.

    Args:
        hidden_size: width of the queries.
        num_hidden_layers: layers, each with self attention, cross attention and feed-forward.
        num_attention_heads: heads of both attentions; must divide `hidden_size`.
        intermediate_size: width of the feed-forward layers.
        num_query_tokens: learned queries, and so audio tokens, per window.
        encoder_hidden_size: features of a fused frame; `SalmonnConfig` fills it in from the encoders.
    """

    model_type = "salmonn_qformer"
    base_config_key = "qformer_config"

    hidden_size: int = size(768)
    num_hidden_layers: int = size(2, MAX_LAYERS)
    num_attention_heads: int = size(12)
    intermediate_size: int = size(3072)
    num_query_tokens: int = size(1, MAX_QUERIES)
    encoder_hidden_size: int | None = None
    hidden_act: str = activation("gelu")
    hidden_dropout_prob: float | int = between(0.1, 0, 1)
    attention_probs_dropout_prob: float | int = between(0.1, 0, 1)
    layer_norm_eps: float | int = positive(1e-12)
    initializer_range: float | int = positive(0.02)

    def __post_init__(self, **kwargs: Any) -> None:
        require_known_options(self, kwargs)
        super().__post_init__(**kwargs)
        self.validate_sizes()

    def validate_sizes(self) -> None:
        """Refuse sizes that do not divide one another; also run by the library when it saves."""
        _require_heads(self)


@checked
class SalmonnConfig(PreTrainedConfig):
    """Configuration of SALMONN (arXiv 2310.13289).

    Args:
        speech_config: Whisper, of which only the encoder is used.
        audio_config: BEATs, or `None` for a model with the speech encoder alone. Not given: the default BEATs.
        qformer_config: the window-level Q-Former.
        text_config: any causal language model of transformers whose logits are one matrix product.
        audio_token_id: id of the audio placeholder; it may lie beyond the embedding table.
        window_seconds: length of a Q-Former window (`second_per_window` in the official files).
        stride_seconds: distance between windows (`second_stride` in the official files).
        segment_seconds: length in seconds that every segment is padded to, or increasing lengths of
            which each segment takes the smallest that holds it. Windows are floored to the segment:
            choose multiples of the stride where the last frames matter.
        trim_audio_tokens: keep only the audio tokens whose window touches audio.
        max_encoder_batch: segments that are encoded at once at most, so that memory does not grow with the clips.
        lora_rank, lora_alpha, lora_dropout, lora_target_modules: the LoRA adapter of the language model;
            its training scale is `lora_alpha / lora_rank`.
        speech_model_id, audio_model_id, text_model_id: Hub ids or local paths of the frozen bases
            (for BEATs also the path of an official `.pt` file), needed by adapter-only checkpoints.
        speech_model_revision, audio_model_revision, text_model_revision: revisions of these ids.

    Raises:
        ValueError: for values that cannot work together, naming the value and the remedy.
    """

    model_type = "salmonn"
    # what differs from batch to batch is no prediction
    keys_to_ignore_at_inference = ["past_key_values", "cache", "audio_hidden_states"]
    sub_configs = {
        "speech_config": WhisperConfig,
        "audio_config": BeatsConfig,
        "qformer_config": SalmonnQFormerConfig,
        "text_config": AutoConfig,
    }

    speech_config: Any = None
    audio_config: Any = field(default_factory=dict)
    qformer_config: Any = None
    text_config: Any = None
    audio_token_id: int = between(32000, 0, MAX_TOKEN_ID)  # the first id behind LLaMA's table
    window_seconds: float | int = finite(0.333333)  # 17 frames of 20 ms
    stride_seconds: float | int = finite(0.333333)
    segment_seconds: float | int | list[float | int] | tuple[float | int, ...] = finite(30.0)
    trim_audio_tokens: bool = False
    max_encoder_batch: int = size(8)
    lora_rank: int = size(8)
    lora_alpha: float | int = positive(32)  # with rank 8 a scale of 4 (paper, section 3.1)
    lora_dropout: float | int = between(0.1, 0, 1)
    lora_target_modules: list[str] | tuple[str, ...] = layer_names(("q_proj", "v_proj"))
    speech_model_id: str | None = None
    speech_model_revision: str | None = None
    audio_model_id: str | None = None
    audio_model_revision: str | None = None
    text_model_id: str | None = None
    text_model_revision: str | None = None
    initializer_range: float | int = positive(0.02)

    def __post_init__(self, **kwargs: Any) -> None:
        require_known_options(self, kwargs)
        self.speech_config = self._sub_config("speech_config", WhisperConfig)
        if self.audio_config is not None:
            self.audio_config = self._sub_config("audio_config", BeatsConfig)
        self.qformer_config = self._sub_config("qformer_config", SalmonnQFormerConfig)
        self.text_config = self._text_config()
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        # so that a saved folder tells `trust_remote_code` where its classes are
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.setdefault("custom_pipelines", CUSTOM_PIPELINES)
        super().__post_init__(**kwargs)
        # known only here; 0 and None mean that it is to be filled in
        self.qformer_config.encoder_hidden_size = self.qformer_config.encoder_hidden_size or self._encoder_width()
        self.validate_parts()

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `config.json`, as for every transformers configuration.

        Raises:
            ValueError: if the file holds something else than an object.
            OSError: if it is missing, or no JSON.
        """
        path = pretrained_model_name_or_path
        try:
            values, unused = super().get_config_dict(path, **kwargs)
            if not isinstance(values, dict):
                raise TypeError(f"got a {type(values).__name__}")
        except (TypeError, RecursionError) as error:  # of lists, numbers, `null` and endless nesting
            raise ValueError(
                f"The config.json of {path} holds no object ({error}); save or download it again."
            ) from error
        return values, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration of a dict, as for every transformers configuration; values given beside it win.

        Raises:
            ValueError: for values that cannot work together, those given beside included.
        """
        require_plausible_sizes("SalmonnConfig", kwargs)  # before anything of that size is made
        made = super().from_dict(config_dict, **kwargs)
        config = made[0] if isinstance(made, tuple) else made  # a tuple with `return_unused_kwargs`
        config.validate_parts()
        return made

    def validate_parts(self) -> None:
        """Refuse parts and lengths that do not fit each other; also run by the library when it saves."""
        for name in self.sub_configs:
            if getattr(self, name) is not None:
                require_usable_part(name, vars(getattr(self, name)))
        width = self._encoder_width()
        if self.qformer_config.encoder_hidden_size != width:
            raise ValueError(
                f"qformer_config.encoder_hidden_size is {self.qformer_config.encoder_hidden_size}, "
                f"but the encoders give {width} features; leave it out to have it filled in."
            )
        frames = self.audio_layout.longest_segment // MEL_FRAMES_PER_ENCODER_FRAME
        positions = self.speech_config.max_source_positions
        if frames > positions:
            raise ValueError(
                f"segment_seconds {self.segment_seconds} needs {frames} positions, but the speech encoder has "
                f"{positions} ({positions / ENCODER_FRAMES_PER_SECOND} s); shorten the segments."
            )

    @property
    def audio_layout(self) -> AudioLayout:
        """Segments, windows and tokens in frames."""
        return AudioLayout.from_seconds(
            self.segment_seconds,
            self.window_seconds,
            self.stride_seconds,
            self.qformer_config.num_query_tokens,
            self.trim_audio_tokens,
        )

    @property
    def window_frames(self) -> int:
        """Encoder frames (0.02 s) of a Q-Former window."""
        return self.audio_layout.window_frames

    @property
    def stride_frames(self) -> int:
        """Encoder frames (0.02 s) between the starts of two windows."""
        return self.audio_layout.stride_frames

    @property
    def lora_scaling(self) -> float:
        """Scale of the LoRA update that the adapter is trained with."""
        return self.lora_alpha / self.lora_rank

    def _sub_config(self, name: str, config_class: type[PreTrainedConfig]) -> PreTrainedConfig:
        value = getattr(self, name)
        if value is None:
            return config_class()
        # Compared by name: a folder's own copy of this file defines classes of its own.
        if isinstance(value, dict):
            found = value.get("model_type", config_class.model_type)
        else:
            found = getattr(value, "model_type", type(value).__name__)
        if found != config_class.model_type:
            raise ValueError(f"{name} has model_type '{found}', but SALMONN needs '{config_class.model_type}'.")
        return library_config(name, config_class, value) if isinstance(value, dict) else value

    def _text_config(self) -> PreTrainedConfig:
        value = self.text_config
        if value is None:
            value = CONFIG_MAPPING["llama"]()  # of which Vicuna, the official language model, is one
        elif isinstance(value, dict):
            model_type = value.get("model_type", "llama")
            if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"text_config has the unknown model_type {model_type!r}; name a causal language model."
                )
            value = library_config("text_config", CONFIG_MAPPING[model_type], value)
        elif not isinstance(value, PreTrainedConfig):
            raise ValueError(f"text_config must be a config or a dict, got {type(value).__name__}.")
        if type(value) not in MODEL_FOR_CAUSAL_LM_MAPPING or not hasattr(value, "hidden_size"):
            raise ValueError(
                f"text_config has model_type '{value.model_type}', which is no causal language model of text alone; "
                "name one such as 'llama' or 'qwen3'."
            )
        for name in UNSUPPORTED_HEAD_FIELDS:  # 1 scales nothing
            if getattr(value, name, None) not in (None, 1, 1.0):
                raise ValueError(
                    f"text_config of type '{value.model_type}' sets {name}={getattr(value, name)}; "
                    "language models that transform their logits are not supported."
                )
        return value

    def _encoder_width(self) -> int:
        """Features of a fused frame: those of both encoders side by side."""
        width = self.speech_config.d_model
        return width if self.audio_config is None else width + self.audio_config.hidden_size


def _require_heads(config: Any) -> None:
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"{type(config).__name__}.hidden_size {config.hidden_size} is not divisible by "
            f"num_attention_heads {config.num_attention_heads}."
        )


__all__ = ["BeatsConfig", "SalmonnConfig", "SalmonnQFormerConfig"]
