"""What routers prove: their Jacobians, which orders are equal, and which look into the future."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.equations.routers import CONFIGURATIONS, RouterConfig
from gatelib.reference import routers as reference
from gatelib.reference.gate import sigmoid
from tests.families.routing import (
    ROUTERS,
    gradients_by_hand,
    gradients_by_torch,
    problem,
    router_of,
    torch_route,
    torch_top_k,
)
from tests.families.witnesses import assert_agree

# --- Jacobians, and orders ----------------------------------------------------------------------


def test_the_jacobian_of_the_top_k_of_a_softmax():
    """dw/da = M(diag p − p pᵀ), and renormalised (diag w − w wᵀ): zero outside the selection."""
    a = torch.randn(6, dtype=torch.float64)
    p = a.softmax(0)
    mask = torch.zeros(6, dtype=torch.float64)
    mask[torch_top_k(a, 2)] = 1
    found = torch.autograd.functional.jacobian(lambda a: mask * a.softmax(0), a)
    torch.testing.assert_close(found, mask[:, None] * (p.diag() - torch.outer(p, p)))
    w = mask * p / (mask * p).sum()

    def renormalized(a):
        return mask * a.softmax(0) / (mask * a.softmax(0)).sum()

    found = torch.autograd.functional.jacobian(renormalized, a)
    torch.testing.assert_close(found, w.diag() - torch.outer(w, w))
    assert not found[:, mask == 0].abs().max() > 1e-16  # what was not selected is not moved


def test_what_was_not_selected_is_moved_only_where_weights_are_not_renormalised():
    case, _ = problem(ROUTERS["gshard"], N=1)
    for name, moved in (("switch", True), ("gshard", False), ("mixtral", False)):
        config = dataclasses.replace(ROUTERS[name], k=2) if name == "switch" else ROUTERS[name]
        made = reference.forward(case["x"], {"W": case["W"]}, router_of(config))
        found = reference.backward(made, np.array([[1.0, -2.0]]))
        outside = np.setdiff1d(np.arange(6), made.indices)
        assert (np.abs(found["W"][outside]).max() > 1e-3) == moved, name


def test_top_k_before_and_after_the_softmax_are_one_function_if_renormalised_and_only_then():
    """Values and gradients by exact algebra, for three experts of which two are selected."""
    a = sp.symbols("a0:3", real=True)
    p = [sp.exp(v) / sum(map(sp.exp, a)) for v in a]
    after = p[0] / (p[0] + p[1])
    before = sp.exp(a[0]) / (sp.exp(a[0]) + sp.exp(a[1]))
    assert sp.simplify(after - before) == 0
    assert all(sp.simplify(sp.diff(after - before, v)) == 0 for v in a)
    assert sp.simplify(p[0] - before) != 0
    s = [1 / (1 + sp.exp(-v)) for v in a]
    assert sp.simplify(s[0] / (s[0] + s[1]) - before) != 0  # no such identity for other scores


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, 6), seed=st.integers(0, 99))
def test_both_orders_agree_in_values_and_gradients(k, seed):
    after = RouterConfig("a test", 6, k)
    before = dataclasses.replace(after, select="before")
    case, _ = problem(after, seed=seed)
    upstream = {"weights": np.random.default_rng(seed).normal(size=(7, 6))}
    assert_agree(
        gradients_by_hand(after, case, upstream), gradients_by_hand(before, case, upstream), 1e-13
    )


def test_with_one_renormalised_expert_the_router_learns_nothing():
    """k = 1: w = p/p = 1 whatever the logits; the gradient is exactly 0 in the order `before`."""
    for select in ("after", "before"):
        config = RouterConfig("a test", 6, 1, select=select)
        case, _ = problem(config)
        upstream = {"weights": np.random.default_rng(0).normal(size=(7, 6))}
        for found in (
            gradients_by_hand(config, case, upstream),
            gradients_by_torch(config, case, upstream),
        ):
            np.testing.assert_array_equal(found["weights"].sum(axis=1), 1)
            if select == "before":
                assert not found["d_W"].any() and not found["d_x"].any()
            assert np.abs(found["d_W"]).max() < 1e-15
    p = sp.Symbol("p", positive=True)
    assert sp.diff(p / p, p) == 0


def float32_rest(select, seed, k=1):
    """The router's gradient in float32 where it should be 0, over one that is not (k = 2)."""
    generator = torch.Generator().manual_seed(seed)
    x, W = (torch.randn(s, generator=generator) for s in ((256, 16), (8, 16)))
    d = torch.randn(256, 8, generator=generator)
    W.requires_grad_()
    config = RouterConfig("a test", 8, k, select=select)
    torch_route(config, {"x": x, "W": W})[0]["weights"].backward(d)
    return float(W.grad.abs().max())


