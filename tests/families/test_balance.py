"""The witnesses of the balancing losses agree, and each loss has the value that is claimed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from gatelib import derived, lab
from gatelib.equations import balance as equations
from gatelib.equations.routers import SLOTS
from gatelib.nn import balance as layer
from gatelib.reference import balance as reference
from gatelib.reference import routers
from gatelib.reference.gate import softmax
from tests.families.witnesses import assert_agree, close


def for_any_batch(test):
    """Logits (N, E) of any size, their best k, and a mask of padding that leaves some token."""
    drawn = given(
        N=st.integers(1, 6),
        E=st.integers(2, 5),
        scale=st.sampled_from([0.1, 1.0, 5.0]),
        padded=st.booleans(),
        seed=st.integers(0, 99),
    )
    return settings(max_examples=40, deadline=None)(drawn(test))


def case_of(N, E, scale, padded, seed):
    rng = np.random.default_rng(seed)
    logits, k = scale * rng.normal(size=(N, E)), int(rng.integers(1, E))
    live = None
    if padded:
        live = rng.random(N) < 0.6
        live[rng.integers(N)] = True
    return logits, routers.top_k(logits, k), k, live, rng


def masked(indices, E):
    mask = np.zeros((len(indices), E))
    np.put_along_axis(mask, indices, 1.0, axis=1)
    return mask


def agree(run, torch_runs, inputs, value, gradients):
    """Equations and torch give this value () and these gradients by the inputs' names."""
    upstream = {"l": np.array(1.0)}
    hand = {"l": np.array(value)} | {f"d_{name}": d for name, d in gradients.items()}
    expected = derived.gradients(run, inputs, upstream)
    assert_agree(hand, expected)
    for torch_run in torch_runs:
        found = lab.gradients(lambda v, run=torch_run: {"l": run(v)}, inputs, upstream)
        assert_agree(found, expected)


def mask_of(live):
    """As torch's layers take it."""
    return None if live is None else torch.tensor(live)


def torch_variation(v):
    return v.var(correction=0) / v.mean() ** 2


# --- every loss, on three floors ------------------------------------------------------------------


@for_any_batch
def test_importance_agrees(N, E, scale, padded, seed):
    logits, indices, _, _, _ = case_of(N, E, scale, padded, seed)
    weights = routers.scattered(routers.gathered(softmax(logits), indices), indices, E)
    value, d = reference.importance(weights)
    every = torch.arange(E).expand(N, E)
    layers = [
        lambda v: torch_variation(v["w"].sum(0)),
        lambda v: layer.importance_loss(every, v["w"], E),
    ]
    agree(lambda v: derived.balance.importance(v["w"]), layers, {"w": weights}, value, {"w": d})


@for_any_batch
def test_the_smooth_load_agrees(N, E, scale, padded, seed):
    logits, _, k, live, rng = case_of(N, E, scale, padded, seed)
    spread, noise = rng.normal(size=(2, N, E))
    noisy = logits + noise * routers.softplus(spread)
    value, found = reference.load(logits, spread, noisy, k, live)

    def by_torch(v):
        top = v["noisy"].topk(k + 1, dim=-1).values
        inside = v["noisy"] > top[:, k:]
        t = torch.where(inside, top[:, k:], top[:, k - 1 : k])
        z = (v["logits"] - t) / torch.nn.functional.softplus(v["spread"])
        p = torch.distributions.Normal(0.0, 1.0).cdf(z)
        p = p if live is None else p * torch.tensor(live)[:, None]
        return torch_variation(p.sum(0))

    def by_layer(v):
        spread = torch.nn.functional.softplus(v["spread"])
        return layer.load_loss(v["logits"], v["noisy"], spread, k, mask_of(live))

    agree(
        lambda v: derived.balance.load(v["logits"], v["spread"], v["noisy"], k, live),
        [by_torch, by_layer],
        {"logits": logits, "spread": spread, "noisy": noisy},
        value,
        found,
    )


