"""What is said, as text to learn from: transcripts without stage directions, and the bare words."""

import re


# Stage directions, markers of the games' fonts, on-screen text.
NOT_SPOKEN = re.compile(r"[<>(){}\[\]@#$&^_/\\*|]")
MOST_CHARACTERS_PER_SECOND = 25  # faster text belongs to another clip
WORD = re.compile(r"\b[^\W\d_]+(?:'[^\W\d_]+)*(?!\w)'?")
ABBREVIATIONS = {"TV"}


def plain_transcript(text: str, seconds: float) -> str | None:
    """The transcript of a clip with its stressed CAPITALS undone.

    Args:
        text: the game's line.
        seconds: length of the clip.

    Returns:
        The line as one would write it, or `None` if it is not what is said in the clip.
    """
    if NOT_SPOKEN.search(text) or len(text) > MOST_CHARACTERS_PER_SECOND * seconds or not WORD.search(text):
        return None
    text = " ".join(text.replace('"', " ").replace(" - ", ", ").split()).strip(" '")
    text = WORD.sub(lambda match: match[0].lower() if _is_stressed(match[0]) else match[0], text)
    return _with_capitals(text)


def as_sentence(text: str) -> str:
    """A transcript in capitals or in small letters as one would write it, ended by a full stop."""
    return _with_capitals(text.lower()).rstrip(".") + "."


def _with_capitals(text: str) -> str:
    text = re.sub(r"\bi\b", "I", text)
    return text[:1].upper() + text[1:]


def spoken_words(text: str) -> str | None:
    """The bare words of a transcript, in small letters; `None` if it has figures, which can be read in many ways."""
    if re.search(r"\d", text):
        return None
    words = [word.strip("'") if word.endswith("'") else word for word in WORD.findall(text.lower())]
    return " ".join(words) or None


def stressed_words(text: str) -> list[str]:
    """The words that a line stresses in CAPITALS, in small letters and without repeats; of none but capitals, none."""
    words = [] if text.isupper() else WORD.findall(text)
    found = [word.lower() for word in words if _is_stressed(word) and len(word) > 2]
    return list(dict.fromkeys(found))


def _is_stressed(word: str) -> bool:
    return len(word) > 1 and word.isupper() and word not in ABBREVIATIONS
