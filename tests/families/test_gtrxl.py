"""The block of GTrXL: equations, NumPy and torch agree, and its order is the paper's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.nn import GTrXLBlock
from gatelib.reference import gated_attention, highway
from gatelib.reference import gtrxl as reference
from gatelib.reference.gated_attention import Kind
from tests.families import attention_formula
from tests.families.witnesses import assert_agree, close

KINDS = [Kind(2), Kind(2, position="rope"), Kind(2, forget=True, sink="learned")]


def problem(kind, shape=(3, 5, 8), hidden=7, seed=0, bias=2.0, gated=True):
    """x, weights that have left their start, the upstream gradient, and lengths, 0 among them."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, shape[2], hidden, kind, bias)
    weights = {k: v for k, v in weights.items() if gated or not k.startswith("gate")}
    weights = {name: value + 0.3 * rng.normal(size=value.shape) for name, value in weights.items()}
    lengths = np.minimum(np.array([5, 0, 2, 1])[: shape[0]], shape[1])
    return rng.normal(size=shape), weights, rng.normal(size=shape), lengths


def by_equations(kind, x, weights, dy, lengths=None):
    own = {"sink": kind.sink is not None, "position": kind.position}
    form = derived.gated_attention.Form(kind.heads, **own)
    run = partial(derived.gtrxl.block, form, lengths=lengths)
    return derived.gradients(run, {"x": x} | weights, {"y": dy})


def by_hand(kind, x, weights, dy, lengths=None):
    y, saved = reference.forward(x, weights, kind, lengths)
    return {"y": y} | {f"d_{k}": v for k, v in reference.backward(dy, saved).items()}


def by_formula(kind, x, weights, dy, lengths=None):
    run = partial(formula, kind, lengths)
    return lab.gradients(run, {"x": x} | weights, {"y": dy})


ENDS = {"gamma": "weight", "beta": "bias", "W_y": "weight_y", "W_x": "weight_x", "b": "bias"}
LINEAR = {"W": "weight", "b": "bias"}


def place_of(name):
    """Where a weight of the reference is in the module."""
    part, _, own = name.rpartition(".")
    if part == "attention":
        return f"attention.{attention_formula.LAYER[own]}"
    if part:
        return f"{part}.{ENDS[own]}"
    end, _, linear = name.partition("_")
    return f"linear_{linear}.{LINEAR[end]}"


def by_torch(kind, x, weights, dy, lengths=None):
    options = {"sink": kind.sink, "forget": kind.forget, "position": kind.position}
    options |= {"stream": "gru" if "gate1.b" in weights else "sum"}
    sizes = x.shape[2], kind.heads, len(weights["W_in"])
    module = GTrXLBlock(*sizes, **options, dtype=torch.float64)
    rows = None if lengths is None else torch.tensor(lengths)

    def run(given):
        own = {place_of(name): given[name] for name in weights}
        return {"y": lab.called(module, own, given["x"], None, rows)[0]}

    return lab.gradients(run, {"x": x} | weights, {"y": dy})


def formula(kind, lengths, w):
    """The block in torch: two submodules, each between a norm and a gate."""
    live = torch.ones(w["x"].shape[:2], dtype=torch.bool)
    if lengths is not None:
        live = torch.arange(live.shape[1]) < torch.tensor(lengths)[:, None]
    x = w["x"] * live[..., None]
    inside = {"x": normed("norm1.", x, w)} | derived.tape.under("attention.", w)
    o = attention_formula.formula(kind, lengths, inside)["y"]
    x = gated("gate1.", x, F.relu(o), w)
    h = F.relu(F.linear(normed("norm2.", x, w), w["W_in"], w["b_in"]))
    x = gated("gate2.", x, F.relu(F.linear(h, w["W_out"], w["b_out"])), w)
    return {"y": x * live[..., None]}


def normed(place, x, w):
    return F.layer_norm(x, x.shape[-1:], w[place + "gamma"], w[place + "beta"], 1e-5)


def gated(place, x, y, w):
    """g = (1 − z) x + z tanh(W_g y + U_g (r x)), with z = σ(W_z y + U_z x − b); or x + y."""
    if f"{place}b" not in w:
        return x + y
    W, U = (w[place + name].chunk(3) for name in ("W_y", "W_x"))
    r = torch.sigmoid(F.linear(y, W[0]) + F.linear(x, U[0]))
    z = torch.sigmoid(F.linear(y, W[1]) + F.linear(x, U[1]) - w[place + "b"])
    return (1 - z) * x + z * torch.tanh(F.linear(y, W[2]) + F.linear(r * x, U[2]))


def assert_all_agree(kind, *case):
    """Every witness finds every output and gradient."""
    expected = by_equations(kind, *case)
    bound = 1e-11 * (1 + max(np.abs(v).max(initial=0.0) for v in expected.values()))
    for witness in (by_hand, by_formula, by_torch):
        assert_agree(witness(kind, *case), expected, bound)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "summed"])
