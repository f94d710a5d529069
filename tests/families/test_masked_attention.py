"""Scaled scores under any mask, with sinks or sigmoids: what a query reads that sees little."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch
import torch.nn.functional as F

from gatelib.reference import attention as reference
from tests.families.witnesses import close


def scores_and_values(seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(2, 4, 6)) for _ in range(3))
    return q, k, v, np.tri(4, dtype=bool) & np.ones((2, 1, 1), bool)


def test_a_dropped_sink_is_the_output_gate_sigmoid_of_lse_minus_s():
    q, k, v, mask = scores_and_values()
    s = np.array([0.7, -40.0])[:, None, None]
    c, g, saved = reference.forward_masked(q, k, v, mask, sink=s)
    without, _, rest = reference.forward_masked(q, k, v, mask)
    lse = np.log(np.where(mask, np.exp(rest["scores"]), 0).sum(-1, keepdims=True))
    t = reference.sigmoid(lse - s)
    close(c, t * without, 1e-15)
    close(g.sum(-1, keepdims=True), t, 1e-15)
    d = np.random.default_rng(1).normal(size=c.shape)
    slope = -t * (1 - t) * (d * without).sum(-1, keepdims=True)
    close(reference.backward_masked(d, saved)["sink"], slope, 1e-15)


def test_a_sink_by_a_new_lse_is_the_gate_until_it_is_clamped():
    """exp(lse − log(e^lse + e^s)) = σ(lse − s): a fix with a clamp at −20 is wrong below it."""
    lse, s = sp.symbols("lse s", real=True)
    share = sp.exp(lse - sp.log(sp.exp(lse) + sp.exp(s)))
    assert sp.simplify(share - 1 / (1 + sp.exp(s - lse))) == 0
    far = torch.tensor(-30.0, dtype=torch.float64, requires_grad=True)  # lse − s
    clamped = torch.exp((far - torch.logaddexp(far, torch.zeros_like(far))).clamp(-20, 0))
    assert clamped / torch.sigmoid(far) > 2e4
    assert torch.autograd.grad(clamped, far)[0] == 0 < torch.autograd.grad(far.sigmoid(), far)[0]


def test_the_gate_of_a_sink_reaches_queries_and_keys_through_the_lse():
    """One visible key: its weight without the sink is 1, so all of their gradient is the gate's."""
    one, mask = np.ones((1, 1)), np.ones((1, 1), bool)
    _, _, saved = reference.forward_masked(one, one, 2 * one, mask, sink=0 * one)
    found = reference.backward_masked(one, saved)
    for name in ("queries", "keys"):
        assert round(found[name].item(), 8) == 0.39322387
    q, k = (torch.tensor(one, requires_grad=True) for _ in range(2))
    e = q @ k.T
    cut = torch.sigmoid(e.logsumexp(-1).detach()) * (torch.softmax(e, -1) @ torch.tensor(2 * one))
    assert [d.item() for d in torch.autograd.grad(cut, (q, k))] == [0.0, 0.0]


def test_a_sink_far_below_is_none_and_one_far_above_shuts_the_head():
    q, k, v, mask = scores_and_values()
    low, high = (
        reference.forward_masked(q, k, v, mask, sink=np.full(1, s))[0] for s in (-99.0, 99.0)
    )
    close(low, reference.forward_masked(q, k, v, mask)[0], 1e-15)
    assert np.abs(high).max() < 1e-35


@pytest.mark.parametrize("on", [{}, {"sink": np.full(1, 0.5)}, {"activation": "sigmoid"}])
def test_a_query_that_sees_nothing_reads_0_and_gives_no_gradient(on):
    q, k, v, mask = scores_and_values()
    mask[:, 2] = False
    c, g, saved = reference.forward_masked(q, k, v, mask, **on)
    assert not c[:, 2].any() and not g[:, 2].any()
    only = np.zeros_like(c)
    only[:, 2] = 1.0
    assert not any(value.any() for value in reference.backward_masked(only, saved).values())
    shown = (torch.tensor(part) for part in (q, k, v))
    if not on:
        close(F.scaled_dot_product_attention(*shown, torch.tensor(mask)).numpy(), c, 1e-14)


def test_a_mask_after_the_softmax_is_another_function():
    """The weights no longer sum to 1, and what is masked still moves what is read."""
    q, k, v, mask = scores_and_values()
    _, g, _ = reference.forward_masked(q, k, v, np.ones_like(mask))
    moved = k.copy()
    moved[:, 3] += 1.0
    _, other, _ = reference.forward_masked(q, moved, v, np.ones_like(mask))
    assert (np.where(mask, g, 0).sum(-1)[:, 0] < 0.9).all()
    assert np.abs(np.where(mask, g - other, 0)[:, 0]).max() > 1e-3


@pytest.mark.parametrize(
    ("on", "says"),
    [
        ({"activation": "relu"}, "activation: expected one of"),
        ({"activation": "sigmoid", "sink": np.ones(1)}, "sink: expected None beside sigmoids"),
    ],
)
def test_bad_input_is_named(on, says):
    with pytest.raises(ValueError, match=says):
        reference.forward_masked(*scores_and_values(), **on)
