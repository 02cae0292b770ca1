"""Metrics of the paper's tasks (section 4), from statistics that are summed over the rows of a set.

What is summed can also be drawn anew, row by row, so that every score comes with an interval (`intervals.py`). Rates
are fractions: 0.25 is 25 %. A set without rows or references raises, so that no score comes from nothing.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, permutations
from statistics import fmean
from typing import Any

import jiwer
import numpy as np
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from modeling_salmonn.evaluation.text_statistics import diversity, repeat_rate


References = Sequence[Sequence[str]]
MAX_VOICES = 6  # their orders are all tried: 720
BLEU_ORDER = 4
BLEU_TOKENIZERS = {"chinese": "zh", "zh": "zh", "japanese": "ja-mecab", "ja": "ja-mecab"}  # of the rest: 13a

YES_OR_NO = re.compile(r"\b((?P<yes>yes)|not?)\b", re.IGNORECASE)
EMOTIONS = {
    "neutral": r"neutral(ly|ity)?",
    "happy": r"happ(y|ier|iest|ily|iness)|excit(ed|edly|ement|ing)|joy(ful|fully|fulness|ous|ously)?",
    "sad": r"sad(der|dest|ly|ness)?|sorrow(ful|fully)?",
    "angry": r"ang(ry|rier|riest|rily|er|ered)",
}


class NothingToScoreError(ValueError):
    """There is no row, or no reference that can be compared with."""


@dataclass(frozen=True)
class Metric:
    """A score over a set of answers that follows from statistics summed over its rows."""

    # Of the references of each row and its answer: an array of shape (rows, k).
    statistics: Callable[[References, Sequence[str]], np.ndarray]
    # Scores (...) for sums of statistics (..., k): NaN where there is nothing to divide by, an error if that is all.
    combine: Callable[[np.ndarray], np.ndarray]
    higher_is_better: bool = True
    percent: bool = True  # a fraction, shown in percent; or else a plain score

    def score(self, references: References, answers: Sequence[str]) -> float:
        """The score of a whole set: of one or more references for each row, and an answer.

        Raises:
            ValueError: if there are no rows, not as many answers, or a row without a reference that can be used.
            TypeError: if the references of a row are a text instead of a list of texts.
        """
        return float(self.combine(self.statistics(references, answers).sum(axis=0)))


def require_rows(references: References, answers: Sequence[str]) -> None:
    """Refuse a set without rows, and answers and references that do not fit together."""
    if len(references) != len(answers):
        raise ValueError(f"Got {len(answers)} answers for {len(references)} references; give one for each.")
    if not len(answers):
        raise ValueError("There are no rows; a score over nothing means nothing.")
    for row in references:
        if isinstance(row, str):  # whose letters would pass for references
            raise TypeError(f"Got the text {row!r} as the references of a row; give a list of texts.")


def _usable(row: int, texts: Sequence[str], read: Callable[[str], str | None]) -> list[str]:
    """The references of a row as they are read, without those that say nothing; one must be left."""
    usable = [text for text in map(read, texts) if text]
    if not usable:
        raise ValueError(f"Row {row + 1} has no reference that can be used, but {list(texts)}; give it one.")
    return usable


def ratio(sums: np.ndarray) -> np.ndarray:
    """The first sum divided by the second; NaN where that is zero, and a `ValueError` if it is everywhere."""
    _require_some(sums[..., 1])
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)


def bleu_metric(language: str) -> Metric:
    """Corpus BLEU-4 (0 to 100) with sacrebleu's tokenizer for a language, by its English name or code."""
    tokenizer = BLEU_TOKENIZERS.get(re.split("[-_]", language.lower())[0], "13a")

    def statistics(references: References, answers: Sequence[str]) -> np.ndarray:
        require_rows(references, answers)
        scorer = _bleu_scorer(tokenizer)
        rows = []
        for row, (texts, answer) in enumerate(zip(references, answers, strict=True)):
            score = scorer.sentence_score(answer, _usable(row, texts, str.rstrip))
            rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        return np.array(rows, dtype=np.float64)

    return Metric(statistics, _corpus_bleu, percent=False)