@pytest.mark.parametrize("kind", KINDS, ids=["plain", "rope", "forgetting"])
def test_equations_hand_and_torch_agree(kind, gated):
    *case, lengths = problem(kind, gated=gated)
    assert_all_agree(kind, *case)
    assert_all_agree(kind, *case, lengths)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    shape=st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from([4, 8])),
    hidden=st.integers(1, 6),
    gated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_they_agree_for_any_shape(kind, shape, hidden, gated, seed):
    *case, _ = problem(kind, shape, hidden, seed, gated=gated)
    assert_all_agree(kind, *case, np.random.default_rng(seed).integers(0, shape[1] + 1, shape[0]))


def test_padding_reaches_nobody_and_a_row_of_padding_gives_0():
    for kind in KINDS:
        x, weights, dy, lengths = problem(kind)
        clean = by_hand(kind, x, weights, dy, lengths)
        dead = np.arange(5) >= lengths[:, None]
        x[dead], dy[dead] = np.nan, 7.0
        found = by_hand(kind, x, weights, dy, lengths)
        for name, value in clean.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert not found["y"][1].any() and not found["d_x"][dead].any()


def test_a_later_token_leaves_earlier_outputs_unchanged_to_the_bit():
    for kind in KINDS:
        x, weights, _, _ = problem(kind)
        y, _ = reference.forward(x, weights, kind)
        x[:, 3] *= 1.5  # a shift of all features would end at the norm
        again, _ = reference.forward(x, weights, kind)
        np.testing.assert_array_equal(again[:, :3], y[:, :3])
        assert np.abs(again[:, 3:] - y[:, 3:]).min() > 0


# ---- the order of the paper ------------------------------------------------------------------


def block_of_parts(x, weights, kind):
    """The block from the two references that it is made of."""

    def under(place):
        return {k.removeprefix(place): v for k, v in weights.items() if k.startswith(place)}

    def norm(place, x):
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return under(place)["gamma"] * unit + under(place)["beta"]

    def gate(place, x, o):
        rows = x.reshape(-1, 8), np.maximum(o, 0).reshape(-1, 8)
        return highway.forward_gtrxl(*rows, under(place))[0].reshape(x.shape)

    o, _ = gated_attention.forward(norm("norm1.", x), under("attention."), kind)
    x = gate("gate1.", x, o)
    h = np.maximum(norm("norm2.", x) @ weights["W_in"].T + weights["b_in"], 0)
    return gate("gate2.", x, h @ weights["W_out"].T + weights["b_out"])


def test_each_submodule_reads_the_normed_stream_and_hands_a_relu_to_its_gate():
    for kind in KINDS:
        x, weights, _, _ = problem(kind)
        close(reference.forward(x, weights, kind)[0], block_of_parts(x, weights, kind), 1e-14)


def test_the_stream_itself_is_never_normed():
    """With both gates shut the block is the identity, whatever its norms are."""
    x, weights, _, _ = problem(KINDS[0], bias=60.0)
    close(reference.forward(x + 3, weights, KINDS[0])[0], x + 3, 1e-12)


def test_a_submodule_below_0_leaves_the_gate_with_the_stream_alone():
    """Its relu is shut: attention then gets no gradient."""
    x, weights, dy, _ = problem(KINDS[0])
    weights["attention.W_o"] *= 0
    weights["attention.b_o"][:] = -1.0
    found = by_hand(KINDS[0], x, weights, dy)
    assert not any(v.any() for k, v in found.items() if k.startswith("d_attention."))
    assert not found["d_gate1.W_y"].any() and found["d_gate1.W_x"].any()


def test_its_bias_starts_the_block_near_the_identity():
    """At b = 2 a gate lets in σ(−2) = 0.12 of the new value where its products are small."""
    rng = np.random.default_rng(0)
    x, moved = rng.normal(size=(2, 16, 32)), {}
    for bias in (0.0, 2.0):
        weights = reference.initialize(np.random.default_rng(1), 32, 64, Kind(4), bias)
        moved[bias] = np.abs(reference.forward(x, weights, Kind(4))[0] - x).mean()
    assert moved[2.0] < 0.4 * moved[0.0]


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": np.zeros((3, 8))}, ValueError, "x: expected 3 dimensions"),
        ({"weights": {}}, ValueError, r"weights: expected 'norm1.gamma' too, got \[\]"),
        ({"x": np.zeros((3, 5, 4))}, ValueError, r"weights\['norm1.gamma'\]: expected \(4,\)"),
        ({"kind": Kind(2, forget=True)}, ValueError, r"weights: expected \['W', 'W_f'"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, _, _ = problem(KINDS[0])
    with pytest.raises(error, match=says):
        reference.forward(**{"x": x, "weights": weights, "kind": KINDS[0]} | change)
