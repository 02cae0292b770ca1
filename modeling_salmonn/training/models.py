"""The model that a stage starts from: a SALMONN, or bases with a fresh connector between them."""

import torch
from transformers import AutoConfig

from modeling_salmonn.base_weights_salmonn import load_base_weights
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.hub.convert import build_generation_config, build_tokenizer
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.pretrained_salmonn import CONNECTOR_PREFIXES
from modeling_salmonn.processing.feature_extraction_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import (
    CHATML_CHAT_TEMPLATE,
    VICUNA_CHAT_TEMPLATE,
    SalmonnProcessor,
)
from modeling_salmonn.training.arguments import SalmonnTrainingArguments


def config_source(arguments: SalmonnTrainingArguments) -> str:
    """Where the model's configuration comes from.

    Raises:
        ValueError: if neither `model` nor `config` is given.
    """
    source = arguments.config or arguments.model
    if source is None:
        raise ValueError("Give model, a SALMONN to go on from, or config, which names the bases of a new one.")
    return source


def build_processor(arguments: SalmonnTrainingArguments) -> SalmonnProcessor:
    """The processor of the model to train; of a new one: its features, and its language model's tokenizer.

    Raises:
        ValueError: if neither `model` nor `config` is given, or `config` names no language model.
        OSError: if the model is not there.
    """
    if arguments.model is not None:
        return SalmonnProcessor.from_pretrained(arguments.model)
    config = load_config(config_source(arguments))
    if config.text_model_id is None:
        raise ValueError("The configuration names no language model; set text_model_id to a Hub id or a folder.")
    tokenizer = build_tokenizer(config.text_model_id)
    chatml = "<|im_start|>" in tokenizer.get_vocab()
    template = CHATML_CHAT_TEMPLATE if chatml else VICUNA_CHAT_TEMPLATE
    return SalmonnProcessor(build_extractor(config), tokenizer, chat_template=template)


def build_extractor(config: SalmonnConfig) -> SalmonnFeatureExtractor:
    """The extractor with the settings of a configuration."""
    return SalmonnFeatureExtractor(
        feature_size=config.speech_config.num_mel_bins,
        num_fbank_bins=config.audio_config.num_mel_bins if config.audio_config is not None else 0,
        segment_seconds=config.segment_seconds,
        window_seconds=config.window_seconds,
        stride_seconds=config.stride_seconds,
        num_query_tokens=config.qformer_config.num_query_tokens,
        trim_audio_tokens=config.trim_audio_tokens,
    )


def build_model(arguments: SalmonnTrainingArguments, processor: SalmonnProcessor) -> SalmonnForConditionalGeneration:
    """The model to train.

    Args:
        arguments: name the model, or the configuration of a new one.
        processor: the model's; a new model takes the id of its audio placeholder.

    Raises:
        ValueError: if weights are missing or do not fit.
    """
    options = {"dtype": getattr(torch, arguments.dtype)}
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    if arguments.model is not None:
        return SalmonnForConditionalGeneration.from_pretrained(arguments.model, **options)
    config = load_config(str(arguments.config))
    config.audio_token_id = processor.audio_token_id
    weights = load_base_weights(config, options["dtype"])
    model, info = SalmonnForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True, **options
    )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(CONNECTOR_PREFIXES))
    if missing or info["unexpected_keys"]:
        raise ValueError(
            f"The bases do not fit the configuration: missing {missing}, unexpected {sorted(info['unexpected_keys'])}."
        )
    model.generation_config = build_generation_config(config)
    return model


def load_config(path: str) -> SalmonnConfig:
    """The configuration in a file, folder or Hub repository.

    Raises:
        ValueError: if there is none.
    """
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no configuration that can be read ({error}).") from error
    if not isinstance(config, SalmonnConfig):
        raise ValueError(f"{path} configures a {config.model_type}; SALMONN's own config.json is needed.")
    return config


__all__ = ["build_extractor", "build_model", "build_processor", "load_config"]