def _corpus_bleu(sums: np.ndarray) -> np.ndarray:
    from sacrebleu.metrics import BLEU  # here, since training needs other metrics of this file alone

    _require_some(sums[..., 1])
    scores = []
    for answered, expected, *counts in sums.reshape(-1, sums.shape[-1]).astype(int).tolist():
        matched, total = counts[:BLEU_ORDER], counts[BLEU_ORDER:]  # n-grams of each order
        scores.append(BLEU.compute_bleu(matched, total, answered, expected, smooth_method="exp").score)
    return np.array(scores).reshape(sums.shape[:-1])


@lru_cache  # one for each tokenizer
def _bleu_scorer(tokenizer: str) -> Any:
    """Counts n-grams; its `effective_order` has no part in these, but keeps it from warning of single sentences."""
    from sacrebleu.metrics import BLEU

    try:
        return BLEU(tokenize=tokenizer, effective_order=True)
    except RuntimeError as error:
        raise ImportError("BLEU of Japanese needs MeCab; install it: pip install 'sacrebleu[ja]'") from error


def _mean(score: Callable[[list[str], str], float], read: Callable[[str], str | None] = str.strip) -> Metric:
    """Mean of the rows' scores: of the references as they are read, and the answer."""

    def statistics(references: References, answers: Sequence[str]) -> np.ndarray:
        require_rows(references, answers)
        wanted = [_usable(row, texts, read) for row, texts in enumerate(references)]
        return _with_ones(score(texts, answer) for texts, answer in zip(wanted, answers, strict=True))

    return Metric(statistics, ratio)


def _mean_of_answers(score: Callable[[Sequence[str]], float], **kind: bool) -> Metric:
    """Mean of the rows' scores, for which references do not matter."""

    def statistics(references: References, answers: Sequence[str]) -> np.ndarray:
        require_rows(references, answers)
        return _with_ones(score([answer]) for answer in answers)

    return Metric(statistics, ratio, **kind)


def _says_the_same(read: Callable[[str], str | None]) -> Metric:
    """Share of answers that are read as one of their references is; those that say nothing are wrong."""
    return _mean(lambda wanted, answer: read(answer) in wanted, read)


def _error_rate(versions: Callable[[str], Iterable[str]], read: Callable[[str], str]) -> Metric:
    """Word errors by words of the references, each row against the version of its references that fits best."""

    def statistics(references: References, answers: Sequence[str]) -> np.ndarray:
        require_rows(references, answers)
        rows = []
        for row, (texts, answer) in enumerate(zip(references, answers, strict=True)):
            if not texts:
                raise ValueError(f"Row {row + 1} has no reference; give it one, which may be empty.")
            said = read(answer)
            wanted = chain.from_iterable(map(versions, texts))
            rows.append(min(_word_errors(version, said) for version in wanted))  # fewest errors, then fewest words
        return np.array(rows, dtype=np.float64)

    return Metric(statistics, ratio, higher_is_better=False)


def _word_errors(expected: str, said: str) -> tuple[int, int]:
    """Errors, and words of the reference."""
    counts = jiwer.process_words(expected, said)
    missed = counts.substitutions + counts.deletions
    return missed + counts.insertions, missed + counts.hits


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


def _normalised(text: str) -> str:
    return english_normaliser()(text)


def _normalised_lines(text: str) -> str:
    # Line by line: the normaliser would join a "one" and a "two" of different voices to 12.
    return " ".join(map(_normalised, text.splitlines()))


def _orders_of_voices(reference: str) -> Iterable[str]:
    """A voice a line; which of them comes first is not what is measured."""
    voices = [_normalised(line) for line in reference.splitlines() if line.strip()]
    if len(voices) > MAX_VOICES:
        raise ValueError(f"Got {len(voices)} voices in a reference; at most {MAX_VOICES} can be put in every order.")
    return map(" ".join, permutations(voices))


