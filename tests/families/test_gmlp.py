"""gMLP: equations, NumPy and torch agree; padding and the future reach nobody."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import gmlp as equations
from gatelib.nn import AMLPBlock, GMLPBlock, SpatialGatingUnit
from gatelib.reference import gmlp as reference
from gatelib.reference.gmlp import Kind
from tests.families.witnesses import assert_agree

UNIT = {"W": "weight", "b": "bias", "gamma": "norm.weight", "beta": "norm.bias"}
BLOCK = {name: f"unit.{place}" for name, place in UNIT.items()} | {
    "gamma_x": "norm.weight",
    "beta_x": "norm.bias",
    "U": "proj_in.weight",
    "b_U": "proj_in.bias",
    "V": "proj_out.weight",
    "b_V": "proj_out.bias",
    "Q": "qkv.weight",
    "O": "proj_attention.weight",
    "b_O": "proj_attention.bias",
}
"""Where the weights of the reference are in the modules."""

BOTH = [Kind(gate, split) for gate in ("multiplicative", "additive") for split in (True, False)]
KINDS = [*BOTH, Kind("linear", False), Kind("none", False)]
MIXING = KINDS[:-1]
TAUGHT = 0.3
"""How far gains and shifts lie from their start in a test, so that none is taken for 1 or 0."""


def name_of(kind):
    return f"{kind.gate}{'' if kind.split else ' whole'}{' causal' if kind.causal else ''}"


def problem(kind, shape=(3, 5, 4), hidden=12, length=7, heads=1, attention=None, seed=0):
    """x, weights that have left their start, the upstream gradient, and lengths."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(
        rng, shape[2], hidden, length, kind, heads, attention, paper=False
    )
    for name in weights.keys() & {"gamma", "gamma_x", "beta", "beta_x"}:
        weights[name] += TAUGHT * rng.normal(size=weights[name].shape)
    lengths = np.minimum(np.arange(shape[0]) + 2, max(shape[1], 1))
    return rng.normal(size=shape), weights, rng.normal(size=shape), lengths


def by_equations(kind, x, weights, dy, lengths=None):
    spec = equations.spec_of(kind.gate, "Q" in weights)
    options = {"halves": kind.split, "causal": kind.causal, "lengths": lengths}
    run = partial(derived.gmlp.block, spec, **options)
    return derived.gradients(run, {"x": x} | weights, {"y": dy})


def by_hand(kind, x, weights, dy, lengths=None):
    y, saved = reference.forward(x, weights, kind, lengths)
    return {"y": y} | {f"d_{k}": v for k, v in reference.backward(dy, saved).items()}


def module_of(kind, weights, dtype=torch.float64):
    """The block that has these weights' sizes."""
    heads, length = weights["W"].shape[:2] if "W" in weights else (1, 7)
    hidden, features = weights["U"].shape
    attention = len(weights["Q"]) // 3 if "Q" in weights else None
    options = {"gate": kind.gate, "split": kind.split, "heads": heads, "dtype": dtype}
    return GMLPBlock(features, hidden, length, kind.causal, attention=attention, **options)


def by_torch(kind, x, weights, dy, lengths=None):
    module = module_of(kind, weights)
    row = None if lengths is None else torch.tensor(lengths)

    def run(given):
        own = {BLOCK[name]: given[name] for name in weights}
        return {"y": lab.called(module, own, given["x"], row)}

    return lab.gradients(run, {"x": x} | weights, {"y": dy})


def three(kind, *case):
    """What the three witnesses found, each in every output and gradient."""
    expected = by_equations(kind, *case)
    assert_agree(by_hand(kind, *case), expected)
    assert_agree(by_torch(kind, *case), expected)
    return expected


@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_equations_hand_and_torch_agree(kind, causal):
    kind = Kind(kind.gate, kind.split, causal)
    *case, lengths = problem(kind)
    three(kind, *case)
    three(kind, *case, lengths)


