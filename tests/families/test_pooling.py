"""Learned pooling: equations, NumPy and torch agree; mean and maximum are its limits."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from gatelib import derived, lab
from gatelib.equations import pooling as equations
from gatelib.equations.attention import ADDITIVE, written_out
from gatelib.nn import AdditiveAttention, AttentionPool, SoftPool, hop_penalty, pool
from gatelib.reference import pooling as reference
from gatelib.spec import symbol
from tests.families.witnesses import assert_agree, for_any_shape

NAMES = {"W": "weight", "b": "bias", "w": "context"}


def problem(B=3, T=5, D=4, R=2, seed=0):
    """x, weights, upstream gradients and lengths of at least one step."""
    rng = np.random.default_rng(seed)
    inputs = {"x": rng.normal(size=(B, T, D))} | reference.initialize(rng, D, 3, R)
    upstream = {"pooled": rng.normal(size=(B, R, D)), "weights": rng.normal(size=(B, R, T))}
    lengths = np.minimum(np.array([5, 1, 3, 2])[:B], T)
    return inputs, upstream, lengths


def by_equations(inputs, upstream, lengths, scale):
    specs = equations.POOL_SCORE, equations.ATTENTION_POOL
    run = partial(derived.pooling.attention, *specs, lengths=lengths, scale=scale)
    return derived.gradients(run, inputs, upstream)


def by_hand(inputs, upstream, lengths, scale):
    weights = {k: v for k, v in inputs.items() if k != "x"}
    pooled, g, saved = reference.forward(inputs["x"], weights, lengths, scale)
    found = reference.backward(upstream["pooled"], upstream["weights"], saved)
    return {"pooled": pooled, "weights": g} | {f"d_{k}": v for k, v in found.items()}


def by_torch(inputs, upstream, lengths, scale):
    (hops, size), features = inputs["w"].shape, inputs["x"].shape[2]
    layer = AttentionPool(features, size, hops, scale=scale, empty="zero", dtype=torch.float64)
    ends = None if lengths is None else torch.tensor(lengths)

    def run(given):
        own = {NAMES[k]: v for k, v in given.items() if k != "x"}
        pooled, weights = lab.called(layer, own, given["x"], ends)
        return {"pooled": pooled.unflatten(1, (hops, features)), "weights": weights}

    return lab.gradients(run, inputs, upstream)


@for_any_shape(20, scale=st.sampled_from([1.0, 0.0, -2.0]))
def test_all_witnesses_agree(scale, shape, seed):
    inputs, upstream, lengths = problem(*shape, seed=seed)
    for ends in (lengths, None):
        expected = by_equations(inputs, upstream, ends, scale)
        for witness in (by_hand, by_torch):
            assert_agree(witness(inputs, upstream, ends, scale), expected, 1e-12)


@for_any_shape(20)
def test_all_witnesses_of_the_pool_of_each_feature_agree(shape, seed):
    B, T, D, _ = shape
    rng = np.random.default_rng(seed)
    inputs = {"x": rng.normal(size=(B, T, D)), "scale": 2 * rng.normal(size=D)}
    upstream = {"pooled": rng.normal(size=(B, D))}
    lengths = np.minimum(np.array([5, 1, 3, 2])[:B], T)
    run = partial(derived.pooling.soft, equations.SOFT_POOL, lengths=lengths)
    expected = derived.gradients(run, inputs, upstream)
    pooled, saved = reference.soft_forward(**inputs, lengths=lengths)
    found = reference.soft_backward(upstream["pooled"], saved)
    assert_agree({"pooled": pooled} | {f"d_{k}": v for k, v in found.items()}, expected, 1e-12)
    layer = SoftPool(D, learn=True, dtype=torch.float64)

    def module(given):
        own = {"scale": given["scale"]}
        return {"pooled": lab.called(layer, own, given["x"], torch.tensor(lengths))[0]}

    assert_agree(lab.gradients(module, inputs, upstream), expected, 1e-12)


def test_the_penalty_and_its_gradient_agree():
    rng = np.random.default_rng(0)
    g = rng.dirichlet(np.ones(5), (3, 2))
    given = torch.tensor(g, requires_grad=True)
    hop_penalty(given).backward()
    assert hop_penalty(given).item() == pytest.approx(reference.hop_penalty(g), abs=1e-14)
    np.testing.assert_allclose(given.grad, reference.hop_penalty_backward(g), atol=1e-14)
    apart, alike = torch.eye(3)[None, :2], torch.eye(3)[None, :1].expand(1, 2, 3)
    assert hop_penalty(apart) == 0 and hop_penalty(alike) == 2
    assert hop_penalty(torch.full((1, 2, 4), 0.25)) == 1.25  # nor are two even hops free


# ---- its relatives ---------------------------------------------------------------------------


def on_three(spec, mask=(1, 1, 0), **shared):
    return written_out(spec, 3, "k", mask=mask)


def test_at_scale_0_both_pools_are_the_mean_over_the_live_steps():
    for spec in (equations.ATTENTION_POOL, equations.SOFT_POOL):
        found = on_three(spec)
        v, k = found["v"], found["k"][0]
        assert sp.simplify(found["c"][0].subs(k, 0) - (v[0] + v[1]) / 2) == 0


def test_as_the_scale_grows_one_step_is_left_and_each_feature_has_its_maximum():
    """Proved for e_1 = e_2 + d and v_1 = v_2 + d with d > 0."""
    d = sp.Symbol("d", positive=True)
    for spec, name in ((equations.ATTENTION_POOL, "e"), (equations.SOFT_POOL, "v")):
        found = on_three(spec)
        ours = found["c"][0].subs(found[name][0], found[name][1] + d)
        limit = sp.limit(sp.simplify(ours), found["k"][0], sp.oo)
        expected = found["v"][0].subs(found[name][0], found[name][1] + d)
        assert sp.simplify(limit - expected) == 0


def test_the_slope_at_scale_0_is_the_covariance_of_score_and_value():
    """∂c/∂k at k = 0 is the covariance over the live steps of e and v: the first thing learned."""
    found = on_three(equations.ATTENTION_POOL)
    e, v, k = found["e"], found["v"], found["k"][0]
    slope = sp.diff(found["c"][0], k).subs(k, 0)
    covariance = (e[0] * v[0] + e[1] * v[1]) / 2 - (e[0] + e[1]) * (v[0] + v[1]) / 4
    assert sp.simplify(slope - covariance) == 0


def test_the_layers_reach_mean_and_maximum():
    torch.manual_seed(0)
    y, lengths = torch.randn(3, 6, 4, dtype=torch.float64), torch.tensor([6, 2, 4])
    made = {"dtype": torch.float64}
    mean, largest = pool(y, lengths, "mean"), pool(y, lengths, "max")
    attention = AttentionPool(4, 5, 2, scale=0.0, **made)
    torch.testing.assert_close(attention(y, lengths)[0], torch.cat([mean, mean], 1))
    torch.testing.assert_close(SoftPool(4, 0.0, **made)(y, lengths)[0], mean)
    torch.testing.assert_close(SoftPool(4, 1e4, **made)(y, lengths)[0], largest)
    torch.testing.assert_close(SoftPool(4, -1e4, **made)(-y, lengths)[0], -largest)
    attention = AttentionPool(4, 5, scale=1e5, **made)
    pooled, weights = attention(y, lengths)
    best = y[torch.arange(3), weights[:, 0].argmax(1)]  # one step whole, and no maximum of features
    torch.testing.assert_close(pooled, best)
    assert not torch.allclose(best, largest)


def test_it_is_additive_attention_whose_query_is_a_constant():
    ours = equations.POOL_SCORE.compose()["e"].subs(symbol("a"), symbol("q") + symbol("k"))
    assert sp.simplify(ours - ADDITIVE.compose()["e"]) == 0
    torch.manual_seed(0)
    pooling, attention = AttentionPool(4, 5), AdditiveAttention(1, 4, 5)
    own = {"weight_query": pooling.bias[:, None], "weight_key": pooling.weight}
    own |= {"weight_score": pooling.context[0]}
    y, lengths = torch.randn(3, 6, 4), torch.tensor([6, 2, 4])
    context, _ = torch.func.functional_call(attention, own, (torch.ones(3, 1, 1), y, lengths))
    torch.testing.assert_close(pooling(y, lengths)[0], context[:, 0])


# ---- padding ---------------------------------------------------------------------------------


def layers(empty="error"):
    torch.manual_seed(0)
    return AttentionPool(4, 5, 2, empty=empty), SoftPool(4, 0.7, learn=True, empty=empty)


@pytest.mark.parametrize("which", [0, 1])
def test_padding_never_reaches_what_is_pooled(which):
    layer, y, lengths = layers()[which], torch.randn(3, 5, 4), torch.tensor([5, 2, 3])
    spoiled = y.masked_fill(torch.arange(5)[:, None] >= lengths[:, None, None], torch.nan)
    spoiled.requires_grad_()
    pooled, weights = layer(spoiled, lengths)
    torch.testing.assert_close(pooled, layer(y, lengths)[0], rtol=0, atol=0)
    torch.testing.assert_close(pooled[1:2], layer(y[1:2, :2])[0])
    torch.testing.assert_close(weights.sum(2 - which), torch.ones_like(weights.sum(2 - which)))
    pooled.sum().backward()
    assert spoiled.grad.isfinite().all() and not spoiled.grad[1, 2:].any()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("which", [0, 1])
def test_a_row_of_padding_alone_is_an_error_or_pooled_to_zero(which):
    y, lengths = torch.randn(3, 5, 4, requires_grad=True), torch.tensor([5, 0, 3])
    with pytest.raises(ValueError, match="lengths: expected 1 to T = 5, got 0 to 5"):
        layers()[which](y, lengths)
    layer = layers("zero")[which]
    pooled, weights = layer(y, lengths)
    assert not pooled[1].any() and not weights[1].any() and pooled[0].any()
    pooled.square().sum().backward()
    assert not y.grad[1].any() and y.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("which", [0, 1])
def test_scores_of_a_thousand_overflow_nothing(which):
    layer = (AttentionPool(4, 5, scale=1e6), SoftPool(4, 1e6))[which]
    pooled, weights = layer(torch.randn(3, 5, 4), torch.tensor([5, 2, 3]))
    assert pooled.isfinite().all() and weights.isfinite().all()


# ---- as torch's own --------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_first_and_second_derivatives_are_right(which):
    layer = layers("zero")[which].double()
    y = torch.randn(3, 3, 4, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor([3, 0, 2])

    def run(y):
        return layer(y, ends)

    assert gradcheck(run, y) and gradgradcheck(run, y)


@pytest.mark.parametrize("which", [0, 1])
def test_compiled_exported_and_mapped_it_is_the_same(which):
    layer, y, lengths = layers()[which], torch.randn(3, 5, 4), torch.tensor([5, 2, 3])
    expected = layer(y, lengths)
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(y, lengths), expected)
    exported = torch.export.export(layer, (y, lengths)).module()
    others = torch.tensor([1, 4, 5])
    torch.testing.assert_close(exported(y, others), layer(y, others))
    found = torch.vmap(lambda x: layer(x, lengths)[0])(torch.stack([y, 2 * y]))
    torch.testing.assert_close(found[1], layer(2 * y, lengths)[0])


@pytest.mark.parametrize("which", [0, 1])
def test_in_low_precision_it_errs_by_one_rounding(which):
    layer, y, lengths = layers()[which], torch.randn(3, 5, 4), torch.tensor([5, 2, 3])
    low = layer.bfloat16()(y.bfloat16(), lengths)[0]
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer.float()(y, lengths)[0], atol=0.03, rtol=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(y, lengths)[0].isfinite().all()


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: AttentionPool(4, 5, 0), ValueError, "hops: expected at least 1"),
        (lambda: AttentionPool(4, 5, scale=np.inf), ValueError, "scale: expected a finite number"),
        (lambda: AttentionPool(4, 5, empty="mean"), ValueError, "empty: expected one of"),
        (lambda: SoftPool(0), ValueError, "features: expected at least 1"),
        (lambda: SoftPool(4, learn="yes"), TypeError, "learn: expected True or False"),
        (lambda: layers()[0](torch.ones(3, 5, 3)), ValueError, "y: expected 4 features"),
        (lambda: layers()[1](torch.ones(3, 0, 4)), ValueError, "y: expected at least one time"),
        (lambda: layers()[1](torch.ones(3, 5, 4).double()), TypeError, "y: expected torch.float32"),
        (lambda: hop_penalty(torch.ones(3, 5)), ValueError, r"weights: expected \(B, hops, T\)"),
        (lambda: reference.forward(np.ones((2, 3)), {}), ValueError, "x: expected 3 dimensions"),
        (lambda: reference.forward(np.ones((2, 3, 4)), {}), ValueError, "weights: expected"),
        (
            lambda: reference.soft_forward(np.ones((2, 3, 4)), np.ones(3)),
            ValueError,
            r"scale: expected \(4,\)",
        ),
    ],
)
def test_bad_input_is_named(act, error, says):
    with pytest.raises(error, match=says):
        act()
