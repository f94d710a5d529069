"""The grid of a study: which runs it asks for, and how it chooses an arm's rate.

Imports gatelib.lab.runs.grid.
Must not import torch: a line is made up here, no run is needed.
"""

from __future__ import annotations

import json
from itertools import product

import pytest

from gatelib.lab.runs.grid import Grid, Rates, rates

RATES = rates(1e-3, 1e-1, 3, by="valid", further=2)


def grid(given=RATES, **axes):
    return Grid(axes or {"cell": ("a", "b")}, given, choose=2, report=3)


def lines(found, arm, values, name="valid"):
    """The choosing runs of an arm: {rate: number}, the same for each seed."""
    members = {found.member(arm, r, s): v for (r, v), s in product(values.items(), range(2))}
    return {m: {name: v} for m, v in members.items()}


def finished(found, best=None):
    """Lines for all that a grid asks for; the rate nearest to `best` is the best."""
    done = {}
    while todo := [m for m in found.needed(done) if m not in done]:
        done |= {m: {"valid": -abs(m[-2] - (best or 1e-2))} for m in todo}
    return done


def test_rates_stand_in_equal_ratios_to_two_digits():
    assert rates(1e-3, 1e-1, 5).values == (0.001, 0.0032, 0.01, 0.032, 0.1)
    assert RATES.beyond(0.1, 1) == 1.0 and RATES.beyond(0.001, -1) == 0.0001


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ((0, 1, 5), "low, high: expected 0 < low < high, got 0 and 1"),
        ((1e-1, 1e-3, 5), "low, high"),
        ((1e-3, 1e-1, 2), "count: expected at least 3 rates, got 2"),
    ],
)
def test_rates_that_cannot_enclose_a_best_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        rates(*wrong)
    with pytest.raises(ValueError, match="further: expected 0 or more, got -1"):
        rates(1e-3, 1e-1, 3, further=-1)
    with pytest.raises(ValueError, match="by: expected the name of a number"):
        rates(1e-3, 1e-1, 3, by="-")


def test_choosing_runs_come_first_and_no_fresh_seed_is_asked_for_before_a_rate_is_best():
    found = grid()
    expected = [(c, r, s) for c, r, s in product("ab", RATES.values, (0, 1))]
    assert found.needed({}) == expected
    assert found.reported(("a",), {}) == [] and found.best(("a",), {}) is None


def test_fresh_seeds_run_at_the_best_rate_alone():
    found = grid()
    done = lines(found, ("a",), {0.001: 0.1, 0.01: 0.9, 0.1: 0.2})
    assert found.best(("a",), done) == 0.01 and found.inside(("a",), done)
    assert found.reported(("a",), done) == [("a", 0.01, s) for s in (100, 101, 102)]
    assert set(found.reported(("a",), done)) <= set(found.needed(done))


@pytest.mark.parametrize(("by", "values"), [("valid", (1, 2, 3)), ("-loss", (3, 2, 1))])
def test_the_grid_grows_while_the_best_rate_is_its_last(by, values):
    found = grid(RATES._replace(by=by))
    at = dict(zip(RATES.values, values, strict=True))
    done = lines(found, ("a",), at, by.lstrip("-"))
    assert found.tried(("a",), done) == [0.001, 0.01, 0.1, 1.0]
    assert found.best(("a",), done) is None and not found.reported(("a",), done)
    done |= lines(found, ("a",), {1.0: 2}, by.lstrip("-"))
    assert found.best(("a",), done) == 0.1 and len(found.tried(("a",), done)) == 4


def test_the_grid_grows_by_no_more_than_further_at_each_end():
    up, down = finished(grid(), 1e9), finished(grid(), -1e9)
    assert grid().tried(("a",), up) == [0.001, 0.01, 0.1, 1.0, 10.0]
    assert grid().tried(("a",), down) == [1e-5, 1e-4, 0.001, 0.01, 0.1]
    assert not grid().inside(("a",), up) and not grid().inside(("a",), down)


def test_of_equal_rates_the_innermost_is_the_best():
    found = grid(rates(1e-3, 1e-1, 5))
    done = lines(found, ("a",), dict.fromkeys(found.rates.values, 1.0))
    assert found.best(("a",), done) == 0.01 and len(found.tried(("a",), done)) == 5


@pytest.mark.parametrize("bad", [None, "failed"])
def test_a_rate_with_a_run_that_diverged_or_failed_is_the_worst(bad):
    found = grid()
    done = lines(found, ("a",), {0.001: 0.1, 0.01: 0.2, 0.1: 0.9})
    done["a", 0.1, 1] = {"valid": None} if bad is None else {"failed": "it died"}
    assert found.best(("a",), done) == 0.01


def test_without_rates_only_fresh_seeds_run():
    found = grid(None)
    assert found.needed({}) == [(c, s) for c, s in product("ab", (100, 101, 102))]
    assert found.inside(("a",), {}) and found.names == ("cell", "seed")


def test_the_order_of_the_record_does_not_depend_on_the_order_of_its_runs():
    found, done = grid(), finished(grid())
    assert found.needed(done) == found.needed(dict(reversed(done.items())))


def test_the_first_line_of_a_record_gives_the_grid_again():
    for given in (RATES, None):
        found = grid(given, cell=("a", "b"), length=(10, 20), tied=(True, False))
        again = Grid.read(json.loads(json.dumps(found.head())))
        assert again == found and isinstance(again.rates, Rates | None)
        assert again.needed({}) == found.needed({})