@pytest.mark.parametrize("kind", MIXING, ids=name_of)
def test_they_agree_with_a_small_attention_and_with_heads(kind):
    for causal in (False, True):
        kind = Kind(kind.gate, kind.split, causal)
        *case, lengths = problem(kind, heads=3, attention=5)
        three(kind, *case)
        three(kind, *case, lengths)


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([Kind(k.gate, k.split, c) for k in KINDS for c in (False, True)]),
    shape=st.tuples(*(st.integers(least, 4) for least in (0, 1, 1))),
    share=st.integers(1, 3),
    heads=st.integers(1, 2),
    attention=st.sampled_from([None, 1, 3]),
    more=st.integers(0, 2),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_they_agree_for_any_shape(kind, shape, share, heads, attention, more, scale, seed):
    attention = None if kind.gate == "none" else attention
    sizes = 2 * share * heads, shape[1] + more, heads, attention
    x, weights, dy, _ = problem(kind, shape, *sizes, seed)
    lengths = np.random.default_rng(seed).integers(1, shape[1] + 1, shape[0])
    case = scale * x, weights, dy, lengths
    expected = by_equations(kind, *case)
    bound = 1e-11 * (1 + max(np.abs(v).max(initial=0.0) for v in expected.values()))
    assert_agree(by_hand(kind, *case), expected, bound)
    assert_agree(by_torch(kind, *case), expected, bound)


# ---- the unit by itself ----------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("kind", MIXING, ids=name_of)
def test_the_three_units_agree(kind, attention, causal):
    kind, rng = Kind(kind.gate, kind.split, causal), np.random.default_rng(0)
    _, weights, _, lengths = problem(kind, heads=2)
    weights = {name: weights[name] for name in UNIT}
    z, ds = rng.normal(size=(3, 5, 12)), rng.normal(size=(3, 5, 6 if kind.split else 12))
    more = {"c": rng.normal(size=ds.shape)} if attention else {}
    spec = equations.spec_of(kind.gate, attention)
    options = {"halves": kind.split, "causal": kind.causal, "lengths": lengths}
    case = {"z": z} | weights | more, {"s": ds}
    expected = derived.gradients(partial(derived.gmlp.unit, spec, **options), *case)
    s, saved = reference.forward_unit(z, weights, kind, lengths, more.get("c"))
    hand = reference.backward_unit(ds, saved)
    hand = {f"d_{'c' if name == 'context' else name}": value for name, value in hand.items()}
    assert_agree({"s": s} | hand, expected)
    own = {"gate": kind.gate, "split": kind.split, "heads": 2, "attention": attention}
    module = SpatialGatingUnit(12, 7, causal, **own, dtype=torch.float64)

    def run(given):
        named = {place: given[name] for name, place in UNIT.items()}
        rows = torch.tensor(lengths), given.get("c")
        return {"s": lab.called(module, named, given["z"], *rows)}

    assert_agree(lab.gradients(run, *case), expected)


def test_what_the_gradient_of_a_mixture_is():
    """dL/dW_st is the product of g's adjoint at s and n at t, summed over rows and features."""
    rng = np.random.default_rng(0)
    _, weights, _, _ = problem(Kind())
    z, ds = rng.normal(size=(3, 7, 12)), rng.normal(size=(3, 7, 6))
    _, saved = reference.forward_unit(z, {name: weights[name] for name in UNIT})
    n, d_g = saved["n"], ds * z[..., :6]
    found = reference.backward_unit(ds, saved)
    for s, t in ((0, 0), (2, 5), (6, 1)):
        assert abs(found["W"][0, s, t] - (d_g[:, s] * n[:, t]).sum()) < 1e-12
    np.testing.assert_allclose(found["b"][0], d_g.sum(axis=(0, 2)), atol=1e-12)


# ---- derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind(), *KINDS[2:]], ids=name_of)
def test_gradcheck_and_gradgradcheck_pass(kind):
    attention = 2 if kind.gate == "multiplicative" else None
    kind = Kind(kind.gate, kind.split, causal=kind.gate == "additive")
    x, weights, _, lengths = problem(kind, (2, 3, 2), 4, 3, attention=attention)
    module = module_of(kind, weights)
    inputs = {BLOCK[k]: torch.tensor(v, requires_grad=True) for k, v in weights.items()}
    row = torch.tensor(lengths)

    def call(x, *given):
        own = dict(zip(inputs, given, strict=True))
        return torch.func.functional_call(module, own, (x, row))

    leaves = (torch.tensor(x, requires_grad=True), *inputs.values())
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


