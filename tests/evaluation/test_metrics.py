"""Metrics against figures worked out by hand."""

import pytest

from modeling_salmonn.evaluation.metrics import (
    accuracy,
    bleu,
    mention_rate,
    mentions,
    overlapped_word_error_rate,
    parse_gender,
    parse_yes_no,
    phone_error_rate,
    plain_answer,
    word_error_rate,
)


def test_word_error_rate_counts_over_the_whole_set() -> None:
    references = ["the cat sat down", "slowly"]
    assert word_error_rate(references, ["the cat sat down", "quickly"]) == pytest.approx(1 / 5)
    assert word_error_rate(references, ["", ""]) == 1.0


def test_word_error_rate_ignores_case_punctuation_and_how_numbers_are_written() -> None:
    assert word_error_rate(["It's twenty-three, Mister Smith!"], ["it is 23 mister smith"]) == 0


def test_word_error_rate_may_exceed_one() -> None:
    assert word_error_rate(["cat"], ["a dog and a horse"]) > 1


@pytest.mark.parametrize("metric", [word_error_rate, phone_error_rate, bleu, accuracy])
def test_unequal_or_empty_sets_raise(metric: object) -> None:
    with pytest.raises(ValueError, match="1 answers for 2 references"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no reference"):
        metric(["", " "], ["a", "b"])


def test_phone_error_rate_keeps_phones_as_they_are() -> None:
    assert phone_error_rate(["HH AH L OW"], ["HH AH L UW"]) == 0.25


def test_overlapped_voices_may_come_in_any_order() -> None:
    references = ["good morning\nhow are you"]
    assert overlapped_word_error_rate(references, ["How are you?\nGood morning."]) == 0
    assert overlapped_word_error_rate(references, ["good morning"]) == pytest.approx(3 / 5)


def test_bleu_is_a_hundred_for_the_reference_alone() -> None:
    text = ["Ich habe den Schlüssel gefunden und die Tür geöffnet."]
    assert bleu(text, text) == pytest.approx(100)
    assert bleu(text, ["Das ist etwas ganz anderes als gefragt."]) < 10


def test_accuracy_takes_unparsed_answers_as_wrong() -> None:
    assert accuracy(["Yes.", "No."], ["Yes, it is.", "Perhaps."], parse_yes_no) == 0.5
    assert accuracy(["The dog."], ["a dog"]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes.", "yes"), ("No, it is rain.", "no"), ("It is not.", "no"), ("yes, no doubt", "yes"), ("maybe", None)],
)
def test_yes_no_is_the_first_that_is_said(text: str, expected: str | None) -> None:
    assert parse_yes_no(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A woman.", "female"), ("It is a man's voice.", "male"), ("a man and a woman", None), ("someone", None)],
)
def test_gender_needs_exactly_one(text: str, expected: str | None) -> None:
    assert parse_gender(text) == expected


def test_mentions_know_usual_endings_but_not_other_words() -> None:
    assert mentions("Footsteps on gravel.", "footsteps")
    assert mentions("Two dogs barking", "dog")
    assert mentions("Acoustic guitar playing", "acoustic guitar")
    assert not mentions("A hotdog", "dog")
    assert not mentions("A cattle herd", "cat")


def test_mention_rate_wants_one_word_of_each_list() -> None:
    assert mention_rate([["dog", "wolf"], ["rain"]], ["A wolf howls.", "Wind."]) == 0.5


def test_plain_answer_is_the_bare_words() -> None:
    assert plain_answer("The  Piano, and an organ!") == "piano and organ"
