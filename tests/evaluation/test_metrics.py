"""Metrics against figures worked out by hand, and against the libraries that define them."""

import jiwer
import numpy as np
import pytest
import sacrebleu
from sacrebleu.tokenizers import tokenizer_ja_mecab

from modeling_salmonn.evaluation import metrics
from modeling_salmonn.evaluation.metrics import (
    METRICS,
    bleu_metric,
    english_normaliser,
    mentions,
    parse_emotion,
    parse_gender,
    parse_yes_no,
    plain_answer,
)


REFERENCE_FREE = ("diversity", "repeat_rate")
COMPUTED_HERE = [name for name in METRICS if name != "bleu_ja"]

GERMAN = ["Ich habe den Schlüssel gefunden.", "Der Hund bellt laut im Garten.", "Es regnet seit drei Tagen."]
GERMAN_ANSWERS = ["Ich habe einen Schlüssel gefunden.", "Ein Hund bellt sehr laut im Garten!", ""]


def alone(texts: list[str]) -> list[list[str]]:
    return [[text] for text in texts]


def word_error_rate(references: list[str], answers: list[str]) -> float:
    return METRICS["wer"].score(alone(references), answers)


def test_metrics_have_the_names_of_the_tasks() -> None:
    names = "wer per overlapped_wer bleu bleu_zh bleu_ja rouge_l accuracy yes_no gender emotion mention keywords"
    assert set(METRICS) == {*names.split(), "contains_answer", "diversity", "repeat_rate"}
    lower = {name for name, metric in METRICS.items() if not metric.higher_is_better}
    assert lower == {"wer", "per", "overlapped_wer", "repeat_rate"}
    plain = {name for name, metric in METRICS.items() if not metric.percent}
    assert plain == {"bleu", "bleu_zh", "bleu_ja", "diversity"}


@pytest.mark.parametrize("name", COMPUTED_HERE)
def test_a_score_follows_from_sums_over_any_parts_of_the_set(name: str) -> None:
    metric = METRICS[name]
    references = [["yes, a happy woman plays the piano"], ["no, a sad man sings"], ["yes, the neutral girl talks on"]]
    answers = ["yes, a happy woman plays piano", "yes, an angry man sings", "yes, the neutral girl talks"]
    statistics = metric.statistics(references, answers)
    assert statistics.dtype == np.float64
    assert len(statistics) == 3
    parts = [metric.statistics(references[part], answers[part]) for part in (slice(0, 1), slice(1, 3))]
    np.testing.assert_array_equal(np.concatenate(parts), statistics)
    score = metric.score(references, answers)
    assert metric.combine(statistics.sum(axis=0)) == score
    drawn = np.stack([statistics.sum(axis=0), statistics[[1, 1, 2]].sum(axis=0)])
    assert metric.combine(drawn).tolist() == [score, float(metric.combine(drawn[1]))]
    assert metric.combine(drawn.reshape(2, 1, -1)).shape == (2, 1)


@pytest.mark.parametrize("name", COMPUTED_HERE)
def test_a_set_without_rows_or_of_unequal_lengths_raises(name: str) -> None:
    with pytest.raises(ValueError, match="There are no rows"):
        METRICS[name].score([], [])
    with pytest.raises(ValueError, match="Got 1 answers for 2 references"):
        METRICS[name].score([["yes"], ["no"]], ["yes"])


@pytest.mark.parametrize("name", COMPUTED_HERE)
def test_a_text_in_place_of_a_list_of_references_raises(name: str) -> None:
    with pytest.raises(TypeError, match="Got the text 'a dog' as the references"):
        METRICS[name].score(["a dog"], ["a dog"])