# ---- what W and b at the start make of it ------------------------------------------------------


def test_at_a_neutral_gate_the_unit_hands_u_on():
    for gate, b in (("multiplicative", 1), ("additive", 0)):
        assert equations.GATES[gate].subs(m=0, b=b).same_as(equations.NONE)


def test_without_attention_the_hybrid_gates_are_the_plain_ones():
    for gate, spec in equations.HYBRID.items():
        assert spec.subs(c=0).same_as(equations.GATES[gate])


@pytest.mark.parametrize("length", [3, 49, 400])
def test_at_the_papers_start_the_gate_is_one_up_to_the_size_of_w(length):
    """|m| ≤ 1e-3 √(F − 1), whatever the input: a normalised feature is at most √(F − 1)."""
    torch.manual_seed(0)
    unit, F = SpatialGatingUnit(2 * 33, length), 33
    z = torch.randn(4, length, 2 * F)
    z[0] *= 1e4
    z[1, :, F:] = 1e4 * torch.eye(F)[:1]  # the one outlier that normalisation leaves largest
    with torch.no_grad():
        values = unit.values(z)
    assert (values["g"] - 1).abs().max() <= 1e-3 * (F - 1) ** 0.5
    typical = 1e-3 / (3 * length) ** 0.5
    assert 0.7 * typical < float((values["g"][2:] - 1).std()) < 1.4 * typical


def test_at_the_papers_start_the_block_is_an_mlp_of_half_the_hidden_features():
    torch.manual_seed(0)
    block, x = GMLPBlock(8, 32, 20), torch.randn(3, 20, 8)
    half = torch.nn.functional.gelu(block.proj_in(block.norm(x)))[..., :16]
    branch, alone = block(x) - x, block.proj_out(half)
    assert (branch - alone).norm() < 1e-3 * alone.norm() < 0.1 * x.norm()
    assert alone.norm() > 0.05 * x.norm()  # so the block is not the identity


def test_at_the_papers_start_the_second_half_learns_only_through_w():
    rng = np.random.default_rng(0)
    z, ds = rng.normal(size=(3, 20, 32)), rng.normal(size=(3, 20, 16))
    found = {}
    for paper in (True, False):
        weights = reference.initialize(rng, 8, 32, 20, paper=paper)
        own = {name: weights[name] for name in UNIT}
        found[paper] = reference.backward_unit(ds, reference.forward_unit(z, own)[1])
    share = {k: np.abs(v["z"][..., 16:]).mean() / np.abs(ds).mean() for k, v in found.items()}
    assert share[True] < 1e-3 < 0.1 < share[False]
    assert np.abs(found[True]["W"]).mean() > 0.5 * np.abs(found[False]["W"]).mean()


# ---- padding, the future, lengths ---------------------------------------------------------------


@pytest.mark.parametrize("attention", [None, 5])
@pytest.mark.parametrize("kind", MIXING, ids=name_of)
def test_padding_reaches_nobody_and_gives_nothing(kind, attention):
    x, weights, dy, lengths = problem(kind, attention=attention)
    dead = np.arange(5) >= lengths[:, None]
    poisoned = x.copy()
    poisoned[dead] = np.nan
    clean = by_torch(kind, x, weights, dy, lengths)
    found = by_torch(kind, poisoned, weights, dy, lengths)
    for name, value in clean.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for result in (clean, by_hand(kind, x, weights, dy, lengths)):
        assert not result["y"][dead].any() and not result["d_x"][dead].any()


