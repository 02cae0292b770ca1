"""Where encoded audio comes from: paths, URLs, `data:` URIs, base64, bytes and open files, as one kind of file."""

import base64
import io
import os
import re
import stat
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
READ_BYTES = 2**28  # largest content of what can only be read from its start, and is held in memory
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
        max_download_bytes: largest content of an `http` or `https` URL; `None` for that of `download`.

    Raises:
        ValueError: if what is allowed is no truth value; `"no"` would pass for one.
    """

    allow_paths: bool = True
    allow_urls: bool = True
    max_seconds: float | None = None
    max_download_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("allow_paths", "allow_urls"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}.")


def open_location(location: str, name: str, access: AudioAccess) -> EncodedFile:
    """Open a path, a `file:`, `http:`, `https:` or `data:` URL, or base64; an existing path comes before base64.

    Raises:
        ValueError: if it is not allowed, not there, no ordinary file, or too large.
    """
    match = SCHEME.match(location.strip(" "))
    scheme = (match[1] or match[2]).lower() if match else ""
    if scheme == "data":
        return open_bytes(_data_uri_content(location, name), name)
    if scheme in ("http", "https"):
        if not access.allow_urls:
            raise ValueError(f"{shorten(location)} is a URL, and allow_urls is False; pass the bytes instead.")
        downloaded = download(location, public_only=not access.allow_paths, max_bytes=access.max_download_bytes)
        return open_bytes(downloaded, shorten(location))
    if scheme == "file":
        return _open_path(_file_url_path(location), access)
    if scheme:
        raise ValueError(f"{shorten(location)} has the scheme {scheme}:; only http, https, file and data are read.")
    if access.allow_paths and _exists(location):
        return _open_path(location, access)
    content = _base64_content(location)
    return _open_path(location, access) if content is None else open_bytes(content, name)


def open_bytes(content: Bytes, name: str) -> EncodedFile:
    """Encoded audio in memory."""
    return EncodedFile(io.BytesIO(content), memoryview(content).nbytes, name)


def open_file_object(file: Any, name: str) -> EncodedFile:
    """What the user has opened, from its start where it can be sought; it is left open, and then where it was.

    Raises:
        ValueError: if it is not open for reading bytes.
    """
    location = getattr(file, "name", None)
    name = shorten(location) if isinstance(location, str) else name
    if isinstance(file, io.TextIOBase):
        raise ValueError(f"{name} is open as text; open it with 'rb'.")
    try:
        # Others, such as wrappers and sockets, may claim to be seekable and are not: they are read into memory.
        if not isinstance(file, (io.BytesIO, io.BufferedReader, io.BufferedRandom)) or not file.seekable():
            return open_bytes(_read_object(file), name)
        position = file.tell()
        size = file.seek(0, io.SEEK_END)
        file.seek(position)
    except (OSError, ValueError, TypeError) as error:  # the first also where the system makes the content up
        raise ValueError(f"{name} cannot be read: {error}") from error
    _check_size(size, name)
    return EncodedFile(file, size, name, release=lambda: file.seek(position))


def _read_object(file: Any) -> bytes:
    if _is_device(file):
        raise ValueError("it is a device")
    if not _is_seekable(file):
        return _read_on(file)
    position = getattr(file, "tell", int)()
    try:
        file.seek(0)
        return _read_on(file)
    finally:
        file.seek(position)


def _is_seekable(file: Any) -> bool:
    """As it says, or by its methods: a SpooledTemporaryFile of Python 3.10 does not say."""
    return file.seekable() if hasattr(file, "seekable") else hasattr(file, "seek")


def _read_on(file: Any) -> bytes:
    content = bytearray()
    while len(content) <= READ_BYTES:
        chunk = file.read(2**20)
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise TypeError(f"its read() returns {type(chunk).__name__}, and bytes are needed")
        if not chunk:
            return bytes(content)
        content += chunk
    raise ValueError(f"it has more than {READ_BYTES} bytes")


def _is_device(file: Any) -> bool:
    try:
        mode = os.fstat(file.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # it has no number, as objects of Python's own
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _open_path(location: str, access: AudioAccess) -> EncodedFile:
    shown = shorten(location)
    if not access.allow_paths:
        raise ValueError(
            f"{shown} is read as the path of a local file, and allow_paths is False; pass a URL, bytes or base64."
        )
    if not location.strip():  # which would be the folder that we are in
        raise ValueError(f"There is no audio file {location!r}.")
    path = Path(os.path.expanduser(location))
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # the latter for null bytes
        raise ValueError(f"There is no audio file {shown}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{shown} is a folder; give an audio file.")
    if not stat.S_ISREG(status.st_mode):  # which might never end
        raise ValueError(f"{shown} is a device, pipe or socket; give an audio file.")
    _check_size(status.st_size, shown)
    file = path.open("rb")
    return EncodedFile(file, status.st_size, shown, release=file.close)


def _exists(location: str) -> bool:
    try:
        return os.path.lexists(os.path.expanduser(location))
    except ValueError:  # null bytes
        return False


def _check_size(size: int, name: str) -> None:
    if size > FILE_BYTES:
        raise ValueError(
            f"{name} has {size} bytes, more than {FILE_BYTES}; cut it into clips, or compress it as FLAC."
        )


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
    except ValueError as error:
        raise ValueError(f"{name} is a data: URI whose base64 is damaged: {error}.") from error


def _base64_content(text: str) -> bytes | None:
    """What bare base64 encodes, if it is base64 and starts as audio does; else the text is taken for a path."""
    if len(text) < SHORTEST_BASE64 or not BASE64.fullmatch(text):
        return None
    # Twice the letters that the first bytes need, since there may be line breaks, and as many as make whole bytes.
    head = "".join(text[: 4 * MAGIC_BYTES].split())[: 2 * MAGIC_BYTES]
    try:
        return _decode_base64(text) if is_media(_decode_base64(head)) else None
    except ValueError:
        return None


def _decode_base64(text: str) -> bytes:
    """Also of its variant for URLs, of several lines, and without the padding."""
    compact = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
