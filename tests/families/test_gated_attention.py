"""Gated attention: equations, NumPy and torch agree for every gate, sink, forgetting and norm."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.cell import cell
from gatelib.equations import attention as reads
from gatelib.equations import gated_attention as equations
from gatelib.nn import GatedAttention
from gatelib.reference import attention as plain
from gatelib.reference import gated_attention as reference
from gatelib.reference.gated_attention import Kind
from tests.families.attention_formula import LAYER, formula
from tests.families.witnesses import assert_agree, close

GATED = [Kind(3, gate=g, per=p) for g in reference.GATES[1:] for p in ("element", "head")]
OTHERS = [
    Kind(3),
    Kind(3, sink="learned"),
    Kind(3, sink="zero"),
    Kind(3, forget=True),
    Kind(3, qk_norm=True),
    Kind(3, activation="sigmoid"),
    Kind(3, position="rope"),
    Kind(3, position="alibi"),
    Kind(3, 1, "key", forget=True, sink="learned", qk_norm=True, position="rope"),
    Kind(3, 1, "score", "element", sink="learned", forget=True, position="alibi"),
    Kind(3, 1, "value", activation="sigmoid", forget=True, qk_norm=True),
]
KINDS = GATED + OTHERS


def name_of(kind):
    plain = Kind()
    return " ".join(f"{k}={v}" for k, v in vars(kind).items() if v != getattr(plain, k))


def problem(kind, shape=(3, 5, 12), seed=0, scale=1.0):
    """x, weights that have left their start, the upstream gradient, and lengths, 0 among them."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, shape[2], kind)
    weights = {name: value + 0.3 * rng.normal(size=value.shape) for name, value in weights.items()}
    lengths = np.minimum(np.array([5, 0, 2, 1])[: shape[0]], shape[1])
    return scale * rng.normal(size=shape), weights, rng.normal(size=shape), lengths


def by_equations(kind, x, weights, dy, lengths=None):
    own = {k: getattr(kind, k) for k in ("heads", "kv_heads", "gate", "per")}
    own |= {"activation": kind.activation, "position": kind.position, "sink": kind.sink is not None}
    form = derived.gated_attention.Form(**own)
    run = partial(derived.gated_attention.layer, form, lengths=lengths)
    return derived.gradients(run, {"x": x} | weights, {"y": dy})


def by_hand(kind, x, weights, dy, lengths=None):
    y, saved = reference.forward(x, weights, kind, lengths)
    return {"y": y} | {f"d_{k}": v for k, v in reference.backward(dy, saved).items()}


def by_formula(kind, x, weights, dy, lengths=None):
    return lab.gradients(partial(formula, kind, lengths), {"x": x} | weights, {"y": dy})


def module_of(kind, weights, impl="auto"):
    """The layer with the choices of a Kind."""
    own = {k: v for k, v in vars(kind).items() if k not in ("heads", "kv_heads")}
    own |= {"num_kv_heads": kind.kv_heads, "bias": "b" in weights, "impl": impl}
    return GatedAttention(weights["W"].shape[1], kind.heads, **own, dtype=torch.float64)


def by_torch(kind, x, weights, dy, lengths=None, impl="auto"):
    module = module_of(kind, weights, impl)
    rows = None if lengths is None else torch.tensor(lengths)

    def run(given):
        own = {LAYER[name]: given[name] for name in weights}
        return {"y": lab.called(module, own, given["x"], None, rows)[0]}

    return lab.gradients(run, {"x": x} | weights, {"y": dy})


# ---- agreement -------------------------------------------------------------------------------


def assert_all_agree(kind, *case):
    """Every witness finds every output and gradient."""
    expected = by_equations(kind, *case)
    bound = 1e-11 * (1 + max(np.abs(v).max(initial=0.0) for v in expected.values()))
    for witness in (by_hand, by_formula, by_torch, partial(by_torch, impl="reference")):
        assert_agree(witness(kind, *case), expected, bound)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_equations_hand_and_torch_agree(kind):
    *case, lengths = problem(kind)
    assert_all_agree(kind, *case)
    assert_all_agree(kind, *case, lengths)


