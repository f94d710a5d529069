"""The witnesses of the LSTM family agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

import ast
import inspect
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import lstm as equations
from gatelib.nn import Recurrent, init
from gatelib.reference import lstm as reference
from tests.families import witnesses

NAMES = sorted(equations.ALL)
PLAIN = ("gates", "lstm", "lstm_backward")


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
    bound = 1e-6 if name.startswith("layernorm") else 1e-10
    assert_agree(by_hand(name, *args), by_equations(name, *args), bound)


@pytest.mark.parametrize("name", ["peephole", "layernorm_apart"])
def test_a_padded_row_is_the_row_alone(name):
    x, weights, initial, dy, final = problem(name, B=2, T=6, seed=3)
    lengths = np.array([6, 2])
    together = by_hand(name, x, weights, initial, dy, final, lengths)
    rows = {k: v[1:] for k, v in initial.items()}, {k: v[1:] for k, v in final.items()}
    alone = by_hand(name, x[1:, :2], weights, rows[0], dy[1:, :2], rows[1])
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


# ---- the plain cell ---------------------------------------------------------------------------


def plain(shape=(3, 5, 4, 6), seed=4):
    """What the plain cell and the general one are given: no initial state, and none at the end."""
    x, weights, initial, dy, _ = problem("lstm", *shape, seed=seed)
    none = {k: np.zeros_like(v) for k, v in initial.items()}
    return x, weights, none, dy, none


def by_plain(x, weights, _, dy, __):
    outputs, cells = reference.lstm(x, **weights)
    grads = reference.lstm_backward(dy, x, **weights, outputs=outputs, cells=cells)
    return {"y": outputs, "cells": cells} | {f"d_{k}": v for k, v in grads.items()}


@witnesses.for_any_shape(20)
def test_the_plain_cell_is_the_general_one(shape, seed):
    args = plain(shape, seed)
    found, general = by_plain(*args), by_hand("lstm", *args)
    last = found.pop("cells")[:, -1]
    np.testing.assert_allclose(last, general["final_c"], atol=1e-14)
    assert_agree(found, {k: general[k] for k in found})


def test_the_plain_cell_is_torch_lstm():
    args = plain()
    found = by_plain(*args)
    del found["cells"]
    peer = by_torch(torch.nn.LSTM(4, 6, batch_first=True), "lstm", *args)
    assert_agree(found, {k: peer[k] for k in found})


def test_the_plain_cell_reads_an_empty_sequence():
    x, weights, _, dy, _ = plain()
    found = by_plain(x[:, :0], weights, None, dy[:, :0], None)
    assert found["y"].shape == (3, 0, 6) and not found["d_W"].any()


def test_the_plain_backward_leaves_what_it_is_given_alone():
    x, weights, _, dy, _ = plain()
    given = (dy, x, *weights.values(), *reference.lstm(x, **weights))
    kept = [array.copy() for array in given]
    reference.lstm_backward(*given)
    assert all(np.array_equal(array, copy) for array, copy in zip(given, kept, strict=True))


def test_the_plain_cell_fits_ten_lines_and_its_backward_twenty_five():
    code = ast.parse(inspect.getsource(reference))
    found = {node.name: node for node in code.body if isinstance(node, ast.FunctionDef)}
    lines = {name: found[name].end_lineno - found[name].body[1].lineno + 1 for name in PLAIN}
    assert lines["gates"] + lines["lstm"] <= 10 and lines["lstm_backward"] <= 25, lines


# ---- layer normalisation ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["layernorm", "layernorm_apart"])
def test_gains_start_at_one_and_shifts_at_zero(name):
    weights = reference.initialize(np.random.default_rng(0), 4, 6, name)
    layer = Recurrent(equations.ALL[name], 4, 6)
    for vector in equations.ALL[name].vectors:
        start = 1 if vector.startswith("s_") else 0
        assert (weights[vector] == start).all() and (getattr(layer, f"{vector}_l0") == start).all()


def test_the_layer_without_biases_has_the_parameters_of_the_paper():
    layer = Recurrent(equations.LAYERNORM_APART, 4, 6, bias=False)
    products, gains, shifts = 4 * 6 * (4 + 6), 2 * 4 * 6 + 6, 4 * 6 + 6
    assert sum(p.numel() for p in layer.parameters()) == products + gains + shifts


def test_a_forget_bias_is_the_shift_behind_both_norms():
    layer = init.forget_bias_(Recurrent(equations.LAYERNORM_APART, 4, 6, bias=False), 2.0)
    assert (layer.b_f_l0 == 2).all() and not layer.b_i_l0.any()
    chrono = init.chrono_(layer, 50)
    assert torch.equal(chrono.b_i_l0, -chrono.b_f_l0) and (chrono.b_f_l0 > 0).any()


@pytest.mark.parametrize("scaled", ["W", "U"])
def test_normalised_apart_neither_product_can_drown_the_other(scaled):
    x, weights, initial, *_ = problem("layernorm_apart", H=32, seed=5)
    sums = {k: v for k, v in weights.items() if k in ("W", "U", "b") or k[2:] in "ifgoc"}
    sums |= {f"s_{k}": weights[f"s_a{k}"] for k in "ifgo"}
    moved = {}
    for name, own in (("layernorm_apart", weights), ("layernorm", sums)):
        own = own | {k: np.zeros_like(own[k]) for k in ("b", "b_u") if k in own}
        states = initial["h"][:, :1] * np.ones(32), initial["c"][:, :1] * np.ones(32)
        before, *_ = reference.forward(x, own, *states, variant=name)
        after, *_ = reference.forward(x, own | {scaled: 100 * own[scaled]}, *states, variant=name)
        moved[name] = np.abs(after - before).max()
    assert moved["layernorm_apart"] < 0.05 < moved["layernorm"], moved


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        *witnesses.BAD_SEQUENCES,
        ({"variant": "peephole"}, ValueError, "weights: expected"),
        ({"variant": "layernorm_apart"}, ValueError, "weights: expected .*'b_u'"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem("lstm")
    arguments = {"x": x, "weights": weights} | change
    with pytest.raises(error, match=says):
        reference.forward(**arguments)


def test_bad_input_of_the_plain_cell_is_named():
    x, weights, *_ = plain()
    with pytest.raises(ValueError, match=r"weights\['U'\]: expected"):
        reference.lstm(x, weights["W"], weights["U"][:-1], weights["b"])
    with pytest.raises(ValueError, match="x: expected 3 dimensions"):
        reference.lstm(x[0], **weights)