def torch_switch(p, indices, live=None, share=None, by_slots=False):
    here = torch.ones(len(p), dtype=p.dtype) if live is None else torch.tensor(live * 1.0)
    mask = torch.nn.functional.one_hot(torch.tensor(indices), p.shape[1]).sum(1).to(p.dtype)
    f = here @ mask / here.sum() if share is None else torch.tensor(share)
    factor = p.shape[1] / (1 if by_slots else indices.shape[1])
    return factor * (f * (here @ p / here.sum())).sum()


@pytest.mark.parametrize("by_slots", [False, True])
@pytest.mark.parametrize("everywhere", [False, True])
@for_any_batch
def test_the_switch_loss_agrees(by_slots, everywhere, N, E, scale, padded, seed):
    """From the logits: a loss that divides the scores by their sum has the same gradient there."""
    logits, indices, k, live, rng = case_of(N, E, scale, padded, seed)
    p, counts = softmax(logits), rng.integers(0, 9, E) + (np.arange(E) == 0)
    share = k * counts / counts.sum() if everywhere else None
    value, d = reference.switch(p, indices, live, share, by_slots)
    spec = equations.SWITCH_LOSS_BY_SLOTS if by_slots else equations.SWITCH_LOSS
    options = {"live": live, "share": share}
    run = partial(derived.balance.switch, mask=masked(indices, E), k=k, spec=spec, **options)
    more = {"per": "global", "counts": torch.tensor(counts)} if everywhere else {}

    def by_layer(v):
        found = layer.switch_loss(v["a"].softmax(-1), torch.tensor(indices), mask_of(live), **more)
        return found * (k if by_slots else 1)

    agree(
        lambda v: run(derived.gate(SLOTS, a=v["a"])["p"]),
        [
            lambda v: torch_switch(v["a"].softmax(-1), indices, by_slots=by_slots, **options),
            by_layer,
        ],
        {"a": logits},
        value,
        {"a": routers.score_backward(d, logits, p, "softmax")},
    )


@for_any_batch
def test_the_loss_of_gshard_agrees(N, E, scale, padded, seed):
    logits, indices, _, live, _ = case_of(N, E, scale, padded, seed)
    p, first = softmax(logits), masked(indices[:, :1], E)
    value, d = reference.gshard(p, indices, live)
    run = partial(derived.balance.switch, mask=first, k=1, live=live, spec=equations.GSHARD_LOSS)
    agree(
        lambda v: run(v["p"]),
        [lambda v: torch_switch(v["p"], indices[:, :1], live) / E**2],
        {"p": p},
        value,
        {"p": d},
    )


@for_any_batch
def test_the_z_loss_agrees(N, E, scale, padded, seed):
    logits, _, _, live, _ = case_of(N, E, scale, padded, seed)
    value, d = reference.z_loss(logits, live)
    keep = torch.ones(N, dtype=bool) if live is None else torch.tensor(live)
    agree(
        lambda v: derived.balance.z_loss(v["a"], live),
        [
            lambda v: (v["a"].logsumexp(-1) ** 2)[keep].mean(),
            lambda v: layer.z_loss(v["a"], mask_of(live)),
        ],
        {"a": logits},
        value,
        {"a": d},
    )


def by_sequence(v, losses):
    """The mean of these losses of the sequences, from sigmoid scores over their sum."""
    p = derived.balance.normalized_scores(v["a"])
    each = [loss(p)["l"][None] for loss in losses]
    return {"l": derived.gate(MEAN, v=derived.join(each))["m"][0]}


def torch_by_sequence(v, indices, live):
    """The same by a loop, and by the layers' own function."""
    s = v["a"].sigmoid().reshape(*live.shape, -1)
    p = s / s.sum(-1, keepdim=True)
    each = zip(p, indices, live, strict=True)
    return sum(torch_switch(*one) for one in each) / len(live)


def layers_by_sequence(v, indices, live):
    s = v["a"].sigmoid().reshape(*live.shape, -1)
    return layer.switch_loss(s, torch.tensor(indices), torch.tensor(live), per="sequence")


