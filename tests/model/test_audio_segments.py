"""Segments, windows and tokens: counted one by one, and the values of the official models."""

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_processor

from modeling_salmonn.audio_segments_salmonn import AudioLayout, Segment


OFFICIAL = {"segment_seconds": 30.0, "window_seconds": 0.333333, "stride_seconds": 0.333333}
OFFICIAL |= {"num_query_tokens": 1, "trim_audio_tokens": False}
# In mel frames: none, around windows of 17 encoder frames, and around the ends of segments
LENGTHS = (0, 1, 2, 16, 17, 33, 34, 35, 68, 99, 100, 101, 199, 200, 201, 500, 2999, 3000, 3001, 3034, 6000, 7001)
LAYOUTS = [
    AudioLayout.from_seconds(segments, window, stride, queries, trim)
    for segments, window, stride, queries, trim in product(
        (30.0, [2, 5, 10, 30], (1, 3)), (0.333333, 0.1, 1.0), (0.333333, 0.06, 0.7), (1, 3), (False, True)
    )
]


def make_layout(**changes: Any) -> AudioLayout:
    return AudioLayout.from_seconds(**{**OFFICIAL, **changes})


def walk_windows(layout: AudioLayout, num_frames: int) -> Iterator[tuple[float, float]]:
    """Seconds of every window that is kept, found by marking each frame and moving the window over the marks."""
    longest = max(layout.segment_frames)
    for start in range(0, max(num_frames, 1), longest):
        audio = [True] * min(longest, num_frames - start)
        padded = min(length for length in layout.segment_frames if length >= len(audio))
        audio += [False] * (padded - len(audio))
        encoder_frames = [first or second for first, second in zip(audio[::2], audio[1::2], strict=True)]
        first = 0
        while first + layout.window_frames <= len(encoder_frames):
            window = encoder_frames[first : first + layout.window_frames]
            if first == 0 or any(window) or not layout.trim_audio_tokens:
                yield round(start / 100 + first / 50, 6), round(start / 100 + (first + len(window)) / 50, 6)
            first += layout.stride_frames


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tokens_and_times_equal_counting_one_by_one(layout: AudioLayout) -> None:
    for num_frames in LENGTHS:
        expected = [times for times in walk_windows(layout, num_frames) for _ in range(layout.num_query_tokens)]
        times = [(round(start, 6), round(end, 6)) for start, end in layout.token_times(num_frames)]
        assert times == expected, num_frames
        assert layout.num_audio_tokens(num_frames) == len(expected), num_frames


@pytest.mark.parametrize("layout", [make_layout(segment_seconds=choice) for choice in (30.0, [2, 5, 10, 30], (1, 3))])
def test_split_covers_the_clip_in_the_smallest_segments(layout: AudioLayout) -> None:
    for num_frames in LENGTHS:
        segments = layout.split(num_frames)
        assert sum(segment.audio_frames for segment in segments) == num_frames
        assert all(segment.audio_frames == layout.longest_segment for segment in segments[:-1])
        assert segments[0].offset == 0
        for segment, following in pairwise(segments):
            assert following.offset == segment.offset + segment.padded_frames
            assert following.offset > segment.offset
        for segment in segments:
            smaller = [length for length in layout.segment_frames if length < segment.padded_frames]
            assert segment.padded_frames in layout.segment_frames
            assert segment.audio_frames <= segment.padded_frames
            assert not smaller or max(smaller) < segment.audio_frames
        assert layout.padded_length(num_frames) == segments[-1].offset + segments[-1].padded_frames


@pytest.mark.parametrize("layout", [make_layout(segment_seconds=choice) for choice in (30.0, [2, 5, 10, 30])])
@pytest.mark.parametrize("most_segments", [1, 3, 100])
def test_plan_has_each_segment_once_beside_its_like(layout: AudioLayout, most_segments: int) -> None:
    groups = layout.plan(LENGTHS, most_segments)
    planned = [segment for group in groups for segment in group.segments]
    expected = [segment for clip, frames in enumerate(LENGTHS) for segment in layout.split(frames, clip)]
    assert sorted(planned, key=lambda segment: (segment.clip, segment.offset)) == expected
    for group in groups:
        lengths = [segment.audio_frames for segment in group.segments]
        assert len(lengths) <= most_segments
        assert lengths == sorted(lengths, reverse=True)
        assert lengths[0] <= 1.3 * lengths[-1]
        assert {segment.padded_frames for segment in group.segments} == {group.padded_frames}


def test_plan_makes_no_more_groups_than_lengths_differ() -> None:
    clips = [300, 1000, 290, 3000, 1290, 3100]  # the last one leaves 1 s for a segment of its own
    groups = make_layout().plan(clips, 8)
    assert [[segment.clip for segment in group.segments] for group in groups] == [[3, 5], [4, 1], [0, 2], [5]]


def test_split_pads_the_last_segment_only() -> None:
    layout = make_layout(segment_seconds=[10, 30])
    assert layout.split(3700) == [Segment(0, 3000, 3000), Segment(3000, 700, 1000)]
    assert layout.split(0) == [Segment(0, 0, 1000)]


