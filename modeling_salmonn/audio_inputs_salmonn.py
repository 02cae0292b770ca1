"""The five audio inputs of the model: what form they may come in, and that they belong together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.utils import TransformersKwargs


# Shape of each input.
AUDIO_INPUTS = {
    "input_features": ("clips", "mel", "frames"),
    "input_features_mask": ("clips", "frames"),
    "audio_input_features": ("clips", "frames", "mel"),
    "audio_input_features_mask": ("clips", "frames"),
    "encoder_hidden_states": ("clips", "encoder_frames", "hidden"),
}
# Parts of the names under which other models take sound or pictures, which a language model drops in silence.
MEDIA_WORDS = ("audio", "feature", "image", "input_values", "pixel", "sound", "speech", "video", "waveform")


@dataclass
class AudioInputs:
    """Audio inputs as tensors with one row for each clip; see `SalmonnModel.get_audio_features`.

    Raises:
        TypeError: for inputs that are no tensors.
        ValueError: for inputs of another shape, and with both counts if they disagree in clips.
    """

    input_features: torch.Tensor | None = None
    input_features_mask: torch.Tensor | None = None
    audio_input_features: torch.Tensor | None = None
    audio_input_features_mask: torch.Tensor | None = None
    encoder_hidden_states: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name in AUDIO_INPUTS:
            setattr(self, name, _as_tensor(name, getattr(self, name)))
        _check_agreement({name: value.shape[0] for name, value in self.given().items()}, "rows")

    def given(self) -> dict[str, torch.Tensor]:
        """The inputs that are there, by name."""
        inputs = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in inputs.items() if value is not None}

    def check_frames(self) -> None:
        """Check that features and masks are on one time axis.

        Raises:
            ValueError: with both numbers of frames if they are not.
        """
        frames = {
            name: value.shape[AUDIO_INPUTS[name].index("frames")]
            for name, value in self.given().items()
            if "frames" in AUDIO_INPUTS[name]
        }
        _check_agreement(frames, "frames")

    def check_mel_bins(self, **mel_bins: int) -> None:
        """Check that the named features are those of their encoder.

        Raises:
            ValueError: with both numbers of mel bins if they are not.
        """
        for name, needed in mel_bins.items():
            features = getattr(self, name)
            if features is not None and (found := features.shape[AUDIO_INPUTS[name].index("mel")]) != needed:
                raise ValueError(
                    f"{name} has {found} mel bins, but the encoder of this model needs {needed}; use the model's own "
                    "processor."
                )


def require_known_options(names: Iterable[str]) -> None:
    """Check the names of what is passed on to the encoders.

    Raises:
        TypeError: for a name that nothing here or in transformers reads.
    """
    unknown = sorted(set(names) - TransformersKwargs.__optional_keys__)
    if unknown:
        raise TypeError(f"Unknown arguments {unknown}; clips are passed as {', '.join(AUDIO_INPUTS)}.")


def refuse_other_media(inputs: Mapping[str, Any]) -> None:
    """Check that no sound or picture is passed under a name that the language model would drop.

    Raises:
        TypeError: for such a name.
    """
    given = [name for name, value in inputs.items() if value is not None]
    media = sorted(name for name in given if any(word in name for word in MEDIA_WORDS))
    if media:
        raise TypeError(f"Unknown inputs {media}; clips are passed as {', '.join(AUDIO_INPUTS)}.")


def _as_tensor(name: str, value: Any) -> torch.Tensor | None:
    """One tensor; serving engines pass lists that hold one for all clips, or one for each."""
    axes = AUDIO_INPUTS[name]
    if isinstance(value, (list, tuple)):
        try:
            rows = [torch.as_tensor(item) for item in value]
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} is a list of what makes no tensors ({error}); pass a torch.Tensor.") from error
        rows = [row.unsqueeze(0) if row.dim() == len(axes) - 1 else row for row in rows]
        if len({row.shape[1:] for row in rows}) != 1:
            shapes = [tuple(row.shape) for row in rows]
            raise ValueError(
                f"{name} is a list of {len(rows)} tensors of the shapes {shapes}; pad them to one length and pass one "
                "tensor with a row for each clip."
            )
        value = torch.cat(rows)
    if value is not None and not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; use return_tensors='pt'.")
    if value is not None and value.dim() != len(axes):
        raise ValueError(f"{name} has the shape {tuple(value.shape)}, but ({', '.join(axes)}) is needed.")
    return value


def _check_agreement(sizes: Mapping[str, int], unit: str) -> None:
    first = next(iter(sizes), "")
    for name, size in sizes.items():
        if size != sizes[first]:
            raise ValueError(
                f"{name} has {size} {unit}, but {first} has {sizes[first]}; pass what one call of the processor gave, "
                "one row for each clip."
            )


__all__ = ["AUDIO_INPUTS", "AudioInputs", "refuse_other_media", "require_known_options"]
