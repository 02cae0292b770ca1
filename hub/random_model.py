"""A small SALMONN with random weights: shows that an installation works, and how a model is put together.

`python -m modeling_salmonn.hub.random_model FOLDER` writes the model and a clip of one second. Its answers are noise.
"""

import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.feature_extraction_salmonn import SAMPLING_RATE, SalmonnFeatureExtractor
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
CLIP_NAME = "tone.wav"


def byte_tokenizer(chatml: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that needs no training: one token per byte, so that every text can be written.

    Args:
        chatml: end turns with `<|im_end|>` and add no BOS, as chat models do; otherwise as LLaMA does.
    """
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "eos_token": "<|im_end|>" if chatml else "</s>", "pad_token": "<unk>"}
    if not chatml:
        names["bos_token"] = "<s>"
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=["<|im_start|>", "<|im_end|>"], **names
    )


def random_config() -> SalmonnConfig:
    """All parts, small: short segments and only the tokens that touch audio."""
    return SalmonnConfig(
        speech_config={"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 128},
        audio_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
            "patch_embed_size": 32,
            "conv_pos_kernel": 32,
        },
        qformer_config={"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128},
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": len(SPECIAL_TOKENS) + 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        audio_token_id=len(SPECIAL_TOKENS) + 256,
        segment_seconds=[2, 5, 10, 30],
        trim_audio_tokens=True,
    )


def write_random_model(folder: Path) -> None:
    """Write a complete Hub folder and a clip to ask about."""
    config = random_config()
    torch.manual_seed(0)
    model = SalmonnForConditionalGeneration(config)
    model.add_lora()
    extractor = SalmonnFeatureExtractor(
        segment_seconds=config.segment_seconds, trim_audio_tokens=config.trim_audio_tokens
    )
    model.save_pretrained(folder)
    SalmonnProcessor(extractor, byte_tokenizer()).save_pretrained(folder)
    time = np.arange(SAMPLING_RATE) / SAMPLING_RATE
    soundfile.write(folder / CLIP_NAME, 0.3 * np.sin(2 * np.pi * 440 * time), SAMPLING_RATE)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m modeling_salmonn.hub.random_model FOLDER")
    write_random_model(Path(sys.argv[1]))
