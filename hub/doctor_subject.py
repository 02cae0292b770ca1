"""The folder that `salmonn doctor` examines, and what its checks return."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from modeling_salmonn.hub.saved_folder import SavedFolder
from modeling_salmonn.modeling_salmonn import SalmonnForConditionalGeneration
from modeling_salmonn.processing.processing_salmonn import SalmonnProcessor


Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
Finding: TypeAlias = tuple[Status, str]


@dataclass
class Subject(SavedFolder):
    """The folder under examination, and what several checks need of it, read once.

    Args:
        folder: a folder that exists.
        hub_id: the repository that it was downloaded from.
        device: where the model is run.
    """

    hub_id: str | None = None
    device: str = "cpu"

    @cached_property
    def loaded(self) -> tuple[SalmonnForConditionalGeneration, SalmonnProcessor]:
        """The model, and its processor."""
        model = SalmonnForConditionalGeneration.from_pretrained(self.folder, use_safetensors=True)
        processor = SalmonnProcessor.from_pretrained(self.folder, trust_remote_code=False)
        return model.to(self.device).eval(), processor


__all__ = ["Finding", "Status", "Subject"]
