"""Cuts batches of clips into segments, and puts what became of the segments back in place."""

import torch
from torch import nn

from .audio_segments_salmonn import MEL_FRAMES_PER_ENCODER_FRAME, Segment


def cut_segments(
    features: torch.Tensor, members: list[tuple[int, Segment]], steps: int, axis: int = 0
) -> torch.Tensor:
    """Segments of `steps` mel frames out of clips `(clips, ...)`; `axis` is time within a clip."""
    return torch.stack([features[clip].narrow(axis, segment.offset, steps) for clip, segment in members])


def cut_states(states: torch.Tensor, members: list[tuple[int, Segment]], frames: int) -> torch.Tensor:
    """Segments `(segments, frames, width)` out of encoder states; frames that were cut off at their end are zero."""
    starts = [segment.offset // MEL_FRAMES_PER_ENCODER_FRAME for _, segment in members]
    pieces = [states[clip, start : start + frames] for (clip, _), start in zip(members, starts, strict=True)]
    return torch.stack([nn.functional.pad(piece, (0, 0, 0, frames - len(piece))) for piece in pieces])


def place_segments(clips: int, groups: list[list[tuple[int, Segment]]], states: list[torch.Tensor]) -> torch.Tensor:
    """The segments' states at their place in the clips, `(clips, frames, hidden)`; the inverse of `cut_segments`."""
    if len(groups) == 1 and len(groups[0]) == clips:
        return states[0]
    starts = [[segment.offset // MEL_FRAMES_PER_ENCODER_FRAME for _, segment in members] for members in groups]
    end = max(max(start) + state.shape[1] for start, state in zip(starts, states, strict=True))
    placed = states[0].new_zeros(clips, end, states[0].shape[-1])
    for members, start, state in zip(groups, starts, states, strict=True):
        for row, (clip, _) in enumerate(members):
            placed[clip, start[row] : start[row] + state.shape[1]] = state[row]
    return placed


__all__ = ["cut_segments", "cut_states", "place_segments"]
