"""Puts a SALMONN together: its configuration, its processor, and the weights of its parts."""

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import AddedToken, decoders, normalizers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import (
    CHATML_CHAT_TEMPLATE,
    VICUNA_CHAT_TEMPLATE,
    SalmonnProcessor,
)
from modeling_salmonn.weight_names_salmonn import CONNECTOR_PREFIXES


MAX_NEW_TOKENS = 200  # as in the research code


def load_config(path: str) -> SalmonnConfig:
    """The configuration in a file, folder or Hub repository; a `ValueError` if it is that of another model."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no configuration that can be read ({error}).") from error
    if not isinstance(config, SalmonnConfig):
        raise ValueError(f"{path} configures a {config.model_type}; SALMONN's own config.json is needed.")
    return config


def build_extractor(config: SalmonnConfig, channel: int | None = None) -> SalmonnFeatureExtractor:
    """The feature extractor that cuts and counts audio as a model of this configuration does.

    Of files with several channels it takes `channel`, or their mean.
    """
    return SalmonnFeatureExtractor(
        feature_size=config.speech_config.num_mel_bins,
        num_fbank_bins=config.audio_config.num_mel_bins if config.audio_config is not None else 0,
        segment_seconds=config.segment_seconds,
        window_seconds=config.window_seconds,
        stride_seconds=config.stride_seconds,
        num_query_tokens=config.qformer_config.num_query_tokens,
        trim_audio_tokens=config.trim_audio_tokens,
        channel=channel,
    )


def build_tokenizer(language_model: str) -> Any:
    """The tokenizer of a language model, with the segmentation that the research code gets."""
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    if "Llama" not in type(tokenizer).__name__:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    # The slow LLaMA tokenizer of that code starts every stretch of text between special tokens with a space.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    special = [tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    # The byte decoder gives up on a whole run of bytes if one is invalid; the ASCII ones are letters all the same.
    ascii_bytes = [decoders.Replace(f"<0x{byte:02X}>", chr(byte)) for byte in range(128)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), *ascii_bytes, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # The LLaMA class would build its own normaliser again when it is loaded.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.unk_token,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
    )


def build_processor(config: SalmonnConfig, language_model: str, channel: int | None = None) -> SalmonnProcessor:
    """The processor of a new model, with the chat template that its language model knows.

    The configuration gets the id of the audio placeholder; `channel` is as of `build_extractor`.
    """
    tokenizer = build_tokenizer(language_model)
    template = CHATML_CHAT_TEMPLATE if "<|im_start|>" in tokenizer.get_vocab() else VICUNA_CHAT_TEMPLATE
    processor = SalmonnProcessor(build_extractor(config, channel), tokenizer, chat_template=template)
    config.audio_token_id = processor.audio_token_id
    return processor


def build_generation_config(config: SalmonnConfig, **options: Any) -> GenerationConfig:
    """The research code's limits; greedy, its four beams are one option away (`num_beams=4`)."""
    text = config.text_config
    settings = {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.eos_token_id if text.pad_token_id is None else text.pad_token_id,  # padding is masked
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    return GenerationConfig(**(settings | options))


def assemble_model(
    config: SalmonnConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, **options: Any
) -> SalmonnForConditionalGeneration:
    """A model of given weights; a connector that they lack is made afresh.

    Args:
        config, dtype: of the model.
        weights: of the bases and, unless it is to be new, of the connector; without LoRA.
        **options: as for `from_pretrained`.

    Raises:
        ValueError: if weights are missing or unexpected, or have other shapes than the configuration says.
    """
    model, report = SalmonnForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, **options
    )
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if not any(name.startswith(CONNECTOR_PREFIXES) for name in weights):
        missing = [name for name in missing if not name.startswith(CONNECTOR_PREFIXES)]
    if missing or unexpected:
        raise ValueError(f"The weights do not fit the configuration: missing {missing}, unexpected {unexpected}.")
    model.generation_config = build_generation_config(config)
    return model