KIND = st.builds(
    Kind,
    heads=st.just(3),
    kv_heads=st.sampled_from([None, 1]),
    gate=st.sampled_from(reference.GATES),
    per=st.sampled_from(["element", "head"]),
    sink=st.sampled_from([None, "learned", "zero"]),
    forget=st.booleans(),
    qk_norm=st.booleans(),
    position=st.sampled_from([None, "rope", "alibi"]),
) | st.builds(
    Kind,
    heads=st.just(2),
    gate=st.sampled_from(reference.GATES),
    forget=st.booleans(),
    activation=st.just("sigmoid"),
)
"""Any choices that go together."""


@settings(max_examples=60, deadline=None)
@given(
    kind=KIND,
    shape=st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from([6, 12])),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_they_agree_for_any_choice_and_shape(kind, shape, scale, bias, seed):
    kind = replace(kind, position=None) if shape[2] // kind.heads % 2 else kind
    x, weights, dy, _ = problem(kind, shape, seed, scale)
    if not bias:
        weights = {k: v for k, v in weights.items() if k not in ("b", "b_g", "b_o")}
    lengths = np.random.default_rng(seed).integers(0, shape[1] + 1, shape[0])
    assert_all_agree(kind, x, weights, dy, lengths)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_gradcheck_passes_for_the_backward_pass_by_hand(kind):
    """Finite differences of the reference's forward pass are its backward pass."""
    x, weights, _, lengths = problem(kind, (3, 3, 6))
    names = ["x", *weights]

    class Hand(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *arrays):
            own = dict(zip(names, (a.detach().numpy() for a in arrays), strict=True))
            y, ctx.saved = reference.forward(own.pop("x"), own, kind, lengths)
            return torch.tensor(y)

        @staticmethod
        def backward(ctx, dy):
            found = reference.backward(dy.numpy(), ctx.saved)
            return tuple(torch.tensor(found[name]) for name in names)

    leaves = [torch.tensor(v, requires_grad=True) for v in (x, *weights.values())]
    assert torch.autograd.gradcheck(Hand.apply, leaves)


def test_without_options_it_is_torchs_multihead_attention():
    kind = Kind(3)
    x, weights, dy, _ = problem(kind)
    peer = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    names = {"W": "in_proj_weight", "b": "in_proj_bias"}
    names |= {"W_o": "out_proj.weight", "b_o": "out_proj.bias"}
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)

    def run(w):
        own = {place: w[name] for name, place in names.items()}
        rest = {"attn_mask": future, "need_weights": False}
        return {"y": torch.func.functional_call(peer, own, (w["x"],) * 3, rest)[0]}

    found = lab.gradients(run, {"x": x} | weights, {"y": dy})
    assert_agree(by_hand(kind, x, weights, dy), found)


# ---- what gates are equal to -----------------------------------------------------------------


def test_an_output_gate_that_does_not_depend_on_the_input_folds_into_the_last_matrix():
    for per in ("element", "head"):
        kind = Kind(3, gate="output", per=per, forget=True)
        x, weights, _, lengths = problem(kind)
        weights["W_g"] *= 0
        gated, _ = reference.forward(x, weights, kind, lengths)
        t = plain.sigmoid(weights.pop("b_g"))
        del weights["W_g"]
        weights["W_o"] = weights["W_o"] * np.repeat(t, 12 // t.size)
        close(gated, reference.forward(x, weights, replace(kind, gate="none"), lengths)[0], 1e-14)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "position": "rope", "forget": True}])
def test_a_score_gate_of_a_query_is_a_query_gate_of_a_head(options):
    kinds = [Kind(3, gate=gate, per="head", **options) for gate in ("score", "query")]
    x, weights, dy, lengths = problem(kinds[0])
    score, query = (by_hand(kind, x, weights, dy, lengths) for kind in kinds)
    assert_agree(score, query)


