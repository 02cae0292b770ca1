"""Forms of audio that people have at hand, and those that are mistakes: the right samples, or what to give instead."""

import base64
import io
import tempfile
from array import array
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, make_clip
from encoded_audio import encode, id3v2, with_field, with_unknown_flac_length

from modeling_salmonn import SalmonnFeatureExtractor, SalmonnProcessor
from modeling_salmonn.processing.audio_io_salmonn import audio_seconds, load_mono


RATE = 8000


@pytest.fixture(scope="module")
def extractor() -> SalmonnFeatureExtractor:
    return SalmonnFeatureExtractor(segment_seconds=[2, 5, 10, 30])


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return make_clip(0.5, rate=RATE)


@pytest.fixture(scope="module")
def expected(clip: np.ndarray) -> np.ndarray:
    return load_mono(clip, SAMPLING_RATE, RATE)


def as_samples(loaded: Any) -> np.ndarray:
    return loaded.numpy() if isinstance(loaded, torch.Tensor) else loaded


RATED: dict[str, Callable[[np.ndarray], Any]] = {
    "gradio": lambda clip: (RATE, clip),
    "librosa": lambda clip: (clip, RATE),
    "librosa_float_rate": lambda clip: (clip, float(RATE)),
    "numpy_rate": lambda clip: (np.int64(RATE), clip),
    "torchaudio": lambda clip: (torch.from_numpy(clip)[None], RATE),
    "list": lambda clip: [RATE, clip],
    "list_other_order": lambda clip: [clip, RATE],
    "numbers": lambda clip: (RATE, clip.tolist()),
    "samples_of_torchcodec": lambda clip: SimpleNamespace(data=torch.from_numpy(clip)[None], sample_rate=RATE),
}


@pytest.mark.parametrize("kind", RATED)
def test_samples_with_their_rate_are_one_clip(
    kind: str, extractor: SalmonnFeatureExtractor, clip: np.ndarray, expected: np.ndarray
) -> None:
    pair = RATED[kind](clip)
    np.testing.assert_allclose(as_samples(extractor.fetch_audio(pair)), expected, atol=1e-6)
    np.testing.assert_allclose(as_samples(extractor.fetch_audio(pair, sampling_rate=44100)), expected, atol=1e-6)
    two = extractor.fetch_audio([pair, pair])
    assert len(two) == 2
    np.testing.assert_allclose(as_samples(two[1]), expected, atol=1e-6)
    assert extractor(pair)["input_features"].shape[0] == 1


def test_gradio_samples_of_16_bits_in_stereo_are_scaled(clip: np.ndarray, expected: np.ndarray) -> None:
    stereo = np.round(np.stack([clip, clip], axis=1) * 32767).astype(np.int16)
    np.testing.assert_allclose(load_mono((RATE, stereo), SAMPLING_RATE), expected, atol=1e-4)


def test_segment_of_pydub_is_read(clip: np.ndarray, expected: np.ndarray) -> None:
    stereo = np.repeat(np.round(clip * 32767).astype(np.int16), 2)
    segment = SimpleNamespace(get_array_of_samples=lambda: array("h", stereo.tolist()), frame_rate=RATE, channels=2)
    np.testing.assert_allclose(load_mono(segment, SAMPLING_RATE), expected, atol=1e-4)


def opened_temporary(path: Path) -> Any:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115
    file.write(path.read_bytes())
    return file


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def lines_of(path: Path) -> str:
    return base64.encodebytes(path.read_bytes()).decode()


ENCODED: dict[str, Callable[[Path], Any]] = {
    "open_file": lambda path: path.open("rb"),
    "unbuffered_file": lambda path: path.open("rb", buffering=0),
    "bytes_io": lambda path: io.BytesIO(path.read_bytes()),
    "temporary_file": opened_temporary,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file_uri": Path.as_uri,
    "data_uri": lambda path: f"data:audio/wav;base64,{base64_of(path)}",
    "data_uri_upper_case": lambda path: f"DATA:audio/x-wav;codecs=1;BASE64,{base64_of(path)}",
    "data_uri_without_type": lambda path: f"data:;base64,{base64_of(path).rstrip('=')}",
    "data_uri_quoted": lambda path: f"data:audio/wav,{quote(path.read_bytes())}",
    "base64": base64_of,
    "base64_lines": lines_of,
    "base64_url_safe": lambda path: base64.urlsafe_b64encode(path.read_bytes()).decode().rstrip("="),
    "dict_url_data": lambda path: {"url": f"data:audio/wav;base64,{base64_of(path)}"},
    "dict_bytearray": lambda path: {"bytes": bytearray(path.read_bytes())},
}


