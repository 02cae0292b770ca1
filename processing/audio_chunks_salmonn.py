"""WAV, AIFF, CAF and their kin: where the samples are, and whether the header tells their true size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .audio_bytes_salmonn import EncodedFile, Span, Stream, splice


UNKNOWN_SIZE_32 = 0x7F000000  # programs that write to a pipe put the largest size there is, or a little less
UNKNOWN_SIZE_64 = 2**62
MOST_CHUNKS = 10_000  # that are looked at; files have a dozen
# Sony Wave64 names its chunks by GUIDs, which start with the names of RIFF.
W64_MARKS = {name: name + bytes.fromhex("f3acd3118cd100c04f8edb8a") for name in (b"wave", b"data")}
W64_START = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")


@dataclass(frozen=True)
class _Kind:
    """How the chunks of a container are written: a name, a size, the content."""

    data_name: bytes
    first_chunk: int  # offset
    size_bytes: int = 4
    byte_order: Literal["little", "big"] = "little"
    size_counts_header: bool = False
    alignment: int = 2
    empty_size: int = 0  # of data without samples

    @property
    def header_bytes(self) -> int:
        return len(self.data_name) + self.size_bytes

    @property
    def unknown_size(self) -> int:
        return UNKNOWN_SIZE_32 if self.size_bytes == 4 else UNKNOWN_SIZE_64


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    start: int  # of its content
    size: int  # as stated
    end: int  # where the next chunk starts, if the size is right


RIFF = _Kind(b"data", 12)
AIFF = _Kind(b"SSND", 12, byte_order="big", empty_size=8)
CAF = _Kind(b"data", 8, size_bytes=8, byte_order="big", alignment=1, empty_size=4)
W64 = _Kind(W64_MARKS[b"data"], 40, size_bytes=8, size_counts_header=True, alignment=8)


def find_chunk_stream(source: EncodedFile, start: int) -> tuple[Stream, int] | None:
    """The stream of a container that starts at `start`, and where it ends; `None` if there is no such container."""
    head = source.at(start, 40)
    if head[:4] == b".snd":
        return _au_stream(source, start, head)
    kind = _kind_of(head)
    if kind is None:
        return None
    data, end = None, start
    for chunk in _chunks(source, kind, start + kind.first_chunk):
        end = chunk.end
        if chunk.name == kind.data_name and data is None:
            data = chunk
    whole: list[bytes | Span] = [(start, source.size)]
    if data is None:  # libsndfile says what is wrong with it
        return Stream(splice(source, whole)), source.size
    size = _stated_size(source, start, head, data)
    available = source.size - data.start
    if size >= kind.unknown_size or (size <= kind.empty_size and not _is_empty(source, kind, data)):
        # Written to a pipe: the size is open, or was never filled in.
        return Stream(splice(source, _repair(source, start, head, kind, data))), source.size
    if size > available > 0:  # cut, which libsndfile reads as far as it goes, but for CAF
        pieces = _repair(source, start, head, kind, data) if kind is CAF else whole
        return Stream(splice(source, pieces), stated_ratio=size / available), source.size
    end = min(max(end, data.start + size), source.size)
    return Stream(splice(source, [(start, end)])), end


def _kind_of(head: bytes) -> _Kind | None:
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return RIFF
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return AIFF
    if head[:4] == b"caff":
        return CAF
    if head[:16] == W64_START and head[24:40] == W64_MARKS[b"wave"]:
        return W64
    return None


def _chunks(source: EncodedFile, kind: _Kind, position: int) -> Iterator[_Chunk]:
    """Chunks as long as their names can be names, and up to one whose size leads beyond the end."""
    for _ in range(MOST_CHUNKS):
        head = source.at(position, kind.header_bytes)
        name, size = head[: len(kind.data_name)], head[len(kind.data_name) :]
        if len(size) < kind.size_bytes or not _is_name(name[:4]):
            return
        stated = int.from_bytes(size, kind.byte_order)
        if kind.size_counts_header:
            stated = max(stated - kind.header_bytes, 0)
        start = position + kind.header_bytes
        position = start + stated + -stated % kind.alignment
        yield _Chunk(name, start, stated, position)


def _is_name(name: bytes) -> bool:
    """Four printable characters that do not start another container."""
    return name.isascii() and name.decode("ascii").isprintable() and name not in (b"RIFF", b"RF64", b"FORM", b"riff")


def _stated_size(source: EncodedFile, start: int, head: bytes, data: _Chunk) -> int:
    """Bytes of samples by the header; more than there can be if it leaves them open."""
    # RF64 (EBU Tech 3306) has sizes of 64 bits in a first chunk ds64: of the file, and of the samples.
    if head[:4] not in (b"RF64", b"BW64") or data.size != 0xFFFFFFFF:
        return data.size
    is_stated = head[12:16] == b"ds64"
    size = int.from_bytes(source.at(start + 28, 8), "little") if is_stated else 0
    return size or UNKNOWN_SIZE_64


def _is_empty(source: EncodedFile, kind: _Kind, data: _Chunk) -> bool:
    """Whether nothing but whole chunks follows data that is said to be empty."""
    end = data.end
    for chunk in _chunks(source, kind, data.end):
        end = chunk.end
    return end in (source.size, source.size + 1) or data.start >= source.size  # with or without padding


def _repair(source: EncodedFile, start: int, head: bytes, kind: _Kind, data: _Chunk) -> list[bytes | Span]:
    """The same file, with the size of the samples that are there."""
    field = data.start - kind.size_bytes
    samples = (data.start, source.size)
    size = source.size - data.start + (kind.header_bytes if kind.size_counts_header else 0)
    largest = 256**kind.size_bytes - 1
    size_field = min(size, largest).to_bytes(kind.size_bytes, kind.byte_order)
    if head[:4] in (b"RF64", b"BW64"):  # a plain WAV will do
        riff = b"RIFF" + min(source.size - start - 8, largest).to_bytes(4, "little")
        return [riff, (start + 8, field), size_field, samples]
    return [(start, field), size_field, samples]


def _au_stream(source: EncodedFile, start: int, head: bytes) -> tuple[Stream, int]:
    """The stream of a Sun AU file, which has no chunks: a mark, where its samples start, and their size."""
    first, size = (int.from_bytes(head[offset : offset + 4], "big") for offset in (4, 8))
    available = source.size - start - first
    is_unknown = size == 0 or size >= UNKNOWN_SIZE_32
    ratio = 1.0 if is_unknown or available <= 0 else max(1.0, size / available)
    size_field = b"\xff" * 4 if is_unknown else head[8:12]  # all ones are the format's own word for unknown
    pieces: list[bytes | Span] = [(start, start + 8), size_field, (start + 12, source.size)]
    return Stream(splice(source, pieces), stated_ratio=ratio), source.size
