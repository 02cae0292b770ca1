"""Lengths of encoded audio: all that is there is read, whatever the header says, and what is missing is told."""

import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, SHARED, make_clip
from encoded_audio import (
    ID3V1,
    ape_tag,
    encode,
    encode_mp3,
    id3v2,
    mp3_count,
    with_field,
    with_mp3_count,
    with_unknown_flac_length,
    with_wav_size,
    without_info_frame,
)

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.processing.audio_io_salmonn import AudioAccess, audio_seconds, load_mono


CASES = {
    "vbr_noxing_quiet_first.mp3": 60.1,
    "abr_pipe.mp3": 60.1,
    "mp3_cat.mp3": 60.0,
    "whole_mp3.mp3": 30.0,
    "opus_cat.ogg": 4.0,
    "flac_cat.flac": 4.0,
    "av_flac_pipe.flac": 2.0,
    "size_zero.wav": 2.0,
    "trunc_wav.wav": 15.0,
    "trunc_ogg.ogg": 14.5,
}
RIFF_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)
LOSSLESS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")


def seconds_of(content: bytes) -> float:
    """Length that is read, which the planned one must equal."""
    read = len(load_mono(content, SAMPLING_RATE)) / SAMPLING_RATE
    assert audio_seconds(content) == pytest.approx(read, abs=2 / SAMPLING_RATE)
    return read


@pytest.mark.parametrize("name", CASES)
def test_all_of_a_file_is_read(name: str) -> None:
    path = SHARED / "cases" / "audio" / name
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    assert seconds_of(path.read_bytes()) == pytest.approx(CASES[name], abs=0.06)
    assert audio_seconds(str(path)) == pytest.approx(CASES[name], abs=0.06)


def test_loud_end_of_an_mp3_that_starts_quietly_is_read() -> None:
    path = SHARED / "cases" / "audio" / "vbr_noxing_quiet_first.mp3"
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine")
    samples = load_mono(path, SAMPLING_RATE)
    assert np.abs(samples[-10 * SAMPLING_RATE :]).max() > 10 * np.abs(samples[: 30 * SAMPLING_RATE]).max()


@pytest.mark.parametrize("size", RIFF_SIZES)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_of_unknown_size_is_read_to_its_end(size: int, subtype: str, caplog: pytest.LogCaptureFixture) -> None:
    content = encode(1.3, "WAV", subtype)
    assert np.array_equal(load_mono(with_wav_size(content, size), SAMPLING_RATE), load_mono(content, SAMPLING_RATE))
    assert audio_seconds(with_wav_size(content, size)) == 1.3
    assert not caplog.records


def test_wav_of_unknown_size_is_read_from_every_kind_of_file(tmp_path: Path) -> None:
    content = with_wav_size(encode(1.3), 0)
    path = tmp_path / "pipe.wav"
    path.write_bytes(content)
    for source in (path, str(path), content, io.BytesIO(content), {"bytes": content, "path": None}):
        assert len(load_mono(source, SAMPLING_RATE)) == 1.3 * SAMPLING_RATE


@pytest.mark.parametrize("size", [0, 2**64 - 1])
def test_rf64_of_unknown_size_is_read_to_its_end(size: int) -> None:
    content = encode(1.3, "RF64")
    assert content[12:16] == b"ds64"
    content = with_field(content, 28, size.to_bytes(8, "little"))
    content = with_field(content, content.index(b"data") + 4, b"\xff" * 4)
    assert seconds_of(content) == 1.3


@pytest.mark.parametrize("size", [-1, 4])
def test_caf_of_unknown_size_is_read_to_its_end(size: int) -> None:
    content = encode(1.3, "CAF")
    content = with_field(content, content.index(b"data") + 4, struct.pack(">q", size))
    assert seconds_of(content) == pytest.approx(1.3, abs=0.001)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_au_of_unknown_size_is_read_to_its_end(size: int) -> None:
    assert seconds_of(with_field(encode(1.3, "AU"), 8, struct.pack(">I", size))) == 1.3


@pytest.mark.parametrize("chunk", [b"", b"LIST\x04\0\0\0INFO", b"LIST\x04\0\0\0INFOid3 \x02\0\0\0xx"])
def test_wav_without_samples_stays_empty_whatever_follows(chunk: bytes) -> None:
    with pytest.raises(ValueError, match="is empty: it has no samples"):
        load_mono(encode(0.0) + chunk, SAMPLING_RATE)


