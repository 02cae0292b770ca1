"""COCO's caption metrics: METEOR, CIDEr, SPICE and SPIDEr, by the package pycocoevalcap and its Java programs.

They stand apart from the other metrics, since they need more than Python. One that cannot be computed on a machine is
left out and the reason given; nothing takes its place.
"""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from modeling_salmonn.evaluation.metrics import Metric, References, ratio, require_rows


# As pycocoevalcap calls it. Java would otherwise read text and numbers by the rules of the machine's language.
METEOR_COMMAND = ("java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-jar", "meteor-1.5.jar")
METEOR_OPTIONS = ("-", "-", "-stdio", "-l", "en", "-norm")

# The score follows from METEOR 1.5's statistics by its parameters for English.
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA, METEOR_DELTA = 0.85, 0.2, 0.6, 0.75
METEOR_STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # weights of the same words, stems, synonyms and paraphrases


class CaptionMetricError(RuntimeError):
    """Why a caption metric cannot be computed here, in a sentence."""


@dataclass(frozen=True)
class Captions:
    """References and answers as COCO's tokenizer leaves them: small letters, no punctuation."""

    references: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...]

    def by_row(self) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """References and answers as COCO's scorers take them: lists by the number of their row."""
        references = dict(enumerate(map(list, self.references)))
        return references, {row: [text] for row, text in enumerate(self.answers)}


def tokenise_captions(references: References, answers: Sequence[str]) -> Captions:
    """References and answers through COCO's tokenizer; a reference without words is none, and each row needs one."""
    require_rows(references, answers)
    return _tokenise(tuple(map(tuple, references)), tuple(answers))


@lru_cache(maxsize=1)  # the four metrics of a task ask for the same captions one after the other
def _tokenise(references: tuple[tuple[str, ...], ...], answers: tuple[str, ...]) -> Captions:
    texts = {}  # of each row, its answer first
    for row, (answer, own) in enumerate(zip(answers, references, strict=True)):
        # The tokenizer takes a caption a line, and more signs than one for the end of a line.
        texts[row] = [{"caption": " ".join(text.split())} for text in (answer, *own)]
    tokenizer = _package("tokenizer.ptbtokenizer").PTBTokenizer()
    try:
        tokens = tokenizer.tokenize(texts)
    except OSError as error:
        raise CaptionMetricError(f"COCO's tokenizer does not run, or cannot write to its folder: {error}.") from error
    with_words = []
    for row, given in texts.items():
        if len(tokens.get(row, ())) != len(given):
            problem = "COCO's tokenizer, a Java program, stopped before the last caption; see its output."
            raise CaptionMetricError(problem)
        with_words.append(tuple(filter(None, tokens[row][1:])))
        if not with_words[row]:
            raise ValueError(f"Row {row + 1} has no reference with words, but {list(references[row])}; give it one.")
    return Captions(tuple(with_words), tuple(tokens[row][0] for row in texts))


def _meteor_statistics(references: References, answers: Sequence[str]) -> np.ndarray:
    """What METEOR's program counts: words, function words, words matched in each stage, chunks, matches."""
    captions = tokenise_captions(references, answers)
    questions = []
    for own, answer in zip(captions.references, captions.answers, strict=True):
        questions.append(" ||| ".join(("SCORE", *own, answer)))
    lines = _run_meteor(questions)
    statistics = np.array([line.split() for line in lines], dtype=np.float64)
    lengths, stages, chunks = statistics[:, :2], _meteor_stages(statistics), statistics[:, 20]
    whole = (stages.sum(axis=(1, 2)) == lengths).all(axis=1) & (chunks == 1)
    chunks[whole] = 0  # a caption that is its reference adds no chunk to the sum
    return statistics


def _meteor_stages(statistics: np.ndarray) -> np.ndarray:
    """Matched words by stage, content or function words, and answer or reference: shape `(..., 4, 2, 2)`."""
    return statistics[..., 4:20].reshape(*statistics.shape[:-1], 4, 2, 2)