def _contained(phrases: Sequence[str], answer: str) -> list[bool]:
    """Whether an answer has the words of each plain phrase one behind the other; articles aside."""
    words = f" {plain_answer(answer)} "
    return [f" {phrase} " in words for phrase in phrases]


def _rouge_l(wanted: list[str], answer: str) -> float:
    return max(_rouge_scorer().score(text, answer)["rougeL"].fmeasure for text in wanted)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError("ROUGE-L needs rouge-score; install it: pip install rouge-score") from error
    return RougeScorer(["rougeL"])


def _with_ones(scores: Iterable[float]) -> np.ndarray:
    return np.array([(score, 1) for score in scores], dtype=np.float64)


def _require_some(denominators: np.ndarray) -> None:
    if not (denominators > 0).any():
        raise NothingToScoreError(
            "There are no rows, or no reference has any words; a rate over nothing means nothing."
        )


def mentions(answer: str, wanted: str) -> bool:
    """Whether an answer has a word or phrase, whatever its case and its plural or verb ending."""
    stem = re.escape(wanted.lower().removesuffix("s"))  # drums, drum
    return re.search(rf"\b{stem}(s|es|ing|ed|d)?\b", answer.lower()) is not None


def plain_answer(text: str) -> str:
    """A short answer without case, punctuation and articles, unless it is nothing else, as a choice of "A" is."""
    words = re.findall(r"\w+(?:'\w+)*", text.lower())  # "don't" is one
    others = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(others or words)


def parse_yes_no(text: str) -> str | None:
    """`yes` or `no`, whichever comes first; `None` for neither."""
    found = YES_OR_NO.search(text)
    if found is None:
        return None
    return "yes" if found["yes"] else "no"


def parse_gender(text: str) -> str | None:
    """`female` or `male`, if the text names exactly one of them."""
    female = re.search(r"\b(wom[ae]n|female|girl|lady)\b", text, re.IGNORECASE)
    male = re.search(r"\b(m[ae]n|male|boy|gentleman)\b", text, re.IGNORECASE)
    if bool(female) == bool(male):  # neither, or both
        return None
    return "female" if female else "male"


def parse_emotion(text: str) -> str | None:
    """`neutral`, `happy`, `sad` or `angry` (IEMOCAP's classes), if the text names exactly one; excitement is happy.

    A class that is denied counts as named: "not sad but angry" names two, and so gives `None`.
    """
    found = [name for name, words in EMOTIONS.items() if re.search(rf"\b({words})\b", text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=1)
def english_normaliser() -> EnglishTextNormalizer:
    """Whisper's normaliser; without its table of British spellings, which is a file of the checkpoint."""
    return EnglishTextNormalizer({})


METRICS: Mapping[str, Metric] = {
    # Errors by words of the reference; one that normalises to nothing adds insertions and no words.
    "wer": _error_rate(lambda text: [_normalised(text)], _normalised),
    "per": _error_rate(lambda text: [_single_spaced(text)], _single_spaced),
    "overlapped_wer": _error_rate(_orders_of_voices, _normalised_lines),
    "bleu": bleu_metric("English"),
    "bleu_zh": bleu_metric("Chinese"),
    "bleu_ja": bleu_metric("Japanese"),
    # Means over rows.
    "rouge_l": _mean(_rouge_l),
    "accuracy": _says_the_same(plain_answer),
    "yes_no": _says_the_same(parse_yes_no),
    "gender": _says_the_same(parse_gender),
    "emotion": _says_the_same(parse_emotion),
    "mention": _mean(lambda wanted, answer: any(mentions(answer, word) for word in wanted)),
    "keywords": _mean(lambda wanted, answer: fmean(_contained(wanted, answer)), plain_answer),
    "contains_answer": _mean(lambda wanted, answer: any(_contained(wanted, answer)), plain_answer),
    "diversity": _mean_of_answers(diversity, percent=False),
    "repeat_rate": _mean_of_answers(repeat_rate, higher_is_better=False),
}