@pytest.mark.parametrize("name", [name for name in COMPUTED_HERE if name not in REFERENCE_FREE])
def test_a_row_without_reference_raises(name: str) -> None:
    with pytest.raises(ValueError, match="Row 2 has no reference"):
        METRICS[name].score([["yes, happy men talk"], []], ["yes", "no"])


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "accuracy", "yes_no", "mention", "keywords", "contains_answer"])
def test_an_empty_reference_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="Row 1 has no reference that can be used"):
        METRICS[name].score([["", " "]], ["yes"])
    references, answers = [["yes, a dog is barking"]], ["yes, a dog is barking"]
    assert METRICS[name].score([[*references[0], ""]], answers) == METRICS[name].score(references, answers)


def test_word_error_rate_counts_over_the_whole_set() -> None:
    references = ["the cat sat down", "slowly"]
    assert word_error_rate(references, ["the cat sat down", "quickly"]) == 1 / 5
    assert word_error_rate(references, ["", ""]) == 1.0


def test_word_error_rate_is_that_of_jiwer() -> None:
    references = ["Mr. Smith's twenty-three cats sat down.", "It wasn't colourful!", "one two three four", "yes"]
    answers = ["mister smith is 23 cat sat", "It was not colorful, no.", "two one three", ""]
    normalise = english_normaliser()
    expected = jiwer.wer(list(map(normalise, references)), list(map(normalise, answers)))
    assert 0 < expected < 1
    assert METRICS["wer"].score(alone(references), answers) == expected


def test_word_error_rate_ignores_case_punctuation_and_how_numbers_are_written() -> None:
    assert word_error_rate(["It's twenty-three, Mister Smith!"], ["it is 23 mister smith"]) == 0


def test_word_error_rate_may_exceed_one() -> None:
    assert word_error_rate(["cat"], ["a dog and a horse"]) > 1


def test_words_said_over_silence_are_errors() -> None:
    statistics = METRICS["wer"].statistics([["[noise]"], ["hello there"], [""]], ["thank you", "hello there", ""])
    assert statistics.tolist() == [[2, 0], [0, 2], [0, 0]]
    assert METRICS["wer"].combine(statistics.sum(axis=0)) == 1.0
    by_row = METRICS["wer"].combine(statistics)
    np.testing.assert_array_equal(by_row, [np.nan, 0, np.nan])


@pytest.mark.parametrize("name", ["wer", "per", "overlapped_wer"])
def test_errors_over_no_words_at_all_raise(name: str) -> None:
    with pytest.raises(ValueError, match="no reference has any words"):
        METRICS[name].score([[""], [" "]], ["a", "b"])


def test_of_several_references_the_one_that_fits_best_counts() -> None:
    assert METRICS["wer"].statistics([["a grey cat sat", "the cat sat"]], ["the cat sat"]).tolist() == [[0, 3]]


def test_phone_error_rate_keeps_phones_as_they_are() -> None:
    score = METRICS["per"].score
    assert score([["HH AH L OW"]], ["HH AH L UW"]) == 0.25
    assert score([["HH AH L OW"]], ["hh ah\nL OW"]) == 0.5
    references, answers = ["HH AH L OW", "W ER L D"], ["HH L OW OW OW", "V ER L"]
    assert score(alone(references), answers) == jiwer.wer(references, answers)


def test_overlapped_voices_may_come_in_any_order() -> None:
    score, references = METRICS["overlapped_wer"].score, [["good morning\nhow are you"]]
    assert score(references, ["How are you?\nGood morning."]) == 0
    assert score(references, ["how are you good morning"]) == 0
    assert score(references, ["good morning"]) == 3 / 5
    assert score(references, ["morning good are how you"]) > 0
    assert word_error_rate(["good morning how are you"], ["how are you good morning"]) > 0


def test_more_voices_than_can_be_ordered_raise() -> None:
    with pytest.raises(ValueError, match="Got 7 voices in a reference; at most 6"):
        METRICS["overlapped_wer"].score([["one\ntwo\nthree\nfour\nfive\nsix\nseven"]], ["one"])


def test_bleu_is_that_of_sacrebleu() -> None:
    expected = sacrebleu.corpus_bleu(GERMAN_ANSWERS, [GERMAN]).score
    assert 10 < expected < 60
    assert METRICS["bleu"].score(alone(GERMAN), GERMAN_ANSWERS) == expected
    assert bleu_metric("German").score(alone(GERMAN), GERMAN_ANSWERS) == expected


