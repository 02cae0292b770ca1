"""The five audio inputs of the model: what form they may come in, and that they belong together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
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
        for name in AUDIO_INPUTS:  # the fields
            setattr(self, name, _as_tensor(name, getattr(self, name)))
        _require_agreement(self.sizes("clips"), "rows")

    def given(self) -> dict[str, torch.Tensor]:
        """The inputs that are there, by name."""
        inputs = {name: getattr(self, name) for name in AUDIO_INPUTS}
        return {name: value for name, value in inputs.items() if value is not None}

    def sizes(self, axis: str) -> dict[str, int]:
        """Length of an axis of `AUDIO_INPUTS` in each input that is there and has it."""
        found = {}
        for name, value in self.given().items():
            if axis in AUDIO_INPUTS[name]:
                found[name] = value.shape[AUDIO_INPUTS[name].index(axis)]
        return found

    def check_frames(self) -> None:
        """Check that features and masks are on one time axis; a `ValueError` tells both numbers of frames."""
        _require_agreement(self.sizes("frames"), "frames")

    def check_mel_bins(self, needed: Mapping[str, int]) -> None:
        """Check that the named features are those of their encoder; a `ValueError` tells both numbers of bins."""
        for name, found in self.sizes("mel").items():
            if found != needed.get(name, found):
                raise ValueError(
                    f"{name} has {found} mel bins, but the encoder of this model needs {needed[name]}; use the "
                    "model's own processor."
                )


def require_known_options(names: Iterable[str]) -> None:
    """Refuse, by a `TypeError`, what is passed on to the encoders but nothing here or in transformers reads."""
    unknown = sorted(set(names) - TransformersKwargs.__optional_keys__)
    if unknown:
        raise TypeError(f"Unknown arguments {unknown}; clips are passed as {', '.join(AUDIO_INPUTS)}.")


def refuse_other_media(inputs: Mapping[str, Any]) -> None:
    """Refuse, by a `TypeError`, sound or pictures under a name that the language model would drop."""
    given = [name for name, value in inputs.items() if value is not None]  # None is as good as not given
    media = sorted(name for name in given if any(word in name for word in MEDIA_WORDS))
    if media:
        raise TypeError(f"Unknown inputs {media}; clips are passed as {', '.join(AUDIO_INPUTS)}.")


def join_unused_weights(embeddings: torch.Tensor, parts: Iterable[nn.Module]) -> torch.Tensor:
    """Embeddings plus nothing, so that trained weights of parts that have not run get gradients, of zero.

    Processes that train together each send a gradient of every weight in every step, or the others wait for it: also
    one whose batch is text alone. One process trains as several do.
    """
    if not torch.is_grad_enabled():
        return embeddings
    weights = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    sums = [weight.sum().to(embeddings) for weight in weights]
    return embeddings + 0 * torch.stack(sums).sum() if sums else embeddings


def _as_tensor(name: str, value: Any) -> torch.Tensor | None:
    axes = AUDIO_INPUTS[name]
    if isinstance(value, (list, tuple)):
        value = _join(name, value, len(axes))
    if value is not None and not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; use return_tensors='pt'.")
    if value is not None and value.dim() != len(axes):
        raise ValueError(f"{name} has the shape {tuple(value.shape)}, but ({', '.join(axes)}) is needed.")
    return value


def _join(name: str, values: list | tuple, dimensions: int) -> torch.Tensor:
    """One tensor of a list: serving engines pass one that holds a tensor for all clips, or one for each."""
    try:
        rows = [torch.as_tensor(item) for item in values]
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is a list of what makes no tensors ({error}); pass a torch.Tensor.") from error
    # one for each clip lacks the axis of the clips
    rows = [row.unsqueeze(0) if row.dim() == dimensions - 1 else row for row in rows]
    if len({row.shape[1:] for row in rows}) != 1:
        raise ValueError(
            f"{name} is a list of {len(rows)} tensors of the shapes {[tuple(row.shape) for row in rows]}; pad them to "
            "one length and pass one tensor with a row for each clip."
        )
    return torch.cat(rows)


def _require_agreement(sizes: Mapping[str, int], unit: str) -> None:
    first = next(iter(sizes), "")
    for name, size in sizes.items():
        if size != sizes[first]:
            raise ValueError(
                f"{name} has {size} {unit}, but {first} has {sizes[first]}; pass what one call of the processor "
                "returned, one row for each clip."
            )
