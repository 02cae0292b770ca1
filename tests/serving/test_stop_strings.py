"""Texts that are cut at stop strings while they come."""

import pytest

from modeling_salmonn.serving.stop_strings import StopCutter, cut_at_stop


@pytest.mark.parametrize(
    ("pieces", "stops", "told"),
    [
        (["a", "b", "c"], ["x"], ["a", "b", "c"]),
        (["a", "b", "c", "d"], ["bc"], ["a", "", "", ""]),
        (["a", "b", "d"], ["bc"], ["a", "", "bd"]),
        (["abc", "d"], ["c"], ["ab", ""]),
        (["aa", "ab", "c"], ["aab"], ["", "a", ""]),
        (["Yes.\n", "\nUser", ":"], ["\nUser:", "\n\n"], ["Yes.", "", ""]),
        (["x", "ab", "cd"], ["abcde", "bcf"], ["x", "", ""]),
    ],
)
def test_cutter_tells_what_can_be_no_stop_string(pieces: list[str], stops: list[str], told: list[str]) -> None:
    cutter = StopCutter(stops)
    assert [cutter.add(piece) for piece in pieces] == told
    whole = "".join(pieces)
    assert "".join(told) + cutter.end() == cut_at_stop(whole, stops)
    assert cutter.is_cut == any(stop in whole for stop in stops)