def test_bleu_is_that_of_sacrebleu_where_smoothing_counts() -> None:
    references, answers = ["ein Hund bellt sehr laut"], ["der Hund bellt dort"]
    expected = sacrebleu.corpus_bleu(answers, [references]).score
    unsmoothed = sacrebleu.corpus_bleu(answers, [references], smooth_method="none").score
    assert unsmoothed == 0
    assert METRICS["bleu"].score(alone(references), answers) == expected > 0


def test_bleu_is_that_of_sacrebleu_with_different_numbers_of_references() -> None:
    others = ["Den Schlüssel habe ich gefunden.", None, "Seit drei Tagen regnet es."]
    references = [[text, other] if other else [text] for text, other in zip(GERMAN, others, strict=True)]
    expected = sacrebleu.corpus_bleu(GERMAN_ANSWERS, [GERMAN, others]).score
    assert METRICS["bleu"].score(references, GERMAN_ANSWERS) == expected


@pytest.mark.parametrize("language", ["Chinese", "zh", "zh-CN", "zh_TW"])
def test_bleu_of_chinese_counts_characters(language: str) -> None:
    references, answers = ["我昨天在公园里看到一只狗。"], ["我今天在公园里看到一只狗。"]
    expected = sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score
    assert bleu_metric(language).score(alone(references), answers) == expected > 50
    assert METRICS["bleu_zh"].score(alone(references), answers) == expected
    assert bleu_metric("German").score(alone(references), answers) < expected


def test_bleu_of_japanese_is_that_of_sacrebleu() -> None:
    pytest.importorskip("MeCab", reason="sacrebleu[ja] is not installed")
    references, answers = ["私は昨日公園で犬を見ました。"], ["私は今日公園で犬を見ました。"]
    expected = sacrebleu.corpus_bleu(answers, [references], tokenize="ja-mecab").score
    assert METRICS["bleu_ja"].score(alone(references), answers) == expected
    assert bleu_metric("Japanese").score(alone(references), answers) == expected > 30


def test_bleu_of_japanese_without_mecab_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._bleu_scorer.cache_clear()
    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)  # as sacrebleu leaves it where the import failed
    with pytest.raises(ImportError, match=r"needs MeCab; install it: pip install 'sacrebleu\[ja\]'"):
        bleu_metric("ja").score([["犬です"]], ["犬です"])


def test_bleu_is_a_hundred_for_the_reference_alone() -> None:
    text = "Ich habe den Schlüssel gefunden und die Tür geöffnet."
    assert METRICS["bleu"].score([[text]], [text]) == pytest.approx(100)
    assert METRICS["bleu"].score([[text]], ["Das ist etwas ganz anderes als gefragt."]) < 10


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    # Four of five answered words in order, of six in the reference.
    references, answers = [["A dog is barking very loudly."]], ["a dog barking loudly outside"]
    assert METRICS["rouge_l"].score(references, answers) == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))
    assert METRICS["rouge_l"].score(references, ["wind"]) == 0
    assert METRICS["rouge_l"].score(references, [""]) == 0


def test_rouge_l_takes_the_best_reference_of_a_row_and_the_mean_over_rows() -> None:
    references = [["rain on a roof", "a dog barks"], ["rain falls"]]
    assert METRICS["rouge_l"].score(references, ["A dog barks!", "wind howls"]) == 0.5


def test_accuracy_takes_any_reference_but_no_other_answer() -> None:
    assert METRICS["accuracy"].score([["The dog."]], ["a dog"]) == 1
    references = [["The dog.", "A wolf"], ["rain"], ["A"]]
    assert METRICS["accuracy"].score(references, ["a wolf", "raining", "A."]) == 2 / 3
    assert METRICS["accuracy"].score(references, ["", "", ""]) == 0