@pytest.mark.parametrize("attention", [False, True])
def test_padding_reaches_nobody_in_a_unit_alone(attention):
    torch.manual_seed(0)
    unit = SpatialGatingUnit(12, 7, init="plain", attention=attention, dtype=torch.float64)
    dead, row = torch.arange(5) >= torch.tensor([[2], [5], [3]]), torch.tensor([2, 5, 3])
    found = []
    for filled in (0.0, torch.nan):
        torch.manual_seed(1)
        z, c = (torch.randn(3, 5, F, dtype=torch.float64) for F in (12, 6))
        z, c = (v.masked_fill(dead[..., None], filled).requires_grad_() for v in (z, c))
        s = unit(z, row, c if attention else None)
        read = [z, *unit.parameters(), *([c] if attention else [])]
        found.append([s, *torch.autograd.grad(s.square().sum(), read)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_without_lengths_padding_flows_through_w():
    """What no public program of gMLP guards against, and why lengths are asked for."""
    x, weights, dy, lengths = problem(Kind())
    dead = np.arange(5) >= lengths[:, None]
    other = np.where(dead[..., None], 7.0, x)
    moved = np.abs(
        by_torch(Kind(), x, weights, dy)["y"] - by_torch(Kind(), other, weights, dy)["y"]
    )
    assert moved[~dead].max() > 0.01


@pytest.mark.parametrize("attention", [None, 5])
def test_a_padded_sequence_is_the_sequence_alone(attention):
    x, weights, dy, lengths = problem(Kind(), attention=attention)
    together = by_hand(Kind(), x, weights, dy, lengths)
    for row, length in enumerate(lengths):
        part = slice(row, row + 1), slice(length)
        alone = by_hand(Kind(), x[part], weights, dy[part])
        for name in ("y", "d_x"):
            np.testing.assert_allclose(together[name][part], alone[name], atol=1e-13)


@pytest.mark.parametrize("attention", [None, 5])
@pytest.mark.parametrize("kind", MIXING, ids=name_of)
def test_causal_no_output_reads_the_future(kind, attention):
    kind = Kind(kind.gate, kind.split, causal=True)
    x, weights, dy, _ = problem(kind, heads=2, attention=attention)
    whole = by_torch(kind, x, weights, dy)
    for steps in range(1, 5):
        later = x.copy()
        later[:, steps:] = 50.0
        for case in ((x[:, :steps], weights, dy[:, :steps]), (later, weights, dy)):
            found = by_torch(kind, *case)["y"][:, :steps]
            np.testing.assert_allclose(found, whole["y"][:, :steps], atol=1e-13)
    assert not np.triu(whole["d_W"], 1).any() and np.tril(whole["d_W"][:, :5, :5]).any()


def test_a_shorter_sequence_uses_and_teaches_the_leading_block():
    x, weights, dy, _ = problem(Kind())
    cut = weights | {"W": weights["W"][:, :5, :5], "b": weights["b"][:, :5]}
    found, small = by_torch(Kind(), x, weights, dy), by_torch(Kind(), x, cut, dy)
    np.testing.assert_allclose(found["y"], small["y"], atol=1e-14)
    np.testing.assert_allclose(found["d_W"][:, :5, :5], small["d_W"], atol=1e-13)
    assert not found["d_W"][:, 5:].any() and not found["d_W"][:, :, 5:].any()
    assert not found["d_b"][:, 5:].any()


# ---- the small attention, and heads ----------------------------------------------------------


def test_an_attention_that_says_nothing_leaves_a_gmlp():
    x, weights, dy, lengths = problem(Kind(), attention=5)
    silent = weights | {"O": 0 * weights["O"], "b_O": 0 * weights["b_O"]}
    plain = {k: v for k, v in weights.items() if k not in ("Q", "O", "b_O")}
    found = by_torch(Kind(), x, silent, dy, lengths)["y"]
    np.testing.assert_allclose(found, by_torch(Kind(), x, plain, dy, lengths)["y"], atol=1e-14)


def test_the_attention_sees_the_normalised_input():
    """Of x's scale and level nothing is left in the gate: g − W n − b is the same for 9 x + 5."""
    torch.manual_seed(0)
    block, x = AMLPBlock(8, 16, 5, attention=4).double(), torch.randn(2, 5, 8).double()
    seen = []
    block.unit.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    block(x), block(1e3 * x + 5)
    torch.testing.assert_close(*seen, atol=1e-4, rtol=0)
    assert seen[0].abs().max() > 0.05


def test_heads_are_units_side_by_side():
    torch.manual_seed(0)
    unit, n = SpatialGatingUnit(12, 5, init="plain", heads=3), torch.randn(2, 5, 6)
    found = unit.mixture(n).chunk(3, -1)
    for head, share in enumerate(n.chunk(3, -1)):
        torch.testing.assert_close(found[head], unit.weight[head] @ share)