def test_in_float32_the_order_after_leaves_rounding_where_before_leaves_nothing():
    left = [float32_rest("after", seed) for seed in range(5)]
    assert all(1e-8 < rest < 1e-4 for rest in left)
    assert not any(float32_rest("before", seed) for seed in range(5))
    assert all(float32_rest("after", seed, k=2) > 1 for seed in range(5))


def test_adam_turns_that_rounding_into_steps_of_full_size():
    W = torch.zeros(4, 3, requires_grad=True)
    optimizer = torch.optim.Adam([W], lr=1e-3)
    W.grad = 1e-6 * torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert W.detach().abs().min() > 0.9e-3


# --- the constant that makes routed experts as large as one ---------------------------------------


def expected_scale(experts, k, tokens=20_000, seed=0):
    """E[1/√Σw²] of sigmoid scores of Gaussian logits, top k, renormalised; and its error."""
    logits = np.random.default_rng(seed).normal(size=(tokens, experts))
    best = np.partition(sigmoid(logits), experts - k, axis=1)[:, -k:]
    w = best / best.sum(axis=1, keepdims=True)
    values = 1 / np.sqrt((w**2).sum(axis=1))
    return values.mean(), values.std() / np.sqrt(tokens)


@pytest.mark.parametrize(
    ("name", "derived_from_it"),
    [("moonlight", True), ("kimi_k2", True), ("deepseek_v3", False), ("kimi_linear", False)],
)
def test_two_published_scales_are_the_expectation_and_two_are_not(name, derived_from_it):
    """Independent outputs of equal size, weighted by w, have √Σw² of it: the scale undoes that."""
    config = CONFIGURATIONS[name]
    mean, error = expected_scale(config.experts, config.k)
    near = abs(mean - config.scale) < 0.0015 + 3 * error
    assert near == derived_from_it, (name, mean, error)
    assert 0.98 < mean / np.sqrt(config.k) < 1


# --- which routers look into the future -----------------------------------------------------------


def changed_before_the_last(run, x, *others):
    """Whether an output before the last position depends on what stands at the last."""
    found = []
    for last in others:
        x = x.copy()
        x[:, -1] = last
        found.append(run(x)[:, :-1])
    return any(not np.array_equal(one, found[0]) for one in found[1:])


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_token_choice_is_causal(name):
    config = ROUTERS[name]
    case, options = problem(config, N=8, seed=2)
    weights = {key: value for key, value in case.items() if key != "x"}

    def run(x):
        return reference.forward(x[0], weights, router_of(config), **options).dense[None]

    assert not changed_before_the_last(run, case["x"][None], *np.eye(4), 9.0)


def test_expert_choice_soft_moe_and_mixture_of_depths_leak_the_future():
    rng = np.random.default_rng(0)
    x, W, w = rng.normal(size=(1, 8, 4)), rng.normal(size=(3, 4)), rng.normal(size=4)
    runs = {
        "choice": lambda x: reference.expert_choice(x[0], {"W": W}, 2).weights[None],
        "slots": lambda x: reference.soft_slots(x, W, np.array(1.0))[0],
        "depths": lambda x: reference.mixture_of_depths(x, w, np.ones_like(x), 3)[0],
    }
    for name, run in runs.items():  # the last token is what is wanted most, or least
        assert changed_before_the_last(run, x, *(9 * W), 9 * w, -9 * w), name
