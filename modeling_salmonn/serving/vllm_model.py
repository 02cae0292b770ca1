"""SALMONN for vLLM: its generic backend for transformers models, with what that one lacks.

- `/v1/audio/transcriptions`
- clips of other rates are resampled as by the processor, without torchaudio
- the audio tokens that a clip may take, so that long clips are neither refused nor wait for ever
- prompts are taken as they were rendered, without `--mm-processor-kwargs`
- a wrong number of audio tokens is an error; the generic backend pads or cuts them and warns once
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from transformers import AutoModel
from vllm.config import ModelConfig, SpeechToTextConfig
from vllm.config.speech_to_text import SpeechToTextParams
from vllm.model_executor.models.interfaces import SupportsTranscription
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.audio import AudioResampler
from vllm.multimodal.parse import MultiModalDataParser
from vllm.transformers_utils.processor import cached_processor_from_config

from modeling_salmonn.audio_segments_salmonn import MEL_FRAMES_PER_SECOND
from modeling_salmonn.configuration_salmonn import SalmonnConfig
from modeling_salmonn.modeling_salmonn import SalmonnModel


# vLLM has its own head. This module is imported by processes of vLLM alone; elsewhere `AutoModel` generates.
AutoModel.register(SalmonnConfig, SalmonnModel, exist_ok=True)


class SalmonnProcessingInfo(MultiModalProcessingInfo):
    """What vLLM asks before it has seen a clip, and how it reads one."""

    def get_data_parser(self) -> MultiModalDataParser:
        """By soxr, as the processor; other ways of resampling may change an answer."""
        parser = super().get_data_parser()
        parser.audio_resampler = AudioResampler(target_sr=self._get_audio_sampling_rate(), method="soxr")
        return parser

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> dict[str, int]:
        """Audio tokens of the longest clip: one that fills the context, unless the processor refuses it earlier."""
        extractor = self.get_hf_processor().feature_extractor
        if extractor.max_audio_seconds is None:
            return {"audio": seq_len}
        return {"audio": min(seq_len, count_audio_tokens(extractor, extractor.max_audio_seconds))}


class SalmonnVllmProcessor(MultiModalProcessor):
    """Prompts come from the chat template or from `get_generation_prompt`, with their placeholders."""

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        return super()._get_hf_mm_inputs(mm_items, {**hf_kwargs, "formatted": True})


@MULTIMODAL_REGISTRY.register_processor(
    SalmonnVllmProcessor, info=SalmonnProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class SalmonnForVllm(TransformersMultiModalForCausalLM, SupportsTranscription):
    """What vLLM runs for a folder of `salmonn export`."""

    supported_languages: ClassVar[Mapping[str, str]] = {"en": "English"}

    def _split_embeddings(self, embeddings: torch.Tensor, split_sizes: list[int]) -> Sequence[torch.Tensor]:
        """The audio tokens of each clip.

        Raises:
            ValueError: if there are not as many as the prompts have placeholders.
        """
        tokens = embeddings.reshape(-1, embeddings.shape[-1])
        if len(tokens) != sum(split_sizes):
            raise ValueError(
                f"The encoders gave {len(tokens)} audio tokens for {sum(split_sizes)} placeholders; export the folder "
                "again, so that model and processor agree."
            )
        return torch.split(tokens, split_sizes)

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> Any:
        """The prompt of a transcription, with the request's `prompt` in place of the instruction.

        Raises:
            ValueError: for a translation whose request says not what to do.
        """
        if stt_params.task_type != "transcribe" and not stt_params.request_prompt:
            raise ValueError("A translation needs an instruction in `prompt`, with the language to translate into.")
        processor = cached_processor_from_config(stt_params.model_config)
        instruction = stt_params.request_prompt or None
        (prompt,) = processor.apply_transcription_request(stt_params.audio, instruction, tokenize=False)
        return {"prompt": str(prompt), "multi_modal_data": {"audio": stt_params.audio}}

    @classmethod
    def get_speech_to_text_config(
        cls, model_config: ModelConfig, task_type: Literal["transcribe", "translate"]
    ) -> SpeechToTextConfig:
        """Clips stay whole: the model has its own segments."""
        extractor = cached_processor_from_config(model_config).feature_extractor
        return SpeechToTextConfig(sample_rate=extractor.sampling_rate, max_audio_clip_s=None)

    @classmethod
    def get_num_audio_tokens(
        cls, audio_duration_s: float, stt_config: SpeechToTextConfig, model_config: ModelConfig
    ) -> int:
        """Audio tokens of a clip, for the count of the prompt's tokens in the answer."""
        return count_audio_tokens(cached_processor_from_config(model_config).feature_extractor, audio_duration_s)


def count_audio_tokens(extractor: Any, seconds: float) -> int:
    """Audio tokens of a clip of so many seconds."""
    return extractor.audio_layout.num_audio_tokens(int(seconds * MEL_FRAMES_PER_SECOND))