def _meteor_scores(sums: np.ndarray) -> np.ndarray:
    """METEOR: a mean of precision and recall, less a penalty for matches in many chunks."""
    kinds = np.array([METEOR_DELTA, 1 - METEOR_DELTA])  # weights of content and function words
    lengths, functions, chunks, matches = sums[..., :2], sums[..., 2:4], sums[..., 20], sums[..., 21:].mean(axis=-1)
    found = np.einsum("s,k,...skw->...w", METEOR_STAGES, kinds, _meteor_stages(sums))
    weighted_lengths = kinds[0] * (lengths - functions) + kinds[1] * functions
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing matches
        precision, recall = np.moveaxis(found / weighted_lengths, -1, 0)  # of the answer, of the reference
        mean = 1 / ((1 - METEOR_ALPHA) / precision + METEOR_ALPHA / recall)
        scores = mean * (1 - METEOR_GAMMA * (chunks / matches) ** METEOR_BETA)
    return np.maximum(np.nan_to_num(scores), 0)


def _run_meteor(lines: Sequence[str]) -> list[str]:
    """What METEOR's program says to each line."""
    folder = Path(_package("meteor.meteor").__file__).parent  # with its JAR, and the data that this looks for
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        [*METEOR_COMMAND, *METEOR_OPTIONS], cwd=folder, input=text, capture_output=True, encoding="utf-8"
    )
    said = done.stdout.splitlines()
    if done.returncode or len(said) != len(lines):
        complaint = (done.stderr.splitlines() or ["no message"])[0]
        raise CaptionMetricError(f"METEOR's program stopped with status {done.returncode}: {complaint}")
    return said


@lru_cache(maxsize=1)  # SPIDEr needs it again
def _cider(captions: Captions) -> tuple[float, ...]:
    """CIDEr of each row; the weights of its words are those of the whole set, whatever rows are drawn later."""
    if len(captions.answers) < 2:
        raise CaptionMetricError("CIDEr weighs words by the clips that have them; it needs more clips than one.")
    _, rows = _package("cider.cider").Cider().compute_score(*captions.by_row())
    return tuple(rows)


@lru_cache(maxsize=1)
def _spice(captions: Captions) -> tuple[float, ...]:
    folder = Path(_package("spice.spice").__file__).parent / "lib"
    parser = _package("spice.get_stanford_models").JAR
    missing = [name for name in (f"{parser}.jar", f"{parser}-models.jar") if not (folder / name).is_file()]
    if missing:  # the package would fetch half a gigabyte unasked
        raise CaptionMetricError(
            f"SPICE's parser is not there ({' and '.join(missing)} in {folder}); "
            "fetch it: python -m pycocoevalcap.spice.get_stanford_models"
        )
    try:
        _, rows = _package("spice.spice").Spice().compute_score(*captions.by_row())
    except OSError as error:
        raise CaptionMetricError(f"SPICE does not run, or cannot write to its folder: {error}.") from error
    except subprocess.CalledProcessError as error:
        raise CaptionMetricError(
            f"SPICE's program stopped with status {error.returncode}; see its output. It is made for Java 8."
        ) from error
    scores = tuple(row["All"]["f"] for row in rows)
    if np.isnan(scores).any():
        raise CaptionMetricError(f"SPICE has no score for {np.isnan(scores).sum()} of {len(scores)} captions.")
    return scores


def _spider(captions: Captions) -> tuple[float, ...]:
    return tuple((np.array(_cider(captions)) + _spice(captions)) / 2)


def _package(module: str) -> Any:
    """A module of pycocoevalcap, all of which need Java, if only behind its tokenizer."""
    if shutil.which("java") is None:
        raise CaptionMetricError("There is no Java here; install it, and have java on the PATH.")
    try:
        return import_module(f"pycocoevalcap.{module}")
    except ImportError as error:
        raise CaptionMetricError(
            "The package pycocoevalcap is missing; install it: pip install pycocoevalcap"
        ) from error


def _mean(score_rows: Callable[[Captions], Sequence[float]]) -> Metric:
    def statistics(references: References, answers: Sequence[str]) -> np.ndarray:
        rows = score_rows(tokenise_captions(references, answers))
        return np.column_stack([rows, np.ones(len(rows))])

    return Metric(statistics, ratio)


CAPTION_METRICS: Mapping[str, Metric] = {
    "meteor": Metric(_meteor_statistics, _meteor_scores),
    "cider": _mean(_cider),
    "spice": _mean(_spice),
    "spider": _mean(_spider),
}