@pytest.mark.parametrize(
    ("name", "references", "answers"),
    [
        ("yes_no", ["Yes.", "No.", "yes", "no"], ["Yes, the same.", "No.", "It is not.", "I cannot tell."]),
        ("gender", ["A woman.", "male", "female", "male"], ["female", "It is a man.", "a man", "a man and a woman"]),
        ("emotion", ["happy", "Sad.", "angry", "neutral"], ["excited", "sadness", "calm", "neutral, then angry"]),
    ],
)
def test_classes_are_compared_as_they_are_parsed(name: str, references: list[str], answers: list[str]) -> None:
    """The first two answers of each case are right, the others wrong."""
    assert METRICS[name].statistics(alone(references), answers)[:, 0].tolist() == [1, 1, 0, 0]
    assert METRICS[name].score(alone(references), answers) == 0.5


@pytest.mark.parametrize("name", ["yes_no", "gender", "emotion"])
def test_a_reference_of_no_class_raises(name: str) -> None:
    with pytest.raises(ValueError, match=r"Row 1 has no reference that can be used, but \['frustrated'\]"):
        METRICS[name].score([["frustrated"]], ["frustrated"])


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Neutral.", "neutral"),
        ("She speaks neutrally.", "neutral"),
        ("happy", "happy"),
        ("The speaker sounds happier and more EXCITED.", "happy"),
        ("Full of joy", "happy"),
        ("joyfully", "happy"),
        ("The emotion is sadness.", "sad"),
        ("a sorrowful voice", "sad"),
        ("He answers angrily, in anger.", "angry"),
        ("unhappy", None),
        ("danger", None),
        ("a saddle", None),
        ("enjoys it", None),
        ("frustrated", None),
        ("", None),
        ("neither happy nor sad", None),
        ("neutral or angry", None),
    ],
)
def test_emotion_needs_exactly_one_class(text: str, expected: str | None) -> None:
    assert parse_emotion(text) == expected


def test_mentions_know_usual_endings_but_not_other_words() -> None:
    assert mentions("Footsteps on gravel.", "footsteps")
    assert mentions("Two dogs barking", "dog")
    assert mentions("Acoustic guitar playing", "acoustic guitar")
    assert not mentions("A hotdog", "dog")
    assert not mentions("A cattle herd", "cat")


def test_one_word_of_each_list_is_to_be_mentioned() -> None:
    references = [["dog", "wolf"], ["rain"], ["bell", ""]]
    assert METRICS["mention"].score(references, ["A wolf howls.", "Wind.", "Nothing"]) == 1 / 3


def test_keywords_are_recalled_as_whole_words_and_phrases() -> None:
    references = [["neural network", "speech", "audio", "noise"], ["music"]]
    answers = ["Keywords: Neural-network; speech, audible, noises", "music"]
    assert METRICS["keywords"].statistics(references, answers)[:, 0].tolist() == [0.5, 1]
    assert METRICS["keywords"].score(references, answers) == 0.75


def test_an_accepted_answer_is_contained_as_a_sequence_of_whole_words() -> None:
    references = [["Abraham Lincoln", "Lincoln"], ["ten", "10"], ["the red car"], ["seven o'clock"]]
    answers = ["It was Lincoln, in 1863.", "often", "a car that is red", "at seven o'clock sharp"]
    assert METRICS["contains_answer"].statistics(references, answers)[:, 0].tolist() == [1, 0, 0, 1]
    assert METRICS["contains_answer"].score(references, ["", "", "", ""]) == 0


def test_diversity_and_loops_need_no_references() -> None:
    answers = ["The dog, the dog!", "rain falls and falls and falls and falls and falls"]
    assert METRICS["diversity"].score([[], []], answers) == (2 + 3) / 2
    assert METRICS["repeat_rate"].score([[], []], ["a dog barks", "no " * 20]) == 0.5


def test_plain_answer_is_the_bare_words() -> None:
    assert plain_answer("The  Piano, and an organ!") == "piano and organ"
    assert plain_answer("A.") == "a"
    assert plain_answer("...") == ""
