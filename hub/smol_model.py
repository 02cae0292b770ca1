"""The architecture of salmonn-smol and its assembly from the bases."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, WhisperConfig

from modeling_salmonn.base_weights_salmonn import load_speech_weights, load_text_weights
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.hub.convert import build_generation_config
from modeling_salmonn.hub.smol_bases import fetch_bases
from modeling_salmonn.modeling_beats import BeatsForAudioClassification, BeatsModel
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.processing_salmonn import CHATML_CHAT_TEMPLATE, SalmonnProcessor
from modeling_salmonn.training.models import build_extractor


WHISPER_ID = "openai/whisper-tiny.en"
SMOLLM2_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Short clips pay for short segments: an encoder pass over 30 s costs twelve times one over 2 s.
AUDIO_SETTINGS = {
    "segment_seconds": [2, 4, 8, 15, 30],
    "window_seconds": 0.12,
    "stride_seconds": 0.12,
    "trim_audio_tokens": True,
}
QFORMER = {
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 1536,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
BEATS = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 768,
    "patch_embed_size": 192,
    "conv_pos_kernel": 64,
    "conv_pos_groups": 16,
}
TAGGER_FIELDS = ("_name_or_path", "architectures", "dtype", "id2label", "label2id")  # not of the encoder
# Short, since each token of the frame costs as much as one of the answer: audio stands bare in the user's turn.
CHAT_TEMPLATE = CHATML_CHAT_TEMPLATE.replace("<Speech><SpeechHere></Speech>", "<SpeechHere>")
LONGEST_ANSWER, LONGEST_REPETITION = 120, 6  # tokens
BEAMS = 4  # as in the research code
LORA = {
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def smol_config(whisper: Path, smollm2: Path) -> SalmonnConfig:
    """Configuration of salmonn-smol on its bases, without the audio encoder, which `add_beats` gives."""
    text = AutoConfig.from_pretrained(smollm2)
    return SalmonnConfig(
        speech_config=WhisperConfig.from_pretrained(whisper).to_dict(),
        audio_config=None,
        qformer_config=dict(QFORMER),
        text_config=text,
        audio_token_id=text.vocab_size,
        speech_model_id=WHISPER_ID,
        text_model_id=SMOLLM2_ID,
        **AUDIO_SETTINGS,
        **LORA,
    )


def smol_generation_config(config: SalmonnConfig) -> GenerationConfig:
    """Answers of limited length; a language model this small falls into loops, which are cut short."""
    generation_config = build_generation_config(config)
    generation_config.update(max_new_tokens=LONGEST_ANSWER, no_repeat_ngram_size=LONGEST_REPETITION, num_beams=BEAMS)
    return generation_config


def smol_processor(config: SalmonnConfig, smollm2: Path) -> SalmonnProcessor:
    """Processor of salmonn-smol; the placeholder is the first id beyond the vocabulary."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    return SalmonnProcessor(build_extractor(config), tokenizer, chat_template=CHAT_TEMPLATE)


def new_smol_model(whisper: Path, smollm2: Path, seed: int = 0) -> SalmonnForConditionalGeneration:
    """salmonn-smol with its bases in place and everything else at random."""
    torch.manual_seed(seed)
    model = SalmonnForConditionalGeneration(smol_config(whisper, smollm2))
    bases = load_speech_weights(str(whisper), torch.float32) | load_text_weights(str(smollm2), torch.float32)
    _, unexpected = model.load_state_dict(bases, strict=False)
    if unexpected:
        raise ValueError(f"The bases have the weights {unexpected}, which the model has not.")
    model.tie_weights()
    return model


def add_beats(model: SalmonnForConditionalGeneration, beats: BeatsModel) -> SalmonnForConditionalGeneration:
    """A speech-only model with an audio encoder besides, which it does not listen to before it is trained on.

    The Q-Former's keys and values get columns of zeros for the new features, so that audio tokens stay what they were.

    Args:
        model: speech-only; it stays as it is.
        beats: a trained encoder.

    Raises:
        ValueError: if the model has an audio encoder already.
    """
    if model.config.audio_config is not None:
        raise ValueError("The model has an audio encoder already; give one that is speech-only.")
    architecture = {name: value for name, value in beats.config.to_diff_dict().items() if name not in TAGGER_FIELDS}
    settings = model.config.to_dict() | {"audio_config": architecture, "audio_model_id": None}
    settings["qformer_config"] |= {"encoder_hidden_size": None}
    widened = SalmonnForConditionalGeneration(SalmonnConfig(**settings))
    if model.has_lora:
        widened.add_lora()
    weights = model.state_dict() | {f"model.audio_encoder.{name}": value for name, value in beats.state_dict().items()}
    for name in weights:
        if name.endswith(("cross_attention.key.weight", "cross_attention.value.weight")):
            weights[name] = nn.functional.pad(weights[name], (0, beats.config.hidden_size))
    missing, _ = widened.load_state_dict(weights, strict=False)
    assert all(name.startswith("model.ln_audio.") for name in missing), missing
    widened.tie_weights()
    widened.generation_config = model.generation_config
    return widened


def write_with_beats(model: Path, beats: Path, folder: Path) -> None:
    """Write a speech-only model with the encoder of a trained tagger besides.

    Args:
        model: folder of the model.
        beats: folder of the tagger.
        folder: folder to write to.
    """
    tagger = BeatsForAudioClassification.from_pretrained(beats)
    widened = add_beats(SalmonnForConditionalGeneration.from_pretrained(model), tagger.beats)
    processor = SalmonnProcessor.from_pretrained(model)
    extractor = build_extractor(widened.config)
    widened.save_pretrained(folder)
    SalmonnProcessor(extractor, processor.tokenizer, chat_template=processor.chat_template).save_pretrained(folder)


def write_new_smol(bases: Path, folder: Path, seed: int = 0) -> None:
    """Write the untrained salmonn-smol that stage 1 starts from; it names the folders of its bases.

    Args:
        bases: folder of `fetch_bases`.
        folder: folder to write to.
        seed: of the connector.
    """
    whisper, smollm2 = (path.absolute() for path in fetch_bases(bases))
    model = new_smol_model(whisper, smollm2, seed=seed)
    model.config.update({"speech_model_id": str(whisper), "text_model_id": str(smollm2)})
    model.generation_config = smol_generation_config(model.config)
    model.save_pretrained(folder)
    smol_processor(model.config, smollm2).save_pretrained(folder)
