"""The gated attention unit: equations, NumPy and torch agree; what is masked reaches nobody."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import attention, gau
from gatelib.nn import GatedAttentionUnit
from gatelib.reference import gau as reference
from tests.families.witnesses import assert_agree, close

OPTIONS = [
    {"causal": causal, "n": n, "rotary": rotary}
    for causal in (True, False)
    for n in (None, 7.0)
    for rotary in (False, True)
]


def name_of(options):
    return " ".join(f"{name}={value}" for name, value in options.items())


def problem(options, shape=(3, 5, 4), hidden=6, key_size=4, seed=0, scale=1.0):
    """x, weights that have left their start, the upstream gradient, and lengths, 0 among them."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, shape[2], hidden, key_size, options["rotary"])
    weights = {name: value + 0.3 * rng.normal(size=value.shape) for name, value in weights.items()}
    lengths = np.minimum(np.array([5, 0, 2, 1])[: shape[0]], shape[1])
    return scale * rng.normal(size=shape), weights, rng.normal(size=shape), lengths


def given_to(options):
    return {name: options[name] for name in ("causal", "n")}


def by_equations(options, x, weights, dy, lengths=None):
    run = partial(derived.gau.unit, **given_to(options), lengths=lengths)
    return derived.gradients(run, {"x": x} | weights, {"y": dy})


def by_hand(options, x, weights, dy, lengths=None):
    y, saved = reference.forward(x, weights, **given_to(options), lengths=lengths)
    return {"y": y} | {f"d_{k}": v for k, v in reference.backward(dy, saved).items()}


def by_formula(options, x, weights, dy, lengths=None):
    run = partial(formula, options, lengths)
    return lab.gradients(run, {"x": x} | weights, {"y": dy})


LAYER = {"W": "weight_in", "b": "bias_in", "W_o": "weight_out", "b_o": "bias_out"}
"""Where weights have another name in the module."""


def by_torch(options, x, weights, dy, lengths=None):
    own = {"position": "rotary" if options["rotary"] else None, "bias": "b" in weights}
    sizes = x.shape[2], weights["W_o"].shape[1], weights["scale"].shape[1]
    module = GatedAttentionUnit(*sizes, **given_to(options), **own, dtype=torch.float64)
    rows = None if lengths is None else torch.tensor(lengths)

    def run(given):
        named = {LAYER.get(name, name): given[name] for name in weights}
        return {"y": lab.called(module, named, given["x"], None, rows)[0]}

    return lab.gradients(run, {"x": x} | weights, {"y": dy})


def formula(options, lengths, w):
    """The unit as its equations stand in the paper, in torch."""
    steps = torch.arange(w["x"].shape[1])
    live = torch.ones(w["x"].shape[:2], dtype=torch.bool)
    if lengths is not None:
        live = steps < torch.tensor(lengths)[:, None]
    hidden = w["W_o"].shape[1]
    h = F.silu(F.linear(w["x"] * live[..., None], w["W"], w.get("b")))
    u, v, z = h.split([hidden, hidden, h.shape[2] - 2 * hidden], -1)
    q, k = (z * w["scale"][i] + w["offset"][i] for i in (0, 1))
    mask = live[:, None] & ((steps[:, None] >= steps) | (not options["causal"]))
    n = mask.sum(-1, keepdim=True).clamp(min=1) if options["n"] is None else options["n"]
    e = q @ k.mT / n
    if options["rotary"]:
        size = z.shape[-1] // 2
        angle = steps[:, None] * 1e4 ** (-torch.arange(size, dtype=torch.float64) / size)
        pair = torch.complex(*w["bias_vectors"].chunk(2, -1))
        turn = torch.polar(torch.ones_like(angle), angle)
        at_i, at_j = pair[0] * turn, pair[1] * turn
        e = e + (at_i[:, None] * at_j.conj()).real.sum(-1)
    c = (F.relu(e) ** 2 * mask) @ v
    y = F.linear(u * c, w["W_o"], w.get("b_o"))
    return {"y": y.masked_fill(~live[..., None], 0)}


def assert_all_agree(options, *case):
    """Every witness finds every output and gradient."""
    expected = by_equations(options, *case)
    bound = 1e-11 * (1 + max(np.abs(v).max(initial=0.0) for v in expected.values()))
    for witness in (by_hand, by_formula, by_torch):
        assert_agree(witness(options, *case), expected, bound)


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_equations_hand_and_torch_agree(options):
    *case, lengths = problem(options)
    assert_all_agree(options, *case)
    assert_all_agree(options, *case, lengths)


