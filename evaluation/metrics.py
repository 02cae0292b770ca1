"""Metrics of the paper's tasks (section 4): answers against references, for a whole set at once.

Rates are fractions: 0.25 is 25 %. Empty references raise, so that no figure comes from nothing.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import permutations

import jiwer
import sacrebleu
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer


Pairs = tuple[Sequence[str], Sequence[str]]
BLEU_TOKENIZERS = {"Chinese": "zh", "Japanese": "ja-mecab"}
YES, NO = re.compile(r"\byes\b", re.IGNORECASE), re.compile(r"\bno(t)?\b", re.IGNORECASE)


def word_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """%WER over a set, after Whisper's normalisation of English text (case, punctuation, numbers, spelling).

    Raises:
        ValueError: if there are no references with words, or not as many answers.
    """
    normalise = english_normaliser()
    pairs = _pairs([normalise(text) for text in references], [normalise(text) for text in answers])
    return jiwer.wer(*pairs)


def phone_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """%PER over a set; phones are separated by spaces."""
    return jiwer.wer(*_pairs(references, answers))


def overlapped_word_error_rate(references: Sequence[str], answers: Sequence[str]) -> float:
    """%WER of several voices, one a line, in the order that fits each answer best.

    Raises:
        ValueError: as `word_error_rate`.
    """
    normalise = english_normaliser()
    errors = words = 0
    for reference, answer in zip(*_pairs(references, answers), strict=True):
        hypothesis = " ".join(normalise(line) for line in answer.splitlines())
        counts = []
        for order in permutations(reference.splitlines()):
            expected = " ".join(normalise(line) for line in order)
            output = jiwer.process_words(expected, hypothesis)
            counts.append((output.substitutions + output.deletions + output.insertions, len(expected.split())))
        best = min(counts)
        errors, words = errors + best[0], words + best[1]
    return errors / words


def bleu(references: Sequence[str], answers: Sequence[str], language: str = "German") -> float:
    """Corpus BLEU-4 (0 to 100) with sacrebleu's tokenizer for the language."""
    references, answers = _pairs(references, answers)
    tokenizer = BLEU_TOKENIZERS.get(language, "13a")
    return sacrebleu.corpus_bleu(list(answers), [list(references)], tokenize=tokenizer).score


def accuracy(
    references: Sequence[str], answers: Sequence[str], parse: Callable[[str], str | None] | None = None
) -> float:
    """Share of answers that say the same as their reference; an answer that cannot be parsed is wrong."""
    parse = parse or plain_answer
    references, answers = _pairs(references, answers)
    hits = [parse(answer) == parse(reference) for reference, answer in zip(references, answers, strict=True)]
    return sum(hits) / len(hits)


def mention_rate(references: Sequence[Sequence[str]], answers: Sequence[str]) -> float:
    """Share of answers in which at least one of the wanted words stands, in any of its usual endings."""
    if not references or len(references) != len(answers):
        raise ValueError(f"Got {len(answers)} answers for {len(references)} references; give one for each.")
    hits = [any(mentions(answer, word) for word in words) for words, answer in zip(references, answers, strict=True)]
    return sum(hits) / len(hits)


def mentions(answer: str, wanted: str) -> bool:
    """Whether an answer has a word or phrase, whatever its case and its plural or verb ending."""
    stem = re.escape(wanted.lower().removesuffix("s"))
    return re.search(rf"\b{stem}(s|es|ing|ed|d)?\b", answer.lower()) is not None


def plain_answer(text: str) -> str:
    """A short answer without case, articles and punctuation."""
    words = re.findall(r"\w+(?:'\w+)*", text.lower())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def parse_yes_no(text: str) -> str | None:
    """`yes` or `no`, whichever comes first; `None` for neither."""
    found = [(match.start(), name) for name, rule in (("yes", YES), ("no", NO)) if (match := rule.search(text))]
    return min(found)[1] if found else None


def parse_gender(text: str) -> str | None:
    """`female` or `male`, if the text names exactly one of them."""
    female = re.search(r"\b(wom[ae]n|female|girl|lady)\b", text, re.IGNORECASE)
    male = re.search(r"\b(m[ae]n|male|boy|gentleman)\b", text, re.IGNORECASE)
    if bool(female) == bool(male):
        return None
    return "female" if female else "male"


@lru_cache(maxsize=1)
def english_normaliser() -> EnglishTextNormalizer:
    """Whisper's normaliser; without its table of British spellings, which is a file of the checkpoint."""
    return EnglishTextNormalizer({})


def _pairs(references: Sequence[str], answers: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(references) != len(answers):
        raise ValueError(f"Got {len(answers)} answers for {len(references)} references; give one for each.")
    if not any(reference.strip() for reference in references):
        raise ValueError("There is no reference with any words; a rate over nothing means nothing.")
    kept = [(reference, answer) for reference, answer in zip(references, answers, strict=True) if reference.strip()]
    return [reference for reference, _ in kept], [answer for _, answer in kept]


__all__ = [
    "accuracy",
    "bleu",
    "mention_rate",
    "mentions",
    "overlapped_word_error_rate",
    "parse_gender",
    "parse_yes_no",
    "phone_error_rate",
    "plain_answer",
    "word_error_rate",
]
