"""Rates are chosen on some seeds, arms compared on fresh ones, and what is said of them is true."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from gatelib.lab import Difference, Runs, rates
from gatelib.lab.compared import Fisher, Solved

ARMS = {"RNN": None, "LSTM": None}


def noise(*labels):
    """A number between -1 and 1 that is the same in every process."""
    return math.sin(sum(97 * (k + 1) * hash_of(label) for k, label in enumerate(labels)))


def hash_of(label):
    return sum(map(ord, str(label)))


def finished(axes, result, **options):
    """Runs for which `result` gives the numbers of each, until nothing is missing."""
    runs = Runs("06_lstm-recall", axes, **options)
    while todo := runs.missing():
        for member in todo:
            line = dict(zip(runs.labels, member, strict=True))
            runs.lines[member] = line | result(**line)
    return runs


def best_at(where, **more):
    """A run whose validation score is highest at a rate, which differs by arm."""

    def result(cell, lr, seed, **_):
        score = -abs(math.log10(lr / where[cell]))
        test = score + 0.01 * noise(cell, seed) + (cell == "LSTM")
        return {"valid": score, "test": test, "loss": np.exp(-np.arange(30.0)).tolist(), **more}

    return result


GRID = {"cell": ARMS, "lr": rates(1e-3, 1e-1, 5)}


# --- rates ----------------------------------------------------------------------------------------


def test_rates_stand_in_equal_ratios_with_two_digits():
    assert rates(1e-3, 1e-1, 5).values == (0.001, 0.0032, 0.01, 0.032, 0.1)
    assert rates(1e-3, 1e-1, 5).beyond(0.1, 1) == 0.32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1e-1, 1e-3, 5), "low, high: expected 0 < low < high"),
        ((1e-3, 1e-1, 1), "count, further: expected ≥ 2"),
        ((1e-3, 1.01e-3, 5), "count: expected rates that differ"),
    ],
)
def test_rates_that_are_none_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        rates(*arguments)


def test_a_rate_is_never_chosen_on_the_test_set():
    for name in ("test", "-test", "test loss"):
        with pytest.raises(ValueError, match="by: expected a number of training or validation"):
            rates(1e-3, 1e-1, 5, by=name)


def test_the_best_rate_is_found_and_the_grid_grows_until_it_lies_inside():
    runs = finished(GRID, best_at({"RNN": 0.01, "LSTM": 0.32}))
    assert runs.best("RNN") == 0.01 and len(runs.tried("RNN")) == 5
    assert runs.best("LSTM") == 0.32 and runs.tried("LSTM")[-2:] == [0.32, 1.0]
    assert not runs.at_edge("RNN") and not runs.at_edge("LSTM")


def test_a_grid_that_may_not_grow_further_says_so():
    runs = finished(GRID, best_at({"RNN": 1e-9, "LSTM": 0.01}))
    assert runs.at_edge("RNN") and len(runs.tried("RNN")) == 8
    assert "best rate is the smallest tried" in runs.table().data


def test_the_smallest_loss_can_choose():
    axes = {"cell": ARMS, "lr": rates(1e-3, 1e-1, 5, by="-cost")}
    runs = finished(axes, lambda cell, lr, seed: {"cost": abs(lr - 0.01), "test": 1.0})
    assert runs.best("RNN") == 0.01


def test_of_equally_good_rates_the_innermost_is_chosen():
    runs = finished(GRID, lambda cell, lr, seed: {"valid": 1.0, "test": seed / 7})
    assert runs.best("RNN") == 0.01


@pytest.mark.parametrize("broken", [{"failed": "TimeoutError"}, {"valid": None, "test": None}])
def test_a_rate_at_which_a_run_fails_is_the_worst(broken):
    good = best_at({"RNN": 0.01, "LSTM": 0.01})

    def result(cell, lr, seed):
        return broken if (lr, seed) == (0.01, 1) else good(cell, lr, seed)

    assert finished(GRID, result).best("RNN") in (0.0032, 0.032)


# --- seeds ----------------------------------------------------------------------------------------


def test_seeds_that_report_are_fresh_and_run_at_the_best_rate_alone():
    runs = finished(GRID, best_at({"RNN": 0.01, "LSTM": 0.01}), choose=3, report=5)
    seeds = {rate: {m[-1] for m in runs.needed() if m[1] == rate} for rate in runs.tried("RNN")}
    assert seeds[0.001] == {0, 1, 2} and seeds[0.01] == {0, 1, 2, *range(100, 105)}


def test_no_fresh_seed_is_asked_for_before_the_rate_is_chosen():
    runs = Runs("x", GRID)
    assert {member[-1] for member in runs.needed()} == {0, 1, 2}
    assert runs.best("RNN") is None
    with pytest.raises(ValueError, match="10 runs of 'RNN' are missing"):
        runs.of("RNN", "test")


def test_a_study_without_rates_has_fresh_seeds_alone():
    runs = finished({"cell": ARMS}, lambda cell, seed: {"test": float(seed)}, report=4)
    assert runs.labels == ("cell", "seed") and runs.of("RNN", "test").tolist() == [
        100,
        101,
        102,
        103,
    ]


def test_runs_can_be_read_from_lines_in_any_order():
    runs = finished(GRID, best_at({"RNN": 0.01, "LSTM": 0.01}))
    again = Runs("again", GRID, lines=list(runs.lines.values())[::-1])
    assert again.needed() == runs.needed() and not again.missing()
    assert again.scores() == runs.scores()


def test_arms_of_several_axes_are_tuples():
    axes = {"cell": ARMS, "length": (10, 20), "lr": rates(1e-3, 1e-1, 5)}
    runs = finished(axes, best_at({"RNN": 0.01, "LSTM": 0.01}))
    assert runs.arms == list(itertools.product(ARMS, (10, 20)))
    assert len(runs.of(("RNN", 20), "test")) == 10
    with pytest.raises(ValueError, match=r"arm: expected cell of .*, length of .*, got 'RNN'"):
        runs.of("RNN", "test")


# --- differences ----------------------------------------------------------------------------------

SCORES = st.lists(st.tuples(*[st.floats(0, 1)] * 2), min_size=3, max_size=12)


@settings(max_examples=40, phases=(Phase.explicit, Phase.generate))
@given(SCORES)
def test_the_interval_is_students_of_the_paired_differences(pairs):
    a, b = np.array(pairs).T
    found = Difference.paired(a, b)
    gaps = a - b
    if not found.identical:
        half = stats.t.ppf(0.975, len(a) - 1) * gaps.std(ddof=1) / math.sqrt(len(a))
        np.testing.assert_allclose(
            [found.low, found.high], gaps.mean() + half * np.array([-1, 1]), atol=1e-7
        )
    else:
        assert np.ptp(gaps) <= 1e-9
    assert found.mean == pytest.approx(gaps.mean())


def test_a_difference_prints_as_a_sentence():
    a = np.array([0.5, 0.6, 0.7, 0.65])
    printed = repr(Difference.paired(a, a - [0.03, 0.04, 0.02, 0.034]))
    assert printed == "+0.031, 95 % interval +0.018 to +0.044 (4 seeds)"


def test_identical_differences_have_no_interval_and_say_so():
    same = Difference.paired([1.0] * 10, [0.25] * 10)
    assert repr(same) == "+0.750 in each of 10 seeds, so no interval"
    assert same.identical and not same.counts(0.1)
    nearly = Difference.paired([0.3, 0.4, 0.5], [0.1, 0.2, 0.3])
    assert nearly.identical and nearly.mean == pytest.approx(0.2)


def test_a_difference_counts_if_its_interval_excludes_zero_and_it_is_large_enough():
    clear = Difference.paired([0.5, 0.6, 0.7], [0.3, 0.41, 0.49])
    assert clear.counts(0.1) and not clear.counts(0.3)
    assert not Difference.paired([0.5, 0.6, 0.7], [0.2, 0.8, 0.6]).counts(0.01)
    assert Difference.paired([0.3, 0.41, 0.49], [0.5, 0.6, 0.7]).counts(0.1)
    with pytest.raises(ValueError, match="matters: expected a positive number"):
        clear.counts(0)


def test_one_seed_or_a_number_that_is_none_has_no_difference():
    with pytest.raises(ValueError, match="at least 2 seeds"):
        Difference.paired([1.0], [0.0])
    with pytest.raises(ValueError, match="expected finite numbers"):
        Difference.paired([1.0, math.nan], [0.0, 1.0])


def test_a_failed_run_is_not_left_out_of_a_difference_in_silence():
    good = best_at({"RNN": 0.01, "LSTM": 0.01})

    def result(cell, lr, seed):
        return {"failed": "it stopped"} if (cell, seed) == ("LSTM", 104) else good(cell, lr, seed)

    runs = finished(GRID, result)
    with pytest.raises(ValueError, match=r"1 of 'LSTM' failed: .*104\) it stopped"):
        runs.difference("LSTM", "RNN")
    assert (
        np.isnan(runs.of("LSTM", "test")).sum() == 1 == np.isnan(runs.of("LSTM", "loss")[4]).all()
    )
    assert "1 of 10 runs failed" in runs.table().data
    assert runs.solved(above=-9)["LSTM"] == Solved(9, 10)


def test_arms_are_compared_seed_by_seed():
    runs = finished(GRID, best_at({"RNN": 0.01, "LSTM": 0.01}))
    found = runs.difference("LSTM", "RNN")
    expected = [1 + 0.01 * (noise("LSTM", s) - noise("RNN", s)) for s in range(100, 110)]
    np.testing.assert_allclose(found.values, expected)
    assert found.counts(0.5) and runs.difference("RNN", "LSTM").mean == -found.mean


# --- counts ---------------------------------------------------------------------------------------


def test_what_is_solved_is_counted_and_compared_by_fishers_test():
    def result(cell, seed):
        return {"test": 1.0 if seed < (109 if cell == "LSTM" else 102) else 0.2}

    runs = finished({"cell": ARMS}, result)
    assert {arm: repr(n) for arm, n in runs.solved(above=0.95).items()} == {
        "RNN": "2 of 10",
        "LSTM": "9 of 10",
    }
    found = runs.fisher("LSTM", "RNN", above=0.95)
    assert found.p == pytest.approx(stats.fisher_exact([[9, 1], [2, 8]]).pvalue)
    assert repr(found) == "9 of 10 against 2 of 10, p = 0.0055 (Fisher's exact test)"
    assert runs.solved(below=0.95)["LSTM"].reached == 1
    with pytest.raises(ValueError, match="above, below: expected one"):
        runs.solved()


def test_equal_counts_do_not_differ():
    assert Fisher.exact(Solved(5, 10), Solved(5, 10)).p == pytest.approx(1)


# --- plateau --------------------------------------------------------------------------------------


def falling(curve):
    return finished({"cell": ARMS}, lambda cell, seed: {"loss": list(curve)}).falling("RNN")


def test_how_much_of_its_fall_a_loss_makes_in_the_last_third():
    steps = np.linspace(1, 0, 30)
    assert falling(1 + steps) == pytest.approx(1 / 3, abs=0.02)
    assert falling(1 + np.exp(-np.arange(30.0))) == pytest.approx(0, abs=1e-3)
    assert falling(np.r_[np.linspace(2, 1, 20), np.linspace(1, 1.2, 10)]) < 0
    assert math.isnan(falling(1.386 - 0.01 * np.linspace(0, 1, 30)))


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        (np.linspace(2, 1, 30), "loss still falling (34 %)"),
        (np.full(30, 1.386), "loss has not fallen"),
        (np.exp(-np.arange(30.0)), "| |"),
    ],
)
def test_the_table_marks_arms_that_still_fall(curve, words):
    runs = finished({"cell": ARMS}, lambda cell, seed: {"loss": list(curve), "test": 0.5})
    assert words in runs.table().data


# --- shown ----------------------------------------------------------------------------------------


def test_the_table_says_mean_and_deviation_at_the_best_rate():
    runs = finished(GRID, best_at({"RNN": 0.01, "LSTM": 0.1}))
    rows = runs.table("test", "valid").data.splitlines()
    assert rows[0] == "| cell | lr | test | valid | mind |"
    assert rows[2].startswith("| RNN | 0.01 | ") and " ± 0.0" in rows[2]


def test_a_frame_has_a_row_for_each_run():
    runs = finished(GRID, best_at({"RNN": 0.01, "LSTM": 0.01}))
    assert len(runs.frame()) == len(runs.lines) and {"cell", "lr", "seed"} <= set(runs.frame())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Runs("x", GRID, choose=0), "choose, report: expected"),
        (lambda: Runs("x", GRID, choose=101), "choose, report: expected"),
        (lambda: Runs("x", {**GRID, "seed": (0, 1)}), "axes: expected no axis 'seed'"),
        (lambda: Runs("x", {**GRID, "wd": rates(1, 2, 3)}), "axes: expected rates for one axis"),
        (lambda: Runs("x", {"cell": {}}), "cell: expected labels"),
        (lambda: Runs("x", {"cell": [(1, 2)]}), "cell: expected labels that are text or numbers"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_number_that_no_run_has_is_named():
    runs = finished(GRID, best_at({"RNN": 0.01, "LSTM": 0.01}))
    with pytest.raises(ValueError, match=r"name: expected one of .*'test'.*, got 'x'"):
        runs.of("RNN", "x")
