"""Arithmetic of segments, windows and audio tokens, shared by the processor and the model.

All lengths are counted in mel frames of 10 ms or in encoder frames of 20 ms, so that both sides
agree to the token. A clip is cut into segments:

```
clip     |------------------------ 37 s -------------------------|
segments |------------ 30 s ------------|--- 7 s ---|            |
padded   |------------ 30 s ------------|------ 10 s ------|        (segment_seconds = [10, 30])
windows  |--|--|--|--|--|--|--|--|--|--|  one Q-Former call per window, floor at each segment's end
```
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn


MEL_FRAMES_PER_SECOND = 100  # hop of 160 samples at 16 kHz, for log-mel and for fbank
MEL_FRAMES_PER_ENCODER_FRAME = 2  # Whisper's second convolution has stride 2
ENCODER_FRAMES_PER_SECOND = MEL_FRAMES_PER_SECOND // MEL_FRAMES_PER_ENCODER_FRAME
# Beyond these a length is a mistake (milliseconds for seconds, say), and would only fill the memory.
LONGEST_SEGMENT_SECONDS = 3600
LONGEST_CLIP_SECONDS = 24 * 3600
LONGEST_CLIP_FRAMES = LONGEST_CLIP_SECONDS * MEL_FRAMES_PER_SECOND
# Segments that are encoded together have at most this many times the audio of the shortest of them.
LIKE_LENGTHS = 1.3


@dataclass(frozen=True)
class Segment:
    """A stretch of one clip: where it starts, how much of it is audio, how long it is padded (mel frames)."""

    offset: int  # in the audio and in the padded segments alike: only the last segment is padded
    audio_frames: int
    padded_frames: int
    clip: int = 0  # row of the batch

    @property
    def end(self) -> int:
        """First mel frame behind the padding."""
        return self.offset + self.padded_frames


@dataclass(frozen=True)
class SegmentGroup:
    """Segments out of all clips of a batch that are encoded together: of one padded length, with like audio."""

    padded_frames: int
    segments: tuple[Segment, ...]

    @property
    def encoder_frames(self) -> int:
        """Encoder frames of each segment."""
        return self.padded_frames // MEL_FRAMES_PER_ENCODER_FRAME

    def cut_features(self, features: torch.Tensor, axis: int = 0) -> torch.Tensor:
        """The segments' mel frames out of clips `(clips, ...)`; `axis` is time within a clip."""
        pieces = [features[segment.clip].narrow(axis, segment.offset, self.padded_frames) for segment in self.segments]
        return torch.stack(pieces)

    def cut_states(self, states: torch.Tensor) -> torch.Tensor:
        """Encoder states `(segments, frames, width)` out of `(clips, frames, width)`, zero where they were cut off."""
        pieces = []
        for segment in self.segments:
            start = segment.offset // MEL_FRAMES_PER_ENCODER_FRAME
            piece = states[segment.clip, start : start + self.encoder_frames]
            pieces.append(nn.functional.pad(piece, (0, 0, 0, self.encoder_frames - len(piece))))
        return torch.stack(pieces)