@pytest.mark.parametrize("kind", ENCODED)
def test_encoded_audio_is_read_in_every_form(kind: str, extractor: SalmonnFeatureExtractor, wav_file: Path) -> None:
    samples = soundfile.read(wav_file, dtype="float32")[0]
    source = ENCODED[kind](wav_file)
    for _ in range(2):  # what is open can be read again
        assert np.array_equal(extractor.fetch_audio(source), samples)


class PlainFile:
    """A file that does not say whether it can be sought, as those that Python 3.10 spools."""

    def __init__(self) -> None:
        self.content = io.BytesIO()
        self.read, self.write = self.content.read, self.content.write
        self.seek, self.tell = self.content.seek, self.content.tell
        self.close = self.content.close

    @property
    def closed(self) -> bool:
        return self.content.closed


OPENED: dict[str, Callable[[], Any]] = {
    "bytes_io": io.BytesIO,
    "temporary": tempfile.TemporaryFile,
    "named_temporary": tempfile.NamedTemporaryFile,
    "spooled": tempfile.SpooledTemporaryFile,  # as what is uploaded to FastAPI
    "rolled_over": partial(tempfile.SpooledTemporaryFile, 1000),
    "unbuffered": partial(tempfile.TemporaryFile, buffering=0),
    "plain": PlainFile,
}


@pytest.mark.parametrize("kind", OPENED)
@pytest.mark.parametrize("position", [0, 100, None])
def test_open_file_is_read_from_its_start_and_left_where_it_was(
    kind: str, position: int | None, wav_file: Path
) -> None:
    with closing(OPENED[kind]()) as file:
        file.write(wav_file.read_bytes())
        if position is not None:  # else at its end, as after writing
            file.seek(position)
        before = file.tell()
        assert len(load_mono(file, SAMPLING_RATE)) == 24000
        assert file.tell() == before
        assert not file.closed


def test_open_file_that_is_no_audio_is_left_where_it_was() -> None:
    with tempfile.SpooledTemporaryFile() as file:
        file.write(b"These are words.")
        file.seek(6)
        with pytest.raises(ValueError, match="cannot be decoded"):
            load_mono(file, SAMPLING_RATE)
        assert file.read() == b"are words."


def test_file_that_cannot_be_sought_is_read(wav_file: Path) -> None:
    class Body:
        """Such as the body of an answer of a server."""

        def __init__(self) -> None:
            self.file = wav_file.open("rb")

        def read(self, size: int = -1) -> bytes:
            return self.file.read(size)

    assert len(load_mono(Body(), SAMPLING_RATE)) == 24000


def test_file_open_as_text_raises(wav_file: Path) -> None:
    with (
        wav_file.open(encoding="latin-1") as file,
        pytest.raises(ValueError, match=r"open as text; open it with 'rb'"),
    ):
        load_mono(file, SAMPLING_RATE)


def test_existing_path_comes_before_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = base64.b64encode(encode(0.01)[:120]).decode()
    assert "/" not in text
    Path(text).write_bytes(encode(1.0))
    assert len(load_mono(text, SAMPLING_RATE)) == SAMPLING_RATE


@pytest.mark.parametrize("name", ["a" * 100, "folder/" * 20 + "clip", "YWJj" * 30, "x" * 5000, "\0.wav"])
def test_text_that_is_neither_path_nor_audio_raises(name: str) -> None:
    with pytest.raises(ValueError, match=r"There is no audio file .{0,121}$"):
        load_mono(name, SAMPLING_RATE)


@pytest.mark.parametrize("uri", ["data:audio/wav;base64,%%%", "data:audio/wav;base64,AAAAA", "data:audio/wav;base64"])
def test_damaged_data_uri_raises(uri: str) -> None:
    with pytest.raises(ValueError, match=r"audio is a data: URI (whose base64 is damaged|without a comma)"):
        load_mono(uri, SAMPLING_RATE)


@pytest.mark.parametrize("audio", [object(), {1, 2}, [[1.0], [1.0, 2.0]], np.array([None]), np.array(["a"]), 3 + 4j])
def test_what_is_no_audio_raises(audio: Any) -> None:
    with pytest.raises(ValueError, match=r"audio (has the (dtype|shape)|is of the type) .*; give"):
        load_mono(audio, SAMPLING_RATE)


