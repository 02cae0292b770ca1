"""What is said, as text to learn from."""

import pytest

from recipes.salmonn_smol.transcripts import plain_transcript, spoken_words, stressed_words


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("I had to INSPECT it.", "I had to inspect it."),
        ("WD40! You can give me a SQUIRT.", "WD40! You can give me a squirt."),
        ("It's a ROBOT shell - rusty, but it MIGHT work.", "It's a robot shell, rusty, but it might work."),
        ('"TREEWORLD - see the world', "Treeworld, see the world"),
        ("I don't know NOTHIN' about it!", "I don't know nothin' about it!"),
        ("Then I saw it on TV.", "Then I saw it on TV."),
    ],
)
def test_plain_transcript_undoes_stress_and_quotes(line: str, expected: str) -> None:
    assert plain_transcript(line, seconds=10) == expected


@pytest.mark.parametrize("line", ["(sigh)", "<gulp>", "@@ I think I'm in love @@", "...", "Sound FX on/off"])
def test_plain_transcript_leaves_out_what_is_not_said(line: str) -> None:
    assert plain_transcript(line, seconds=10) is None


def test_plain_transcript_leaves_out_lines_too_long_for_their_clip() -> None:
    line = "This is far too much text for so short a clip."
    assert plain_transcript(line, seconds=1.0) is None
    assert plain_transcript(line, seconds=3.0) == line


def test_spoken_words_are_bare_and_small() -> None:
    assert spoken_words("Well, there ain't no way... I'm stickin' it!") == "well there ain't no way i'm stickin it"
    assert spoken_words("He left in 1844.") is None
    assert spoken_words("...") is None


def test_stressed_words_are_those_in_capitals_once_each() -> None:
    assert stressed_words("The FUSION process was a SUCCESS, a SUCCESS! I am OK.") == ["fusion", "success"]
    assert stressed_words("Nothing here.") == []
    assert stressed_words("HE SAID NO") == [], "a transcript in capitals stresses nothing"
