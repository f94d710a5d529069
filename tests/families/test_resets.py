"""GRUs with their reset gate alone, elsewhere or shared: the witnesses agree."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import gru
from gatelib.equations import resets as equations
from gatelib.nn import Recurrent
from gatelib.reference import resets as reference
from gatelib.spec import symbol
from tests.families.witnesses import BAD_SEQUENCES, assert_agree, for_any_shape, named

NAMES = {"W": "weight_ih_l0", "U": "weight_hh_l0", "b": "bias_ih_l0", "b_u": "bias_hh_l0"}


def problem(variant, B=3, T=5, D=4, H=6, seed=0):
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, H, variant)
    x, h0, dy, dh = (rng.normal(size=s) for s in ((B, T, D), (B, H), (B, T, H), (B, H)))
    return x, weights, h0, dy, dh


def by_equations(variant, *args):
    cell = equations.ALL[variant]
    return derived.gradients(partial(derived.rnn.over_time, cell), *named(*args))


def by_hand(variant, x, weights, h0, dy, dh, lengths=None):
    y, h, saved = reference.forward(x, weights, h0, lengths, variant)
    found = reference.backward(dy, dh, saved)
    return {"y": y, "final_h": h} | {f"d_{name}": value for name, value in found.items()}


@for_any_shape(25, steps=0, variant=st.sampled_from(sorted(reference.VARIANTS)))
def test_hand_and_derivation_agree_for_any_shape(variant, shape, seed):
    args = problem(variant, *shape, seed=seed)
    assert_agree(by_hand(variant, *args), by_equations(variant, *args), 1e-11)


@pytest.mark.parametrize("impl", ["reference", "fused"])
@pytest.mark.parametrize("variant", reference.VARIANTS)
def test_a_recurrent_layer_of_the_cell_has_the_gradients_by_hand(variant, impl):
    args = problem(variant, seed=1)
    layer = Recurrent(equations.ALL[variant], 4, 6, impl=impl)
    found = lab.gradients(lab.over_time(layer), *named(*args))
    assert_agree(found, by_hand(variant, *args), 1e-12)


@pytest.mark.parametrize("variant", reference.VARIANTS)
def test_a_padded_row_is_the_row_alone(variant):
    x, weights, h0, dy, dh = problem(variant, seed=2)
    together = by_hand(variant, x, weights, h0, dy, dh, np.array([5, 2, 0]))
    alone = by_hand(variant, x[1:2, :2], weights, h0[1:2], dy[1:2, :2], dh[1:2])
    for name in ("y", "d_x"):
        np.testing.assert_allclose(together[name][1:2, :2], alone[name], atol=1e-14)
        assert not together[name][1, 2:].any() and not together[name][2].any()
    np.testing.assert_allclose(together["final_h"][1:2], alone["final_h"], atol=1e-14)
    np.testing.assert_array_equal(together["d_h0"][2], dh[2])


def test_where_the_gate_stands_makes_no_difference_once_it_is_open():
    """Both candidates are tanh(a_n + u_n) at r = 1, and RESET_ONLY is the GRU's at z = 0."""
    a, u, r = symbol("a_n"), symbol("u_n"), symbol("r")
    arguments = [(a + r * u), (r * a + u)]
    for spec, argument in zip((gru.GRU, equations.RESET_INPUT), arguments, strict=True):
        n = dict(spec.equations)[symbol("n")]
        assert sp.simplify(n.args[0] - argument) == 0
        assert sp.simplify(n.args[0].subs(r, 1) - (a + u)) == 0
    cut = gru.GRU.replace("cut", z="0*a_z")
    difference = cut.compose()["h"] - equations.RESET_ONLY.compose()["h"]
    assert sp.simplify(difference) == 0


def test_a_reset_by_a_bias_alone_is_a_matrix_with_scaled_rows():
    """r * (U h + b') with r fixed is (r U) h + r b': the function of a GRU without reset."""
    torch.manual_seed(0)
    whole, cut = Recurrent(gru.GRU, 3, 4).double(), Recurrent(gru.NO_RESET, 3, 4).double()
    r = torch.rand(4, dtype=torch.float64) * 0.8 + 0.1
    with torch.no_grad():
        whole.weight_ih_l0[:4] = whole.weight_hh_l0[:4] = 0
        whole.bias_ih_l0[:4], whole.bias_hh_l0[:4] = torch.logit(r), 0
        cut.weight_ih_l0.copy_(whole.weight_ih_l0[4:])
        cut.weight_hh_l0.copy_(whole.weight_hh_l0[4:])
        cut.weight_hh_l0[4:] *= r[:, None]
        cut.bias_ih_l0.copy_(whole.bias_ih_l0[4:] + whole.bias_hh_l0[4:])
        cut.bias_ih_l0[4:] += (r - 1) * whole.bias_hh_l0[8:]
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(whole(x)[0], cut(x)[0])


@pytest.mark.parametrize(("change", "error", "says"), BAD_SEQUENCES)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem("reset_only")
    with pytest.raises(error, match=says):
        reference.forward(**{"x": x, "weights": weights} | change)