def test_dict_inside_a_dict_raises() -> None:
    nested: Any = np.zeros(100, np.float32)
    for _ in range(2000):
        nested = {"array": nested}
    with pytest.raises(ValueError, match=r"audio has the shape"):
        load_mono(nested, SAMPLING_RATE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_low_precision_samples_are_read(dtype: torch.dtype) -> None:
    loaded = load_mono(torch.tensor([0.5, -0.25, 1.5], dtype=dtype), SAMPLING_RATE)
    assert loaded.dtype == torch.float32
    assert loaded.tolist() == [0.5, -0.25, 1.5]


WRONG_RATES = [
    float("nan"),
    float("inf"),
    -float("inf"),
    0,
    -1,
    1,
    999,
    10**9,
    2**63,
    10**400,
    44100.5,
    "16000",
    True,
    [16000],
]


@pytest.mark.parametrize("rate", WRONG_RATES, ids=lambda rate: f"{rate}"[:9])
def test_rate_that_audio_cannot_have_raises(rate: Any, extractor: SalmonnFeatureExtractor) -> None:
    samples = make_clip(1.0)
    forms: list[Any] = [{"array": samples, "sampling_rate": rate}, SimpleNamespace(data=samples, sample_rate=rate)]
    forms += [(samples, rate)] if isinstance(rate, (int, float)) and not isinstance(rate, bool) else []
    for form in forms:
        with pytest.raises(ValueError, match=r"audio has a sampling rate of .*; (give|audio has one between)"):
            extractor.fetch_audio(form)
    with pytest.raises(ValueError, match=r"audio has a sampling rate of"):
        extractor(samples, sampling_rate=rate)


@pytest.mark.parametrize("rate", [44100.0, np.float64(44100), np.int32(44100)])
def test_rate_may_be_any_whole_number(rate: Any) -> None:
    assert len(load_mono(make_clip(1.0, rate=44100), SAMPLING_RATE, rate)) == SAMPLING_RATE


@pytest.mark.parametrize("kind", [np.broadcast_to, torch.broadcast_to])
def test_more_channels_than_any_recording_raise_unread(kind: Any, extractor: SalmonnFeatureExtractor) -> None:
    zero = np.zeros(1, np.float32) if kind is np.broadcast_to else torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"audio has 1048576 channels by its shape \(1048576, 1048576\), more than 1024"
    ):
        extractor.fetch_audio(kind(zero, (2**20, 2**20)), sampling_rate=SAMPLING_RATE)


def test_file_of_the_system_that_has_no_end_raises(extractor: SalmonnFeatureExtractor) -> None:
    with open("/proc/self/maps", "rb") as file, pytest.raises(ValueError, match="/proc/self/maps cannot be read"):
        extractor.fetch_audio(file)


@pytest.mark.parametrize("rate", [0, 1, 2**31 - 1])
def test_file_with_an_impossible_rate_raises(rate: int) -> None:
    content = with_field(encode(1.0), 24, rate.to_bytes(4, "little"))
    with pytest.raises(ValueError, match=r"audio (has a sampling rate of|cannot be decoded)"):
        load_mono(content, SAMPLING_RATE)


@pytest.mark.parametrize("channels", [0, 2**16 - 1])
def test_file_with_an_impossible_number_of_channels_raises(channels: int) -> None:
    content = with_field(encode(1.0), 22, channels.to_bytes(2, "little"))
    with pytest.raises(ValueError, match=r"audio cannot be decoded"):
        load_mono(content, SAMPLING_RATE)


@pytest.mark.parametrize("scale", [32768.0, 2.0**31, 100.0, 1e30])
def test_floats_that_are_not_scaled_raise(scale: float) -> None:
    clip = make_clip(0.3)
    for samples in (
        clip * np.float32(scale),
        torch.from_numpy(clip) * scale,
        (clip.astype(np.float64) * scale).tolist(),
    ):
        with pytest.raises(ValueError, match=r"audio has float samples up to .*\[-1, 1\].*Divide them"):
            load_mono(samples, SAMPLING_RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, clip * np.float32(scale), SAMPLING_RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match=r"loud\.wav has float samples up to"):
        load_mono({"bytes": buffer.getvalue(), "path": "loud.wav"}, SAMPLING_RATE)


@pytest.mark.parametrize("peak", [1.0, 1.3, 2.0, 4.0])
def test_floats_somewhat_above_full_scale_are_read(peak: float) -> None:
    samples = make_clip(0.3)
    samples *= np.float32(peak) / np.abs(samples).max()
    assert np.array_equal(load_mono(samples, SAMPLING_RATE), samples)


def test_integers_of_32_bits_that_hold_16_are_told(caplog: pytest.LogCaptureFixture) -> None:
    samples = (make_clip(0.3) * 32767).astype(np.int32)
    load_mono(samples << 16, SAMPLING_RATE)
    assert not caplog.records
    load_mono(samples, SAMPLING_RATE)
    (record,) = caplog.records
    assert "audio has int32 samples that fit into 16 bits" in record.getMessage()


