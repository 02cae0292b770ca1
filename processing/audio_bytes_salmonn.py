"""Encoded audio as bytes: a file of which pieces are read, and streams that are put together from such pieces."""

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO, TypeAlias


FIRST_SEARCH_BYTES, SEARCH_BYTES = 2**12, 2**20  # read at once where a marker is searched: mostly it is near
BUFFER_BYTES = 2**16
MOST_STREAMS = 10_000  # that are joined in one file; a file of nothing but headers would take minutes

Span: TypeAlias = tuple[int, int]  # start and end of bytes in a file


@dataclass(frozen=True)
class EncodedFile:
    """A seekable file of encoded audio, to be used in a `with` statement.

    Args:
        file: open for reading bytes.
        size: in bytes.
        name: for messages.
        release: called at the end, to close the file or to leave it as it was.
    """

    file: BinaryIO
    size: int
    name: str
    release: Callable[[], object] = lambda: None

    def __enter__(self) -> "EncodedFile":
        return self

    def __exit__(self, *error: Any) -> None:
        self.release()

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset` on; fewer at the end of the file."""
        if offset >= self.size:
            return b""
        self.file.seek(offset)
        return self.file.read(count)

    def find(self, marker: bytes, start: int) -> int:
        """Where `marker` is next, at or after `start`; -1 if it is nowhere."""
        count = FIRST_SEARCH_BYTES
        while start < self.size:
            block = self.at(start, count)
            found = block.find(marker)
            if found >= 0:
                return start + found
            # The next block overlaps this one, since the marker may lie across their border.
            start += max(1, len(block) - len(marker) + 1)
            count = SEARCH_BYTES
        return -1


class SplicedFile(io.RawIOBase):
    """A file made of bytes in memory and of spans of another file, which it neither copies nor closes."""

    def __init__(self, file: BinaryIO, pieces: Sequence[bytes | Span]):
        super().__init__()
        self._file = file
        self._pieces = list(pieces)
        lengths = [len(piece) if isinstance(piece, bytes) else piece[1] - piece[0] for piece in self._pieces]
        self._ends = list(accumulate(lengths))
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._ends[-1] if self._ends else 0
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read on within one piece; the buffer around this file calls again for more."""
        index = bisect_right(self._ends, self._position)
        if index == len(self._pieces):
            return 0
        piece, left = self._pieces[index], self._ends[index] - self._position
        view = memoryview(buffer).cast("B")
        count = min(len(view), left)
        if isinstance(piece, bytes):
            part = piece[len(piece) - left :][:count]
        else:
            self._file.seek(piece[1] - left)
            part = self._file.read(count)
        view[: len(part)] = part
        self._position += len(part)
        return len(part)


@dataclass(frozen=True)
class Stream:
    """One stream of a file, which may be followed by others.

    Args:
        content: its bytes, as libsndfile can read them.
        frames: samples per channel that it holds, where they have been counted; `None` leaves that to its header.
        stated_ratio: how many times longer than what is there its header says it is.
        ends_openly: whether the mark that should end it is lacking.
        unread_bytes: behind it, of which nothing says what they are.
    """

    content: BinaryIO
    frames: int | None = None
    stated_ratio: float = 1.0
    ends_openly: bool = False
    unread_bytes: int = 0


def splice(source: EncodedFile, pieces: Sequence[bytes | Span]) -> BinaryIO:
    """The pieces as a file: the file itself if they are all of it, since that is read without a detour."""
    if list(pieces) == [(0, source.size)]:
        return source.file
    return io.BufferedReader(SplicedFile(source.file, pieces), BUFFER_BYTES)  # decoders read a few bytes at a time


def join_spans(spans: list[Span], start: int, end: int) -> None:
    """Append a span, or lengthen the last one if the two touch."""
    if spans and spans[-1][1] == start:
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((start, end))
