"""Ogg and FLAC streams that follow one another in a file, of which decoders read the first alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from .audio_bytes_salmonn import MOST_STREAMS, EncodedFile, Span, Stream, join_spans, splice


# Pages of Ogg (RFC 3533), and how FLAC lies in them (RFC 9639, section 10.1).
PAGE_MARK = b"OggS"
PAGE_HEADER_BYTES = 27  # before the lengths of the segments, at most 255 of them
FIRST_PAGE, LAST_PAGE = 2, 4  # flags
FLAC_IN_OGG = b"\x7fFLAC"
FLAC_IN_OGG_HEADER_BYTES = 9  # before what is a FLAC file's start
FLAC_MARK = b"fLaC"
FLAC_STARTS = (b"\x00\x00\x00\x22", b"\x80\x00\x00\x22")  # a STREAMINFO block of 34 bytes follows


@dataclass(frozen=True)
class _Page:
    start: int
    payload: int
    end: int
    flags: int
    granule: int  # position in samples at the end of the page; -1 if none ends there
    serial: bytes

    @property
    def is_first(self) -> bool:
        return bool(self.flags & FIRST_PAGE)


@dataclass
class _Link:
    """Pages of one link of a chain: each starts with first pages and has all others behind them."""

    serial: bytes
    is_flac: bool
    in_headers: bool = True
    ends_openly: bool = True
    granule: int = 0
    stated_granule: int = 0
    spans: list[Span] = field(default_factory=list)
    payloads: list[Span] = field(default_factory=list)


def find_ogg_streams(source: EncodedFile, start: int) -> list[Stream]:
    """The links of a chain from `start` to the end; FLAC is taken out of its pages, where libsndfile fails on it."""
    links: list[_Link] = []
    for page in _pages(source, start):
        if len(links) > MOST_STREAMS:
            break
        if not links or (page.is_first and not links[-1].in_headers):
            magic = source.at(page.payload, len(FLAC_IN_OGG))
            links.append(_Link(page.serial, magic == FLAC_IN_OGG))
        _add_page(links[-1], page, source.size)
    return [_as_stream(source, link) for link in links]


def find_flac_streams(source: EncodedFile, start: int) -> list[Stream]:
    """The FLAC streams from `start` to the end."""
    starts = [start]
    position = source.find(FLAC_MARK, start + len(FLAC_MARK))
    while position >= 0 and len(starts) <= MOST_STREAMS:
        if source.at(position + len(FLAC_MARK), 4) in FLAC_STARTS:  # the mark alone may be among the samples
            starts.append(position)
        position = source.find(FLAC_MARK, position + len(FLAC_MARK))
    ends = [*starts[1:], source.size]
    return [Stream(splice(source, [span])) for span in zip(starts, ends, strict=True)]


def _pages(source: EncodedFile, position: int) -> Iterator[_Page]:
    while position >= 0:
        head = source.at(position, PAGE_HEADER_BYTES)
        if len(head) < PAGE_HEADER_BYTES:
            return
        if head[:4] != PAGE_MARK:  # rubbish between pages
            position = source.find(PAGE_MARK, position)
            continue
        lengths = source.at(position + PAGE_HEADER_BYTES, head[26])
        payload = position + PAGE_HEADER_BYTES + head[26]
        end = payload + sum(lengths)
        granule = int.from_bytes(head[6:14], "little", signed=True)
        yield _Page(position, payload, end, head[5], granule, head[14:18])
        position = end


def _add_page(link: _Link, page: _Page, size: int) -> None:
    link.in_headers = link.in_headers and page.is_first
    join_spans(link.spans, page.start, min(page.end, size))
    if page.serial != link.serial:  # of video beside the sound
        return
    link.stated_granule = max(link.stated_granule, page.granule)
    if page.end > size:  # cut in the middle, which decoders drop
        return
    skipped = FLAC_IN_OGG_HEADER_BYTES if page.is_first and link.is_flac else 0
    if link.is_flac:
        join_spans(link.payloads, page.payload + skipped, page.end)
    link.granule = max(link.granule, page.granule)
    link.ends_openly = not page.flags & LAST_PAGE


def _as_stream(source: EncodedFile, link: _Link) -> Stream:
    if link.is_flac:  # whose own header has the length
        return Stream(splice(source, [*link.payloads]), ends_openly=link.ends_openly)
    ratio = link.stated_granule / link.granule if link.granule else 1.0
    return Stream(splice(source, [*link.spans]), stated_ratio=ratio, ends_openly=link.ends_openly)
