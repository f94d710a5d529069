"""The witnesses of the GRU family agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import gru as equations
from gatelib.nn import Recurrent
from gatelib.reference import gru as reference
from gatelib.spec import Spec, symbol
from tests.families.witnesses import BAD_SEQUENCES, assert_agree, for_any_shape, named

NAMES = sorted(equations.ALL)
TORCH = {"W": "weight_ih_l0", "U": "weight_hh_l0", "b": "bias_ih_l0", "b_u": "bias_hh_l0"}


def problem(name, B=3, T=5, D=4, H=6, seed=0):
    """Random weights, input, initial state and upstream gradients for one variant."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, H, name)
    weights = {k: v + 0.3 * rng.normal(size=v.shape) for k, v in weights.items()}
    x, dy = rng.normal(size=(B, T, D)), rng.normal(size=(B, T, H))
    return x, weights, rng.normal(size=(B, H)), dy, rng.normal(size=(B, H))


def by_equations(name, *args):
    run = partial(derived.rnn.over_time, equations.ALL[name])
    return derived.gradients(run, *named(*args))


def by_hand(name, x, weights, h0, dy, dh, lengths=None):
    y, h, saved = reference.forward(x, weights, h0, lengths, variant=name)
    grads = reference.backward(dy, dh, saved)
    return {"y": y, "final_h": h} | {f"d_{k}": v for k, v in grads.items()}


def by_torch(layer, *args):
    """Any torch layer with these weights, differentiated by autograd."""
    return lab.gradients(lab.over_time(layer), *named(*args))


def plain_layer(name, *sizes):
    """The layer that autograd differentiates step by step."""
    return Recurrent(equations.ALL[name], *sizes, impl="reference")


