"""What strangers may make a server read, and how much of it: local files, private addresses, endless answers."""

import base64
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_server import AudioServer, audio_server
from conftest import SAMPLING_RATE

from modeling_salmonn import SalmonnFeatureExtractor
from modeling_salmonn.processing.audio_download_salmonn import is_public
from modeling_salmonn.processing.audio_io_salmonn import load_mono


DOWNLOAD = "modeling_salmonn.processing.audio_download_salmonn"
PRIVATE_HOSTS = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::127.0.0.1]",
    "[fd00::1]",
    "[fe80::1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
]


@pytest.fixture(scope="module")
def server(wav_file: Path) -> Iterator[AudioServer]:
    with audio_server(wav_file.read_bytes()) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{DOWNLOAD}.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(f"{DOWNLOAD}.DOWNLOAD_SECONDS", 0.6)


@pytest.fixture
def strict() -> SalmonnFeatureExtractor:
    return SalmonnFeatureExtractor(allow_paths=False)


def local_forms(path: Path) -> list[Any]:
    text = str(path)
    forms = [text, path, path.as_uri(), f"file:{text}", f"FILE://localhost{text}", f" {path.as_uri()}"]
    forms += [{"path": text}, {"path": path}, {"url": text}, {"url": path.as_uri()}, {"path": text, "bytes": None}]
    return [*forms, [text], [{"path": text}]]


def test_local_files_are_refused_where_paths_are_not_allowed(wav_file: Path, strict: SalmonnFeatureExtractor) -> None:
    free = SalmonnFeatureExtractor()
    for form in local_forms(wav_file):
        if str(form).startswith(" "):
            continue
        assert np.size(free.fetch_audio(form)) == 24000
        with pytest.raises(ValueError, match=r"path of a local file, and allow_paths is False"):
            strict.fetch_audio(form)
        with pytest.raises(ValueError, match=r"allow_paths is False"):
            free.fetch_audio(form, allow_paths=False)


@pytest.mark.parametrize("name", ["absent.wav", "~/x.wav", "../x", "/etc/passwd", "\0", "/dev/zero", ""])
def test_refusal_does_not_tell_whether_a_file_is_there(name: str, strict: SalmonnFeatureExtractor) -> None:
    with pytest.raises(ValueError, match=r"allow_paths is False"):
        strict.fetch_audio(name)


def test_paths_inside_of_samples_are_not_followed(wav_file: Path, strict: SalmonnFeatureExtractor) -> None:
    for form in ({"array": str(wav_file)}, {"array": {"path": str(wav_file)}}, {"bytes": str(wav_file)}):
        for extractor in (SalmonnFeatureExtractor(), strict):
            with pytest.raises(ValueError, match=r"audio (has the|is a dict whose)|wav has the"):
                extractor.fetch_audio(form)


def test_content_is_read_where_nothing_else_is_allowed(wav_file: Path) -> None:
    closed = SalmonnFeatureExtractor(allow_paths=False, allow_urls=False)
    content = wav_file.read_bytes()
    text = base64.b64encode(content).decode()
    for form in (content, {"bytes": content, "path": str(wav_file)}, text, f"data:audio/wav;base64,{text}"):
        assert closed.fetch_audio(form).shape == (24000,)


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_private_addresses_are_refused(host: str, strict: SalmonnFeatureExtractor) -> None:
    for form in (f"http://{host}/a.wav", f"HTTPS://{host}:8443/a.wav", {"url": f"http://{host}/a.wav"}):
        with pytest.raises(
            ValueError, match=r"cannot be downloaded: .* is no public address|cannot be downloaded: .*Errno"
        ):
            strict.fetch_audio(form)


