"""SALMONN for Hugging Face: an auditory language model as config, model, processor and pipeline.

Importing the package registers its classes, so that `AutoModel`, `AutoProcessor` and their kin find them without
`trust_remote_code`.
"""

from .versions_salmonn import find_mismatch  # isort: skip  # noqa: F401  first: importing it warns
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_salmonn import BeatsConfig, SalmonnConfig, SalmonnQFormerConfig
from .modeling_beats import BeatsForAudioClassification, BeatsModel
from .modeling_salmonn import SalmonnForConditionalGeneration, SalmonnModel
from .pipeline_salmonn import AudioTextPipeline
from .processing.feature_extraction_salmonn import SalmonnFeatureExtractor
from .processing.processing_salmonn import CHATML_CHAT_TEMPLATE, VICUNA_CHAT_TEMPLATE, SalmonnProcessor
from .qformer_salmonn import SalmonnQFormerModel


__version__ = "0.1.0"

# Saved folders carry the code of these classes.
SalmonnConfig.register_for_auto_class()
SalmonnForConditionalGeneration.register_for_auto_class("AutoModel")
SalmonnFeatureExtractor.register_for_auto_class()
SalmonnProcessor.register_for_auto_class()

AutoConfig.register("salmonn", SalmonnConfig)
AutoConfig.register("beats", BeatsConfig)
AutoConfig.register("salmonn_qformer", SalmonnQFormerConfig)
AutoModel.register(SalmonnConfig, SalmonnForConditionalGeneration)
AutoModel.register(BeatsConfig, BeatsModel)
AutoModel.register(SalmonnQFormerConfig, SalmonnQFormerModel)
AutoModelForMultimodalLM.register(SalmonnConfig, SalmonnForConditionalGeneration)
AutoModelForSeq2SeqLM.register(SalmonnConfig, SalmonnForConditionalGeneration)
AutoFeatureExtractor.register(SalmonnConfig, SalmonnFeatureExtractor)
AutoProcessor.register(SalmonnConfig, SalmonnProcessor)
PIPELINE_REGISTRY.register_pipeline("audio-text", AudioTextPipeline, pt_model=AutoModel, type="multimodal")

__all__ = [
    "CHATML_CHAT_TEMPLATE",
    "VICUNA_CHAT_TEMPLATE",
    "AudioTextPipeline",
    "BeatsConfig",
    "BeatsForAudioClassification",
    "BeatsModel",
    "SalmonnConfig",
    "SalmonnFeatureExtractor",
    "SalmonnForConditionalGeneration",
    "SalmonnModel",
    "SalmonnProcessor",
    "SalmonnQFormerConfig",
    "SalmonnQFormerModel",
]