def test_flac_of_unknown_length_is_read_to_its_end() -> None:
    content = encode(1.3, "FLAC")
    piped = with_unknown_flac_length(content)
    assert soundfile.info(io.BytesIO(piped)).frames > 2**60
    assert np.array_equal(load_mono(piped, SAMPLING_RATE), load_mono(content, SAMPLING_RATE))
    assert audio_seconds(piped) == 1.3


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("AIFF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")],
)
@pytest.mark.parametrize("between", [b"", b"\0" * 1000, bytes(range(256)) * 4])
def test_joined_streams_are_all_read(container: str, subtype: str, between: bytes) -> None:
    if container in ("WAV", "AIFF") and between:
        pytest.skip("what follows the chunks of such a file is no part of it")
    first, second, third = (encode(seconds, container, subtype, seed=int(seconds)) for seconds in (1.0, 2.0, 3.0))
    joined = load_mono(first + between + second + between + third, SAMPLING_RATE)
    parts = [load_mono(content, SAMPLING_RATE) for content in (first, second, third)]
    assert len(joined) == 6 * SAMPLING_RATE
    np.testing.assert_allclose(joined, np.concatenate(parts), atol=1e-4)
    assert audio_seconds(first + between + second + between + third) == 6.0


def test_joined_streams_of_unknown_length_are_all_read() -> None:
    assert seconds_of(2 * with_unknown_flac_length(encode(1.3, "FLAC"))) == 2.6


@pytest.mark.parametrize(("container", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_joined_streams_may_differ_in_rate_and_channels(container: str, subtype: str) -> None:
    rates = (16000, 44100, 24000)
    parts = [encode(1.0, container, subtype, rate, channels) for rate, channels in zip(rates, (1, 2, 1), strict=True)]
    samples = load_mono(b"".join(parts), SAMPLING_RATE)
    expected = np.concatenate([load_mono(part, SAMPLING_RATE) for part in parts])
    assert len(samples) == 3 * SAMPLING_RATE
    np.testing.assert_allclose(samples, expected, atol=1e-4)
    assert audio_seconds(b"".join(parts)) == pytest.approx(3.0)


def test_chain_of_different_codecs_is_read() -> None:
    chain = encode(1.0, "OGG", "VORBIS") + encode(1.0, "OGG", "OPUS", 48000)
    assert seconds_of(chain) == 2.0


def test_mp3_without_info_tag_is_read_to_its_end() -> None:
    quiet = (1e-4 * make_clip(20.0, rate=44100)).astype(np.float32)
    clip = np.concatenate([quiet, make_clip(10.0, rate=44100)])
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, 44100, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE")
    whole = buffer.getvalue()
    bare = without_info_frame(whole)
    estimate = soundfile.info(io.BytesIO(bare)).duration
    assert abs(estimate - 30) > 1
    samples = load_mono(bare, SAMPLING_RATE)
    assert 30 <= len(samples) / SAMPLING_RATE < 30.15  # the encoder fills its first and last frames
    assert np.abs(samples[-9 * SAMPLING_RATE :]).max() > 0.1
    assert audio_seconds(bare) == pytest.approx(len(samples) / SAMPLING_RATE, abs=1e-4)


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.9])
def test_mp3_whose_tag_counts_too_few_frames_is_read_to_its_end(factor: float) -> None:
    mp3 = encode_mp3(5.0, 44100, 2)
    low = with_mp3_count(mp3, int(factor * mp3_count(mp3)))
    assert seconds_of(low) == pytest.approx(5.0, abs=0.06)
    assert len(load_mono(mp3, SAMPLING_RATE)) == 5 * SAMPLING_RATE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", ID3V1),
        (id3v2(30_000), b""),
        (id3v2(100), ape_tag(300) + ID3V1),
        (id3v2(30) + id3v2(30), b"\0" * 5000),
        (b"", b"\xff" * 3000),
    ],
)
def test_tags_around_an_mp3_are_no_audio(before: bytes, after: bytes, caplog: pytest.LogCaptureFixture) -> None:
    mp3 = encode_mp3(2.0)
    samples = load_mono(before + mp3 + after, SAMPLING_RATE)
    np.testing.assert_allclose(samples, load_mono(mp3, SAMPLING_RATE), atol=1e-6)
    assert audio_seconds(before + mp3 + after) == 2.0
    assert not caplog.records


@pytest.mark.parametrize("container", [*LOSSLESS, "FLAC", "VOC", "NIST"])  # the last two have no streams to find
@pytest.mark.parametrize("tag", [id3v2(40_000), id3v2(100) + id3v2(30), ape_tag(300)], ids=["large", "two", "ape"])
def test_tag_before_other_kinds_costs_no_samples(container: str, tag: bytes, caplog: pytest.LogCaptureFixture) -> None:
    content = encode(2.0, container)
    assert np.array_equal(load_mono(tag + content, SAMPLING_RATE), load_mono(content, SAMPLING_RATE))
    assert audio_seconds(tag + content) == 2.0
    assert not caplog.records


