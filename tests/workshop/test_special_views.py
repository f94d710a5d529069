"""The views that one chapter has for itself: numbers of NumPy and of the references.

Imports NumPy, SciPy, gatelib's equations, references and workshop; runs node.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from gatelib import workshop
from gatelib.equations import attention as attention_equations
from gatelib.reference import attention, balance, highway, rnn, routers
from gatelib.reference.gate import sigmoid, softmax
from gatelib.spec import Spec
from tests.workshop.views_in_node import answers

Array = np.ndarray[Any, Any]

# --- the paths of a highway net -----------------------------------------------------------------

STARTS = [(-6.0, 4), (-2.0, 50), (0.0, 30), (1.5, 17), (3.0, 100)]


@pytest.fixture(scope="module")
def laws() -> list[dict[str, Any]]:
    return answers("given.map(([b, L]) => GatesViews.paths.lawsAt(L, b))", given=STARTS)


def test_the_lengths_of_paths_are_binomial(laws):
    for (bias, layers), found in zip(STARTS, laws, strict=True):
        law = binom(layers, sigmoid(np.float64(bias)))
        np.testing.assert_allclose(found["lengths"], law.pmf(np.arange(layers + 1)), rtol=1e-9)
        np.testing.assert_allclose([found["mean"], found["deviation"]], [law.mean(), law.std()])


def test_a_highway_nets_output_is_shared_among_its_layers_as_drawn(laws):
    for (bias, layers), found in zip(STARTS, laws, strict=True):
        rng = np.random.default_rng(0)
        x, weights = rng.normal(size=(3, 4)), highway.initialize(rng, 4, layers, bias=bias)
        weights["W"][:, 4:] = 0  # gates that see nothing
        shared = put_together(x, weights, found["shares"])
        np.testing.assert_allclose(highway.forward(x, weights)[0], shared, rtol=1e-10)
        assert sum(found["shares"]) == pytest.approx(1, abs=1e-12)


def put_together(x: Array, weights: Any, shares: list[float]) -> Array:
    """The input and every transform, each times its share."""
    y, total = x, shares[0] * x
    for W, b, share in zip(weights["W"], weights["b"], shares[1:], strict=True):
        h, t = np.maximum(y @ W[:4].T + b[:4], 0), sigmoid(b[4:])
        y, total = t * h + (1 - t) * y, total + share * h
    return total


def test_by_depth_two_layers_transform_at_every_depth():
    told = "given.map((L) => GatesViews.paths.lawsAt(L, GatesViews.paths.biasByDepth(L)))"
    found = answers(told, given=[4, 10, 50, 100])
    assert [law["mean"] for law in found] == pytest.approx([2.0] * 4)


# --- a matrix of two units ----------------------------------------------------------------------

MATRICES = [*np.random.default_rng(0).normal(size=(200, 4)).tolist()]
MATRICES += [[0, 0, 0, 0], [0, 1, 0, 0], [1.2, -1.2, 1.2, -1.2], [0.9, 2, 0, 0.9], [0, -1, 1, 0]]


def test_radius_and_norm_of_a_matrix_are_those_of_numpy():
    told = "given.map((m) => [GatesViews.matrix.spectralRadius(m), GatesViews.matrix.norm(m)])"
    for matrix, (radius, norm) in zip(MATRICES, answers(told, given=MATRICES), strict=True):
        square = np.reshape(matrix, (2, 2))
        assert radius == pytest.approx(abs(np.linalg.eigvals(square)).max(), abs=1e-7)
        assert norm == pytest.approx(np.linalg.norm(square, 2), rel=1e-12)


def test_fifty_steps_of_a_matrix_are_its_backward_pass_through_time():
    told = "given.map((m) => GatesViews.matrix.powersOf(m).map(GatesViews.matrix.norm))"
    matrices = [[0.9, 2, 0, 0.9], [1.2, -1.2, 1.2, -1.2], [0.6, -0.9, 0.9, 0.6]]
    for matrix, stretch in zip(matrices, answers(told, given=matrices), strict=True):
        U = np.reshape(np.array(matrix, float), (2, 2))
        weights = {"W": np.zeros((2, 1)), "U": U, "b": np.zeros(2)}
        saved = rnn.forward(np.zeros((2, 50, 1)), weights, variant="linear")[2]
        slope = rnn.backward(np.zeros((2, 50, 2)), np.eye(2), saved)["h0"]
        assert stretch[50] == pytest.approx(np.linalg.norm(slope, 2), rel=1e-9, abs=1e-12)
        assert stretch[0] == 1


def test_a_slope_of_zero_turns_a_matrix_without_eigenvalues_into_one_that_explodes():
    values = {"u_11": 1.2, "u_12": -1.2, "u_21": 1.2, "u_22": -1.2, "d_1": 1, "d_2": 1}
    told = """given.map((values) => {
      const { matricesOf, spectralRadius } = GatesViews.matrix;
      return spectralRadius(matricesOf(values).jacobian);
    })"""
    assert answers(told, given=[values, values | {"d_2": 0}]) == pytest.approx([0, 1.2])


# --- forgetting beside ALiBi --------------------------------------------------------------------

READS = [attention_equations.FORGET_READ, attention_equations.ALIBI_READ]
ROWS = [
    {"f": 0.9, "f_space": 0.05, "m": 0.25, "i": 18, "e": 2},
    {"f": 0.5, "f_space": 0.5, "m": 0.1, "i": 7, "e": 0},
    {"f": 1, "f_space": 0.01, "m": 0, "i": 1, "e": 8},
]


def gates_of(values: dict[str, float], characters: list[str]) -> Array:
    return np.array([values["f_space"] if sign == " " else values["f"] for sign in characters])


def test_the_weights_of_a_row_are_those_of_the_reference():
    told = "given.rows.map((values) => GatesViews.mask.weightsOf(given.gates, values))"
    given = {"rows": ROWS, "gates": [workshop.brief(spec) for spec in READS]}
    characters = answers("GatesViews.mask.CHARACTERS")
    places = np.arange(len(characters))
    for values, found in zip(ROWS, answers(told, given=given), strict=True):
        row, sums = values["i"] - 1, np.log(gates_of(values, characters)).cumsum()
        score = np.where(places == 0, values["e"], 0.0)
        for bias, mine in zip(
            (sums[row] - sums, -values["m"] * (row - places)), found, strict=True
        ):
            theirs = by_reference(score + bias, places <= row)
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-300)


def by_reference(bias: Array, seen: Array) -> Array:
    """The weights of one query whose scores are a bias alone."""
    one, keys = np.zeros((1, 1)), np.zeros((len(bias), 1))
    return attention.forward_masked(one, keys, keys, seen[None], bias=bias[None])[1][0]


def test_gates_that_are_all_alike_are_alibi():
    values = {"f": float(np.exp(-0.3)), "f_space": float(np.exp(-0.3)), "m": 0.3}
    forgetting, alibi = answers("GatesViews.mask.masksOf(given)", given=values)
    np.testing.assert_allclose(forgetting, alibi, rtol=1e-12)


# --- a router that is balanced ------------------------------------------------------------------

PRICE = Spec.read("price: a f -> l\np = softmax(a)\nl = total(f*p)")
ROUTER: dict[str, Any] = {"tokens": 60, "experts": 6, "k": 2, "rounds": 8}
RATES = {"lean": 0.8, "eta": 0.03, "alpha": 2.0}


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    """All methods over the rounds, and the logits that they saw."""
    told = """({
      courses: GatesViews.router.simulated(given.definition, given.rates),
      logits: GatesViews.range(given.definition.rounds + 1)
        .map((round) => GatesViews.router.logitsOf(given.definition, given.rates.lean, round)),
    })"""
    definition = ROUTER | {"gates": [workshop.brief(PRICE)]}
    return answers(told, given={"definition": definition, "rates": RATES})


def replayed(logits: list[Array], method: str) -> list[tuple[Array, Array]]:
    """What each round adds and counts, by the reference's own losses and updates."""
    k, experts, added, found = ROUTER["k"], ROUTER["experts"], np.zeros(ROUTER["experts"]), []
    for a in logits:
        biased = method.endswith("bias")
        indices = routers.top_k((sigmoid(a) if biased else a) + added, k)
        counts = balance.counts_of(indices, experts)
        found.append((added, counts))
        if method == "sign bias":
            added = balance.update_bias(added, counts, RATES["eta"])
        elif method == "quantile bias":
            added = balance.quantile_bias(sigmoid(a), k, added)
        elif method != "nothing":
            added = added - RATES["alpha"] * slope_of_switch(a + added, indices)
    return found