@settings(max_examples=40, deadline=None)
@given(
    options=st.sampled_from(OPTIONS),
    shape=st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 4)),
    sizes=st.tuples(st.integers(1, 5), st.sampled_from([2, 4, 6])),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_they_agree_for_any_shape(options, shape, sizes, scale, bias, seed):
    x, weights, dy, _ = problem(options, shape, *sizes, seed, scale)
    weights = {k: v for k, v in weights.items() if bias or k not in ("b", "b_o")}
    assert_all_agree(
        options, x, weights, dy, np.random.default_rng(seed).integers(0, shape[1] + 1, shape[0])
    )


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_padding_reaches_nobody_and_a_row_of_padding_gives_0(options):
    x, weights, dy, lengths = problem(options)
    clean = by_hand(options, x, weights, dy, lengths)
    dead = np.arange(5) >= lengths[:, None]
    x[dead], dy[dead] = np.nan, 7.0
    found = by_hand(options, x, weights, dy, lengths)
    for name, value in clean.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert not found["y"][1].any() and not found["d_x"][dead].any()
    alone = by_hand(options, x[2:3, :2], weights, dy[2:3, :2])
    close(alone["y"], found["y"][2:3, :2], 1e-13)
    close(alone["d_x"], found["d_x"][2:3, :2], 1e-13)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=name_of)
def test_a_later_token_leaves_earlier_outputs_unchanged_to_the_bit(options):
    x, weights, _, _ = problem(options)
    y, _ = reference.forward(x, weights, **given_to(options))
    x[:, 3] += 1.0
    again, _ = reference.forward(x, weights, **given_to(options))
    np.testing.assert_array_equal(again[:, :3], y[:, :3])
    assert np.abs(again[:, 3] - y[:, 3]).max() > 0


def test_the_number_of_all_positions_would_tell_a_prefix_how_long_the_whole_is():
    """With n = T a causal unit gives a token another output once more tokens follow."""
    x, weights, _, _ = problem(OPTIONS[0])
    whole, part = (reference.forward(x[:, :t], weights, n=float(t))[0] for t in (5, 3))
    assert np.abs(whole[:, :3] - part).max() > 1e-3
    whole, part = (reference.forward(x[:, :t], weights)[0] for t in (5, 3))
    close(whole[:, :3], part, 1e-15)


def test_a_mask_before_the_square_leaks_nothing_and_one_that_is_forgotten_leaks():
    """FLASH-pytorch's first commits squared, and masked the scores behind the square."""
    x, weights, _, _ = problem(OPTIONS[0])
    leaky, _ = reference.forward(x, weights, causal=False, n=5.0)
    x[:, 3] += 1.0
    again, _ = reference.forward(x, weights, causal=False, n=5.0)
    assert np.abs(again[:, :3] - leaky[:, :3]).max() > 1e-3


def test_n_does_not_divide_the_bias():
    e, b, n = gau.SCORE.compose()["e"], *sp.symbols("b n", real=True)
    assert sp.diff(e, b) == 1 and not (e - b).has(b) and e.has(n)


def test_a_position_whose_score_is_below_0_is_shut_and_learns_nothing():
    """g = relu(e)² is exactly 0 there, and so is its slope: other than a softmax's."""
    read = attention.written_out(gau.READ, 3, mask=(1, 1, 1))
    below = {sp.Symbol("e_1", real=True): -1}
    slope = sp.diff(read["c"][0], sp.Symbol("e_2", real=True))
    assert read["g"][0].subs(below) == 0
    assert not slope.has(sp.Symbol("v_1", real=True), sp.Symbol("v_3", real=True))


def test_where_nothing_is_seen_the_unit_reads_0():
    assert attention.written_out(gau.READ, 3, mask=(0, 0, 0))["c"][0] == 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": np.zeros((3, 4))}, ValueError, "x: expected 3 dimensions"),
        ({"weights": {}}, ValueError, r"weights: expected \['W', 'W_o'"),
        ({"x": np.zeros((3, 5, 9))}, ValueError, r"weights\['W'\]: expected \(16, 9\)"),
        ({"x": np.zeros((3, 5, 4), "f4")}, TypeError, r"weights\['W'\]: expected float32 as x"),
        ({"n": 0}, ValueError, "n: expected a number above 0, got 0"),
        ({"lengths": np.array([6, 1, 1])}, ValueError, "lengths: expected 0 … 5"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, _, _ = problem(OPTIONS[0])
    with pytest.raises(error, match=says):
        reference.forward(**{"x": x, "weights": weights} | change)


def test_a_rotary_bias_needs_pairs_of_features():
    x, weights, _, _ = problem(OPTIONS[1], key_size=3)
    with pytest.raises(ValueError, match="expected an even S, got 3"):
        reference.forward(x, weights)