def test_a_gate_of_a_query_before_its_norm_would_do_nothing():
    """A norm divides the head's gate out again: that is why it stands behind the norm."""
    x, gain = np.random.default_rng(0).normal(size=(2, 5, 4)), np.ones(4)
    normed = (equations.QK_NORM.evaluate({"x": t * x, "w": gain})["n"] for t in (1.0, 0.3))
    close(*normed, 1e-3)


def test_forgetting_with_constant_gates_is_alibi():
    forget, alibi = Kind(4, forget=True), Kind(4, position="alibi")
    x, weights, dy, lengths = problem(forget)
    weights["W_f"] *= 0
    f = np.exp(-reference.slopes(4))
    weights["b_f"] = np.log(f / (1 - f))
    found = by_hand(forget, x, weights, dy, lengths)
    slopes = {k: v for k, v in weights.items() if k not in ("W_f", "b_f")}
    expected = by_hand(alibi, x, slopes, dy, lengths)
    assert_agree({k: found[k] for k in expected}, expected)


def test_forget_gates_that_keep_all_are_none():
    kind = Kind(3, forget=True)
    x, weights, _, lengths = problem(kind)
    weights["b_f"] += 60.0
    kept, _ = reference.forward(x, weights, kind, lengths)
    own = {k: v for k, v in weights.items() if k not in ("W_f", "b_f")}
    close(kept, reference.forward(x, own, Kind(3), lengths)[0], 1e-14)


def test_the_forget_gates_get_no_gradient_at_the_first_position_and_none_from_one_step():
    """The first log-gate is in every sum: l_i − l_j never has it."""
    kind = Kind(3, forget=True)
    x, weights, dy, _ = problem(kind)
    _, saved = reference.forward(x, weights, kind)
    bias = np.random.default_rng(1).normal(size=(3, 3, 5, 5))
    assert np.abs(reference._forget_backward(bias, saved["a_f"])[:, 0]).max() < 1e-14
    one = by_hand(kind, x[:, :1], weights, dy[:, :1])
    assert not one["d_W_f"].any() and not one["d_b_f"].any()


def test_a_bias_of_all_keys_gets_no_gradient_from_a_softmax():
    """It moves all scores of a query alike."""
    found = by_hand(Kind(3), *problem(Kind(3))[:3])["d_b"]
    assert np.abs(found[12:24]).max() < 1e-13 < 1e-3 < np.abs(found[:12]).max()


def test_heads_that_share_keys_are_heads_with_equal_keys():
    shared, own = Kind(4, 2, "value", "head"), Kind(4, None, "value", "head")
    x, weights, dy, lengths = problem(shared)
    wide = dict(weights)
    q, k, v = np.split(np.arange(24), [12, 18])
    twice = [np.repeat(rows.reshape(2, 3), 2, axis=0).ravel() for rows in (k, v)]
    rows = np.concatenate([q, *twice])
    wide |= {"W": weights["W"][rows], "b": weights["b"][rows]}
    wide |= {name: np.repeat(weights[name], 2, axis=0) for name in ("W_g", "b_g")}
    found, expected = by_hand(shared, x, weights, dy, lengths), by_hand(own, x, wide, dy, lengths)
    for name in ("y", "d_x"):
        close(found[name], expected[name], 1e-13)


@pytest.mark.parametrize(
    ("whole", "stages"),
    [
        (reads.FORGET_READ, (equations.FORGET_BIAS, reads.MASKED)),
        (reads.ALIBI_READ, (equations.ALIBI_BIAS, reads.MASKED)),
        (reads.GATED_READ, (equations.SCORE_GATE, reads.MASKED)),
    ],
)
def test_a_read_is_its_bias_and_the_masked_read(whole, stages):
    before, read = (stage.compose() for stage in stages)
    e = sp.Symbol("e", real=True)
    assert sp.simplify(read["c"].subs(e, before["s"]) - whole.compose()["c"]) == 0
    assert cell(whole).name in reads.ALL


