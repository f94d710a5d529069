"""The witnesses of JANET agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import gru
from gatelib.equations import janet as equations
from gatelib.nn import Recurrent, init
from gatelib.reference import janet as reference
from gatelib.spec import symbol
from tests.families.witnesses import BAD_SEQUENCES, assert_agree, for_any_shape, named

BETAS = [1.0, 0.0, -0.5]


def problem(B=3, T=5, D=4, H=6, seed=0):
    """Random weights, input, initial state and upstream gradients."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, H)
    x, h0, dy, dh = (rng.normal(size=s) for s in ((B, T, D), (B, H), (B, T, H), (B, H)))
    return x, weights, h0, dy, dh


def by_equations(beta, *args):
    return derived.gradients(partial(derived.rnn.over_time, equations.janet(beta)), *named(*args))


def by_hand(beta, x, weights, h0, dy, dh, lengths=None):
    y, h, saved = reference.forward(x, weights, h0, lengths, beta)
    found = reference.backward(dy, dh, saved)
    return {"y": y, "final_h": h} | {f"d_{name}": value for name, value in found.items()}


def by_torch(layer, *args):
    return lab.gradients(lab.over_time(layer), *named(*args))


@for_any_shape(25, steps=0, beta=st.sampled_from(BETAS))
def test_hand_and_derivation_agree_for_any_shape(beta, shape, seed):
    args = problem(*shape, seed=seed)
    assert_agree(by_hand(beta, *args), by_equations(beta, *args))


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("beta", BETAS)
def test_a_recurrent_layer_of_the_cell_has_the_gradients_by_hand(beta, impl):
    args = problem(seed=1)
    layer = Recurrent(equations.janet(beta), 4, 6, impl=impl)
    assert_agree(by_torch(layer, *args), by_hand(beta, *args))


def test_a_padded_row_is_the_row_alone():
    x, weights, h0, dy, dh = problem(seed=2)
    together = by_hand(1.0, x, weights, h0, dy, dh, np.array([5, 2, 0]))
    alone = by_hand(1.0, x[1:2, :2], weights, h0[1:2], dy[1:2, :2], dh[1:2])
    for name in ("y", "d_x"):
        np.testing.assert_allclose(together[name][1:2, :2], alone[name], atol=1e-14)
        assert not together[name][1, 2:].any() and not together[name][2].any()
    np.testing.assert_allclose(together["final_h"][1:2], alone["final_h"], atol=1e-14)
    np.testing.assert_allclose(together["d_h0"][1:2], alone["d_h0"], atol=1e-14)
    np.testing.assert_array_equal(together["d_h0"][2], dh[2])


def test_a_cell_that_writes_what_it_forgets_is_a_gru_without_reset():
    f, z = symbol("a_f"), symbol("a_z")
    ours = equations.janet(0).compose()["h"].xreplace({f: z})
    assert sp.simplify(ours - gru.NO_RESET.compose()["h"]) == 0


def test_the_slope_from_state_to_state_is_the_forget_gate():
    assert equations.JANET.partial("h", "h_prev") == symbol("f")


def test_a_gate_can_be_open_and_still_write():
    """beta = 1: at f = 1/2 a unit keeps half of itself and writes 0.73 of the candidate."""
    values = dict.fromkeys(["a_f", "h_prev"], np.zeros(1)) | {"a_n": np.full(1, 40.0)}
    assert equations.JANET.evaluate(values)["h"] == pytest.approx(1 / (1 + np.exp(-1)))


def test_chrono_biases_are_those_of_the_forget_gate():
    torch.manual_seed(0)
    layer = init.chrono_(Recurrent(equations.JANET, 3, 500), 100)
    bias = layer.bias_ih_l0[:500].detach()
    assert (
        bias.min() >= 0
        and bias.max() <= np.log(99)
        and bias.exp().mean() == pytest.approx(50, abs=5)
    )
    assert layer.bias_ih_l0[500:].abs().max() <= 500**-0.5


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        *(row for row in BAD_SEQUENCES if "variant" not in row[0]),
        ({"beta": np.nan}, ValueError, "beta: expected a finite number, got nan"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem()
    with pytest.raises(error, match=says):
        reference.forward(**{"x": x, "weights": weights} | change)


def test_the_equations_refuse_a_beta_that_is_no_number():
    with pytest.raises(ValueError, match="beta: expected a finite number, got inf"):
        equations.janet(float("inf"))
