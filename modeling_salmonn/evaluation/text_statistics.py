"""Statistics of generated text: words, loops, overlap with other text. Pure functions of strings."""

import re
from collections import Counter
from collections.abc import Sequence

import jiwer


LOOP_WORDS, LOOP_TIMES = 5, 3  # a sequence of so many words, as often
STUTTER = re.compile(r"(.{1,10}?)\1{15,}", re.DOTALL)  # one to ten characters, sixteen times in a row

APOSTROPHES = "'\u2019"
CLOSING_MARKS = APOSTROPHES + '"\u201d)]'

_WORD = re.compile(rf"[^\W_]+(?:[{APOSTROPHES}][^\W_]+)*")  # don't is one
_SENTENCE_END = re.compile(rf"[.!?\u2026]+[{re.escape(CLOSING_MARKS)}]*(?=\s|$)")


def split_words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation."""
    return _WORD.findall(text.lower())


def split_sentences(text: str) -> list[str]:
    """The sentences of a text that have words, without their end marks; a line end ends one too."""
    sentences = []
    for line in text.splitlines():
        sentences += [part.strip() for part in _SENTENCE_END.split(line) if split_words(part)]
    return sentences


def end_at_sentence(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def diversity(answers: Sequence[str]) -> float:
    """Mean number of different words in an answer (paper, section 4.2)."""
    return sum(len(set(split_words(answer))) for answer in answers) / len(answers)


def repeats_itself(text: str, length: int = LOOP_WORDS, times: int = LOOP_TIMES) -> bool:
    """Whether a text is caught in a loop: a sequence of words that comes again and again, or of few characters.

    Overlaps count, so that seven times the same word are a loop of five words three times.
    """
    counts = Counter(ngrams(split_words(text), length))
    loops = max(counts.values(), default=0) >= times
    return loops or STUTTER.search(text) is not None  # of text that has no words to count


def repeat_rate(answers: Sequence[str]) -> float:
    """Share of the answers that are caught in a loop (paper, table 4)."""
    return sum(map(repeats_itself, answers)) / len(answers)


def ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """All sequences of `length` words."""
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def ngram_overlap(text: str, source: str, length: int = 3) -> float:
    """Share of a text's sequences of words that a source has too."""
    words = split_words(text)
    length = min(length, len(words))  # a shorter text is one sequence
    if not length:
        return 0.0
    found = set(ngrams(split_words(source), length))
    own = ngrams(words, length)
    return sum(sequence in found for sequence in own) / len(own)


def similarity(first: str, second: str) -> float:
    """1 for the same words in the same order, 0 for none in common: edits of words, relative to the longer text."""
    words, others = split_words(first), split_words(second)
    if not words or not others:
        return float(words == others)
    edits = jiwer.process_words(" ".join(words), " ".join(others))
    return 1 - (edits.substitutions + edits.deletions + edits.insertions) / max(len(words), len(others))
