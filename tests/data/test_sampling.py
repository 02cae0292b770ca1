"""Which rows an epoch is made of: shares, fairness, repeatability, lengths."""

from collections import Counter

import numpy as np
import pytest

from modeling_salmonn.data.sampling import MixtureSampler, draw_rows, split_count, task_shares


def test_temperature_one_keeps_the_sizes() -> None:
    assert task_shares({"asr": 90, "story": 10}) == {"asr": 0.9, "story": 0.1}


def test_temperature_favours_small_tasks() -> None:
    shares = task_shares({"asr": 10_000, "story": 100}, temperature=2.0)
    assert shares == pytest.approx({"asr": 100 / 110, "story": 10 / 110})


def test_weights_multiply_shares() -> None:
    assert task_shares({"asr": 10, "story": 10}, {"story": 3.0}) == {"asr": 0.25, "story": 0.75}


def test_weights_may_go_by_any_name_of_a_task() -> None:
    expected = {"audiocaption": 0.75, "asr": 0.25}
    for name in ("audiocaption", "audio_caption", "aac"):
        assert task_shares({"audiocaption": 10, "asr": 10}, {name: 3.0}) == expected


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"none": 1.0}, r"weights for the tasks \['none'\]"), ({"asr": -1.0}, "negative"), ({"asr": 0.0}, "no task")],
)
def test_unusable_task_weights_raise(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_shares({"asr": 1}, weights)


def test_split_count_sums_to_the_total() -> None:
    assert split_count(10, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}) == {"a": 4, "b": 3, "c": 3}


@pytest.mark.parametrize(("count", "allowed"), [(7, {0, 1}), (10, {1}), (25, {2, 3})])
def test_rows_of_equal_weight_are_drawn_equally(count: int, allowed: set[int]) -> None:
    for seed in range(20):
        drawn = draw_rows(np.ones(10), count, np.random.default_rng(seed))
        times = np.bincount(drawn, minlength=10)
        assert len(drawn) == count
        assert set(times) <= allowed


def test_row_weights_are_kept_on_average() -> None:
    weights = np.array([1.0, 2.0, 0.0, 5.0])
    times = np.zeros(4)
    for seed in range(2000):
        times += np.bincount(draw_rows(weights, 3, np.random.default_rng(seed)), minlength=4)
    assert times / 2000 == pytest.approx(3 * weights / weights.sum(), abs=0.05)


def sampler(**options: object) -> MixtureSampler:
    tasks = ["asr"] * 30 + ["story"] * 6
    settings = {"shares": task_shares(Counter(tasks)), "batch_size": 4, "seed": 3}
    return MixtureSampler(tasks, **(settings | options))


def test_epoch_holds_every_row_once() -> None:
    assert sorted(row for row, _ in sampler()) == list(range(36))


def test_epoch_is_rounded_up_to_whole_batches() -> None:
    uneven = sampler(batch_size=8)
    rows = [row for row, _ in uneven]
    assert len(rows) == len(uneven) == 40
    assert set(rows) == set(range(36))


def test_epoch_follows_the_shares() -> None:
    drawn = sampler(shares={"asr": 0.25, "story": 0.75}, examples=40)
    tasks = Counter("asr" if row < 30 else "story" for row, _ in drawn)
    assert tasks == {"asr": 10, "story": 30}


def test_task_without_a_share_is_not_drawn() -> None:
    assert all(row < 30 for row, _ in sampler(shares={"asr": 1.0, "story": 0.0}))


def test_draws_follow_from_seed_and_epoch() -> None:
    orders = []
    for seed, epoch in [(3, 0), (3, 0), (3, 1), (4, 0)]:
        drawn = sampler(seed=seed)
        drawn.set_epoch(epoch)
        orders.append(list(drawn))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


def test_draws_are_numbered_over_all_epochs() -> None:
    drawn = sampler()
    assert [draw for _, draw in drawn] == list(range(36))
    drawn.set_epoch(2)
    assert [draw for _, draw in drawn] == list(range(72, 108))


def test_batches_hold_like_lengths() -> None:
    lengths = np.random.default_rng(0).permutation(36)
    rows = np.array([row for row, _ in sampler(lengths=lengths)]).reshape(-1, 4)
    assert sorted(rows.ravel()) == list(range(36))
    assert (np.ptp(lengths[rows], axis=1) == 3).all()
    shortest = lengths[rows].min(axis=1)
    assert (np.diff(shortest) < 0).any()  # but the batches come in any order
    assert (np.diff(shortest) > 0).any()


def test_rows_without_any_weight_raise() -> None:
    with pytest.raises(ValueError, match="task 'story' have weights that are negative or all zero"):
        sampler(row_weights=[1.0] * 30 + [0.0] * 6)
