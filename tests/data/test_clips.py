"""Clips that cannot be read: reported by name, counted, and one too many is an error."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import soundfile
from conftest import SAMPLING_RATE, make_clip

from modeling_salmonn import SalmonnProcessor
from modeling_salmonn.data.clips import (
    BadClips,
    ClipReader,
    UnreadableClipError,
    clip_name,
    header_seconds,
    joined_seconds,
)


def reader(processor: SalmonnProcessor, limit: int = 5, max_seconds: float | None = None) -> ClipReader:
    return ClipReader(processor.feature_extractor, BadClips(limit), max_seconds)


def test_good_clip_is_read_at_the_encoders_rate(bucket_processor: SalmonnProcessor, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, make_clip(1.0, rate=8000), 8000)
    assert len(reader(bucket_processor).read(str(path))) == SAMPLING_RATE


def test_bad_clip_is_reported_once_by_name(
    bucket_processor: SalmonnProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(b"RIFF and nothing else")
    clips = reader(bucket_processor)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with pytest.raises(UnreadableClipError, match=r"broken\.wav"):
                clips.read(str(path))
    (record,) = caplog.records
    assert f"Skipping the clip {path}: " in record.getMessage()
    assert "cannot be decoded" in record.getMessage()


def test_long_clip_is_left_out_but_not_bad(
    bucket_processor: SalmonnProcessor, wav_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(reader(bucket_processor, max_seconds=2.0).read(str(wav_file))) == 1.5 * SAMPLING_RATE
    clips = reader(bucket_processor, limit=0, max_seconds=1.0)
    for _ in range(2):
        with pytest.raises(UnreadableClipError, match=wav_file.name):
            clips.read(str(wav_file))
    assert not clips.bad_clips.names
    (record,) = caplog.records
    assert record.getMessage() == f"Leaving out the clip {wav_file}: it lasts 1.5 s, more than max_audio_seconds 1."


def test_one_bad_clip_too_many_raises(bucket_processor: SalmonnProcessor) -> None:
    clips = reader(bucket_processor, limit=1)
    with pytest.raises(UnreadableClipError):
        clips.read("/none/a.wav")
    with pytest.raises(ValueError, match=r"2 clips cannot be read, more than max_bad_clips 1; the last one is /n"):
        clips.read("/none/b.wav")


def test_processes_and_resumed_runs_count_together(tmp_path: Path) -> None:
    file = tmp_path / "output" / "bad_clips.txt"
    BadClips(2, file).report("a.wav", "empty")
    BadClips(2, file).report("a.wav", "empty")  # the same clip, found bad by another process
    BadClips(2, file).report("b.wav", "two\nlines")
    assert [line.split("\t") for line in file.read_text().splitlines()] == [
        ["a.wav", "empty"],
        ["b.wav", "two lines"],
    ]
    with pytest.raises(ValueError, match=rf"3 clips cannot be read \(listed in {file}\), more than max_bad_clips 2"):
        BadClips(2, file).report("c.wav", "empty")


def test_clip_that_several_find_at_once_is_listed_once(tmp_path: Path) -> None:
    file, workers = tmp_path / "bad_clips.txt", 16
    together = Barrier(workers)

    def find(number: int) -> None:
        together.wait()
        for clip in range(20):
            BadClips(100, file).report(f"{clip}.wav", "empty")

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(find, range(workers)))
    assert sorted(file.read_text().splitlines()) == sorted(f"{clip}.wav\tempty" for clip in range(20))


def test_clip_is_named_by_its_path() -> None:
    assert clip_name("a.wav") == clip_name({"path": "a.wav", "bytes": None}) == "a.wav"
    assert clip_name(None) == "a clip without a path"


@pytest.mark.parametrize("path", ["audio.wav", None])
def test_clips_in_memory_are_told_apart_by_their_bytes(path: str | None) -> None:
    first, second = ({"path": path, "bytes": content} for content in (b"first", b"second"))
    assert clip_name(first) == clip_name(dict(first)) != clip_name(second)
    assert clip_name(first).startswith(f"{path or 'a clip without a path'}#")


def test_length_comes_from_the_header(wav_file: Path) -> None:
    assert header_seconds(str(wav_file)) == 1.5
    assert header_seconds("/none.wav") is None
    assert header_seconds({"bytes": b""}) is None


def test_length_of_a_clip_in_memory_comes_from_its_header(wav_file: Path) -> None:
    assert header_seconds({"path": None, "bytes": wav_file.read_bytes()}) == 1.5
    assert header_seconds({"path": str(wav_file), "bytes": None}) == 1.5


def test_length_of_joined_clips_is_that_of_all(wav_file: Path) -> None:
    clip = str(wav_file)
    assert joined_seconds([clip]) == 1.5
    assert joined_seconds([clip, {"path": None, "bytes": wav_file.read_bytes()}]) == pytest.approx(3.1)
    assert joined_seconds([]) is joined_seconds([clip, "/none.wav"]) is None


def test_names_with_odd_marks_stay_on_their_lines(tmp_path: Path) -> None:
    clips = BadClips(limit=3, file=tmp_path / "bad_clips.txt")
    for name in ("a\tb.wav", "a\nb\nc\nd.wav", "\udce9.wav"):  # the last one as a file name in another encoding
        clips.report(name, "no\naudio")
    assert (tmp_path / "bad_clips.txt").read_text().splitlines() == [
        "a b.wav\tno audio",
        "a b c d.wav\tno audio",
        "\\udce9.wav\tno audio",
    ]
    with pytest.raises(ValueError, match="4 clips cannot be read"):
        clips.report("e.wav", "no audio")
