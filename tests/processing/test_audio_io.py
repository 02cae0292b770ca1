"""Reading audio: every kind of input gives the same samples, and every unusable one says what to do."""

import io
import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn.processing.audio_io_salmonn import Recording, load_mono, read_recording


TONE_HZ = 440
RATES = (8000, 11025, 22050, 44100, 48000)


class Decoder:
    """Has the interface of the decoder that `datasets` gives where torchcodec is installed."""

    def __init__(self, samples: torch.Tensor, sample_rate: int):
        self.samples = samples
        self.sample_rate = sample_rate

    def get_all_samples(self) -> SimpleNamespace:
        return SimpleNamespace(data=self.samples, sample_rate=self.sample_rate)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and each of its files once more from behind a redirect."""

    def do_GET(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server(wav_file: Path) -> Iterator[str]:
    """URL of a web server on this machine with the folder of `wav_file`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(wav_file.parent))) as http:
        thread = Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("NO_PROXY", "127.0.0.1")
            yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def samples(wav_file: Path) -> np.ndarray:
    return soundfile.read(wav_file, dtype="float32")[0]


def pcm(path: Path, dtype: str = "int16") -> np.ndarray:
    return soundfile.read(path, dtype=dtype)[0]


def make_tone(seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def make_channels(count: int, samples: int = 800) -> np.ndarray:
    """Samples `(samples, channels)`, each channel a clip of its own."""
    return np.stack([make_clip(samples / SAMPLING_RATE, seed=seed) for seed in range(count)], axis=1)


def encode(samples: np.ndarray, rate: int = SAMPLING_RATE, container: str = "WAV", subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def encode_mp4(samples: np.ndarray, rate: int, codec: str = "aac") -> bytes:
    """Samples `(samples, channels)` as an MP4 file, which libsndfile cannot read."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        for start in range(0, len(samples), 1024):
            planes = np.ascontiguousarray(samples[start : start + 1024].T)
            frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def assert_tone(samples: np.ndarray, seconds: float = 1.0, amplitude: float = 0.5, tolerance: float = 0.01) -> None:
    """One second from the start is the tone of `make_tone`, at 16 kHz."""
    assert samples.ndim == 1
    assert samples.dtype == np.float32
    assert abs(len(samples) - seconds * SAMPLING_RATE) <= 1
    spectrum = np.abs(np.fft.rfft(samples[:SAMPLING_RATE])) / (SAMPLING_RATE / 2)
    assert spectrum.argmax() == TONE_HZ
    assert spectrum[TONE_HZ] == pytest.approx(amplitude, abs=tolerance)


FILE_SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "path_string": str,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "float32": lambda path: pcm(path, "float32"),
    "float64": lambda path: pcm(path, "float64"),
    "int16": pcm,
    "int32": lambda path: pcm(path, "int32"),
    "strided": lambda path: np.repeat(pcm(path), 2)[::2],
    "big_endian": lambda path: pcm(path).astype(">i2"),
    "column": lambda path: pcm(path)[:, None],
    "row": lambda path: pcm(path)[None],
    "tensor": lambda path: torch.from_numpy(pcm(path, "float32")),
    "tensor_float64": lambda path: torch.from_numpy(pcm(path, "float64")),
    "tensor_int16": lambda path: torch.from_numpy(pcm(path)),
    "tensor_int32": lambda path: torch.from_numpy(pcm(path, "int32")),
    "tensor_row": lambda path: torch.from_numpy(pcm(path))[None],
    "tensor_with_gradient": lambda path: torch.from_numpy(pcm(path, "float32")).requires_grad_(),
    "numbers": lambda path: pcm(path, "float32").tolist(),
    "tuple_of_numpy_numbers": lambda path: tuple(pcm(path, "float32")),
    "decoder": lambda path: Decoder(torch.from_numpy(pcm(path, "float32"))[None], SAMPLING_RATE),
    "dict_array": lambda path: {"array": pcm(path, "float32"), "sampling_rate": SAMPLING_RATE, "path": None},
    "dict_array_without_rate": lambda path: {"array": pcm(path, "float32")},
    "dict_tensor": lambda path: {"array": torch.from_numpy(pcm(path)), "sampling_rate": SAMPLING_RATE},
    "dict_numbers": lambda path: {"array": pcm(path, "float32").tolist(), "sampling_rate": SAMPLING_RATE},
    "dict_bytes": lambda path: {"bytes": path.read_bytes(), "path": "unknown.wav"},
    "dict_path": lambda path: {"bytes": None, "path": str(path)},
    "dict_pathlib": lambda path: {"path": path},
}


@pytest.mark.parametrize("kind", FILE_SOURCES)
def test_load_mono_gives_the_same_samples_for_every_kind(kind: str, wav_file: Path, samples: np.ndarray) -> None:
    loaded = load_mono(FILE_SOURCES[kind](wav_file), SAMPLING_RATE)
    is_tensor = "tensor" in kind
    assert isinstance(loaded, torch.Tensor if is_tensor else np.ndarray)
    assert loaded.dtype == (torch.float32 if is_tensor else np.float32)
    assert np.array_equal(loaded.detach().numpy() if is_tensor else loaded, samples)


@pytest.mark.parametrize("kind", FILE_SOURCES)
def test_load_mono_resamples_every_kind_alike(kind: str, wav_file: Path) -> None:
    loaded = load_mono(FILE_SOURCES[kind](wav_file), 8000, SAMPLING_RATE)
    loaded = loaded.detach().numpy() if isinstance(loaded, torch.Tensor) else loaded
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, load_mono(wav_file, 8000), atol=1e-6)
    assert len(loaded) == 12000


def test_load_mono_expands_the_home_folder(
    wav_file: Path, samples: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(wav_file.parent))
    assert np.array_equal(load_mono(f"~/{wav_file.name}", SAMPLING_RATE), samples)


@pytest.mark.parametrize("folder", ["", "/moved"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_load_mono_downloads_a_url(
    server: str, wav_file: Path, samples: np.ndarray, folder: str, as_dict: bool
) -> None:
    url = f"{server}{folder}/{wav_file.name}"
    assert np.array_equal(load_mono({"url": url} if as_dict else url, SAMPLING_RATE), samples)


def test_load_mono_takes_a_dataset_column_of_files(wav_file: Path, samples: np.ndarray) -> None:
    column = datasets.Dataset.from_dict({"audio": [str(wav_file)]})
    value = column.cast_column("audio", datasets.Audio(decode=False))[0]["audio"]
    assert np.array_equal(load_mono(value, SAMPLING_RATE), samples)


def test_load_mono_takes_a_dataset_column_of_bytes(wav_file: Path, samples: np.ndarray) -> None:
    column = datasets.Dataset.from_dict({"audio": [{"bytes": wav_file.read_bytes(), "path": None}]})
    value = column.cast_column("audio", datasets.Audio(decode=False))[0]["audio"]
    assert np.array_equal(load_mono(value, SAMPLING_RATE), samples)


@pytest.mark.skipif(not datasets.config.TORCHCODEC_AVAILABLE, reason="torchcodec is not installed")
def test_load_mono_takes_a_decoded_dataset_column(wav_file: Path, samples: np.ndarray) -> None:
    column = datasets.Dataset.from_dict({"audio": [str(wav_file)]}).cast_column("audio", datasets.Audio())
    np.testing.assert_allclose(load_mono(column[0]["audio"], SAMPLING_RATE), samples, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 128, 192, 255], np.uint8), [-1, 0, 0.5, 127 / 128]),
        (np.array([-128, 0, 64, 127], np.int8), [-1, 0, 0.5, 127 / 128]),
        (np.array([-32768, 0, 16384, 32767], np.int16), [-1, 0, 0.5, 32767 / 32768]),
        (np.array([-(2**31), 0, 2**30], np.int32), [-1, 0, 0.5]),
        (np.array([-1.5, 0, 2], np.float16), [-1.5, 0, 2]),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_load_mono_scales_integers_to_one(values: np.ndarray, expected: list[float]) -> None:
    expected_samples = np.array(expected, np.float32)
    assert np.array_equal(load_mono(values, SAMPLING_RATE), expected_samples)
    assert np.array_equal(load_mono(torch.from_numpy(values), SAMPLING_RATE).numpy(), expected_samples)


def test_load_mono_leaves_its_input_as_it_was() -> None:
    stereo = make_channels(2)
    before = stereo.copy()
    load_mono(stereo, SAMPLING_RATE, 8000)
    assert np.array_equal(stereo, before)


@pytest.mark.parametrize("rate", RATES)
def test_load_mono_resamples_samples(rate: int) -> None:
    tone = make_tone(1.0, rate)
    loaded = load_mono(tone, SAMPLING_RATE, rate)
    assert len(loaded) == SAMPLING_RATE
    middle = slice(1600, -1600)  # the filter rings at both ends
    np.testing.assert_allclose(loaded[middle], make_tone(1.0, SAMPLING_RATE)[middle], atol=1e-3)
    tensor = load_mono(torch.from_numpy(tone), SAMPLING_RATE, rate)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), loaded)


@pytest.mark.parametrize("rate", RATES)
def test_load_mono_resamples_a_file_from_its_own_rate(rate: int) -> None:
    tone = make_tone(1.0, rate)
    loaded = load_mono(encode(tone, rate), SAMPLING_RATE, sampling_rate=12345)
    assert np.array_equal(loaded, load_mono(tone, SAMPLING_RATE, rate))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("count", [100, 1001, 7777])
def test_load_mono_resampled_length_is_right(rate: int, count: int) -> None:
    clip = make_clip(1.0, rate)[:count]
    assert abs(len(load_mono(clip, SAMPLING_RATE, rate)) - count * SAMPLING_RATE / rate) < 1


def test_load_mono_removes_what_the_new_rate_cannot_hold() -> None:
    time = np.arange(48000) / 48000
    loaded = load_mono(np.sin(2 * np.pi * 10000 * time), SAMPLING_RATE, 48000)
    assert np.abs(loaded[1600:-1600]).max() < 1e-3


def test_load_mono_prefers_the_rate_of_a_dict() -> None:
    tone = make_tone(0.5, 8000)
    loaded = load_mono({"array": tone, "sampling_rate": 8000}, SAMPLING_RATE, sampling_rate=44100)
    assert np.array_equal(loaded, load_mono(tone, SAMPLING_RATE, 8000))


@pytest.mark.parametrize("count", [2, 6])
def test_load_mono_averages_channels(count: int) -> None:
    channels = make_channels(count)
    for source in (encode(channels), channels, channels.T, torch.from_numpy(channels), torch.from_numpy(channels.T)):
        np.testing.assert_allclose(load_mono(source, SAMPLING_RATE), channels.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("channel", [0, 1])
def test_load_mono_takes_one_channel(channel: int) -> None:
    channels = make_channels(2)
    decoder = Decoder(torch.from_numpy(channels.T.copy()), SAMPLING_RATE)
    tensor = torch.from_numpy(channels)
    for source in (encode(channels), channels, channels.T, tensor, tensor.T, decoder, {"array": channels}):
        assert np.array_equal(load_mono(source, SAMPLING_RATE, channel=channel), channels[:, channel])


def test_load_mono_takes_one_channel_before_resampling() -> None:
    channels = make_channels(2)
    expected = load_mono(channels[:, 1].copy(), SAMPLING_RATE, 8000)
    for source in (channels, channels.T, torch.from_numpy(channels), torch.from_numpy(channels).T):
        assert np.array_equal(load_mono(source, SAMPLING_RATE, 8000, channel=1), expected)


def test_read_recording_keeps_rate_and_channels() -> None:
    channels = make_channels(3)
    recording = read_recording(encode(channels, 22050), SAMPLING_RATE, "clip")
    assert isinstance(recording, Recording)
    assert (recording.sampling_rate, recording.name) == (22050, "clip")
    assert np.array_equal(recording.samples, channels)


@pytest.mark.parametrize("suffix", ["flac", "wav"])
def test_load_mono_decodes_lossless_files_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, make_clip(0.3), SAMPLING_RATE, subtype="PCM_24")
    assert np.array_equal(load_mono(path, SAMPLING_RATE), soundfile.read(path, dtype="float32")[0])
    np.testing.assert_allclose(load_mono(path, SAMPLING_RATE), make_clip(0.3), atol=2**-23)


@pytest.mark.parametrize("rate", [SAMPLING_RATE, 48000])
@pytest.mark.parametrize(
    ("container", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("AIFF", "PCM_16")]
)
def test_load_mono_decodes_compressed_files(container: str, subtype: str, rate: int) -> None:
    assert_tone(load_mono(encode(make_tone(1.0, rate), rate, container, subtype), SAMPLING_RATE))


def test_load_mono_decodes_mp3() -> None:
    if "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile has no MP3")
    assert_tone(load_mono(encode(make_tone(1.0, 44100), 44100, "MP3", "MPEG_LAYER_III"), SAMPLING_RATE))


@pytest.mark.parametrize("rate", [SAMPLING_RATE, 48000])
def test_load_mono_decodes_what_libsndfile_cannot(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "tone.m4a"
    path.write_bytes(encode_mp4(make_tone(2.0, rate)[:, None], rate))
    with pytest.raises(soundfile.LibsndfileError, match="Format not recognised"):
        soundfile.read(path)
    loaded = load_mono(path, SAMPLING_RATE)
    assert 2.0 <= len(loaded) / SAMPLING_RATE <= 2.0 + 2 * 1024 / rate  # the encoder fills its last frame
    assert_tone(loaded[8000:24000])


def test_load_mono_decodes_the_channels_of_what_libsndfile_cannot() -> None:
    tone = make_tone(2.0, SAMPLING_RATE)
    content = encode_mp4(np.stack([tone, 0.2 * tone], axis=1), SAMPLING_RATE)
    for channel, amplitude in ((0, 0.5), (1, 0.1), (None, 0.3)):
        assert_tone(load_mono(content, SAMPLING_RATE, channel=channel)[8000:24000], amplitude=amplitude)


def test_load_mono_missing_file_raises(tmp_path: Path) -> None:
    for source in (tmp_path / "absent.wav", str(tmp_path / "absent.wav"), {"path": str(tmp_path / "absent.wav")}):
        with pytest.raises(ValueError, match=r"There is no audio file .*absent\.wav"):
            load_mono(source, SAMPLING_RATE)


def test_load_mono_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))} is a folder; give an audio file"):
        load_mono(tmp_path, SAMPLING_RATE)


def test_load_mono_empty_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "empty.wav"
    path.touch()
    for source in (path, str(path), {"bytes": b"", "path": str(path)}):
        with pytest.raises(ValueError, match=r"empty\.wav is empty: it has no bytes"):
            load_mono(source, SAMPLING_RATE)
    with pytest.raises(ValueError, match="audio is empty: it has no bytes"):
        load_mono(b"", SAMPLING_RATE)


def test_load_mono_undecodable_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "garbage.wav"
    path.write_bytes(bytes(range(256)) * 8)
    remedies = "convert the file to WAV or FLAC, or install torchcodec or PyAV"
    for source in (path, str(path), {"bytes": path.read_bytes(), "path": str(path)}):
        with pytest.raises(ValueError, match=rf"garbage\.wav cannot be decoded \(Format not recognised.*{remedies}"):
            load_mono(source, SAMPLING_RATE)
    with pytest.raises(ValueError, match=rf"clip 3 cannot be decoded .*{remedies}"):
        load_mono(path.read_bytes(), SAMPLING_RATE, name="clip 3")


def test_load_mono_text_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("This is not audio.")
    with pytest.raises(ValueError, match=r"notes\.txt cannot be decoded"):
        load_mono(path, SAMPLING_RATE)


@pytest.mark.parametrize("rate", [0, -8000])
def test_load_mono_rate_not_positive_raises(rate: int) -> None:
    clip = make_clip(0.1)
    message = f"has a sampling rate of {rate} Hz; give a positive one"
    with pytest.raises(ValueError, match=f"audio {message}"):
        load_mono(clip, SAMPLING_RATE, rate)
    with pytest.raises(ValueError, match=rf"clip\.wav {message}"):
        load_mono({"array": clip, "sampling_rate": rate, "path": "clip.wav"}, SAMPLING_RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [SAMPLING_RATE, 8000])
def test_load_mono_not_finite_raises(tmp_path: Path, value: float, rate: int) -> None:
    clip = make_clip(0.1)
    clip[700] = value
    for source in (clip, clip.astype(np.float64), torch.from_numpy(clip), clip.tolist(), {"array": clip}):
        with pytest.raises(ValueError, match="audio contains NaN or infinite samples; repair or drop the clip"):
            load_mono(source, SAMPLING_RATE, rate)
    path = tmp_path / "broken.wav"
    path.write_bytes(encode(clip, rate))
    with pytest.raises(ValueError, match=r"broken\.wav contains NaN or infinite samples"):
        load_mono(path, SAMPLING_RATE)


@pytest.mark.parametrize("shape", [(0,), (0, 1), (1, 0), (0, 2), (2, 0)])
@pytest.mark.parametrize("channel", [None, 0])
def test_load_mono_without_samples_raises(shape: tuple[int, ...], channel: int | None) -> None:
    for source in (np.zeros(shape, np.float32), torch.zeros(shape), {"array": np.zeros(shape, np.int16)}):
        with pytest.raises(ValueError, match="audio is empty: it has no samples"):
            load_mono(source, SAMPLING_RATE, channel=channel)


@pytest.mark.parametrize("channels", [1, 2])
def test_load_mono_file_without_samples_raises(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "silent.wav"
    path.write_bytes(encode(np.zeros((0, channels), np.float32)))
    with pytest.raises(ValueError, match=r"silent\.wav is empty: it has no samples"):
        load_mono(path, SAMPLING_RATE)


def test_load_mono_empty_list_raises() -> None:
    with pytest.raises(ValueError, match="audio is empty: it has no samples"):
        load_mono([], SAMPLING_RATE)


def test_load_mono_too_short_to_resample_raises() -> None:
    with pytest.raises(ValueError, match="audio is too short to be resampled to 16000 Hz"):
        load_mono(np.ones(1, np.float32), SAMPLING_RATE, 48000)


@pytest.mark.parametrize("channel", [2, 7, -1])
def test_load_mono_absent_channel_raises(channel: int) -> None:
    channels = make_channels(2)
    for source in (channels, torch.from_numpy(channels.T), encode(channels)):
        with pytest.raises(ValueError, match=f"audio has 2 channels; there is no channel {channel}"):
            load_mono(source, SAMPLING_RATE, channel=channel)


@pytest.mark.parametrize("shape", [(), (2, 3, 400)])
def test_load_mono_wrong_shape_raises(shape: tuple[int, ...]) -> None:
    for source in (np.zeros(shape, np.float32), torch.zeros(shape)):
        with pytest.raises(
            ValueError, match=r"audio has the shape \(.*\); give \(samples,\) or \(samples, channels\)"
        ):
            load_mono(source, SAMPLING_RATE)


@pytest.mark.parametrize("dtype", ["bool", "complex64"])
def test_load_mono_wrong_dtype_raises(dtype: str) -> None:
    clip = make_clip(0.1).astype(dtype)
    for source in (clip, torch.from_numpy(clip), {"array": clip}):
        with pytest.raises(ValueError, match=rf"audio has the dtype (torch\.)?{dtype}; give float or integer PCM"):
            load_mono(source, SAMPLING_RATE)


@pytest.mark.parametrize("value", [None, 3, ["a", "b"]])
def test_load_mono_other_object_raises(value: Any) -> None:
    with pytest.raises(ValueError, match=r"audio has the (shape|dtype) .*; give"):
        load_mono(value, SAMPLING_RATE)


def test_load_mono_unknown_dict_raises() -> None:
    with pytest.raises(
        ValueError, match=r"audio is a dict with the keys \['rate', 'text'\]; it needs 'array', 'bytes'"
    ):
        load_mono({"text": "hello", "rate": 8000}, SAMPLING_RATE)
    with pytest.raises(ValueError, match=r"audio is a dict with the keys \['bytes', 'path'\]; it needs 'array'"):
        load_mono({"bytes": None, "path": None}, SAMPLING_RATE)


def test_load_mono_unreachable_url_raises() -> None:
    with socket.socket() as closed:  # a port on which nothing listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/clip.wav"
        with pytest.raises(ValueError, match=rf"{url} cannot be downloaded: .*refused"):
            load_mono(url, SAMPLING_RATE)


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1/clip.wav\n"])
def test_load_mono_malformed_url_raises(url: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)http://.* cannot be downloaded: "):
        load_mono(url, SAMPLING_RATE)


def test_load_mono_http_error_raises(server: str) -> None:
    with pytest.raises(ValueError, match=rf"{server}/absent\.wav cannot be downloaded: .*404"):
        load_mono(f"{server}/absent.wav", SAMPLING_RATE)


def test_load_mono_url_of_something_else_raises(server: str) -> None:
    with pytest.raises(ValueError, match=rf"{server}/ cannot be decoded"):  # the server's list of its files
        load_mono(f"{server}/", SAMPLING_RATE)
