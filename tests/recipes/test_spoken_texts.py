"""Texts for synthesis: cleaning WordNet, dealing out words, and saying numbers."""

import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from recipes.salmonn_smol.spoken_phrases import SpokenPhrases, say_number
from recipes.salmonn_smol.spoken_texts import (
    SHARES,
    definitions,
    example_sentences,
    planned_texts,
    tidy_sentence,
    vocabulary,
    word_lists,
)


NOUNS = """\
  1 This is a licence line.
00000001 13 n 01 harbour 0 000 | a sheltered port; "the ship left the harbour"; "Boats"
00000002 13 n 02 night_bird 0 owl 0 000 | (informal) a bird that hunts at night; "owls' eyes are large"
00000003 13 n 01 Paris 0 000 | the capital of France; "he said "yes"
00000004 13 n 01 lout 0 000 | (slang, offensive) a rude man; "he is a lout"
00000005 13 n 01 xiv 0 000 | being one more than 13; "it was about 14 days"
"""
COUNTS = (
    "harbour%1:13:00:: 1 120\nowl%1:13:00:: 1 2\nlout%1:13:00:: 1 3\nxiv%1:13:00:: 1 1\nnight_bird%1:13:00:: 1 1\n"
)


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """A WordNet of five senses."""
    (tmp_path / "data.noun").write_text(NOUNS)
    for part in ("verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("")
    (tmp_path / "cntlist.rev").write_text(COUNTS)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a dying fire", "A dying fire."),
        ("(informal) very good", "Very good."),
        ("who  are you?", "Who are you?"),
        ("he left--without a word; alone", "He left, without a word, alone."),
        ("the boys' boat isn't here", "The boys' boat isn't here."),
        ("a sun-dried apricot", "A sun-dried apricot."),
        ("I met Mr Jones", "I met Mr Jones."),
    ],
)
def test_tidy_sentence_makes_a_sentence(line: str, sentence: str) -> None:
    assert tidy_sentence(line) == sentence


@pytest.mark.parametrize(
    "line",
    [
        "",
        "about 14 days",
        "a gas (inert)",
        "followed by `to'",
        "the 'net' weight",
        "the U.S. army",
        "wait...",
        "fruit etc",
        "five kg",
        "the NATO troops",
        "a café",
        "and/or",
        "dichlorodiphenyltrichloroethane is toxic",
        "hooray!!",
    ],
)
def test_tidy_sentence_refuses_what_cannot_be_read_out(line: str) -> None:
    assert tidy_sentence(line) is None


def test_wordnet_gives_decent_sentences_of_the_right_length(wordnet: Path) -> None:
    assert sorted(example_sentences(wordnet, 0)) == ["Owls' eyes are large.", "The ship left the harbour."]
    assert sorted(definitions(wordnet, 0)) == [
        "A bird that hunts at night.",
        "A sheltered port.",
        "The capital of France.",
    ]


def test_vocabulary_has_plain_decent_words_with_their_counts(wordnet: Path) -> None:
    assert vocabulary(wordnet) == {"harbour": 120, "owl": 2}


def test_word_lists_deal_out_frequent_words_thrice_and_rare_ones_once_a_round(wordnet: Path) -> None:
    lists = list(islice(word_lists(wordnet, 0), 400))
    counts = Counter(word for words in lists for word in re.findall("[a-z]+", words.lower()))
    assert counts["harbour"] == pytest.approx(3 * counts["owl"], abs=4)
    assert all(words[0].isupper() and words.endswith(".") for words in lists)


def test_planned_texts_follow_the_seed_and_never_end(wordnet: Path) -> None:
    texts = list(islice(planned_texts(3, wordnet), 200))
    assert texts == list(islice(planned_texts(3, wordnet), 200))
    assert texts != list(islice(planned_texts(4, wordnet), 200))
    assert {text.source for text in texts} == set(SHARES)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (85, "eighty five"),
        (100, "one hundred"),
        (342, "three hundred and forty two"),
        (305, "three hundred and five"),
        (2041, "two thousand and forty one"),
        (120_700, "one hundred and twenty thousand seven hundred"),
    ],
)
def test_say_number_says_numbers(number: int, words: str) -> None:
    assert say_number(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "first"), (12, "twelfth"), (20, "twentieth"), (23, "twenty third"), (100, "one hundredth")],
)
def test_say_number_says_ordinals(number: int, words: str) -> None:
    assert say_number(number, "ordinal") == words


@pytest.mark.parametrize(
    ("year", "words"),
    [
        (1984, "nineteen eighty four"),
        (1900, "nineteen hundred"),
        (1806, "eighteen oh six"),
        (2007, "two thousand and seven"),
        (2031, "twenty thirty one"),
    ],
)
def test_say_number_says_years(year: int, words: str) -> None:
    assert say_number(year, "year") == words


def test_phrases_fill_every_template_with_speakable_words() -> None:
    phrases = SpokenPhrases(["harp"], seed=0)
    composed = list(islice(phrases, 4000))
    assert not [phrase for phrase in composed if not re.fullmatch(r"[A-Z][A-Za-z', -]*[.?]", phrase)]
    assert "Harp, H, A, R, P." in composed
    named = {slot for template in phrases.templates for slot in re.findall(r"\{(\w+)\}", template)}
    assert set(phrases.values) <= named
    assert named == set(phrases.values) | set(phrases.composers)
