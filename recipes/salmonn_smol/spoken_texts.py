"""English texts for speech synthesis: WordNet's sentences and definitions, word lists, and composed phrases.

- Every text is written as it is spoken (no digits, symbols or abbreviations), with a capital and a final mark.
- `planned_texts` mixes the kinds in random order: any beginning of it is a fair sample of all.
- Word lists deal out a whole vocabulary before they repeat a word, so that rare words are heard as well.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from recipes.salmonn_smol.spoken_phrases import SpokenPhrases


WORDNET = Path("/usr/share/wordnet")
WORDNET_LICENCE = "WordNet-3.0"
OWN_LICENCE = "Apache-2.0"
SHARES = {"wordnet-example": 0.64, "wordnet-definition": 0.06, "word-list": 0.20, "phrase": 0.10}
UNSUITABLE = re.compile(r"slur\b|offensive|obscene|vulgar|disparag|taboo|slang for|sexual|genital", re.IGNORECASE)
ROMAN_NUMERAL = re.compile(r"m{0,3}(c[md]|d?c{0,3})(x[cl]|l?x{0,3})(i[xv]|v?i{0,3})")
PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z',.?! -]*")
# A mark inside a word or doubled, a full stop that ends no sentence, a ' other than those of "don't" and "boys' ".
ODD_MARKS = re.compile(r"[.?!,][^ ]|[ '-]'|'[ -](?<!s' )|[,.?!] ?[,.?!]|\. [a-z]| [,.]")
WORD = re.compile(r"[A-Za-z][a-z]*(?:'[a-z]*)?")
SHORT_WORDS = {"I", "a", "A", "O", "Mr", "Mrs", "Dr"}
ABBREVIATIONS = {"etc", "esp", "eg", "ie", "ca"}
LONGEST_WORD = 16  # letters; longer ones are mostly chemistry and taxonomy


@dataclass(frozen=True)
class Text:
    """A text to be spoken, with its origin (a key of `SHARES`) and licence."""

    words: str
    source: str
    licence: str


def tidy_sentence(text: str) -> str | None:
    """Make a line of WordNet a sentence that can be read out, or give `None` where it holds more than plain words."""
    text = re.sub(r"^\s*\([^()]*\)\s*", "", text)  # "(informal) very good"
    text = re.sub(r"\s*(--+|[;:])\s*", ", ", " ".join(text.split())).strip(" ,-")
    if not PLAIN_TEXT.fullmatch(text) or ODD_MARKS.search(text):
        return None
    if not all(_is_speakable_word(word) for word in re.split(r"[ ,.?!-]+", text) if word):
        return None
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


@cache
def _is_speakable_word(word: str) -> bool:
    """Whether a word is neither an abbreviation, a numeral nor a monster."""
    letters = word.replace("'", "")
    return word in SHORT_WORDS or bool(
        WORD.fullmatch(word)
        and 1 < len(letters) <= LONGEST_WORD
        and re.search("[aeiouy]", word.lower())
        and word not in ABBREVIATIONS
    )


@cache
def _glosses(wordnet: Path) -> list[tuple[list[str], str]]:
    """Read the lemmas and the gloss of every sense fit for all ears."""
    senses = []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (wordnet / f"data.{part}").read_text(encoding="utf-8", errors="replace").splitlines():
            fields, separator, gloss = line.partition(" | ")
            if separator and not UNSUITABLE.search(gloss):
                words = fields.split()
                senses.append((words[4 : 4 + 2 * int(words[3], 16) : 2], gloss.strip()))
    return senses


def _sentences(lines: list[str], shortest: int, longest: int, random: Random) -> Iterator[str]:
    """Tidy lines in random order and give the distinct sentences of a length in words."""
    random.shuffle(lines)
    seen = set()
    for line in lines:
        text = tidy_sentence(line)
        if text is None or text.casefold() in seen:
            continue
        if shortest <= len(text.replace("-", " ").split()) <= longest:
            seen.add(text.casefold())
            yield text


def example_sentences(wordnet: Path, seed: int) -> Iterator[str]:
    """Give all of WordNet's usage examples of 3 to 18 words in random order."""
    quoted = []
    for _, gloss in _glosses(wordnet):
        if gloss.count('"') % 2 == 0:  # other quotes cannot be told to begin or to end
            quoted += re.findall(r'"([^"]*)"', gloss)
    return _sentences(quoted, 3, 18, Random(f"{seed} examples"))


def definitions(wordnet: Path, seed: int) -> Iterator[str]:
    """Give all of WordNet's definitions of 3 to 14 words in random order."""
    meanings = [gloss.split('; "')[0] for _, gloss in _glosses(wordnet)]
    plain = [meaning for meaning in meanings if "genus" not in meaning]  # those are Latin names
    return _sentences(plain, 3, 14, Random(f"{seed} definitions"))


@cache
def vocabulary(wordnet: Path) -> dict[str, int]:
    """Give the plain words that WordNet's authors met in running text, with how often they did."""
    counts: dict[str, int] = {}
    for line in (wordnet / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        lemma = key.partition("%")[0]
        counts[lemma] = counts.get(lemma, 0) + int(count)
    decent: set[str] = set()
    for lemmas, _ in _glosses(wordnet):
        decent.update(lemma.partition("(")[0] for lemma in lemmas)
    return {word: counts[word] for word in sorted(counts) if word in decent and _is_list_word(word)}


def _is_list_word(word: str) -> bool:
    """Whether a lemma is a plain word of three letters or more, in small letters, thus no name."""
    plain = re.fullmatch("[a-z]{3,}", word) and not ROMAN_NUMERAL.fullmatch(word)
    return bool(plain) and _is_speakable_word(word)


def word_lists(wordnet: Path, seed: int) -> Iterator[str]:
    """Deal out the vocabulary in lists of two to seven words, without end; a frequent word comes thrice in a round."""
    random = Random(f"{seed} lists")
    deck = []
    for word, count in vocabulary(wordnet).items():
        deck += [word] * (1 + (count > 9) + (count > 99))
    while True:
        random.shuffle(deck)
        start = 0
        while start < len(deck):
            length = random.randint(2, 7)
            separator = ", " if random.random() < 0.75 else " "
            yield separator.join(deck[start : start + length]).capitalize() + "."
            start += length


def planned_texts(seed: int = 0, wordnet: Path = WORDNET) -> Iterator[Text]:
    """Give all texts in the order in which they are to be spoken, without end.

    Args:
        seed (`int`): Seed of the order and of everything composed.
        wordnet (`Path`): Folder of the WordNet database.

    Yields:
        `Text`: the next text; word lists take over where WordNet's sentences run out.
    """
    lists = word_lists(wordnet, seed)
    streams = {
        "wordnet-example": example_sentences(wordnet, seed),
        "wordnet-definition": definitions(wordnet, seed),
        "word-list": lists,
        "phrase": iter(SpokenPhrases(list(vocabulary(wordnet)), seed)),
    }
    random = Random(f"{seed} kinds")
    while True:
        source = random.choices(list(SHARES), list(SHARES.values()))[0]
        text = next(streams[source], None)
        if text is None:
            source, text = "word-list", next(lists)
        yield Text(text, source, OWN_LICENCE if source == "phrase" else WORDNET_LICENCE)
