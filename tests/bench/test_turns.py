"""Contestants are interleaved: as many turns for each, and every round begins with another one."""

import pytest

from bench.harness.turns import interleaved, ratios, summarize


def test_each_round_begins_with_another_contestant_and_warmup_rounds_do_not_count():
    order = []

    def contestant(name):
        def run():
            order.append(name)
            return len(order)

        return run

    results = interleaved({name: contestant(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert results == {"a": [6, 8, 10], "b": [4, 9, 11], "c": [5, 7, 12]}


def test_a_summary_holds_the_median_the_spread_and_every_value():
    summary = summarize(range(11))
    assert summary == {"median": 5, "p10": 1, "p90": 9, "values": list(range(11))}


def test_a_ratio_is_of_one_round():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])