def test_official_layout_has_88_tokens_for_30_seconds() -> None:
    layout = make_layout()
    assert (layout.segment_frames, layout.window_frames, layout.stride_frames) == ((3000,), 17, 17)
    assert [layout.num_audio_tokens(frames) for frames in (1, 3000, 3001, 6000, 7000)] == [88, 88, 176, 176, 264]


def test_official_token_times_start_anew_in_each_segment() -> None:
    times = make_layout().token_times(3100)
    assert times[:2] == [pytest.approx((0.0, 0.34)), pytest.approx((0.34, 0.68))]
    assert times[87] == pytest.approx((29.58, 29.92))  # 88 windows of 17 frames, 4 of 1500 frames are left over
    assert times[88:90] == [pytest.approx((30.0, 30.34)), pytest.approx((30.34, 30.68))]
    assert len(times) == 176


def test_trimmed_layout_has_tokens_for_the_audio_only() -> None:
    layout = make_layout(trim_audio_tokens=True)
    assert [layout.num_audio_tokens(frames) for frames in (1, 34, 35, 100, 3000, 3001)] == [1, 1, 2, 3, 88, 89]


def test_query_tokens_share_the_time_of_their_window() -> None:
    times = make_layout(num_query_tokens=2, trim_audio_tokens=True).token_times(40)
    assert times == [(0.0, 0.34), (0.0, 0.34), (0.34, 0.68), (0.34, 0.68)]


def test_config_and_extractor_have_the_same_layout() -> None:
    config = tiny_config(segment_seconds=[2, 30], window_seconds=0.5, stride_seconds=0.2, trim_audio_tokens=True)
    layout = tiny_processor(config).feature_extractor.audio_layout
    assert layout.__dict__ == config.audio_layout.__dict__  # equal values; the classes may be two copies of one file
    assert (
        layout.__dict__
        == make_layout(
            segment_seconds=[2, 30], window_seconds=0.5, stride_seconds=0.2, trim_audio_tokens=True
        ).__dict__
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_seconds": []}, r"segment_seconds must be one length or increasing lengths, got \[\]"),
        ({"segment_seconds": [2, 2]}, r"must be one length or increasing lengths, got \[2, 2\]"),
        ({"segment_seconds": [5, 2, 30]}, r"must be one length or increasing lengths, got \[5, 2, 30\]"),
        ({"segment_seconds": 0.5}, r"segment_seconds must be at least 1\.0 \(audio is padded to 1 s\), got 0\.5"),
        ({"segment_seconds": [0, 30]}, r"segment_seconds must be at least 1\.0 .*, got 0\."),
        ({"segment_seconds": -30.0}, r"segment_seconds must be at least 1\.0 .*, got -30\.0"),
        ({"num_query_tokens": 0}, r"num_query_tokens must be at least 1, got 0"),
        ({"window_seconds": 0.0}, r"window_seconds must give at least one frame of 0\.02 s, got 0\.0"),
        ({"window_seconds": 0.009}, r"window_seconds must give at least one frame of 0\.02 s, got 0\.009"),
        ({"stride_seconds": 0.0}, r"stride_seconds must give at least one frame of 0\.02 s, got 0\.0"),
        ({"stride_seconds": -0.3}, r"stride_seconds must give at least one frame of 0\.02 s, got -0\.3"),
        (
            {"window_seconds": 2.5, "segment_seconds": [2, 30]},
            r"window_seconds 2\.5 is longer than the shortest segment of 2 s; shorten the window or lengthen",
        ),
    ],
)
def test_layout_wrong_value_raises(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_layout(**changes)


@pytest.mark.parametrize("name", ["segment_seconds", "window_seconds", "stride_seconds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1.0", True, None, [[1.0]], 10**9])
def test_layout_length_that_is_no_sensible_number_raises(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be (a number of seconds|at most 3600), got"):
        make_layout(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_query_tokens", 1.0), ("num_query_tokens", True), ("num_query_tokens", "1"), ("trim_audio_tokens", "yes")],
)
def test_layout_value_of_wrong_type_raises(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be (a whole number|True or False), got {value!r}"):
        make_layout(**{name: value})


@pytest.mark.parametrize(
    "frames", [10**9, 2**63 - 1, 10**30, -1, float("nan"), float("inf"), 1.5, True, "100", None, [100]]
)
def test_length_of_a_clip_that_is_impossible_raises(frames: Any) -> None:
    layout = make_layout(segment_seconds=[1, 2])
    for count in (layout.split, layout.padded_length, layout.num_audio_tokens, layout.token_times):
        with pytest.raises(ValueError, match=r"A clip's length must be (a whole number of|between 0 and 8640000) mel"):
            count(frames)


def test_length_of_a_clip_may_be_any_whole_number() -> None:
    layout = make_layout(trim_audio_tokens=True)
    for frames in (100, 100.0, np.int64(100), torch.tensor(100), np.array(100)):
        assert layout.num_audio_tokens(frames) == 3
    assert layout.num_audio_tokens(8_640_000) == 2880 * 88


def test_layout_allows_a_window_as_long_as_the_segment() -> None:
    assert make_layout(segment_seconds=[1, 2], window_seconds=1.0).num_audio_tokens(100) == 1