def slope_of_switch(a: Array, indices: Array) -> Array:
    """Switch's loss, differentiated with respect to one number an expert, added to its logits."""
    p = softmax(a)
    d = balance.switch(p, indices)[1]
    return (p * (d - (d * p).sum(axis=1, keepdims=True))).sum(axis=0)


@pytest.mark.parametrize("method", ["nothing", "Switch’s loss", "sign bias", "quantile bias"])
def test_a_method_of_balance_goes_as_the_reference_goes(simulated, method):
    logits = [np.array(a) for a in simulated["logits"]]
    course = simulated["courses"][method]
    for told, (added, counts) in zip(course, replayed(logits, method), strict=True):
        assert told["counts"] == counts.tolist()
        np.testing.assert_allclose(told["added"], added, atol=1e-12)
        assert told["violation"] == pytest.approx(balance.max_violation(counts))


def test_the_choices_moved_are_those_that_the_logits_alone_would_not_make(simulated):
    (*_, last), a = simulated["courses"]["quantile bias"], np.array(simulated["logits"][-1])
    own = routers.top_k(sigmoid(a) + last["added"], 2)
    alone = routers.top_k(a, 2)
    stayed = (own[:, :, None] == alone[:, None]).any(2)
    assert last["moved"] == pytest.approx(1 - stayed.mean())
    assert simulated["courses"]["nothing"][-1]["moved"] == 0