def test_a_log_gate_is_the_logarithm_of_a_sigmoid():
    a = sp.Symbol("a", real=True)
    assert sp.simplify(sp.exp(equations.LOG_GATE.compose()["l"]) - 1 / (1 + sp.exp(-a))) == 0


# ---- positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_a_later_token_leaves_earlier_outputs_unchanged_to_the_bit(kind):
    x, weights, _, _ = problem(kind)
    y, _ = reference.forward(x, weights, kind)
    x[:, 3] += 1.0
    again, _ = reference.forward(x, weights, kind)
    np.testing.assert_array_equal(again[:, :3], y[:, :3])
    assert np.abs(again[:, 3:] - y[:, 3:]).min() > 0


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_padding_reaches_nobody_and_a_row_of_padding_gives_0(kind):
    x, weights, dy, lengths = problem(kind)
    clean = by_hand(kind, x, weights, dy, lengths)
    dead = np.arange(5) >= lengths[:, None]
    x[dead], dy[dead] = np.nan, 7.0
    found = by_hand(kind, x, weights, dy, lengths)
    for name, value in clean.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert not found["y"][1].any() and not found["d_x"][dead].any()
    alone = by_hand(kind, x[2:3, :2], weights, dy[2:3, :2])
    close(alone["y"], found["y"][2:3, :2], 1e-13)
    close(alone["d_x"], found["d_x"][2:3, :2], 1e-13)


def test_one_token_reads_itself():
    kind = Kind(3, position="rope", forget=True, qk_norm=True)
    x, weights, _, _ = problem(kind, (2, 1, 12))
    v = (x @ weights["W"].T + weights["b"])[..., 24:]
    close(reference.forward(x, weights, kind)[0], v @ weights["W_o"].T + weights["b_o"], 1e-14)


def test_scores_of_rotated_queries_and_keys_depend_on_their_distance():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 8))
    rows = reference.rotate(np.repeat(q, 9, 0)) @ reference.rotate(np.repeat(k, 9, 0)).T
    close(rows[1:, 1:], rows[:-1, :-1], 1e-13)
    close(reference.rotate(reference.rotate(rows[:, :8]), back=True), rows[:, :8], 1e-13)


@pytest.mark.parametrize(("heads", "first", "last"), [(8, 2**-1, 2**-8), (1, 2**-8, 2**-8)])
def test_the_slopes_are_a_geometric_series(heads, first, last):
    found = reference.slopes(heads)
    assert (found[0], found[-1]) == (first, last)
    close(reference.slopes(6), np.array([2.0**-k for k in (2, 4, 6, 8, 1, 3)]), 1e-15)


# ---- errors ----------------------------------------------------------------------------------

BAD = [
    (lambda: Kind(gate="input"), ValueError, "gate: expected one of"),
    (lambda: Kind(per="row"), ValueError, "per: expected one of"),
    (lambda: Kind(4, 3), ValueError, "kv_heads: expected a divisor of 4, got 3"),
    (lambda: Kind(sink="zero", activation="sigmoid"), ValueError, "sink: expected None beside"),
    (
        lambda: reference.forward(problem(Kind(3))[0], {}, Kind(5)),
        ValueError,
        "x: expected features that 5 heads divide, got 12",
    ),
    (
        lambda: reference.forward(problem(Kind(4))[0], {}, Kind(4, position="rope")),
        ValueError,
        "x: expected an even number of features a head",
    ),
    (
        lambda: reference.forward(*problem(Kind(3))[:2], Kind(3, forget=True)),
        ValueError,
        r"weights: expected \['W', 'W_f'",
    ),
    (
        lambda: reference.forward(*problem(Kind(3))[:2], Kind(3), np.array([1, 6, 0])),
        ValueError,
        "lengths: expected 0 … 5",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