def test_tag_before_joined_or_piped_wavs_costs_no_samples() -> None:
    first, second = encode(1.0), encode(2.0, seed=1)
    assert seconds_of(id3v2(40_000) + first + second) == 3.0
    assert seconds_of(id3v2(40_000) + with_wav_size(first, 0)) == 1.0


def test_file_that_is_cut_within_its_tag_raises() -> None:
    with pytest.raises(ValueError, match="audio cannot be decoded"):
        load_mono(id3v2(40_000)[:500], SAMPLING_RATE)


@pytest.mark.parametrize("between", [b"", ID3V1, id3v2(5000), ape_tag(50), bytes(3000), b"\xff\xfb\x90\x44" * 500])
def test_joined_mp3_streams_are_all_read(between: bytes) -> None:
    first, second = encode_mp3(2.0), encode_mp3(3.0, seed=1)
    assert seconds_of(first + between + second) == 5.0
    bare = without_info_frame(first) + between + without_info_frame(second)
    assert 5.0 <= seconds_of(bare) < 5.4


def test_flac_in_ogg_pages_is_read() -> None:
    flac = encode(1.3, "FLAC")
    page_start = struct.pack("<4sBBqIII", b"OggS", 0, 2, 0, 7, 0, 0)
    header = b"\x7fFLAC\x01\0\0\x01" + flac[:42]
    pages = page_start + bytes([1, len(header)]) + header
    rest = flac[42:]
    for start in range(0, len(rest), 255 * 200):
        part = rest[start : start + 255 * 200]
        lacing = [255] * (len(part) // 255) + ([len(part) % 255] if len(part) % 255 else [])
        is_last = start + len(part) == len(rest)
        pages += struct.pack("<4sBBqIII", b"OggS", 0, 4 if is_last else 0, 1, 7, 1, 0)
        pages += bytes([len(lacing), *lacing]) + part
    assert np.array_equal(load_mono(pages, SAMPLING_RATE), load_mono(flac, SAMPLING_RATE))


@pytest.mark.parametrize("container", LOSSLESS)
def test_cut_file_is_read_with_a_warning(container: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cut.bin"
    content = encode(4.0, container)
    path.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        samples = load_mono(path, SAMPLING_RATE)
    assert len(samples) / SAMPLING_RATE == pytest.approx(2.0, abs=0.07)  # some have headers of a few kilobytes
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert f"promises 4.00 s, {len(samples) / SAMPLING_RATE:.2f} s of them are there" in record.getMessage()
    assert audio_seconds(str(path)) == pytest.approx(len(samples) / SAMPLING_RATE, abs=0.01)


@pytest.mark.parametrize(
    ("container", "subtype", "rate"),
    [("FLAC", "PCM_16", 16000), ("MP3", "MPEG_LAYER_III", 44100), ("OGG", "VORBIS", 16000), ("OGG", "OPUS", 48000)],
)
def test_cut_compressed_file_is_read_with_a_warning(
    container: str, subtype: str, rate: int, caplog: pytest.LogCaptureFixture
) -> None:
    content = encode(10.0, container, subtype, rate)
    whole = load_mono(content, SAMPLING_RATE)
    with caplog.at_level(logging.WARNING):
        samples = load_mono(content[: len(content) // 2], SAMPLING_RATE, name="clip 7")
    assert 3.5 < len(samples) / SAMPLING_RATE < 6.5
    middle = slice(1000, 3 * SAMPLING_RATE)
    np.testing.assert_allclose(samples[middle], whole[middle], atol=1e-3)
    assert len(caplog.records) == 1
    assert audio_seconds(content[: len(content) // 2]) == pytest.approx(len(samples) / SAMPLING_RATE, abs=0.01)
    record = caplog.records[0]
    stated, found = (
        float(word) for word in record.getMessage().split() if word.replace(".", "").isdigit() and "." in word
    )
    assert record.getMessage().startswith("clip 7 ends early: its header promises")
    assert stated > found == pytest.approx(len(samples) / SAMPLING_RATE, abs=0.01)


def test_samples_behind_those_of_the_header_are_told(caplog: pytest.LogCaptureFixture) -> None:
    content = with_wav_size(encode(3), 2 * SAMPLING_RATE)
    with caplog.at_level(logging.WARNING):
        assert seconds_of(content) == 1.0
    assert "audio goes on for 64000 bytes behind the 1.00 s that its header promises" in caplog.text


def test_damaged_flac_keeps_what_is_before_the_damage(caplog: pytest.LogCaptureFixture) -> None:
    content = encode(20.0, "FLAC")
    middle = len(content) // 2
    with caplog.at_level(logging.WARNING):
        samples = load_mono(content[:middle], SAMPLING_RATE)
    whole = load_mono(content, SAMPLING_RATE)
    assert np.array_equal(samples, whole[: len(samples)])
    assert len(samples) % 4096 == 0  # every whole block of the encoder


def test_whole_files_are_read_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    kinds = [(container, "PCM_16") for container in (*LOSSLESS, "FLAC")]
    kinds += [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("WAV", "IMA_ADPCM"), ("AIFF", "FLOAT")]
    for container, subtype in kinds:
        assert seconds_of(encode(1.5, container, subtype)) == pytest.approx(1.5, abs=0.05), (container, subtype)
    assert not caplog.records


def encode_webm(seconds: float) -> bytes:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    buffer = io.BytesIO()
    clip = make_clip(seconds, rate=48000)[None]
    with av.open(buffer, "w", format="webm") as container:
        stream = container.add_stream("libopus", rate=48000, layout="mono")
        for start in range(0, clip.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clip[:, start : start + 960]), "fltp", "mono")
            frame.sample_rate, frame.pts = 48000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_length_of_what_libsndfile_cannot_decode_is_known() -> None:
    webm = encode_webm(3.0)
    assert audio_seconds(webm) == pytest.approx(3.0, abs=0.05)
    assert len(load_mono(webm, SAMPLING_RATE)) / SAMPLING_RATE == pytest.approx(3.0, abs=0.05)


def test_cut_webm_is_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    webm = encode_webm(6.0)
    samples = load_mono(webm[: len(webm) // 2], SAMPLING_RATE, name="clip 3")
    assert 2 < len(samples) / SAMPLING_RATE < 4
    assert any("clip 3 ends early: its header promises 6." in record.getMessage() for record in caplog.records)


def test_too_long_webm_is_refused_by_its_header() -> None:
    with pytest.raises(ValueError, match=r"^audio lasts 6\.\d s, more than max_audio_seconds 2; cut it"):
        load_mono(encode_webm(6.0), SAMPLING_RATE, access=AudioAccess(max_seconds=2))


def test_stream_that_cannot_be_decoded_behind_another_is_told(caplog: pytest.LogCaptureFixture) -> None:
    first, second = encode(1.0, "OGG", "VORBIS"), encode(1.0, "OGG", "VORBIS", seed=1)
    assert len(load_mono(first + second[:60], SAMPLING_RATE)) == SAMPLING_RATE
    (record,) = caplog.records
    assert record.getMessage().startswith("audio goes on after 1.00 s, but that cannot be decoded: ")


def test_length_is_known_without_decoding_where_a_clip_tells_it(tmp_path: Path, processor: SalmonnProcessor) -> None:
    measure = processor.feature_extractor.audio_seconds
    samples = make_clip(1.3)
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples, SAMPLING_RATE)
    assert measure(str(path)) == measure(path.read_bytes()) == measure({"path": str(path), "bytes": None}) == 1.3
    assert measure(samples) == measure(torch.from_numpy(samples)) == measure((samples, SAMPLING_RATE)) == 1.3
    assert measure(samples, sampling_rate=8000) == 2.6
    stereo = {"array": np.stack([samples, samples]), "sampling_rate": 32000}
    assert measure(stereo) == 0.65
    clip = {"type": "audio", "audio": samples, "sampling_rate": 8000}
    assert processor.audio_seconds([{"role": "user", "content": [clip, clip, {"type": "text", "text": "?"}]}]) == 5.2


def test_length_of_what_would_be_fetched_or_may_not_be_read_is_not_known(
    tmp_path: Path, processor: SalmonnProcessor
) -> None:
    measure = processor.feature_extractor.audio_seconds
    path = tmp_path / "clip.wav"
    soundfile.write(path, make_clip(1.3), SAMPLING_RATE)
    assert measure(str(path), allow_paths=False) is None
    assert measure(str(tmp_path / "absent.wav")) is None
    assert measure("http://127.0.0.1:9/clip.wav") is None
    with path.open("rb") as file:
        assert measure(file) is None
        assert file.tell() == 0
    audio = {"type": "audio", "url": "http://127.0.0.1:9/clip.wav"}
    assert processor.audio_seconds([{"role": "user", "content": [audio]}]) is None
