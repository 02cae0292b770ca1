"""Random models of real sizes, and clips for them."""

import argparse

import numpy as np
import torch
from transformers import AutoModel

from modeling_salmonn import SalmonnConfig, SalmonnFeatureExtractor, SalmonnForConditionalGeneration


SAMPLING_RATE = 16000
PROMPT_TOKENS = 32  # instruction and template around the audio tokens
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SPEECH_FIELDS = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")
SPEECH = {
    "smallest": (16, 2, 2, 32), "tiny": (384, 4, 6, 1536), "base": (512, 6, 8, 2048), "small": (768, 12, 12, 3072),
    "large-v2": (1280, 32, 20, 5120),
}  # fmt: skip
AUDIO = {
    "smallest": {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32,
        "patch_embed_size": 16, "conv_pos_kernel": 16, "conv_pos_groups": 4,
    },
    "base": {},
    "none": None,
}  # fmt: skip
TEXT_FIELDS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "vocab_size", "tie_word_embeddings",
)  # fmt: skip
TEXT = {
    "smallest": ("llama", 32, 2, 4, 2, 48, 1000, True),
    "smollm2-135m": ("llama", 576, 30, 9, 3, 1536, 49152, True),
    "qwen2-0.5b": ("qwen2", 896, 24, 14, 2, 4864, 151936, True),
    "llama-7b-like": ("llama", 4096, 32, 32, 32, 11008, 32000, False),
    "llama-13b-like": ("llama", 5120, 40, 40, 40, 13824, 32000, False),
}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The options that `build_model` reads."""
    parser.add_argument("--speech", choices=SPEECH, default="tiny")
    parser.add_argument("--audio", choices=AUDIO, default="base")
    parser.add_argument("--text", choices=TEXT, default="smollm2-135m")
    parser.add_argument("--text-layers", type=int, help="of the language model, instead of its own number")
    parser.add_argument("--segment-seconds", type=int, nargs="+", default=[30], help="what segments are padded to")


def build_config(args: argparse.Namespace) -> SalmonnConfig:
    """The configuration of a model of these sizes."""
    text = dict(zip(TEXT_FIELDS, TEXT[args.text], strict=True))
    if args.text_layers is not None:
        text["num_hidden_layers"] = args.text_layers
    return SalmonnConfig(
        speech_config=dict(zip(SPEECH_FIELDS, SPEECH[args.speech], strict=True)),
        audio_config=AUDIO[args.audio],
        text_config=text | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        audio_token_id=text["vocab_size"],  # beyond the table, as in converted models
        segment_seconds=args.segment_seconds,
        lora_dropout=0.0,  # so that losses can be compared
    )


def build_model(args: argparse.Namespace) -> SalmonnForConditionalGeneration:
    """A model with random weights, the same for the same options."""
    torch.manual_seed(0)
    with torch.device(args.device):  # 7B take minutes on a CPU
        model = AutoModel.from_config(build_config(args), dtype=DTYPES[args.dtype])
    return model.to(args.device).eval()


def build_extractor(config: SalmonnConfig) -> SalmonnFeatureExtractor:
    """The feature extractor of a model."""
    bins = 0 if config.audio_config is None else config.audio_config.num_mel_bins
    return SalmonnFeatureExtractor(num_fbank_bins=bins, segment_seconds=config.segment_seconds)


def make_clips(lengths: list[float]) -> list[np.ndarray]:
    """Noise of these lengths in seconds, `(samples,)` each, at 16 kHz."""
    generator = np.random.default_rng(0)
    return [generator.uniform(-0.5, 0.5, round(seconds * SAMPLING_RATE)).astype(np.float32) for seconds in lengths]


def make_prompt(model: SalmonnForConditionalGeneration, extractor: SalmonnFeatureExtractor, samples: int) -> list[int]:
    """Ids of a prompt around the audio tokens of a clip with so many samples."""
    generator = np.random.default_rng(1)
    words = generator.integers(3, model.config.text_config.vocab_size, PROMPT_TOKENS).tolist()
    return words[:4] + [model.config.audio_token_id] * extractor.num_audio_tokens(samples) + words[4:]
