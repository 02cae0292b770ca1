"""Bootstrap intervals against what theory gives."""

import numpy as np
import pytest

from modeling_salmonn.evaluation import intervals
from modeling_salmonn.evaluation.intervals import bootstrap_interval
from modeling_salmonn.evaluation.metrics import METRICS


SHARE = METRICS["accuracy"]


def hits(right: int, rows: int) -> np.ndarray:
    """Statistics of a share: so many right answers."""
    return np.array([[row < right, 1] for row in range(rows)], dtype=np.float64)


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.96), (0.68, 0.994)])
def test_interval_of_a_share_is_that_of_the_binomial(level: float, deviations: float) -> None:
    low, high = bootstrap_interval(SHARE, hits(120, 400), samples=4000, level=level)
    error = np.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - deviations * error, abs=0.005)
    assert high == pytest.approx(0.3 + deviations * error, abs=0.005)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(SHARE, hits(rng.binomial(200, 0.4), 200), samples=300, seed=seed)
        covered += low <= 0.4 <= high
    assert 180 <= covered <= 198  # 95 % of 200 is 190; three deviations are 9


def test_interval_of_a_rate_draws_errors_and_words_of_a_row_together() -> None:
    """Where every row has the same rate, the rate cannot move, however different the rows' lengths are."""
    words = np.arange(1, 51, dtype=np.float64)
    assert bootstrap_interval(METRICS["wer"], np.column_stack([words, 4 * words])) == (0.25, 0.25)


def test_interval_is_the_same_for_the_same_seed_only() -> None:
    statistics = np.column_stack([np.random.default_rng(0).random(50), np.ones(50)])
    first = bootstrap_interval(SHARE, statistics, seed=1)
    assert bootstrap_interval(SHARE, statistics, seed=1) == first
    assert bootstrap_interval(SHARE, statistics, seed=2) != first


def test_interval_is_the_score_itself_when_all_rows_are_equal() -> None:
    assert bootstrap_interval(SHARE, np.array([[0.5, 1.0]] * 20)) == (0.5, 0.5)
    references, answers = [["der Hund bellt sehr laut"]] * 7, ["der Hund bellt laut"] * 7
    score = METRICS["bleu"].score(references, answers)
    assert bootstrap_interval(METRICS["bleu"], METRICS["bleu"].statistics(references, answers)) == (score, score)


def test_interval_of_a_single_row_is_its_score() -> None:
    assert bootstrap_interval(METRICS["wer"], np.array([[1.0, 4.0]])) == (0.25, 0.25)


def test_interval_holds_the_score_of_a_real_set() -> None:
    references = [[f"die Katze Nummer {n} schläft auf dem Sofa"] for n in range(30)]
    answers = [f"die Katze {n} schläft auf {'dem' if n % 3 else 'einem'} Sofa" for n in range(30)]
    statistics = METRICS["bleu"].statistics(references, answers)
    low, high = bootstrap_interval(METRICS["bleu"], statistics)
    assert 0 < low < METRICS["bleu"].score(references, answers) < high < 100


def test_interval_narrows_with_more_rows() -> None:
    few, many = (bootstrap_interval(SHARE, hits(rows // 2, rows)) for rows in (40, 4000))
    assert few[1] - few[0] > 5 * (many[1] - many[0])


def test_interval_leaves_out_draws_with_no_words() -> None:
    low, high = bootstrap_interval(METRICS["wer"], np.array([[0.0, 0.0], [1.0, 2.0]]))
    assert (low, high) == (0.5, 0.5)


def test_interval_of_a_large_set_comes_from_small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "CELLS", 1000)  # two draws of 400 rows at once
    low, high = bootstrap_interval(SHARE, hits(120, 400), samples=1001)
    assert low == pytest.approx(0.255, abs=0.01)
    assert high == pytest.approx(0.345, abs=0.01)
    monkeypatch.setattr(intervals, "CELLS", 1)  # fewer than rows
    assert bootstrap_interval(SHARE, hits(3, 3), samples=5) == (1, 1)


def test_interval_without_rows_or_words_raises() -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 2\); they need rows"):
        bootstrap_interval(SHARE, np.empty((0, 2)))
    with pytest.raises(ValueError, match=r"shape \(2,\); they need rows and columns"):
        bootstrap_interval(SHARE, np.ones(2))
    with pytest.raises(ValueError, match="no reference has any words"):
        bootstrap_interval(METRICS["wer"], np.array([[2.0, 0.0]]))


@pytest.mark.parametrize("settings", [{"samples": 0}, {"level": 0.0}, {"level": 1.0}, {"level": 95}])
def test_interval_with_impossible_settings_raises(settings: dict) -> None:
    with pytest.raises(ValueError, match="need to be at least 1, and between 0 and 1"):
        bootstrap_interval(SHARE, hits(1, 2), **settings)
