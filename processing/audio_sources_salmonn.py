"""Where encoded audio comes from: paths, URLs, `data:` URIs, base64, bytes and open files, as one kind of file."""

import base64
import binascii
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from .audio_bytes_salmonn import EncodedFile
from .audio_download_salmonn import download
from .audio_samples_salmonn import shorten
from .audio_streams_salmonn import MAGIC_BYTES, is_media


FILE_BYTES = 2**31  # largest file: more than 3 hours of WAV at 44.1 kHz in stereo
READ_BYTES = 2**28  # largest content of what can only be read from its start
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://|(data|file):", re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
SHORTEST_BASE64 = 64  # characters; shorter ones are names

Bytes: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True)
class AudioAccess:
    """What may be read for a clip, and how much.

    Args:
        allow_paths: whether local files may be read; if not, URLs must lead to public addresses.
        allow_urls: whether URLs may be read.
        max_seconds: longest clip; `None` for no limit.
    """

    allow_paths: bool = True
    allow_urls: bool = True
    max_seconds: float | None = None


@contextmanager
def open_location(location: str, name: str, access: AudioAccess) -> Iterator[EncodedFile]:
    """Open a path, a `file:`, `http:`, `https:` or `data:` URL, or base64; an existing path comes before base64.

    Raises:
        ValueError: if it is not allowed, not there, no ordinary file, or too large.
    """
    match = SCHEME.match(location.strip(" "))
    scheme = (match[1] or match[2]).lower() if match else ""
    if scheme == "data":
        with open_bytes(_data_uri_content(location, name), name) as file:
            yield file
    elif scheme in ("http", "https"):
        if not access.allow_urls:
            raise ValueError(f"{shorten(location)} is a URL, and allow_urls is False; pass the bytes instead.")
        with open_bytes(download(location, public_only=not access.allow_paths), shorten(location)) as file:
            yield file
    elif scheme not in ("", "file"):
        raise ValueError(f"{shorten(location)} has the scheme {scheme}:; only http, https, file and data are read.")
    else:
        path = _file_url_path(location) if scheme else location
        content = None if scheme or (access.allow_paths and _exists(path)) else _base64_content(location)
        with _open_path(path, access) if content is None else open_bytes(content, name) as file:
            yield file


@contextmanager
def open_bytes(content: Bytes, name: str) -> Iterator[EncodedFile]:
    """Encoded audio in memory."""
    yield EncodedFile(io.BytesIO(content), memoryview(content).nbytes, name)


@contextmanager
def open_file_object(file: Any, name: str) -> Iterator[EncodedFile]:
    """What the user has opened, from its start; it is left open, and where it was.

    Raises:
        ValueError: if it is not open for reading bytes.
    """
    location = getattr(file, "name", None)
    name = shorten(location) if isinstance(location, str) else name
    if isinstance(file, io.TextIOBase):
        raise ValueError(f"{name} is open as text; open it with 'rb'.")
    if isinstance(file, (io.BytesIO, io.BufferedReader, io.BufferedRandom)) and file.seekable():
        position = file.tell()
        try:
            size = file.seek(0, io.SEEK_END)
        except OSError as error:  # of files that the system makes up
            raise ValueError(f"{name} cannot be read: {error}") from error
        try:
            yield EncodedFile(file, _check_size(size, FILE_BYTES, name), name)
        finally:
            file.seek(position)
        return
    try:
        content = _read_object(file, name)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    with open_bytes(content, name) as encoded:
        yield encoded


def _read_object(file: Any, name: str) -> bytes:
    if _is_device(file):
        raise ValueError("it is a device")
    if getattr(file, "seekable", bool)():
        file.seek(0)
    content = bytearray()
    while len(content) <= READ_BYTES:
        chunk = file.read(2**20)
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise TypeError(f"its read() gives {type(chunk).__name__}, and bytes are needed")
        if not chunk:
            return bytes(content)
        content += chunk
    raise ValueError(f"it has more than {READ_BYTES} bytes")


@contextmanager
def _open_path(location: str, access: AudioAccess) -> Iterator[EncodedFile]:
    shown = shorten(location)
    if not access.allow_paths:
        raise ValueError(
            f"{shown} is read as the path of a local file, and allow_paths is False; pass a URL, bytes or base64."
        )
    if not location.strip():
        raise ValueError(f"There is no audio file {location!r}.")
    path = Path(os.path.expanduser(location))
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # the latter for null bytes
        raise ValueError(f"There is no audio file {shown}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{shown} is a folder; give an audio file.")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown} is a device, pipe or socket; give an audio file.")
    with path.open("rb") as file:
        yield EncodedFile(file, _check_size(os.fstat(file.fileno()).st_size, FILE_BYTES, shown), shown)


def _exists(location: str) -> bool:
    try:
        return os.path.lexists(os.path.expanduser(location))
    except ValueError:  # null bytes
        return False


def _check_size(size: int, largest: int, name: str) -> int:
    if size > largest:
        raise ValueError(f"{name} has {size} bytes, more than {largest}; cut it into clips, or compress it as FLAC.")
    return size


def _is_device(file: Any) -> bool:
    try:
        mode = os.fstat(file.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _file_url_path(location: str) -> str:
    parts = urlsplit(location.strip(" "))
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{shorten(location)} names the host {parts.netloc}; file: URLs are read on this machine.")
    return url2pathname(parts.path)


def _data_uri_content(location: str, name: str) -> bytes:
    header, comma, content = location.strip().partition(",")
    if not comma:
        raise ValueError(f"{name} is a data: URI without a comma before its content.")
    if not header.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(content)
    try:
        return _decode_base64(unquote(content))
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is a data: URI whose base64 is damaged: {error}.") from error


def _base64_content(text: str) -> bytes | None:
    """What bare base64 encodes, if it is base64 and starts as audio does; else the text is taken for a path."""
    if len(text) < SHORTEST_BASE64 or not BASE64.fullmatch(text):
        return None
    try:
        head = _decode_base64("".join(text[: 4 * MAGIC_BYTES].split())[: 2 * MAGIC_BYTES])
        return _decode_base64(text) if is_media(head) else None
    except (binascii.Error, ValueError):
        return None


def _decode_base64(text: str) -> bytes:
    compact = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


__all__ = ["AudioAccess", "open_bytes", "open_file_object", "open_location"]
