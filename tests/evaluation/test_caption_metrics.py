"""Caption metrics by the real programs, where they are installed; and what is said where they are not."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from modeling_salmonn.evaluation import captions
from modeling_salmonn.evaluation.captions import (
    CAPTION_METRICS,
    CaptionMetricError,
    tokenise_captions,
)
from modeling_salmonn.evaluation.intervals import bootstrap_interval


needs_package = pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="pycocoevalcap is not installed")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")

# Line ends within a caption, an empty answer, a reference without words; matches of words, stems and synonyms.
REFERENCES = [
    ["A dog barks loudly.", "A big dog, is barking!"],
    ["Rain falls\ron a roof"],
    ["Rain falls"],
    ["wind \u2014 na\u00efve", "..."],
    ["A man is talking while a vehicle goes past"],
    ["children laugh and shout in the background", "kids laughing"],
]
ANSWERS = [
    "A dog is barking.",
    "",
    "rain falls",
    "a bird\u2028caf\u00e9",
    "A man talks as a car drives by",
    "Kids are laughing and screaming at the back.",
]

# What Meteor().compute_score and Cider().compute_score of pycocoevalcap 1.2 give for these, tokenised by the same.
METEOR = (0.2276802675144586, [0.3622139617230904, 0.0, 1.0, 0.0, 0.20313401357218988, 0.32000000000000006])
CIDER = (1.633931106398846, [3.18457824, 0.0, 5.0, 0.0, 0.91045806, 0.70855034])

Results = tuple[dict[str, np.ndarray], dict[str, str]]


def statistics_or_reason(name: str, references: list[list[str]], answers: list[str]) -> np.ndarray | str:
    try:
        return CAPTION_METRICS[name].statistics(references, answers)
    except CaptionMetricError as error:
        return str(error)


def caption_statistics(references: list[list[str]], answers: list[str]) -> Results:
    """Statistics of the metrics that can be computed here, and why the others cannot."""
    found = {name: statistics_or_reason(name, references, answers) for name in CAPTION_METRICS}
    reasons = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    return {name: statistics for name, statistics in found.items() if name not in reasons}, reasons


@pytest.fixture(scope="module")
def results() -> Results:
    return caption_statistics(REFERENCES, ANSWERS)


@needs_package
@needs_java
def test_each_metric_has_a_score_or_a_reason(results: Results) -> None:
    scores, reasons = results
    assert sorted([*scores, *reasons]) == ["cider", "meteor", "spice", "spider"]
    assert {"meteor", "cider"} <= set(scores)
    assert all(len(statistics) == len(ANSWERS) for statistics in scores.values())


@needs_package
@needs_java
@pytest.mark.parametrize(("name", "expected"), [("meteor", METEOR), ("cider", CIDER)])
def test_scores_are_those_of_the_coco_evaluation(
    results: Results, name: str, expected: tuple[float, list[float]]
) -> None:
    value, rows = expected
    statistics, combine = results[0][name], CAPTION_METRICS[name].combine
    assert combine(statistics.sum(axis=0)) == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(combine(statistics), rows, atol=1e-8)


@needs_package
@needs_java
def test_meteor_of_a_set_is_not_the_mean_of_its_rows_and_has_an_interval_of_its_own(results: Results) -> None:
    metric, statistics = CAPTION_METRICS["meteor"], results[0]["meteor"]
    value, rows = METEOR
    assert abs(value - np.mean(rows)) > 0.05
    low, high = bootstrap_interval(metric, statistics)
    assert 0 <= low < value < high <= 1
    alone = np.repeat(statistics[:1], 5, axis=0)
    assert bootstrap_interval(metric, alone) == pytest.approx([rows[0]] * 2)


@needs_package
@needs_java
def test_cider_of_a_set_is_the_mean_of_its_rows(results: Results) -> None:
    value, rows = CIDER
    assert value == pytest.approx(np.mean(rows))
    low, high = bootstrap_interval(CAPTION_METRICS["cider"], results[0]["cider"])
    assert 0 < low < value < high


@needs_package
@needs_java
def test_spice_is_never_fetched_unasked_nor_replaced(results: Results) -> None:
    scores, reasons = results
    if "spice" in scores:
        pytest.skip("SPICE's parser is installed")
    for name in ("spice", "spider"):
        assert "fetch it: python -m pycocoevalcap.spice.get_stanford_models" in reasons[name]
        with pytest.raises(CaptionMetricError, match=r"stanford-corenlp-3\.6\.0\.jar"):
            CAPTION_METRICS[name].score(REFERENCES, ANSWERS)


@needs_package
@needs_java
def test_spider_is_the_mean_of_cider_and_spice(monkeypatch: pytest.MonkeyPatch) -> None:
    spice = (0.5, 0.0, 1.0, 0.0, 0.25, 0.0)
    monkeypatch.setattr(captions, "_spice", lambda _: spice)  # its parser is no package
    statistics = CAPTION_METRICS["spider"].statistics(REFERENCES, ANSWERS)
    np.testing.assert_allclose(statistics[:, 0], (np.array(CIDER[1]) + spice) / 2, atol=1e-8)


@needs_package
@needs_java
def test_captions_keep_their_rows_whatever_line_ends_they_have() -> None:
    found = tokenise_captions(REFERENCES, ANSWERS)
    assert found.references[1] == ("rain falls on a roof",)
    assert found.references[3] == ("wind naïve",)  # the other one has no words
    assert found.answers[:4] == ("a dog is barking", "", "rain falls", "a bird café")


@needs_package
@needs_java
def test_cider_of_a_single_clip_is_refused() -> None:
    with pytest.raises(CaptionMetricError, match="needs more clips than one"):
        CAPTION_METRICS["cider"].score([["a dog barks"]], ["a dog barks"])


@needs_package
@needs_java
def test_a_row_without_words_in_its_references_raises() -> None:
    with pytest.raises(ValueError, match="Row 2 has no reference with words"):
        caption_statistics([["a dog"], ["...", ""]], ["a dog", "a dog"])


def test_sets_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match="There are no rows"):
        caption_statistics([], [])
    with pytest.raises(ValueError, match="Got 1 answers for 2 references"):
        caption_statistics([["a dog"], ["rain"]], ["a dog"])
    with pytest.raises(TypeError, match="Got the text 'a dog'"):
        caption_statistics(["a dog"], ["a dog"])


def test_without_java_every_metric_has_that_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    scores, reasons = caption_statistics([["a cat purrs"], ["rain"]], ["a cat", "rain"])
    assert scores == {}
    assert sorted(reasons) == sorted(CAPTION_METRICS)
    assert all("There is no Java here" in reason for reason in reasons.values())


def test_without_the_package_every_metric_has_that_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.tokenizer.ptbtokenizer", None)
    scores, reasons = caption_statistics([["a cat purrs"], ["wind"]], ["a cat", "wind"])
    assert scores == {}
    assert sorted(reasons) == sorted(CAPTION_METRICS)
    assert all("install it: pip install pycocoevalcap" in reason for reason in reasons.values())


@needs_package
def test_java_that_fails_is_no_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'no memory' >&2\nexit 3\n")
    java.chmod(0o755)
    found = tokenise_captions(REFERENCES, ANSWERS) if shutil.which("java") else None
    monkeypatch.setenv("PATH", str(tmp_path))
    _, reasons = caption_statistics([["a cat purrs"], ["hail"]], ["a cat", "hail"])
    assert all("stopped before the last caption" in reason for reason in reasons.values())
    assert sorted(reasons) == sorted(CAPTION_METRICS)
    if found is not None:
        monkeypatch.setattr(captions, "tokenise_captions", lambda *_: found)
        with pytest.raises(CaptionMetricError, match="METEOR's program stopped with status 3: no memory"):
            CAPTION_METRICS["meteor"].score(REFERENCES, ANSWERS)