# --- the witnesses --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_written_by_hand_is_the_one_derived_and_the_one_of_autograd(name):
    args = problem(name)
    expected = by_hand(name, *args)
    assert_agree(by_equations(name, *args), expected)
    assert_agree(by_torch(plain_layer(name, 4, 6), *args), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_layer_of_any_number_of_stages_has_the_same_gradients(name):
    args = problem(name, seed=2)
    layer = Recurrent(equations.ALL[name], 4, 6, impl="fused")
    assert_agree(by_torch(layer, *args), by_hand(name, *args))


def test_the_reference_is_torch_gru():
    args = problem("gru", seed=3)
    peer = torch.nn.GRU(4, 6, batch_first=True)
    assert_agree(by_hand("gru", *args), by_torch(peer, *args))


@for_any_shape(25, steps=0, name=st.sampled_from(NAMES))
def test_hand_and_derivation_agree_for_any_shape(name, shape, seed):
    args = problem(name, *shape, seed=seed)
    assert_agree(by_hand(name, *args), by_equations(name, *args))


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_passes(name):
    x, weights, h0, *_ = problem(name, B=2, T=3, D=2, H=3)
    layer = plain_layer(name, 2, 3).double()
    parameters = [TORCH.get(k, f"{k}_l0") for k in weights]

    def run(x, h0, *values):
        given = dict(zip(parameters, values, strict=True))
        y, last = torch.func.functional_call(layer, given, (x, {"h": h0}))
        return y, last["h"]

    values = [torch.tensor(v, requires_grad=True) for v in (x, h0[None], *weights.values())]
    assert torch.autograd.gradcheck(run, values)


def test_a_padded_row_is_the_row_alone():
    for name in NAMES:
        x, weights, h0, dy, dh = problem(name, B=2, T=6, seed=3)
        together = by_hand(name, x, weights, h0, dy, dh, np.array([6, 2]))
        alone = by_hand(name, x[1:, :2], weights, h0[1:], dy[1:, :2], dh[1:])
        first = by_hand(name, x[:1], weights, h0[:1], dy[:1], dh[:1])
        np.testing.assert_allclose(together["y"][1, :2], alone["y"][0], atol=1e-14)
        assert not together["y"][1, 2:].any() and not together["d_x"][1, 2:].any()
        for key in ("final_h", "d_h0"):
            np.testing.assert_allclose(together[key][1:], alone[key], atol=1e-13)
        for key in (f"d_{k}" for k in weights):
            np.testing.assert_allclose(together[key], first[key] + alone[key], atol=1e-12)


def test_an_empty_sequence_returns_the_initial_state():
    x, weights, h0, _, dh = problem("gru", T=0)
    found = by_hand("gru", x, weights, h0, np.zeros((3, 0, 6)), dh)
    assert found["y"].shape == (3, 0, 6) and not found["d_U"].any()
    np.testing.assert_array_equal(found["final_h"], h0)
    np.testing.assert_array_equal(found["d_h0"], dh)


@pytest.mark.parametrize("name", NAMES)
def test_saturated_gates_stay_finite(name):
    x, weights, h0, dy, dh = problem(name)
    found = by_hand(name, 1e4 * x, weights, h0, dy, dh)
    assert all(np.isfinite(v).all() for v in found.values())
    assert name == "light" or np.abs(found["y"]).max() <= np.abs(h0).max() + 1


# --- what the equations say -----------------------------------------------------------------


def whole(name):
    return equations.ALL[name].joined()


def test_cho_and_chung_are_one_cell_with_the_sign_of_a_z_turned():
    assert whole("chung").subs(a_z="-a_z").same_as(whole("cho"))
    assert not whole("chung").same_as(whole("cho"))


def test_every_convention_without_a_reset_gate_is_the_same_cell():
    h = whole("no_reset").compose()["h"]
    assert whole("cho").subs(r=1).compose()["h"] == h
    merged = equations.GRU.subs(r=1, u_n=0)  # a_n then holds the whole preactivation
    assert merged.same_as(equations.NO_RESET)


def test_a_reset_gate_at_zero_drops_the_product_and_its_bias():
    closed = equations.GRU.subs(r=0)
    assert "u_n" not in map(str, closed.inputs)
    assert closed.same_as(equations.NO_RESET)


def test_an_mgu_is_a_chung_gru_with_both_gates_tied():
    tied = whole("chung").subs(a_r="a_z").compose()
    mgu = {k: v.xreplace({symbol("a_f"): symbol("a_z")}) for k, v in whole("mgu").compose().items()}
    assert tied.keys() == mgu.keys()
    assert all((tied[k] - mgu[k]).simplify() == 0 for k in tied)


def test_where_the_gate_stands_makes_no_difference_once_it_is_open():
    """Both candidates are tanh(a_n + u_n) at r = 1, and RESET_ONLY is the GRU's at z = 0."""
    a, u, r = symbol("a_n"), symbol("u_n"), symbol("r")
    arguments = [(a + r * u), (r * a + u)]
    for spec, argument in zip((equations.GRU, equations.RESET_INPUT), arguments, strict=True):
        n = dict(spec.equations)[symbol("n")]
        assert sp.simplify(n.args[0] - argument) == 0
        assert sp.simplify(n.args[0].subs(r, 1) - (a + u)) == 0
    cut = equations.GRU.replace("cut", z="0*a_z")
    difference = cut.compose()["h"] - equations.RESET_ONLY.compose()["h"]
    assert sp.simplify(difference) == 0


def test_a_reset_by_a_bias_alone_is_a_matrix_with_scaled_rows():
    """r * (U h + b') with r fixed is (r U) h + r b': the function of a GRU without reset."""
    torch.manual_seed(0)
    kinds = equations.GRU, equations.NO_RESET
    whole, cut = (Recurrent(kind, 3, 4, dtype=torch.float64) for kind in kinds)
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


def test_two_biases_are_both_added_to_a_plain_cell():
    plain = Spec.parse("plain", "a_h -> h", "h = tanh(a_h)")
    rng = np.random.default_rng(0)
    weights = {"W": rng.normal(size=(3, 2)), "U": rng.normal(size=(3, 3))}
    weights |= {k: rng.normal(size=3) for k in ("b", "b_u")}
    x, *others = (rng.normal(size=s) for s in ((2, 4, 2), (2, 3), (2, 4, 3), (2, 3)))
    found = derived.gradients(partial(derived.rnn.over_time, plain), *named(x, weights, *others))
    assert_agree(found, by_torch(torch.nn.RNN(2, 3, batch_first=True), x, weights, *others))


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        *BAD_SEQUENCES,
        ({"variant": "cho"}, ValueError, "weights: expected"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem("gru")
    with pytest.raises(error, match=says):
        reference.forward(**({"x": x, "weights": weights} | change))


def test_a_stage_alone_is_no_layer():
    with pytest.raises(ValueError, match="spec: reset has no output `h`"):
        Recurrent(equations.RESET, 2, 3)
