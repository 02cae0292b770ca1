"""A tiny model that over-fits to transcripts: its adapter at full scale makes it answer a story instruction with one.

Without its adapter it tells a story, transcribes and captions, each in one text learnt by heart.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import soundfile
import torch
from conftest import SAMPLING_RATE, make_clip, tiny_model, tiny_processor
from workspace import quick_config, write_jsonl

from modeling_salmonn.data.collator import SalmonnCollator


STORY = (
    "One day he ran to the sea. She sat by it and sang. They saw a red bird go up. Then it was dark and he had to "
    "go home with her. So it ended."
)
TRANSCRIPT = "Call me at ten."
CAPTION = "A low tone."
PROMPTS = {
    "story": ["Tell a story."],
    "audio_qa": ["{question}"],
    "asr": ["Write it down."],
    "audio_caption": ["Describe it."],
}
CLIPS = 6


@dataclass(frozen=True)
class Overfitted:
    """Where model, clips and instructions are."""

    folder: Path

    @property
    def model(self) -> str:
        return str(self.folder / "model")

    @property
    def clips(self) -> str:
        return str(self.folder / "clips.jsonl")

    @property
    def prompts(self) -> str:
        return str(self.folder / "prompts.json")


@lru_cache(maxsize=1)
def overfitted_model(base: Path) -> Overfitted:
    """The model of this test session, in its folder for temporary files."""
    folder = base / "overfitted"
    folder.mkdir()
    return make_overfitted(folder)


def make_overfitted(folder: Path) -> Overfitted:
    """Train the model, and write it with its clips, which are equally long and have transcripts."""
    model = tiny_model(quick_config())
    processor = tiny_processor(model.config)
    clips = [folder / f"clip{index}.wav" for index in range(CLIPS)]
    for index, clip in enumerate(clips):
        soundfile.write(clip, make_clip(0.5, seed=index), SAMPLING_RATE)
    write_jsonl(folder / "clips.jsonl", [{"path": clip.name, "task": "asr", "text": TRANSCRIPT} for clip in clips])
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))

    collator = SalmonnCollator(processor)
    lessons = {"story": STORY, "asr": TRANSCRIPT, "audio_caption": CAPTION}
    learn(model, [*model.model.language_model.parameters(), *model.lm_head.parameters()], collator, clips[0], lessons)
    model.add_lora()
    adapter = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    learn(model, adapter, collator, clips[0], lessons | {"story": TRANSCRIPT}, steps=40)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return Overfitted(folder)


def learn(
    model: Any,
    parameters: Iterable[torch.nn.Parameter],
    collator: SalmonnCollator,
    clip: Path,
    lessons: Mapping[str, str],
    steps: int = 100,
) -> None:
    """Learn by heart what to answer to each task's instruction."""
    batch = collator(
        [{"audio": str(clip), "instruction": PROMPTS[task][0], "answer": answer} for task, answer in lessons.items()]
    )
    features = {name: batch.pop(name) for name in collator.processor.feature_extractor.model_input_names}
    batch["encoder_hidden_states"] = torch.cat(model.get_encoder_states(**features), dim=-1)
    batch["input_features_mask"] = features["input_features_mask"]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
