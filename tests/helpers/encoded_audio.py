"""Encoded audio in memory, and files as programs leave them: cut, joined, written to a pipe, with a wrong header."""

import io
import struct

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip


def encode(
    seconds: float,
    container: str = "WAV",
    subtype: str = "PCM_16",
    rate: int = SAMPLING_RATE,
    channels: int = 1,
    seed: int = 0,
) -> bytes:
    if container not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {container}")
    clip = make_clip(seconds, rate=rate, seed=seed)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([clip] * channels, axis=1), rate, format=container, subtype=subtype)
    return buffer.getvalue()


def encode_mp3(seconds: float, rate: int = SAMPLING_RATE, channels: int = 1, seed: int = 0) -> bytes:
    return encode(seconds, "MP3", "MPEG_LAYER_III", rate, channels, seed)


def with_field(content: bytes, offset: int, value: bytes) -> bytes:
    return content[:offset] + value + content[offset + len(value) :]


def with_wav_size(content: bytes, size: int) -> bytes:
    """A WAV whose header states this size of its data, and of the whole."""
    offset = content.index(b"data") + 4
    return with_field(with_field(content, 4, struct.pack("<I", size)), offset, struct.pack("<I", size))


def with_unknown_flac_length(content: bytes) -> bytes:
    """A FLAC as it is written to a pipe: without its number of samples."""
    low_bits = 18 + 3  # the 36 bits end the 8 bytes from 18 on, of STREAMINFO
    return with_field(content, low_bits, bytes([content[low_bits] & 0xF0]) + bytes(4))


def info_tag(mp3: bytes) -> int:
    """Offset of the info tag in the first frame."""
    found = [mp3.find(mark) for mark in (b"Xing", b"Info")]
    return min(offset for offset in found if offset >= 0)


def with_mp3_count(mp3: bytes, count: int) -> bytes:
    return with_field(mp3, info_tag(mp3) + 8, struct.pack(">I", count))


def mp3_count(mp3: bytes) -> int:
    return struct.unpack(">I", mp3[info_tag(mp3) + 8 :][:4])[0]


def without_info_frame(mp3: bytes) -> bytes:
    """The frames with sound alone."""
    second = mp3.index(mp3[:2], info_tag(mp3))
    return mp3[second:]


def id3v2(size: int) -> bytes:
    """A tag in front, such as one with a cover picture, in which bytes look like those of frames."""
    content = (b"\xff\xfb\x90\x00" * (size // 4 + 1))[:size]
    return b"ID3\x03\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + content


def ape_tag(size: int) -> bytes:
    head = b"APETAGEX" + struct.pack("<III", 2000, size + 32, 1)
    return (
        head + struct.pack("<I", 0xA0000000) + bytes(8) + b"x" * size + head + struct.pack("<I", 0x80000000) + bytes(8)
    )


ID3V1 = b"TAG" + b"x" * 125
