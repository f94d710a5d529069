"""The table of cells made of parts, and the searches over it."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from gatelib.equations import ALL
from gatelib.lab import search
from gatelib.lab.canonical import canonical
from gatelib.lab.grammar import Bounds, in_bounds, mutate, sample
from gatelib.lab.one_shot import ALL_AT_ONCE, discretised, one_shot, tied
from gatelib.lab.search import CHOICES, Parts, best, everything, evolve, neighbours, random_search
from gatelib.nn import Recurrent
from gatelib.spec import symbol

CELLS = everything()
KNOWN = {
    "elman": Parts("none", "all", "tanh", "none", "state"),
    "relu_rnn": Parts("none", "all", "relu", "none", "state"),
    "reset_only": Parts("none", "all", "tanh", "own", "state"),
    "lstm": Parts(),
    "cifg": Parts(write="rest"),
    "no_input": Parts(write="all"),
    "no_forget": Parts(keep="all"),
    "no_output": Parts(output="tanh"),
    "no_input_activation": Parts(candidate="identity"),
    "no_output_activation": Parts(output="gate"),
    "gru": Parts("gate", "rest", "tanh", "own", "state"),
    "no_reset": Parts("gate", "rest", "tanh", "none", "state"),
    "light": Parts("gate", "rest", "relu", "none", "state"),
    "mgu_after": Parts("gate", "rest", "tanh", "write", "state"),
}


# --- the table --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_cell_is_its_parts(name):
    assert canonical(KNOWN[name].spec) == canonical(ALL[name])
    assert KNOWN[name] in CELLS


def test_everything_holds_each_cell_once_and_each_is_in_the_grammar():
    forms = [canonical(one.spec) for one in CELLS]
    assert len(set(forms)) == len(CELLS) > 300
    assert all(one.spec.name == "_".join(one) for one in CELLS)
    grammatical = [one for one in CELLS if one.candidate != "identity"]
    assert all(in_bounds(one.spec, Bounds(gates=5)) for one in grammatical)


def test_fewer_choices_give_fewer_cells():
    tanh = everything(candidate=("tanh",), keep=["none", "gate"])
    assert set(tanh) < set(CELLS)
    assert {one.candidate for one in tanh} == {"tanh"} and {o.keep for o in tanh} == {
        "none",
        "gate",
    }
    with pytest.raises(ValueError, match=r"candidate: expected some of .* got 'gelu'"):
        everything(candidate="gelu")
    with pytest.raises(ValueError, match=r"allowed: expected parts of .* got 'colour'"):
        everything(colour=("red",))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (Parts(keep="all", write="rest"), "write: the rest of what a gate keeps"),
        (Parts(keep="all", reset="keep"), "reset: expected a gate that keeps"),
        (Parts(write="all", reset="write"), "reset: expected a gate that writes"),
        (Parts(output="loud"), "output: expected one of"),
    ],
)
def test_parts_that_make_no_cell_say_why(parts, says):
    with pytest.raises(ValueError, match=says):
        _ = parts.spec


def test_a_neighbour_differs_in_one_choice_and_is_another_cell():
    for one in CELLS[::17]:
        near = neighbours(one)
        assert near and all(sum(a != b for a, b in zip(one, n, strict=True)) == 1 for n in near)
        assert canonical(one.spec) not in {canonical(n.spec) for n in near}
    assert len(neighbours(KNOWN["lstm"])) == 3 + 2 + 2 + 3 + 3


# --- the searches -----------------------------------------------------------------------------


def ones(bits):
    return float(sum(bits))


def drawn(rng, length=24):
    return tuple(rng.integers(0, 2, length).tolist())


def flipped(bits, rng):
    place = int(rng.integers(len(bits)))
    return (*bits[:place], 1 - bits[place], *bits[place + 1 :])


def test_evolution_climbs_where_random_search_does_not():
    climbed = best(evolve(ones, drawn, flipped, 300, 0))[1]
    luck = best(random_search(ones, drawn, 300, 0))[1]
    assert climbed == 24 > luck + 3


def test_every_trial_is_kept_in_its_order_and_a_seed_decides_all():
    run = partial(evolve, ones, drawn, flipped, 60, population=10, tournament=3)
    trials = run(1)
    assert len(trials) == 60 and trials == run(1) != run(2)
    assert trials[:10] == random_search(ones, drawn, 10, 1)
    assert all(score == ones(bits) for bits, score in trials)


def parents_of(trials, population):
    """For each child, the youngest and the oldest place in the history that it may come from."""
    for place in range(population, len(trials)):
        bits = trials[place][0]
        yield (
            place,
            [
                at
                for at in range(place)
                if sum(a != b for a, b in zip(bits, trials[at][0], strict=True)) == 1
            ],
        )


def test_the_oldest_dies_however_good_it_is():
    """A parent is among the last `population` trials; without ageing it may be far older."""
    falling = iter(range(10**6, 0, -1))
    scores = {}

    def first_is_best(bits):
        return scores.setdefault(bits, next(falling))

    options = {"population": 5, "tournament": 5}
    aged = evolve(first_is_best, partial(drawn, length=40), flipped, 40, 0, **options)
    assert all(any(place - 5 <= at for at in found) for place, found in parents_of(aged, 5))
    kept = evolve(first_is_best, partial(drawn, length=40), flipped, 40, 0, ageing=False, **options)
    assert all(0 in found for _, found in parents_of(kept, 5))


def test_a_score_that_is_no_number_is_the_least():
    trials = [("a", math.nan), ("b", -3.0), ("c", -2.0), ("d", -2.0)]
    assert best(trials) == ("c", -2.0)
    assert math.isnan(best(trials[:1])[1])
    never = evolve(lambda bits: math.nan, drawn, flipped, 30, 0)
    assert len(never) == 30


def test_both_spaces_can_be_searched():
    table = {one: float(one.keep == "open") + (one.output == "both") for one in CELLS}

    def draw(rng):
        return CELLS[rng.integers(len(CELLS))]

    def change(one, rng):
        near = [n for n in neighbours(one) if n in table]
        return near[rng.integers(len(near))]

    found = best(evolve(table.__getitem__, draw, change, 40, 0, population=8, tournament=3))
    assert found[1] == 2
    few = evolve(
        lambda spec: -len(spec.equations), sample, mutate, 12, 0, population=4, tournament=2
    )
    assert len(few) == 12 and all(in_bounds(spec) for spec, _ in few)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"budget": 0}, "budget: expected at least 1, got 0"),
        ({"population": 0}, "population: expected at least 1"),
        ({"population": 3}, "tournament: expected at most 3, got 5"),
    ],
)
def test_sizes_that_leave_nothing_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        evolve(**{"score": ones, "draw": drawn, "mutate": flipped, "budget": 5, "seed": 0} | change)


# --- all at once ------------------------------------------------------------------------------


def one_hot(parts):
    """The weights that choose these parts."""
    chosen = {f"p_{part}_{choice}" for part, choice in parts._asdict().items()}
    return {name: int(name in chosen) for v in ALL_AT_ONCE.inputs if (name := str(v))[:2] == "p_"}


@pytest.mark.parametrize("parts", CELLS[::9], ids=str)
def test_the_one_shot_cell_at_a_corner_is_the_cell_of_its_parts(parts):
    corner, own = ALL_AT_ONCE.subs(**one_hot(parts)).compose(), parts.spec.compose()
    state = {symbol("h_prev"): symbol("c_prev")} if parts.output == "state" else {}
    if parts.reset == "none":
        state[symbol("a_g")] = symbol("a_g") + symbol("u_g")
    assert (corner["h"] - own["h"].subs(state)).simplify() == 0


def test_a_part_with_one_choice_has_no_weight():
    spec = one_shot(keep=("gate",), write=("gate",), candidate=("tanh",), reset=("none",))
    names = {str(v) for v in spec.inputs if str(v).startswith("p_")}
    assert names == {f"p_output_{choice}" for choice in CHOICES["output"]}
    assert one_shot() == ALL_AT_ONCE


def test_tied_weights_start_equal_and_are_shared_by_all_units():
    made = Recurrent(tied(one_shot(write=("gate", "rest"))), 3, 5, dtype=torch.float64)
    names = [name for name, _ in made.named_parameters() if name.startswith("b_")]
    assert names and not any(getattr(made, name).any() for name in names)
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    values = made.values(x)[""]
    assert torch.allclose(values["p_write_gate"], torch.tensor(0.5, dtype=torch.float64))
    assert torch.allclose(values["p_keep_open"], torch.tensor(0.25, dtype=torch.float64))
    made(x)[0].square().sum().backward()
    for name in names:
        gradient = getattr(made, name).grad
        assert gradient.any() and torch.allclose(gradient, gradient.mean().expand(5))


def test_tied_weights_move_under_adam_as_one_number_does():
    torch.manual_seed(0)
    one, five = torch.zeros(1, requires_grad=True), torch.zeros(5, requires_grad=True)
    for value in (one, five):
        steps = torch.optim.Adam([value], lr=0.1)
        for target in (1.0, -2.0, 3.0):
            steps.zero_grad()
            (value.mean() - target).square().backward()
            steps.step()
    torch.testing.assert_close(five.detach(), one.detach().expand(5), atol=1e-5, rtol=0)


def test_the_largest_weights_choose_the_parts_and_a_cell_it_must_be():
    weights = {part: dict.fromkeys(choices, 1.0) for part, choices in CHOICES.items()}
    weights["keep"]["all"] = 3.0
    weights["write"]["rest"] = 2.5
    weights["output"]["gate"] = 2.0
    found = discretised(weights)
    assert (found.keep, found.output) == ("all", "gate") and found.write != "rest"
    weights["write"]["rest"] = 3.5
    assert discretised(weights).write == "rest" and not discretised(weights).problem
    assert discretised({"keep": {"gate": 1.0}}).keep == "gate"


def test_the_table_needs_no_training_to_be_searched_fast():
    table = dict.fromkeys(CELLS, 0.0)
    rng = np.random.default_rng(0)
    trials = random_search(table.__getitem__, lambda r: CELLS[r.integers(len(CELLS))], 5000, rng)
    assert len(trials) == 5000
    assert search.best(trials) == trials[0]
