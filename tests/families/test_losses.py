"""Losses and penalties: equations, NumPy by hand and torch's own agree; each does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.nn import functional as F

from gatelib.equations import training as equations
from gatelib.reference import stacks
from gatelib.reference import training as reference
from tests.families.witnesses import close

# ---- losses -------------------------------------------------------------------------------------


def from_torch(loss, logits, target):
    a = torch.tensor(logits, requires_grad=True)
    value = loss(a, torch.tensor(target))
    value.backward()
    return value.item(), a.grad.numpy()


def multi_label(a, y):
    return F.binary_cross_entropy_with_logits(a, y, reduction="none").sum(1).mean()


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 5)),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 999),
)
def test_losses_and_their_gradients_are_torchs(shape, scale, seed):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=shape)
    classes = rng.integers(0, shape[1], shape[0])
    labels = rng.integers(0, 2, shape).astype(float)
    soft = rng.dirichlet(np.ones(shape[1]), shape[0])
    cases = [
        (reference.cross_entropy, F.cross_entropy, classes),
        (reference.cross_entropy, F.cross_entropy, soft),
        (reference.binary_cross_entropy, multi_label, labels),
        (reference.binary_cross_entropy, multi_label, soft),
    ]
    for mine, theirs, target in cases:
        value, gradient = mine(logits, target)
        expected, slope = from_torch(theirs, logits, target)
        close(np.array(value), np.array(expected))
        close(gradient, slope)


@pytest.mark.parametrize("name", equations.LOSSES)
def test_the_derived_gradient_of_every_loss_is_autograds(name):
    spec, rng = equations.LOSSES[name], np.random.default_rng(1)
    values = {str(v): rng.uniform(0.1, 0.9, (2, 3)) for v in spec.inputs}
    leaves = {k: torch.tensor(v, requires_grad=True) for k, v in values.items()}
    names = [str(v) for v in spec.inputs]
    over_features = not spec.is_elementwise
    l = spec.evaluate(leaves, "torch")["l"]
    l.sum().backward()
    seed = {"g_l": np.ones((2, 1)) if over_features else np.ones((2, 3))}
    found = spec.vjp(keep="").evaluate(values | seed)
    for k in names:
        close(np.broadcast_to(found[f"d_{k}"], (2, 3)), leaves[k].grad.numpy())
    assert gradcheck(lambda *a: spec.compile("torch")(*a), tuple(leaves[k] for k in names))


def test_the_losses_by_hand_are_the_equations():
    rng = np.random.default_rng(2)
    logits, classes = 3 * rng.normal(size=(7, 4)), rng.integers(0, 4, 7)
    y = reference.one_hot(classes, 4)
    pairs = {
        reference.cross_entropy: equations.SOFTMAX_LOSS,
        reference.binary_cross_entropy: equations.MULTI_LABEL_LOSS,
    }
    for mine, spec in pairs.items():
        value, gradient = mine(logits, y)
        known = {"a": logits, "y": y, "g_l": np.full((7, 1), 1 / 7)}
        close(np.array(value), spec.evaluate(known)["l"].mean())
        close(gradient, spec.vjp(keep="").evaluate(known)["d_a"])


def test_two_classes_and_both_terms_are_twice_the_cross_entropy():
    rng = np.random.default_rng(5)
    a, y = rng.normal(size=(6, 2)), reference.one_hot(rng.integers(0, 2, 6), 2)
    both = equations.BOTH_TERMS_SOFTMAX_LOSS.evaluate({"a": a, "y": y})["l"]
    close(both, 2 * equations.SOFTMAX_LOSS.evaluate({"a": a, "y": y})["l"])


def test_the_loss_of_a_logit_is_the_loss_of_its_probability():
    assert equations.BINARY_LOSS.same_as(equations.BINARY_LOSS_FROM_PROBABILITY)


# ---- penalties ----------------------------------------------------------------------------------


@settings(max_examples=30)
@given(w=st.floats(-3, 3), t=st.floats(0, 2))
def test_proximal_steps_minimise_what_they_say(w, t):
    grid = np.linspace(-4, 4, 8001)
    weight = np.array([w])
    lines = {
        reference.soft_threshold: t * np.abs(grid),
        reference.shrink: t * grid**2 / 2,
    }
    for step, price in lines.items():
        best = grid[np.argmin((grid - w) ** 2 / 2 + price)]
        assert abs(step(weight, t)[0] - best) <= 1e-3 + 1e-9


@settings(max_examples=20)
@given(t=st.floats(0, 3), seed=st.integers(0, 99))
def test_proximal_steps_are_their_equations(t, seed):
    w = np.random.default_rng(seed).normal(size=(3, 4))
    for name, spec in equations.PROXIMAL.items():
        close(getattr(reference, name)(w, t), spec.evaluate({"w": w, "t": t})["q"], 1e-14)


@settings(max_examples=20)
@given(t=st.floats(0, 3), seed=st.integers(0, 99))
def test_a_group_is_shortened_by_the_threshold_or_gone(t, seed):
    w = np.random.default_rng(seed).normal(size=(5, 3))
    w[0] = 0
    q = reference.group_soft_threshold(w, t)
    before, after = np.linalg.norm(w, axis=1), np.linalg.norm(q, axis=1)
    close(after, np.maximum(before - t, 0), 1e-12)
    close(q * before[:, None], w * after[:, None], 1e-12)
    close(reference.group_soft_threshold(w[:, :1], t), reference.soft_threshold(w[:, :1], t))


def test_dropout_adds_the_derived_penalty_on_average():
    """Over all 2^D masks, weighted by their probability: exact, no sampling."""
    rng, keep = np.random.default_rng(6), 0.7
    x, w, y = rng.normal(size=(9, 4)), rng.normal(size=4), rng.normal(size=9)
    masks = np.array(np.meshgrid(*[[0.0, 1.0]] * 4)).reshape(4, -1).T
    chance = np.prod(np.where(masks == 1, keep, 1 - keep), axis=1)
    losses = [((x * m / keep @ w - y) ** 2).mean() for m in masks]
    bare = ((x @ w - y) ** 2).mean()
    close(np.array(chance @ losses), bare + reference.dropout_penalty(x, w, keep), 1e-12)


def test_the_mask_of_dropout_has_mean_one_and_variance_of_the_odds():
    mask = stacks.mask(np.random.default_rng(7).random(200_000), 0.3)
    assert abs(mask.mean() - 1) < 0.01 and abs(mask.var() - 0.3 / 0.7) < 0.01


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: reference.soft_threshold(np.ones(2), -1), ValueError, "threshold: expected"),
        (lambda: reference.shrink(np.ones(2), np.inf), ValueError, "threshold: expected"),
        (lambda: reference.dropout_penalty(np.ones((1, 1)), np.ones(1), 0.0), ValueError, "keep"),
        (lambda: reference.dropout_penalty(np.ones(3), np.ones(3), 0.5), ValueError, "x: expected"),
        (lambda: reference.dropout_penalty(np.ones((2, 3)), np.ones(1), 0.5), ValueError, "weight"),
        (lambda: reference.one_hot(np.array([3]), 3), ValueError, "classes: expected 0 … 2"),
        (lambda: reference.one_hot(np.ones(2), 3), TypeError, "classes: expected whole"),
        (lambda: reference.cross_entropy(np.ones(3), np.ones(3)), ValueError, "logits: expected"),
        (
            lambda: reference.cross_entropy(np.ones((2, 3), int), np.array([1, 2])),
            TypeError,
            "logits: expected a floating dtype",
        ),
        (
            lambda: reference.cross_entropy(np.ones((2, 3)), np.array([1])),
            ValueError,
            r"target: expected \(2, 3\)",
        ),
        (
            lambda: reference.binary_cross_entropy(np.ones((2, 3)), np.ones((2, 3), "f4")),
            TypeError,
            "target: expected float64",
        ),
        (
            lambda: reference.binary_cross_entropy(np.ones((2, 3)), np.full((2, 3), 2.0)),
            ValueError,
            "target: expected 0 … 1",
        ),
    ],
)
def test_bad_input_is_named(make, error, says):
    with pytest.raises(error, match=says):
        make()
