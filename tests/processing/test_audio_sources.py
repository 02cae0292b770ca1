"""Sources of audio: every kind gives the same samples, and every other one says what to give."""

import re
import socket
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
from audio_decoder import Decoder
from conftest import SAMPLING_RATE

from modeling_salmonn.processing.audio_io_salmonn import load_mono


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
