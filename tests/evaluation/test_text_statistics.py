"""Figures of text: words, sentences, loops, overlap."""

import pytest

from modeling_salmonn.evaluation.text_statistics import (
    diversity,
    end_at_sentence,
    ngram_overlap,
    repeat_rate,
    repeats_itself,
    similarity,
    split_sentences,
    split_words,
)


REFRAIN = "The bell rang and rang in the cold. He ran to the door. The bell rang and rang in the cold."
NESTED = (
    "It was late and she had to go. So he said no. It was late and she had to go. Then why? It was late and she had"
)


def test_words_lose_case_and_punctuation_but_keep_apostrophes() -> None:
    assert split_words("Don't stop - it\u2019s 7:30, THE_END!") == [
        "don't",
        "stop",
        "it\u2019s",
        "7",
        "30",
        "the",
        "end",
    ]


def test_sentences_end_at_marks_and_at_line_ends() -> None:
    assert split_sentences('He said "Go!" and ran. Then...\n(Quiet)\n - \nWhy?') == [
        'He said "Go',
        "and ran",
        "Then",
        "(Quiet)",
        "Why",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three and", "One. Two!"),
        ('He said: "Stay." She did', 'He said: "Stay."'),
        ("It costs 3.50 and", ""),
        ("Whole.", "Whole."),
    ],
)
def test_text_is_cut_after_its_last_whole_sentence(text: str, expected: str) -> None:
    assert end_at_sentence(text) == expected


def test_diversity_is_the_mean_number_of_different_words() -> None:
    assert diversity(["a dog and a cat", "A a a", ""]) == pytest.approx((4 + 1 + 0) / 3)


@pytest.mark.parametrize(
    "text",
    ["no " * 7, "tick tock " * 5, NESTED, "and then the dog barked " * 3, "a" * 16, "1.1." * 10, "\u54c8" * 20],
)
def test_loop_is_found(text: str) -> None:
    assert repeats_itself(text)


@pytest.mark.parametrize("text", ["no " * 6, "Knock, knock, knock!", REFRAIN, "Brrrrr... " * 2, "", "a b c d " * 2])
def test_emphasis_and_refrains_are_no_loops(text: str) -> None:
    assert not repeats_itself(text)


def test_repeat_rate_is_a_share_of_answers() -> None:
    assert repeat_rate(["no " * 9, "A dog barks.", REFRAIN, "la " * 30]) == 0.5


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("a b c d", "x a b c", 0.5),
        ("A, b. C!", "a b c", 1.0),
        ("b c", "a b c d", 1.0),
        ("c b a", "a b c", 0.0),
        ("", "a b c", 0.0),
        ("a b c", "", 0.0),
    ],
)
def test_overlap_is_the_share_of_sequences_of_words(text: str, source: str, expected: float) -> None:
    assert ngram_overlap(text, source) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("A b c d.", "a b x d", 0.75), ("a b", "a b c d", 0.5), ("a", "b", 0.0), ("", "", 1.0), ("", "a", 0.0)],
)
def test_similarity_counts_edits_of_words(first: str, second: str, expected: float) -> None:
    assert similarity(first, second) == similarity(second, first) == expected
