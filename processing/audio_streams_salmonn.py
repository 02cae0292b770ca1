"""The streams of an encoded file: most have one, but files are also joined, cut, and written to pipes."""

from dataclasses import replace

from .audio_bytes_salmonn import MOST_STREAMS, EncodedFile, Stream, splice
from .audio_chunks_salmonn import find_chunk_stream
from .audio_mpeg_salmonn import find_mpeg_streams, parse_header, tag_size
from .audio_ogg_salmonn import find_flac_streams, find_ogg_streams


MAGIC_BYTES = 64  # more than any mark at the start of a file
UNREAD_SHARE = 0.05  # of a file; less is padding, or what programs leave behind the samples
# Where other decoders are tried, these are what they get: they would follow the addresses in a playlist.
OTHER_MAGIC = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"\x30\x26\xb2\x75",  # ASF, WMA
    b"#!AMR",
    b"FLV\x01",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x0b\x77",  # AC-3
    b"MAC ",
    b"wvpk",
    b"TTA1",
    b"MPCK",
    b"MP+",
    b"DSD ",
    b"FRM8",
)
SNDFILE_MAGIC = (b"RIFF", b"RF64", b"BW64", b"riff", b"FORM", b"caff", b".snd", b"OggS", b"fLaC", b"ID3")


def find_streams(source: EncodedFile) -> list[Stream]:
    """The streams of a file one after the other; one with all behind the tags if it is of no known kind."""
    position = 0
    while size := tag_size(source, position):  # ID3 tags are put before every kind of file
        position += size
    magic = source.at(position, 4)
    streams: list[Stream] = []
    if magic == b"OggS":
        streams = find_ogg_streams(source, position)
    elif magic == b"fLaC":
        streams = find_flac_streams(source, position)
    elif parse_header(magic):
        streams = find_mpeg_streams(source, position)
    else:
        streams = _chunk_streams(source, position)
        if position and not streams:  # between the tag of an MP3 and its first frame may be anything
            streams = find_mpeg_streams(source, position)
    if len(streams) > MOST_STREAMS:
        raise ValueError(f"{source.name} consists of more than {MOST_STREAMS} joined streams; cut it into clips.")
    return streams or [Stream(splice(source, [(min(position, source.size), source.size)]))]


def is_media(head: bytes) -> bool:
    """Whether a file that starts with these bytes is sound or video of a kind that decoders know."""
    if head.startswith(SNDFILE_MAGIC + OTHER_MAGIC) or head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"skip"):
        return True
    is_transport_stream = head[:1] == b"G" and len(head) >= 5 and head[1] & 0x80 == 0 and head[3] & 0x30 != 0
    is_adts = len(head) >= 3 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    return is_adts or is_transport_stream or parse_header(head[:4]) is not None


def _chunk_streams(source: EncodedFile, position: int) -> list[Stream]:
    streams: list[Stream] = []
    while position < source.size and len(streams) <= MOST_STREAMS:
        found = find_chunk_stream(source, position)
        if found is None:
            break
        stream, position = found
        streams.append(stream)
    if streams and source.size - position > UNREAD_SHARE * source.size:
        streams[-1] = replace(streams[-1], unread_bytes=source.size - position)
    return streams
