"""The witnesses of the LSTM family agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import lstm as equations
from gatelib.nn import Recurrent
from gatelib.reference import lstm as reference
from tests.families import witnesses

NAMES = sorted(equations.ALL)


def problem(name, B=3, T=5, D=4, H=6, seed=0):
    """Random weights, input, initial state and upstream gradients for one variant."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, H, name)
    for vector in reference.VARIANTS[name].vectors:
        weights[vector] = weights[vector] + rng.normal(size=H)
    x, dy = rng.normal(size=(B, T, D)), rng.normal(size=(B, T, H))
    initial = {"h": rng.normal(size=(B, H)), "c": rng.normal(size=(B, H))}
    final = {"h": rng.normal(size=(B, H)), "c": rng.normal(size=(B, H))}
    return x, weights, initial, dy, final


def by_hand(name, x, weights, initial, dy, final, lengths=None):
    y, (h, c), saved = reference.forward(
        x, weights, initial["h"], initial["c"], lengths, variant=name
    )
    grads = reference.backward(dy, final["h"], final["c"], saved)
    return {"y": y, "final_h": h, "final_c": c} | {f"d_{k}": v for k, v in grads.items()}


def named(name, x, weights, initial, dy, final):
    """A case as `gradients` takes it, with the states that the variant has."""
    states = equations.ALL[name].states
    upstream = {"y": dy} | {f"final_{k}": final[k] for k in states}
    return {"x": x} | weights | {f"{k}0": initial[k] for k in states}, upstream


def by_equations(name, *args):
    run = partial(derived.rnn.over_time, equations.ALL[name])
    return derived.gradients(run, *named(name, *args))


def by_torch(layer, name, *args):
    """Any torch layer with these weights, differentiated by autograd."""
    return lab.gradients(lab.over_time(layer), *named(name, *args))


def assert_agree(hand, expected, bound=1e-10):
    """What is written by hand has a cell state in each variant; others only where there is one."""
    witnesses.assert_agree({k: v for k, v in hand.items() if k in expected}, expected, bound)


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_written_by_hand_is_the_one_derived(name):
    args = problem(name)
    assert_agree(by_hand(name, *args), by_equations(name, *args))


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_written_by_hand_is_the_one_of_autograd(name):
    args = problem(name, seed=1)
    layer = Recurrent(equations.ALL[name].spec, 4, 6, impl="reference")
    assert_agree(by_hand(name, *args), by_torch(layer, name, *args))


def test_the_reference_is_torch_lstm():
    args = problem("lstm", seed=2)
    peer = torch.nn.LSTM(4, 6, batch_first=True)
    assert_agree(by_hand("lstm", *args), by_torch(peer, "lstm", *args))


@witnesses.for_any_shape(20, name=st.sampled_from(NAMES))
def test_hand_and_derivation_agree_for_any_shape(name, shape, seed):
    args = problem(name, *shape, seed=seed)
    # With one feature, or with two nearly equal ones, a normalised value is ill-conditioned: its
    # derivative is up to 1/√ε = 316 a layer, so rounding may grow by its power.
    bound = 1e-6 if name == "layernorm" else 1e-10
    assert_agree(by_hand(name, *args), by_equations(name, *args), bound)


def test_a_padded_row_is_the_row_alone():
    x, weights, initial, dy, final = problem("peephole", B=2, T=6, seed=3)
    lengths = np.array([6, 2])
    together = by_hand("peephole", x, weights, initial, dy, final, lengths)
    rows = {k: v[1:] for k, v in initial.items()}, {k: v[1:] for k, v in final.items()}
    alone = by_hand("peephole", x[1:, :2], weights, rows[0], dy[1:, :2], rows[1])
    np.testing.assert_allclose(together["y"][1, :2], alone["y"][0], atol=1e-14)
    assert not together["y"][1, 2:].any()
    for key in ("final_h", "final_c", "d_h0", "d_c0"):
        np.testing.assert_allclose(together[key][1:], alone[key], atol=1e-13)
    np.testing.assert_allclose(together["d_x"][1, :2], alone["d_x"][0], atol=1e-13)
    assert not together["d_x"][1, 2:].any()


def test_a_row_of_length_zero_keeps_its_state():
    x, weights, initial, dy, final = problem("lstm", B=2)
    found = by_hand("lstm", x, weights, initial, dy, final, np.array([0, 5]))
    np.testing.assert_array_equal(found["final_c"][0], initial["c"][0])
    np.testing.assert_array_equal(found["d_c0"][0], final["c"][0])


def test_an_empty_sequence_returns_the_initial_state():
    x, weights, initial, _, final = problem("lstm", T=1)
    found = by_hand("lstm", x[:, :0], weights, initial, np.zeros((3, 0, 6)), final)
    assert found["y"].shape == (3, 0, 6)
    np.testing.assert_array_equal(found["final_h"], initial["h"])
    np.testing.assert_array_equal(found["d_h0"], final["h"])


@pytest.mark.parametrize("name", NAMES)
def test_saturated_gates_stay_finite(name):
    x, weights, initial, dy, final = problem(name)
    found = by_hand(name, 1e4 * x, weights, initial, dy, final)
    bounded = "no_input_activation" not in name
    assert all(np.isfinite(v).all() for v in found.values())
    assert not bounded or np.abs(found["final_c"]).max() < 100


def test_the_article_network_never_uses_its_input_gate():
    args = problem("article")
    found = by_hand("article", *args)
    assert not found["d_W"][:6].any() and not found["d_U"][:6].any()
    assert found["d_W"][6:].any()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        *witnesses.BAD_SEQUENCES,
        ({"variant": "peephole"}, ValueError, "weights: expected"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem("lstm")
    arguments = {"x": x, "weights": weights} | change
    with pytest.raises(error, match=says):
        reference.forward(**arguments)
