"""Damaged, mixed and invented audio: either finite samples come out, or a message that names the clip."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SAMPLING_RATE, make_clip
from encoded_audio import ape_tag, encode, id3v2, with_unknown_flac_length, with_wav_size, without_info_frame

from modeling_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.audio_io_salmonn import audio_seconds


KINDS = [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "IMA_ADPCM"), ("RF64", "PCM_24"), ("W64", "PCM_16")]
KINDS += [("AIFF", "PCM_16"), ("AU", "ULAW"), ("CAF", "PCM_16"), ("FLAC", "PCM_16")]
KINDS += [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
FEW, MANY = range(300), range(300, 6000)
ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**9,
    2**70,
    "",
    "x",
    b"",
    b"RIFF",
    [],
    {},
]
ODD_VALUES += [
    object(),
    np.zeros(0),
    np.zeros((2, 2, 2)),
    np.array(1.0),
    np.array(["a"]),
    torch.zeros(3, dtype=torch.bool),
]


@cache
def files() -> list[bytes]:
    whole = [
        encode(0.6, container, subtype, channels=1 + index % 2) for index, (container, subtype) in enumerate(KINDS)
    ]
    *_, mp3 = whole
    flac = encode(0.6, "FLAC")
    odd = [
        with_wav_size(encode(0.6), 0),
        with_unknown_flac_length(flac),
        without_info_frame(mp3),
        flac + flac,
        mp3 + mp3,
    ]
    return [*whole, *odd, id3v2(300) + mp3 + ape_tag(30)]


def change_bytes(content: bytearray, rng: random.Random, end: int) -> None:
    for _ in range(rng.randrange(1, 20)):
        content[rng.randrange(min(end, len(content)))] = rng.choice((0, 255, 127, 128, rng.randrange(256)))


DAMAGES: list[Callable[[bytearray, random.Random], Any]] = [
    lambda content, rng: change_bytes(content, rng, 200),
    lambda content, rng: change_bytes(content, rng, len(content)),
    lambda content, rng: content.__delitem__(slice(rng.randrange(1, len(content)), None)),
    lambda content, rng: content.__delitem__(slice(rng.randrange(100), rng.randrange(100, 200))),
    lambda content, rng: content.__setitem__(slice(a := rng.randrange(len(content)), a), rng.randbytes(500)),
    lambda content, rng: content.extend(rng.choice(files())[rng.randrange(300) :]),
]


def check_clip(audio: Any, extractor: SalmonnFeatureExtractor, **options: Any) -> None:
    samples: Any = []
    message = ""
    try:
        samples = extractor.fetch_audio(audio, **options)
    except ValueError as error:
        message = str(error)
    assert message.startswith(("audio ", "There is no audio file")) or not message
    for clip in samples if isinstance(samples, list) else [samples]:
        assert len(clip) > 0
        assert np.isfinite(np.asarray(clip)).all()


def check_damaged(seeds: range) -> None:
    extractor = SalmonnFeatureExtractor()
    for seed in seeds:
        rng = random.Random(seed)
        content = bytearray(rng.choice(files()))
        rng.choice(DAMAGES)(content, rng)
        check_clip(bytes(content), extractor)
        seconds = audio_seconds(bytes(content))
        assert seconds is None or seconds > 0


def odd_audio(rng: random.Random) -> Any:
    """A form that audio comes in, with values in it that do not belong there."""
    clip = make_clip(0.1)
    values = [*ODD_VALUES, clip, clip.tolist(), SAMPLING_RATE]
    first, second = rng.choice(values), rng.choice(values)
    key = rng.choice(("array", "bytes", "path", "url", "sampling_rate", "other"))
    return rng.choice(
        [(first, second), [first, second], {"array": first, "sampling_rate": second}, {key: first}, first]
    )


def check_odd(seeds: range) -> None:
    extractor = SalmonnFeatureExtractor()
    for seed in seeds:
        rng = random.Random(seed)
        check_clip(odd_audio(rng), extractor, sampling_rate=rng.choice([None, 8000, 44100.0, rng.choice(ODD_VALUES)]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_audio_is_read_or_refused_by_name() -> None:
    check_damaged(FEW)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_much_damaged_audio_is_read_or_refused_by_name() -> None:
    check_damaged(MANY)


def test_odd_audio_is_read_or_refused_by_name() -> None:
    check_odd(FEW)


@pytest.mark.slow
def test_much_odd_audio_is_read_or_refused_by_name() -> None:
    check_odd(MANY)