@settings(max_examples=30, deadline=None)
@given(B=st.integers(1, 3), T=st.integers(1, 4), padded=st.booleans(), seed=st.integers(0, 99))
def test_the_loss_per_sequence_is_the_mean_of_the_losses_of_the_sequences(B, T, padded, seed):
    """DeepSeek-V3's, through its normalised sigmoid scores, from the logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(B * T, 4))
    live = (np.arange(T) < rng.integers(1, T + 1, B)[:, None]) if padded else np.ones((B, T), bool)
    indices, scores = routers.top_k(logits, 2), routers.score(logits, "sigmoid")
    shaped = indices.reshape(B, T, 2)
    p = reference.normalized_scores(scores).reshape(B, T, 4)
    value, d = reference.per_sequence(p, shaped, live)
    d = reference.normalized_scores_backward(d.reshape(B * T, 4), scores)
    losses = [
        lambda p, b=b: derived.balance.switch(
            p[b * T : (b + 1) * T], masked(shaped[b], 4), 2, live[b]
        )
        for b in range(B)
    ]
    runs = [
        partial(run, indices=shaped, live=live) for run in (torch_by_sequence, layers_by_sequence)
    ]
    d = routers.score_backward(d, logits, scores, "sigmoid")
    agree(partial(by_sequence, losses=losses), runs, {"a": logits}, value, {"a": d})


MEAN = equations.Spec.parse("mean_of_losses", "v -> m", "m = mean(v)")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), T=st.integers(2, 5))
def test_padding_counts_in_no_loss_whatever_stands_there(seed, T):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(T, 4))
    indices, live = routers.top_k(logits, 2), np.arange(T) > 0
    p = softmax(logits)
    poisoned_p, poisoned = np.where(live[:, None], p, np.nan), logits.copy()
    poisoned[0] = np.nan
    for loss, whole, part in (
        (reference.switch, (poisoned_p, indices, live), (p[1:], indices[1:])),
        (reference.gshard, (poisoned_p, indices, live), (p[1:], indices[1:])),
        (reference.z_loss, (poisoned, live), (logits[1:],)),
    ):
        value, d = loss(*whole)
        expected, d_expected = loss(*part)
        assert abs(value - expected) < 1e-14
        close(d[1:], d_expected, 1e-14)
        assert not d[0].any()
    value, d = reference.per_sequence(p[None], indices[None], np.zeros((1, T), bool))
    assert value == 0 and not d.any()
    value, d = reference.z_loss(poisoned, np.zeros(T, bool))
    assert value == 0 and not d.any()


# --- the values of the losses, even and collapsed -------------------------------------------------


def test_each_loss_has_its_balanced_value():
    E, k, N = 4, 2, 8
    p = np.full((N, E), 1 / E)
    even = (np.arange(N)[:, None] + np.arange(k)) % E
    assert reference.switch(p, even)[0] == 1
    assert reference.switch(p, even, by_slots=True)[0] == k  # as transformers has it
    assert reference.gshard(p, even)[0] == 1 / E**2
    assert reference.importance(masked(even, E) / k)[0] == 0
    assert abs(reference.z_loss(np.zeros((N, E)))[0] - np.log(E) ** 2) < 1e-14
    close(reference.entropy(p), np.full(N, np.log(E)), 1e-14)


def test_each_loss_has_its_collapsed_value():
    """All tokens on the same k experts, each with probability 1/k."""
    E, k, N = 4, 2, 8
    same = np.tile(np.arange(k), (N, 1))
    p = masked(same, E) / k
    assert reference.switch(p, same)[0] == E / k
    assert reference.gshard(p, same)[0] == 1 / k / E
    assert reference.importance(p)[0] == E / k - 1
    assert reference.entropy(p)[0] == pytest.approx(np.log(k))
    counts = reference.counts_of(same, E)
    assert reference.max_violation(counts) == E / k - 1
    assert reference.dead_experts(counts) == E - k


def test_the_switch_loss_is_one_for_any_choice_if_only_the_probabilities_are_even():
    """f·P is 1 as soon as one of the two is even: the loss alone doesn't prove balance."""
    same = np.tile(np.arange(2), (8, 1))
    assert reference.switch(np.full((8, 4), 0.25), same)[0] == 1
    p = softmax(np.random.default_rng(0).normal(size=(8, 4)))
    close(np.array(reference.switch(p, same, share=np.full(4, 0.5))[0]), np.array(1.0), 1e-14)


