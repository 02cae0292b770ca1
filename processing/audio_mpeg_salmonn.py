"""MPEG audio (MP3) streams: their frames are counted, since headers estimate lengths or belong to one of several."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from .audio_bytes_salmonn import EncodedFile, Span, Stream, join_spans, splice


# kbit/s by the index in the frame header, for (MPEG 1?, layer)
BITRATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SIDE_INFORMATION_BYTES = {
    (True, True): 17,
    (True, False): 32,
    (False, True): 9,
    (False, False): 17,
}  # (MPEG 1?, mono?)
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by version
BLOCK_BYTES = 2**16
PEEK_BYTES = 64  # of a frame: its header and the start of what may be an info tag
CONFIRMING_FRAMES = 2  # that must follow one that is found by searching
MOST_CANDIDATES = 100_000  # that are looked at between frames
INFO_TAGS = (b"Xing", b"Info")
TAG_FRAMES, TAG_BYTES, TAG_TOC, TAG_QUALITY = 1, 2, 4, 8  # flags of the fields of an info tag
ENCODER_DELAYS = 21  # offset of the encoder's delay and padding, 12 bits each, in its part of the tag


@dataclass(frozen=True)
class FrameHeader:
    """What four bytes say of a frame; `kind` is what all frames of a stream have in common."""

    kind: tuple[int, int, int, bool]  # version, layer, rate in Hz, mono
    size: int  # bytes
    samples: int  # per channel
    tag_offset: int  # where an info tag starts: behind the header and the side information


@dataclass
class _Frames:
    """Frames of one stream while they are counted."""

    header: FrameHeader
    tag: bytes  # the whole frame with the info tag, which has no sound
    stated: int | None  # frames by the tag
    count: int = 0
    spans: list[Span] = field(default_factory=list)


@lru_cache(maxsize=4096)
def parse_header(header: bytes) -> FrameHeader | None:
    """What the header of a frame says, `None` if the four bytes are none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)  # 3 for MPEG 1, 2 for 2, 0 for 2.5
    bitrate, rate = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = RATES[version][rate]
    bits = 1000 * BITRATES[version == 3, layer][bitrate - 1]
    padding = header[2] >> 1 & 1
    samples = {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer]
    # Layer 1 counts in slots of four bytes.
    size = 4 * (12 * bits // hertz + padding) if layer == 1 else samples // 8 * bits // hertz + padding
    mono = header[3] >> 6 == 3
    side_information = SIDE_INFORMATION_BYTES[version == 3, mono]
    return FrameHeader((version, layer, hertz, mono), size, samples, 4 + side_information)


def find_mpeg_streams(source: EncodedFile, start: int) -> list[Stream]:
    """The streams from `start` to the end, without the tags, pictures and rubbish between their frames."""
    found: list[_Frames] = []
    is_cut = False
    for position, header, head in _walk(source, start):
        is_cut = position + header.size > source.size
        if is_cut:
            break
        tag, stated = _read_tag(source, position, header, head)
        if tag or not found or found[-1].header.kind != header.kind:
            found.append(_Frames(header, tag, stated))
        if not tag:
            found[-1].count += 1
            join_spans(found[-1].spans, position, position + header.size)
    full = [frames for frames in found if frames.count]
    return [_as_stream(source, frames, is_cut and frames is full[-1]) for frames in full]


def tag_size(source: EncodedFile, position: int) -> int:
    """Bytes of the ID3 or APE tag at `position`, 0 if there is none."""
    head = source.at(position, 32)
    if head[:3] == b"ID3" and len(head) >= 10:
        footer = 10 if head[5] & 0x10 else 0
        size = 0
        for byte in head[6:10]:  # seven bits each, so that none looks like a frame
            size = size << 7 | byte & 0x7F
        return 10 + footer + size
    if head[:3] == b"TAG":  # ID3v1
        return 128
    if head[:8] == b"APETAGEX" and len(head) == 32:
        is_header = head[23] & 0x20  # the footer alone follows the items, which are not found by it
        return 32 + int.from_bytes(head[12:16], "little") if is_header else 32
    return 0


def _walk(source: EncodedFile, position: int) -> Iterator[tuple[int, FrameHeader, bytes]]:
    """Offset, header and first bytes of each frame; the last one may be cut in the middle."""
    kind, candidates = None, 0
    block, start = b"", position
    while position < source.size and candidates < MOST_CANDIDATES:
        if position + PEEK_BYTES > start + len(block):
            block, start = source.at(position, BLOCK_BYTES), position
        head = block[position - start : position - start + PEEK_BYTES]
        header = parse_header(head[:4])
        if header is not None and (header.kind == kind or _is_confirmed(source, position, header)):
            kind = header.kind
            yield position, header, head
            position += header.size
        elif size := tag_size(source, position):
            position += size
        else:
            kind = None
            candidates += 1  # rubbish is searched for the next byte that may start a frame
            found = block.find(b"\xff", position - start + 1)
            position = start + (found if found >= 0 else len(block))


def _is_confirmed(source: EncodedFile, position: int, header: FrameHeader) -> bool:
    """Whether frames of the same kind follow, up to the end or to a tag."""
    for _ in range(CONFIRMING_FRAMES):
        position += header.size
        if position >= source.size or tag_size(source, position):
            return True
        following = parse_header(source.at(position, 4))
        if following is None or following.kind != header.kind:
            return False
        header = following
    return True


def _read_tag(source: EncodedFile, position: int, header: FrameHeader, head: bytes) -> tuple[bytes, int | None]:
    """A frame that holds an info tag instead of sound, and how many frames it says there are."""
    offset = header.tag_offset
    if header.kind[1] == 3 and head[offset : offset + 4] in INFO_TAGS:
        frame = source.at(position, header.size)
        flags = int.from_bytes(frame[offset + 4 : offset + 8], "big")
        stated = int.from_bytes(frame[offset + 8 : offset + 12], "big") if flags & TAG_FRAMES else None
        return frame, stated
    if head[36:40] == b"VBRI":  # of Fraunhofer's encoder, always at this place
        return source.at(position, header.size), int.from_bytes(head[50:54], "big")
    return b"", None


def _as_stream(source: EncodedFile, frames: _Frames, is_cut: bool) -> Stream:
    ratio = frames.stated / frames.count if frames.stated and frames.stated > frames.count + 1 else 1.0
    if frames.tag[frames.header.tag_offset :][:4] in INFO_TAGS and frames.stated is not None:
        return Stream(splice(source, [_info_frame(frames), *frames.spans]), None, ratio, is_cut)
    # Without an info tag, libsndfile takes the length from the first frame and the size of the file, and reads no
    # further. So that this is never too little, the frames are there several times; reading stops after the first.
    found = sum(end - start for start, end in frames.spans)
    repeats = 2 + frames.count * frames.header.size // found
    samples = frames.count * frames.header.samples
    return Stream(splice(source, frames.spans * repeats), samples, ratio, is_cut)


def _info_frame(frames: _Frames) -> bytes:
    """The frame with the info tag, with as many frames and bytes as there are."""
    offset = frames.header.tag_offset
    frame = bytearray(frames.tag)
    flags = frame[offset + 7]
    frame[offset + 8 : offset + 12] = frames.count.to_bytes(4, "big")
    if flags & TAG_BYTES:
        size = len(frame) + sum(end - start for start, end in frames.spans)
        frame[offset + 12 : offset + 16] = size.to_bytes(4, "big")
    if frames.stated is not None and frames.stated > frames.count + 1:
        # The padding that the encoder added at the end is not there, and is not to be cut off again.
        fields = {TAG_FRAMES: 4, TAG_BYTES: 4, TAG_TOC: 100, TAG_QUALITY: 4}
        delays = offset + 8 + sum(size for flag, size in fields.items() if flags & flag) + ENCODER_DELAYS
        if len(frame) >= delays + 3:
            frame[delays + 1] &= 0xF0
            frame[delays + 2] = 0
    return bytes(frame)
