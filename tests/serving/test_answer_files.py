"""Names of the files that answers about many clips go to."""

import os
from pathlib import Path

import pytest

from modeling_salmonn.serving.answer_files import subtitle_files


FOLDER = Path("texts")


def names_of(*clips: str) -> list[str]:
    return [str(file.relative_to(FOLDER)) for file in subtitle_files(clips, FOLDER)]


def test_subtitles_lie_as_their_clips() -> None:
    assert names_of("talks/a.wav", "talks/old/a.wav", "talks/b.mp3") == ["a.srt", "old/a.srt", "b.srt"]
    assert names_of("talks/a.wav", "talks/a.mp3") == ["a.wav.srt", "a.mp3.srt"]
    assert names_of("https://a.org/talks/a.wav?at=1", "b.wav") == ["talks/a.srt", "b.srt"]


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        (["https://a.org/get?id=1", "https://a.org/get?id=2", "https://a.org/get?id=3"], ["get", "get.2", "get.3"]),
        (["https://a.org/talk.mp3", "https://b.org/talk.mp3"], ["talk.mp3", "talk.mp3.2"]),
        (["talk.mp3", "https://a.org/talk.mp3"], ["talk.mp3", "talk.mp3.2"]),
        (["a.wav", "a.mp3", "a.wav.mp3"], ["a.wav", "a.mp3", "a.wav.2"]),
        (["https://a.org/get?id=1", "https://a.org/get?id=2", "get.2.wav"], ["get", "get.2", "get.2.2"]),
        (["Talk.wav", "talk.mp3"], ["Talk.wav", "talk.mp3"]),
        (["Talk.wav", "https://a.org/talk.WAV"], ["Talk.wav", "talk.WAV.2"]),
        (["data:audio/wav;base64,AA//", "data:audio/wav;base64,AAAA"], ["data", "data.2"]),
        (["https://a.org/?id=1", "https://a.org", "https://b.org"], ["a.org", "a.org.2", "b"]),
    ],
)
def test_clips_of_one_name_have_files_of_their_own(clips: list[str], expected: list[str]) -> None:
    assert names_of(*clips) == [f"{name}.srt" for name in expected]


def test_subtitles_of_a_url_stay_in_the_folder() -> None:
    (file,) = subtitle_files(["https://a.org/../../..//etc/./talk.mp3"], FOLDER)
    assert os.path.normpath(file) == str(FOLDER / "etc" / "talk.srt")