def test_the_switch_loss_can_fall_below_its_balanced_value():
    """It is no minimum: choices against the probabilities give less than 1."""
    p = np.tile([0.4, 0.2, 0.2, 0.2], (6, 1))
    chosen = np.array([[1], [2], [3], [1], [2], [3]])
    assert reference.switch(p, chosen)[0] == pytest.approx(0.8)


def test_layers_pooled_before_the_product_hide_their_collapse():
    """Two layers, each on an expert of its own: 2 by layer, and 1 (even) when pooled."""
    first, second = np.zeros((6, 1), int), np.ones((6, 1), int)
    p_first, p_second = masked(first, 2), masked(second, 2)
    by_layer = [reference.switch(p_first, first)[0], reference.switch(p_second, second)[0]]
    assert by_layer == [2, 2]
    pooled = np.concatenate([p_first, p_second]), np.concatenate([first, second])
    assert reference.switch(*pooled)[0] == 1


def test_a_loss_per_sequence_punishes_what_a_global_one_allows():
    """Two languages, each with an expert of its own: 2 per sequence, 1 over the batch."""
    indices = np.repeat([[[0]], [[1]]], 5, axis=1)
    p = np.eye(2)[indices[..., 0]]
    assert reference.per_sequence(p, indices)[0] == 2
    assert reference.switch(p.reshape(10, 2), indices.reshape(10, 1))[0] == 1
    share = np.array([0.5, 0.5])
    each = [reference.switch(p[b], indices[b], share=share)[0] for b in range(2)]
    assert np.mean(each) == 1  # counted over all parts, a part alone is not punished


# --- biases that select ---------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=2, max_size=6), centered=st.booleans())
def test_updates_of_the_bias_agree_with_the_equations(counts, centered):
    counts, bias = np.array(counts, float), np.random.default_rng(0).normal(size=len(counts))
    steps = derived.training.unfold(
        equations.UPDATES[centered], {"c": [counts] * 3}, {"b": bias}, {"eta": 1e-3}
    )
    for step in steps["b"]:
        start, bias = bias, reference.update_bias(bias, counts, 1e-3, centered)
        close(step, bias, 1e-15)
        found = layer.update_bias(*map(torch.tensor, (start, counts.astype(int))), 1e-3, centered)
        close(found.numpy(), bias, 1e-15)


def test_a_centered_bias_keeps_its_sum_and_the_other_drifts():
    """Loads with a few full experts: more are below the mean than above, so the mean rises."""
    rng = np.random.default_rng(0)
    plain = centered = np.zeros(8)
    for _ in range(500):
        counts = rng.multinomial(64, [0.44, *[0.08] * 7])
        plain = reference.update_bias(plain, counts, 1e-3, False)
        centered = reference.update_bias(centered, counts, 1e-3, True)
    assert abs(centered.mean()) < 1e-12
    assert plain.mean() > 0.1
    close(plain - plain.mean(), centered, 1e-12)  # what selects is the same


def dual(scores, k, bias):
    """What the dual of the assignment problem costs, α at its best for this bias."""
    tokens, experts = scores.shape
    alpha = -np.sort(-(scores + bias), axis=1)[:, k : k + 1]
    excess = np.maximum(scores + bias - alpha, 0).sum()
    return excess + k * alpha.sum() - tokens * k / experts * bias.sum()


