"""A model card stub for a converted or saved folder."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from modeling_salmonn.configuration_salmonn import SalmonnConfig


BODY = """
# {title}

An auditory language model: it hears speech, sounds and music and answers instructions about them.
Architecture: SALMONN (Tang et al., ICLR 2024, arXiv 2310.13289).

| part | size |
|---|---|
| speech encoder | Whisper, {speech_layers} layers of {speech_width} |
| audio encoder | {audio} |
| Q-Former | {qformer_layers} layers of {qformer_width}, {queries} query per {window:.2f} s window |
| language model | {text_type}, {text_layers} layers of {text_width} |
| LoRA | rank {rank}, training scale {scaling} |

```python
from transformers import pipeline

pipe = pipeline("audio-text", model="{title}", trust_remote_code=True)
pipe("clip.wav", text="What do you hear?")
```

The licences of the Whisper, BEATs and language-model weights apply to this folder; name them here before you share it.
"""


def write_model_card(folder: Path, title: str, config: SalmonnConfig) -> None:
    """Write `README.md` with what the configuration tells."""
    audio = config.audio_config
    data = ModelCardData(library_name="transformers", pipeline_tag="audio-text-to-text", tags=["salmonn", "audio"])
    body = BODY.format(
        title=title,
        speech_layers=config.speech_config.encoder_layers,
        speech_width=config.speech_config.d_model,
        audio=f"BEATs, {audio.num_hidden_layers} layers of {audio.hidden_size}" if audio is not None else "none",
        qformer_layers=config.qformer_config.num_hidden_layers,
        qformer_width=config.qformer_config.hidden_size,
        queries=config.qformer_config.num_query_tokens,
        window=config.window_seconds,
        text_type=config.text_config.model_type,
        text_layers=config.text_config.num_hidden_layers,
        text_width=config.text_config.hidden_size,
        rank=config.lora_rank,
        scaling=config.lora_scaling,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n{body}").save(folder / "README.md")