def test_private_addresses_are_allowed_with_paths(server: AudioServer, strict: SalmonnFeatureExtractor) -> None:
    assert SalmonnFeatureExtractor().fetch_audio(f"{server.url}/clip.wav").shape == (24000,)
    before = len(server.requested)
    with pytest.raises(ValueError, match=r"is at 127\.0\.0\.1, which is no public address"):
        strict.fetch_audio(f"{server.url}/clip.wav")
    assert len(server.requested) == before


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_each_hop_of_a_redirect_is_checked(
    server: AudioServer, strict: SalmonnFeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{DOWNLOAD}.is_public", lambda address: address == "127.0.0.1")
    assert strict.fetch_audio(f"{server.url}/to?{server.url}/clip.wav").shape == (24000,)
    other = f"http://127.0.0.2:{server.server_port}/clip.wav"
    with pytest.raises(ValueError, match=r"is at 127\.0\.0\.2, which is no public address"):
        strict.fetch_audio(f"{server.url}/to?{server.url}/to?{other}")


def test_what_has_been_checked_is_what_is_connected_to(
    server: AudioServer, strict: SalmonnFeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def rebinding(host: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        address = {"rebinding.test": "127.0.0.1" if asked.count(host) == 1 else "127.0.0.2"}.get(host, host)
        return resolve(address, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(f"{DOWNLOAD}.is_public", lambda address: address == "127.0.0.1")
    assert strict.fetch_audio(f"http://rebinding.test:{server.server_port}/clip.wav").shape == (24000,)
    assert asked.count("rebinding.test") == 1


def test_urls_are_refused_where_they_are_not_allowed(server: AudioServer, wav_file: Path) -> None:
    extractor = SalmonnFeatureExtractor(allow_urls=False)
    before = len(server.requested)
    for form in (f"{server.url}/clip.wav", f"HTTP{server.url[4:]}/clip.wav", {"url": f"{server.url}/clip.wav"}):
        with pytest.raises(ValueError, match=r"is a URL, and allow_urls is False"):
            extractor.fetch_audio(form)
    assert len(server.requested) == before
    assert extractor.fetch_audio(wav_file).shape == (24000,)
    assert extractor.fetch_audio(f"{server.url}/clip.wav", allow_urls=True).shape == (24000,)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/a.wav", "gopher://x/", "s3://bucket/a.wav", "jar:http://x://y"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"only http, https, file and data are read|There is no audio file"):
        SalmonnFeatureExtractor().fetch_audio(url)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:audio/wav;base64,AAAA"])
def test_redirects_to_other_schemes_are_refused(server: AudioServer, target: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be downloaded: .*(not allowed|needs http)"):
        load_mono(f"{server.url}/to?{target}", SAMPLING_RATE)


def test_redirects_without_end_are_refused(server: AudioServer) -> None:
    with pytest.raises(ValueError, match=r"cannot be downloaded: .*redirect"):
        load_mono(f"{server.url}/loop", SAMPLING_RATE)


def test_body_of_a_redirect_is_not_read(server: AudioServer) -> None:
    assert len(load_mono(f"{server.url}/long", SAMPLING_RATE)) == 24000


def test_huge_body_is_refused_before_it_is_read(server: AudioServer) -> None:
    with pytest.raises(ValueError, match=r"cannot be downloaded: it has more than \d+ bytes"):
        load_mono(f"{server.url}/huge", SAMPLING_RATE)


@pytest.mark.parametrize("kind", ["endless", "chunked"])
def test_body_without_end_is_refused(server: AudioServer, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{DOWNLOAD}.DOWNLOAD_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"cannot be downloaded: it has more than 1048576 bytes"):
        load_mono(f"{server.url}/{kind}", SAMPLING_RATE)


@pytest.mark.parametrize("kind", ["clip", "endless", "chunked"])
def test_download_beyond_the_limit_of_the_extractor_is_refused(server: AudioServer, kind: str) -> None:
    extractor = SalmonnFeatureExtractor(max_download_bytes=1000)
    with pytest.raises(ValueError, match=r"cannot be downloaded: it has more than 1000 bytes; cut or compress it"):
        extractor.fetch_audio(f"{server.url}/{kind}")
    extractor.max_download_bytes = len(server.content)
    assert extractor.fetch_audio(f"{server.url}/clip").shape == (24000,)


def test_limit_of_downloads_is_never_raised(server: AudioServer) -> None:
    with pytest.raises(ValueError, match=r"it has more than 268435456 bytes"):
        SalmonnFeatureExtractor(max_download_bytes=2**40).fetch_audio(f"{server.url}/huge")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["drip", "drippingheaders", "silence"])
def test_slow_server_is_given_up(server: AudioServer, kind: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be downloaded: .*(too slow|no end after|timed out)"):
        load_mono(f"{server.url}/{kind}", SAMPLING_RATE)


def test_download_that_ends_early_raises(server: AudioServer) -> None:
    with pytest.raises(ValueError, match=r"the connection ended after \d+ of \d+ bytes"):
        load_mono(f"{server.url}/short", SAMPLING_RATE)


def test_compressed_answer_is_refused(server: AudioServer) -> None:
    with pytest.raises(ValueError, match=r"the server sends it compressed \(gzip\)"):
        load_mono(f"{server.url}/gzip", SAMPLING_RATE)


@pytest.mark.parametrize(
    ("path", "requested"),
    [
        ("/a b/clip.wav", "/a%20b/clip.wav"),
        ("/größe.wav", "/gr%C3%B6%C3%9Fe.wav"),
        ("/音.wav?name=ü x&b=%20", "/%E9%9F%B3.wav?name=%C3%BC%20x&b=%20"),
        ("/clip.wav#part", "/clip.wav"),
        ("/a%20b.wav", "/a%20b.wav"),
    ],
)
def test_url_may_hold_blanks_and_other_characters(server: AudioServer, path: str, requested: str) -> None:
    for url in (server.url + path, "HTTP" + server.url[4:] + path, f" {server.url}{path} "):
        assert len(load_mono(url, SAMPLING_RATE)) == 24000
        assert server.requested[-1] == requested


def test_special_files_are_refused_without_being_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to("/dev/zero")
    for path in ("/dev/zero", "/dev/null", tmp_path / "pipe.wav", tmp_path / "link.wav"):
        with pytest.raises(ValueError, match=r"is a device, pipe or socket; give an audio file"):
            load_mono(path, SAMPLING_RATE)
    with (
        open("/dev/zero", "rb", buffering=0) as file,
        pytest.raises(ValueError, match=r"cannot be read: it is a device"),
    ):
        load_mono(file, SAMPLING_RATE)


def test_huge_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.wav"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    for source in (path, {"path": str(path)}):
        with pytest.raises(ValueError, match=r"sparse\.wav has 3221225472 bytes, more than"):
            load_mono(source, SAMPLING_RATE)
    with path.open("rb") as file, pytest.raises(ValueError, match=r"has 3221225472 bytes, more than"):
        load_mono(file, SAMPLING_RATE)


def test_extractor_does_not_save_what_it_allows(tmp_path: Path, strict: SalmonnFeatureExtractor) -> None:
    strict.save_pretrained(tmp_path)
    assert "allow_" not in (tmp_path / "preprocessor_config.json").read_text()
    assert SalmonnFeatureExtractor.from_pretrained(tmp_path).allow_paths is True
    assert "max_download_bytes" not in (tmp_path / "preprocessor_config.json").read_text()
    options = {"allow_paths": False, "allow_urls": False, "max_download_bytes": 1000}
    loaded = SalmonnFeatureExtractor.from_pretrained(tmp_path, **options)
    assert {name: getattr(loaded, name) for name in options} == options


@pytest.mark.parametrize("value", [None, 0, "no"])
def test_permission_that_is_no_truth_value_raises(value: Any) -> None:
    with pytest.raises(ValueError, match=r"allow_paths must be True or False, got"):
        SalmonnFeatureExtractor(allow_paths=value)
    if value is not None:
        with pytest.raises(ValueError, match=r"allow_urls must be True or False, got"):
            SalmonnFeatureExtractor().fetch_audio("a.wav", allow_urls=value)