def most(scores, k):
    """The largest sum of selected scores with k experts a token and even loads."""
    tokens, experts = scores.shape
    rows = np.kron(np.eye(tokens), np.ones(experts))
    columns = np.kron(np.ones(tokens), np.eye(experts))
    loads = np.concatenate([np.full(tokens, k), np.full(experts, tokens * k / experts)])
    A = np.concatenate([rows, columns])
    return -linprog(-scores.ravel(), A_eq=A, b_eq=loads, bounds=(0, 1)).fun


@pytest.mark.parametrize("seed", range(4))
def test_quantile_balancing_descends_to_the_best_even_assignment(seed):
    """Each round lowers the dual; it ends near the optimum of the linear program, loads even."""
    rng = np.random.default_rng(seed)
    scores, k = softmax(rng.normal(size=(32, 8)) + rng.normal(size=8)), 2
    bias, costs = np.zeros(8), [dual(scores, k, np.zeros(8))]
    before = reference.counts_of(routers.top_k(scores, k), 8)
    for _ in range(30):
        bias = reference.quantile_bias(scores, k, bias)
        costs.append(dual(scores, k, bias))
    assert (np.diff(costs) < 1e-12).all()
    best = most(scores, k)
    assert best - 1e-9 <= costs[-1] <= best + 0.02 * (costs[0] - best)
    after = reference.counts_of(routers.top_k(scores + bias, k), 8)
    assert reference.max_violation(after) <= 0.25 < reference.max_violation(before) / 2
    close(bias, reference.quantile_bias(scores, k, rounds=30), 0)


@for_any_batch
def test_quantile_balancing_agrees_with_the_layers(N, E, scale, padded, seed):
    logits, _, k, live, rng = case_of(N, E, scale, padded, seed)
    scores, bias = softmax(logits), rng.normal(size=E)
    kept = scores if live is None else scores[live]
    for start, rounds in ((None, 1), (bias, 1), (bias, 3)):
        expected = reference.quantile_bias(kept, k, start, rounds)
        given = None if start is None else torch.tensor(start)
        found = layer.quantile_bias(torch.tensor(scores), k, given, mask_of(live), rounds)
        close(found.numpy(), expected, 1e-15)


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_measures_agree_with_the_layers(counts, seed):
    whole = torch.tensor(counts)
    assert layer.max_violation(whole) == pytest.approx(reference.max_violation(np.array(counts)))
    assert layer.dead_experts(whole) == reference.dead_experts(np.array(counts))
    p = softmax(np.random.default_rng(seed).normal(size=(4, len(counts))))
    expected = reference.entropy(p).mean()
    assert layer.router_entropy(torch.tensor(p)).item() == pytest.approx(expected, abs=1e-14)


def test_quantile_balancing_is_the_two_order_statistics_of_its_definition():
    scores = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.1], [0.7, 0.6, 0.5]])
    bias = reference.quantile_bias(scores, 1)  # a token leaves out 0.3, 0.2, 0.6 first
    close(bias, np.array([-0.6, 0.0, 0.1]), 1e-15)  # N k/E + 1 = 2: the second largest of s − α


def test_quantile_balancing_of_no_token_keeps_the_bias():
    bias = np.arange(3.0)
    np.testing.assert_array_equal(reference.quantile_bias(np.zeros((0, 3)), 1, bias), bias)


def test_loads_of_nothing_are_measured_without_a_warning():
    assert reference.max_violation(np.zeros(3)) == 0
    assert reference.importance(np.zeros((2, 3)))[0] == 0
    counts = reference.counts_of(np.array([[3, 0], [3, 3]]), 3)
    np.testing.assert_array_equal(counts, [1, 0, 0])
    assert reference.dead_experts(counts) == 2


BAD = [
    (lambda: reference.counts_of(np.array([[4]]), 3), ValueError, "indices: expected 0 … 3, got 4"),
    (
        lambda: reference.load(*np.ones((3, 2, 4)), 4),
        ValueError,
        "k: expected less than the 4 experts, got 4",
    ),
    (lambda: reference.quantile_bias(np.ones((2, 3)), 3), ValueError, "k: expected 1 … 2, got 3"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