def test_too_long_file_is_refused_by_its_header() -> None:
    content = encode(2.0, "FLAC")
    claims_hours = with_field(content, 22, (2**32 - 1).to_bytes(4, "big"))  # 74 hours
    for limit in (1.0, None):
        extractor = SalmonnFeatureExtractor(max_audio_seconds=limit)
        with pytest.raises(ValueError, match=r"audio lasts 268435\.\d s, more than max_audio_seconds"):
            extractor.fetch_audio(claims_hours)


def test_too_long_file_of_unknown_length_is_refused_on_the_way() -> None:
    content = with_unknown_flac_length(encode(60.0, "FLAC"))
    with pytest.raises(ValueError, match=r"audio lasts \d+\.\d s, more than max_audio_seconds 2; cut it"):
        SalmonnFeatureExtractor(max_audio_seconds=2).fetch_audio(content)


def test_joined_streams_are_too_long_together() -> None:
    content = encode(1.5, "FLAC")
    extractor = SalmonnFeatureExtractor(max_audio_seconds=2)
    assert len(extractor.fetch_audio(content)) == 24000
    with pytest.raises(ValueError, match=r"audio lasts 3\.0 s, more than max_audio_seconds 2; cut it"):
        extractor.fetch_audio(2 * content)


@pytest.mark.parametrize("content", [b"", b"RIFF", bytes(1000), b"OggS" * 100, b"fLaC" * 100, b"\xff\xfb\x90\x00" * 9])
def test_length_of_what_cannot_be_decoded_is_unknown(content: bytes) -> None:
    assert audio_seconds(content) is None


def test_playlist_is_not_given_to_decoders_that_would_follow_it(wav_file: Path) -> None:
    for text in (f"#EXTM3U\n#EXTINF:1,\n{wav_file}\n", f"ffconcat version 1.0\nfile '{wav_file}'\n"):
        with pytest.raises(ValueError, match=r"audio cannot be decoded"):
            load_mono(text.encode(), SAMPLING_RATE)


@pytest.mark.parametrize("frames", [10**9, 2**40, -1, float("nan"), True, [5, 10**9]])
def test_processor_refuses_impossible_lengths_of_encoded_clips(
    bucket_processor: SalmonnProcessor, frames: Any
) -> None:
    with pytest.raises(ValueError, match=r"A clip's length must be"):
        bucket_processor(text="What do you hear?", audio_frames=frames)


def test_processor_reads_a_pair_of_rate_and_samples(bucket_processor: SalmonnProcessor, clip: np.ndarray) -> None:
    pair = bucket_processor(text="What do you hear?", audio=(RATE, clip))
    bare = bucket_processor(text="What do you hear?", audio=clip, sampling_rate=RATE)
    assert torch.equal(pair["input_ids"], bare["input_ids"])
    assert torch.equal(pair["input_features"], bare["input_features"])


def test_processor_obeys_its_extractor_in_chats(bucket_processor: SalmonnProcessor, wav_file: Path) -> None:
    strict = SalmonnProcessor(
        SalmonnFeatureExtractor(allow_paths=False, allow_urls=False), deepcopy(bucket_processor.tokenizer)
    )
    text = {"type": "text", "text": "What do you hear?"}
    for part in ({"audio": str(wav_file)}, {"path": str(wav_file)}, {"url": wav_file.as_uri()}, {"url": "http://a/b"}):
        chat = [{"role": "user", "content": [{"type": "audio", **part}, text]}]
        with pytest.raises(ValueError, match=r"allow_(paths|urls) is False"):
            strict.apply_chat_template(chat, tokenize=True, return_dict=True)
    for audio in (str(wav_file), {"path": str(wav_file)}, [str(wav_file)], [{"url": "http://a/b"}]):
        with pytest.raises(ValueError, match=r"allow_(paths|urls) is False"):
            strict(text="What do you hear?", audio=audio)


def test_file_of_nothing_but_marks_is_refused_soon() -> None:
    page = b"OggS\0\2" + bytes(20) + b"\1\1x" + b"OggS\0\0" + bytes(20) + b"\1\1x"
    for content in (b"fLaC\0\0\0\x22" * 200_000, page * 20_000, encode(0.01) * 20_000):
        with pytest.raises(ValueError, match=r"audio consists of more than 10000 joined streams; cut it into clips"):
            load_mono(content, SAMPLING_RATE)
    with pytest.raises(ValueError, match=r"audio cannot be decoded"):
        load_mono(id3v2(30) + b"\xff\xfb\x90\x01\xff" * 400_000, SAMPLING_RATE)