@dataclass(frozen=True)
class AudioLayout:
    """How clips become audio tokens.

    Args:
        segment_frames: increasing lengths that a segment may be padded to, in mel frames; the last
            one is also the longest segment.
        window_frames: encoder frames in a Q-Former window.
        stride_frames: encoder frames between the starts of two windows.
        num_query_tokens: audio tokens per window.
        trim_audio_tokens: keep only the windows that touch audio, instead of all of the padded segment.
    """

    segment_frames: tuple[int, ...]
    window_frames: int
    stride_frames: int
    num_query_tokens: int
    trim_audio_tokens: bool

    @classmethod
    def from_seconds(
        cls,
        segment_seconds: float | Sequence[float],
        window_seconds: float,
        stride_seconds: float,
        num_query_tokens: int,
        trim_audio_tokens: bool,
    ) -> "AudioLayout":
        """Round seconds to frames as the research code does and check that the result can work.

        Raises:
            ValueError: if a value is of the wrong type, a length is not positive, the segments do not increase, or a
                window is longer than the shortest segment.
        """
        if isinstance(segment_seconds, Sequence) and not isinstance(segment_seconds, (str, bytes)):
            seconds = list(segment_seconds)
        else:
            seconds = [segment_seconds]  # type: ignore[list-item]
        for length in seconds:
            _check_seconds("segment_seconds", length)
        _check_seconds("window_seconds", window_seconds)
        _check_seconds("stride_seconds", stride_seconds)
        if not isinstance(num_query_tokens, Integral) or isinstance(num_query_tokens, bool):
            raise ValueError(f"num_query_tokens must be a whole number, got {num_query_tokens!r}.")
        if not isinstance(trim_audio_tokens, bool):
            raise ValueError(f"trim_audio_tokens must be True or False, got {trim_audio_tokens!r}.")
        if not seconds or any(longer <= shorter for shorter, longer in pairwise(seconds)):
            raise ValueError(f"segment_seconds must be one length or increasing lengths, got {segment_seconds}.")
        if seconds[0] < 1.0:
            raise ValueError(f"segment_seconds must be at least 1.0 (audio is padded to 1 s), got {seconds[0]}.")
        if num_query_tokens < 1:
            raise ValueError(f"num_query_tokens must be at least 1, got {num_query_tokens}.")
        window = round(window_seconds * ENCODER_FRAMES_PER_SECOND)
        stride = round(stride_seconds * ENCODER_FRAMES_PER_SECOND)
        if window < 1:
            raise ValueError(f"window_seconds must give at least one frame of 0.02 s, got {window_seconds}.")
        if stride < 1:
            raise ValueError(f"stride_seconds must give at least one frame of 0.02 s, got {stride_seconds}.")
        # in encoder frames first, so that each segment is an even number of mel frames
        encoder_frames = [round(length * ENCODER_FRAMES_PER_SECOND) for length in seconds]
        segments = tuple(MEL_FRAMES_PER_ENCODER_FRAME * frames for frames in encoder_frames)
        if window * MEL_FRAMES_PER_ENCODER_FRAME > segments[0]:
            raise ValueError(
                f"window_seconds {window_seconds} is longer than the shortest segment of {seconds[0]} s; "
                "shorten the window or lengthen segment_seconds."
            )
        return cls(segments, window, stride, num_query_tokens, trim_audio_tokens)

    @property
    def longest_segment(self) -> int:
        """Mel frames of the longest segment."""
        return self.segment_frames[-1]

    def split(self, num_frames: int, clip: int = 0) -> list[Segment]:
        """Cut a clip of `num_frames` mel frames into consecutive segments, each with its own padded length.

        Raises:
            ValueError: if `num_frames` is no whole number, negative, or more than a day.
        """
        num_frames = whole_length(num_frames, LONGEST_CLIP_FRAMES, "mel frames (10 ms)")
        segments = []
        for start in range(0, max(num_frames, 1), self.longest_segment):
            audio = min(num_frames - start, self.longest_segment)
            padded = next(length for length in self.segment_frames if length >= audio)
            segments.append(Segment(start, audio, padded, clip))
        return segments

    def plan(self, lengths: Sequence[int], most_segments: int | None = None) -> list[SegmentGroup]:
        """Group the segments of clips that are padded to one length and whose audio is about equally long.

        Args:
            lengths: mel frames of each clip.
            most_segments: in a group, so that memory does not grow with the clips; `None` for any number.

        Returns:
            Groups of at least one segment, the longest first; each segment is in one of them.

        Raises:
            ValueError: as `split`.
        """
        segments: list[Segment] = []
        for clip, num_frames in enumerate(lengths):
            segments += self.split(num_frames, clip)
        segments.sort(key=lambda segment: (segment.padded_frames, segment.audio_frames), reverse=True)
        groups: list[list[Segment]] = []
        for segment in segments:
            if not groups or len(groups[-1]) == most_segments or not _are_alike(groups[-1][0], segment):
                groups.append([])
            groups[-1].append(segment)
        return [SegmentGroup(group[0].padded_frames, tuple(group)) for group in groups]

    def padded_length(self, num_frames: int) -> int:
        """Mel frames of all the padded segments of a clip together."""
        return self.split(num_frames)[-1].end

    def num_windows(self, segment: Segment) -> int:
        """Windows of a segment: as many as fit (floor), of these the ones kept by `trim_audio_tokens`."""
        frames = segment.padded_frames // MEL_FRAMES_PER_ENCODER_FRAME
        fitting = (frames - self.window_frames) // self.stride_frames + 1
        if not self.trim_audio_tokens:
            return fitting
        audio_frames = -(-segment.audio_frames // MEL_FRAMES_PER_ENCODER_FRAME)  # rounded up, as the next line is
        touching = -(-audio_frames // self.stride_frames)  # windows that start before the audio ends
        return max(1, min(fitting, touching))

    def num_audio_tokens(self, num_frames: int) -> int:
        """Audio tokens of a clip of `num_frames` mel frames."""
        return self.num_query_tokens * sum(self.num_windows(segment) for segment in self.split(num_frames))

    def token_times(self, num_frames: int) -> list[tuple[float, float]]:
        """Start and end in seconds of the window behind each audio token of a clip."""
        times: list[tuple[float, float]] = []
        for segment in self.split(num_frames):
            origin = segment.offset / MEL_FRAMES_PER_SECOND
            for window in range(self.num_windows(segment)):
                start = origin + window * self.stride_frames / ENCODER_FRAMES_PER_SECOND
                end = start + self.window_frames / ENCODER_FRAMES_PER_SECOND
                times += [(start, end)] * self.num_query_tokens  # all queries of a window read the same frames
        return times


def place_segments(clips: int, groups: Sequence[SegmentGroup], states: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put the groups' states `(segments, frames, width)` back into `(clips, frames, width)`, zero beside them."""
    placed_segments = [segment for group in groups for segment in group.segments]
    end = max(segment.end for segment in placed_segments) // MEL_FRAMES_PER_ENCODER_FRAME
    placed = states[0].new_zeros(clips, end, states[0].shape[-1])
    pieces = [piece for group_states in states for piece in group_states]
    for segment, piece in zip(placed_segments, pieces, strict=True):
        start = segment.offset // MEL_FRAMES_PER_ENCODER_FRAME
        placed[segment.clip, start : start + len(piece)] = piece
    return placed


def in_clip_order(groups: Sequence[SegmentGroup], pieces: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Sort what belongs to the segments, one piece for each in the order of the groups, by clip and time."""
    segments = [segment for group in groups for segment in group.segments]
    order = sorted(range(len(segments)), key=lambda index: (segments[index].clip, segments[index].offset))
    return [pieces[index] for index in order]


def stack_attentions(groups: Sequence[SegmentGroup], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put the groups' `(segments, heads, frames, frames)` into one tensor, in clip order, zero beside them."""
    longest = max(piece.shape[-1] for piece in weights)
    padded: list[torch.Tensor] = []
    for piece in weights:
        missing = longest - piece.shape[-1]
        padded += nn.functional.pad(piece, (0, missing, 0, missing))
    return torch.stack(in_clip_order(groups, padded))


def _are_alike(longest: Segment, shorter: Segment) -> bool:
    is_padded_alike = longest.padded_frames == shorter.padded_frames
    return is_padded_alike and longest.audio_frames <= LIKE_LENGTHS * shorter.audio_frames


def is_finite_number(value: Any) -> bool:
    """Whether this is a number, and no truth value."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _check_seconds(name: str, value: Any) -> None:
    if not is_finite_number(value):
        raise ValueError(f"{name} must be a number of seconds, got {value!r}.")
    if value > LONGEST_SEGMENT_SECONDS:
        raise ValueError(f"{name} must be at most {LONGEST_SEGMENT_SECONDS}, got {value}.")


def whole_length(value: Any, longest: int, unit: str) -> int:
    """A clip's length as a whole number, also from a tensor or array without dimensions.

    Args:
        value: the length.
        longest: largest one that makes sense.
        unit: what is counted, for messages.

    Raises:
        ValueError: if it is no whole number, negative, or more than `longest`.
    """
    number: Any = value.item() if getattr(value, "ndim", None) == 0 else value
    if not is_finite_number(number) or number != int(number):
        raise ValueError(f"A clip's length must be a whole number of {unit}, got {value!r:.80}.")
    if not 0 <= number <= longest:
        raise ValueError(f"A clip's length must be between 0 and {longest} {unit}, got {number}.")
    return int(number)
