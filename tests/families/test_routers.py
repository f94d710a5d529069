"""The witnesses of the routers agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import routers as equations
from gatelib.equations.routers import RouterConfig
from gatelib.reference import routers as reference
from tests.families.routing import (
    ROUTERS,
    allowed,
    drawn_noise,
    gradients_by_hand,
    gradients_by_layer,
    gradients_by_torch,
    layer_of,
    problem,
    router_of,
)
from tests.families.witnesses import assert_agree, close

NAMES = sorted(ROUTERS)
OUTPUTS = ("weights", "scores", "logits")


def upstream_of(config, N, seed):
    rng = np.random.default_rng(seed + 1000)
    names = (*OUTPUTS, "noisy", "spread") if config.noise else OUTPUTS
    return {name: rng.normal(size=(N, config.experts)) for name in names}


def by_equations(config, given, upstream, **options):
    def run(leaves):
        found = derived.routers.route(config, leaves, **options)
        return {name: found[name] for name in upstream}

    return derived.gradients(run, given, upstream)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    N=st.integers(0, 6),
    D=st.integers(1, 4),
    scale=st.sampled_from([0.0, 1.0, 5.0]),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_four_witnesses_of_every_router_agree_in_outputs_and_all_gradients(
    name, N, D, scale, padded, seed
):
    config = ROUTERS[name]
    case, options = problem(config, N, D, seed, scale, padded)
    if config.noise:
        options["noise"] = drawn_noise(N, config.experts, seed)
    upstream = upstream_of(config, N, seed)
    expected = by_equations(config, case, upstream, **options)
    assert_agree(gradients_by_hand(config, case, upstream, **options), expected)
    assert_agree(gradients_by_torch(config, case, upstream, **options), expected)
    upstream.pop("spread", None)  # the layer keeps its softplus
    expected = by_equations(config, case, upstream, **options)
    assert_agree(gradients_by_layer(config, case, upstream, seed, **options), expected)


# --- ties, and tokens of padding ------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    scores=st.lists(st.integers(0, 2), min_size=12, max_size=12),
)
def test_a_tie_goes_to_the_lowest_index_on_every_floor(name, scores):
    config = ROUTERS[name]
    rated = np.resize(np.array(scores, float), (1, config.experts))
    indices = reference.select(rated, router_of(config))
    mask = derived.routers.selected(rated, config)
    np.testing.assert_array_equal(np.sort(indices[0]), np.flatnonzero(mask[0]))
    groups = config.groups, config.kept_groups, config.group_score
    assert set(indices[0]) == allowed(rated[0], config.k, *groups)


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "groups_of_two"])
def test_a_shut_group_stays_shut_where_every_rating_is_negative(name):
    """Shut groups at 0 would win over open ones here, as they did in public programs."""
    config = dataclasses.replace(ROUTERS[name], selection_bias=True)
    case, _ = problem(config, seed=4)
    bias = np.full(config.experts, -3.0)
    made = reference.forward(case["x"], {"W": case["W"]}, router_of(config), selection_bias=bias)
    rated = made.scores + bias
    assert (rated < 0).all()
    mask = derived.routers.selected(rated, config)
    routing = layer_of(config, 4, bias)
    with torch.no_grad():
        routing.weight.copy_(torch.tensor(case["W"]))
    found = routing(torch.tensor(case["x"])).indices.numpy()
    groups = config.groups, config.kept_groups, config.group_score
    for row, token in enumerate(rated):
        expected = allowed(token, config.k, *groups)
        assert set(made.indices[row]) == set(np.flatnonzero(mask[row])) == expected
        assert set(found[row]) == expected


def test_equal_logits_select_the_first_experts():
    made = reference.forward(np.zeros((2, 3)), {"W": np.ones((5, 3))}, reference.Router(2))
    np.testing.assert_array_equal(made.indices, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(made.weights, 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_gets_no_expert_no_weight_and_no_gradient_whatever_stands_there(name):
    config = ROUTERS[name]
    case, options = problem(config, N=6, seed=1)
    options["live"] = np.array([True, False, True, True, False, True])
    upstream = upstream_of(config, 6, 1)
    for key in OUTPUTS[1:]:
        upstream[key][~options["live"]] = 0
    upstream |= {
        key: d * options["live"][:, None] for key, d in upstream.items() if key != "weights"
    }
    clean = gradients_by_hand(config, case, upstream, **options)
    poisoned = case | {"x": np.where(options["live"][:, None], case["x"], np.nan)}
    found = gradients_by_hand(config, poisoned, upstream, **options)
    for key in ("weights", *(f"d_{name}" for name in case)):
        np.testing.assert_array_equal(found[key], clean[key], err_msg=key)
    assert not found["weights"][~options["live"]].any()
    assert not found["d_x"][~options["live"]].any()
    made = reference.forward(
        case["x"], {k: v for k, v in case.items() if k != "x"}, router_of(config), **options
    )
    assert (made.indices[~options["live"]] == config.experts).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_padding_alone_gives_zeros(name):
    config = ROUTERS[name]
    case, options = problem(config, N=3)
    options["live"] = np.zeros(3, bool)
    upstream = {"weights": np.ones((3, config.experts))}
    for found in (
        gradients_by_hand(config, case, upstream, **options),
        by_equations(config, case, upstream, **options),
    ):
        gradients = [v for key, v in found.items() if key.startswith("d_")]
        assert not any(value.any() for value in (found["weights"], *gradients))


# --- hash routing ------------------------------------------------------------------------------


def test_hash_routing_asks_the_tokens_id_alone():
    table = np.array([[0, 2], [1, 3], [3, 0]])
    indices, weights = reference.hashed(np.array([2, 0, 2]), table)
    np.testing.assert_array_equal(indices, [[3, 0], [0, 2], [3, 0]])
    mask = np.zeros((3, 4))
    np.put_along_axis(mask, indices, 1.0, axis=1)
    close(reference.scattered(weights, indices, 4), equations.HASH.evaluate({"mask": mask})["w"])


def test_a_table_selects_and_the_learned_scores_weigh_as_in_the_first_layers_of_deepseek_v4():
    config = ROUTERS["deepseek_v4"]
    case, _ = problem(config)
    table = np.random.default_rng(0).permuted(np.tile(np.arange(6), (9, 1)), axis=1)[:, : config.k]
    indices = table[np.array([0, 3, 8, 8, 1, 2, 5])]
    mask = np.zeros((7, 6), bool)
    np.put_along_axis(mask, indices, True, axis=1)
    upstream = upstream_of(config, 7, 0)
    expected = by_equations(config, case, upstream, mask=mask)
    assert_agree(gradients_by_hand(config, case, upstream, indices=indices), expected)


# --- experts that choose, soft slots, positions passed by ----------------------------------------


def torch_choice(leaves, capacity, live=None):
    scores = (leaves["x"] @ leaves["W"].T).softmax(-1)
    here = torch.ones(len(scores), dtype=bool) if live is None else torch.tensor(live)
    rated = scores.detach().masked_fill(~here[:, None], -torch.inf)
    taken = rated.sort(dim=0, descending=True, stable=True).indices[:capacity]
    mask = torch.zeros_like(scores).scatter(0, taken, 1.0) * here[:, None]
    return {"weights": mask * scores}


@settings(max_examples=40, deadline=None)
@given(
    N=st.integers(1, 6), capacity=st.integers(1, 7), padded=st.booleans(), seed=st.integers(0, 99)
)
def test_expert_choice_agrees_on_three_floors(N, capacity, padded, seed):
    case, options = problem(ROUTERS["gshard"], N, seed=seed, padded=padded)
    live = options["live"]
    upstream = {"weights": np.random.default_rng(seed).normal(size=(N, 6))}
    run = partial(derived.routers.choose, capacity=capacity, live=live)
    expected = derived.gradients(run, case, upstream)
    choice = reference.expert_choice(case["x"], {"W": case["W"]}, capacity, live)
    found = reference.expert_choice_backward(upstream["weights"], choice)
    hand = {"weights": choice.weights} | {f"d_{name}": d for name, d in found.items()}
    assert_agree(hand, expected)
    run = partial(torch_choice, capacity=capacity, live=live)
    assert_agree(lab.gradients(run, case, upstream), expected)
    room = min(capacity, N if live is None else int(live.sum()))
    assert (choice.mask.sum(axis=0) == room).all()


def torch_slots(leaves, live=None):
    units = (leaves[name] for name in ("x", "slots"))
    x, slots = (v * torch.rsqrt((v * v).sum(-1, keepdim=True) + 1e-6) for v in units)
    a = leaves["scale"] * x @ slots.T
    here = torch.ones(a.shape[:2], dtype=bool) if live is None else torch.tensor(live)
    dispatch = a.masked_fill(~here[..., None], -torch.inf).softmax(1)
    some = here.any(1)[:, None, None]
    dispatch = torch.where(some, dispatch, 0.0) if live is not None else dispatch
    return {"dispatch": dispatch, "combine": a.softmax(2) * here[..., None]}


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 5),
    S=st.integers(1, 4),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_soft_slots_agree_on_three_floors(B, T, S, padded, seed):
    rng = np.random.default_rng(seed)
    live = np.arange(T) < rng.integers(1, T + 1, B)[:, None] if padded else None
    case = {"x": rng.normal(size=(B, T, 3)), "slots": rng.normal(size=(S, 3))}
    case["scale"] = np.array(rng.normal() + 3)
    upstream = {name: rng.normal(size=(B, T, S)) for name in ("dispatch", "combine")}
    expected = derived.gradients(partial(derived.routers.slots, live=live), case, upstream)
    dispatch, combine, _ = reference.soft_slots(**case, live=live)
    found = reference.soft_slots_backward(*upstream.values(), **case, live=live)
    hand = {"dispatch": dispatch, "combine": combine}
    assert_agree(hand | {f"d_{name}": d for name, d in found.items()}, expected)
    assert_agree(lab.gradients(partial(torch_slots, live=live), case, upstream), expected)
    close(dispatch.sum(axis=1), np.ones((B, S)))


def test_a_sequence_of_padding_alone_reads_nothing_and_takes_nothing():
    live = np.array([[True, True], [False, False]])
    x = np.where(live[..., None], np.ones(3), np.nan)
    dispatch, combine, _ = reference.soft_slots(x, np.eye(3), np.array(2.0), live)
    assert not dispatch[1].any() and not combine[1].any()
    found = reference.soft_slots_backward(
        np.ones((2, 2, 3)), np.ones((2, 2, 3)), x, np.eye(3), np.array(2.0), live
    )
    assert all(np.isfinite(value).all() for value in found.values())


def torch_depths(leaves, capacity, live=None):
    r = leaves["x"] @ leaves["w"]
    here = torch.ones(r.shape, dtype=bool) if live is None else torch.tensor(live)
    rated = r.detach().masked_fill(~here, -torch.inf)
    taken = rated.sort(dim=1, descending=True, stable=True).indices[:, :capacity]
    mask = torch.zeros_like(r).scatter(1, taken, 1.0) * here
    return {"y": leaves["x"] + (mask * r)[..., None] * leaves["f"]}


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 5),
    capacity=st.integers(1, 6),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mixture_of_depths_agrees_on_three_floors(B, T, capacity, padded, seed):
    rng = np.random.default_rng(seed)
    live = np.arange(T) < rng.integers(0, T + 1, B)[:, None] if padded else None
    case = {name: rng.normal(size=(B, T, 3)) for name in "xf"} | {"w": rng.normal(size=3)}
    upstream = {"y": rng.normal(size=(B, T, 3))}
    options = {"capacity": capacity, "live": live}
    run = partial(derived.routers.mixture_of_depths, **options)
    expected = derived.gradients(run, case, upstream)
    y, mask = reference.mixture_of_depths(case["x"], case["w"], case["f"], **options)
    found = reference.mixture_of_depths_backward(
        upstream["y"], case["x"], case["w"], case["f"], mask
    )
    assert_agree({"y": y} | {f"d_{name}": found[name] for name in case}, expected)
    assert_agree(lab.gradients(partial(torch_depths, **options), case, upstream), expected)


# --- bad input -----------------------------------------------------------------------------------

X, W = np.ones((2, 3)), {"W": np.ones((4, 3))}
BAD = [
    (lambda: RouterConfig("", 4, 5), ValueError, "k: expected 1 … 4, got 5"),
    (lambda: RouterConfig("", 4, 1, groups=3), ValueError, "groups: expected equal groups"),
    (lambda: RouterConfig("", 4, 1, scales="both"), ValueError, "scales: expected 'output'"),
    (lambda: RouterConfig("", 4, 1, group_score=5), ValueError, "group_score: expected 1 … 4"),
    (lambda: RouterConfig("", 4, 1, score="relu"), ValueError, "score, select, renormalize:"),
    (lambda: reference.Router(0), ValueError, "k: expected at least 1, got 0"),
    (lambda: reference.Router(1, "relu"), ValueError, "score: expected one of"),
    (lambda: reference.Router(1, select="during"), ValueError, "select: expected 'after' or"),
    (lambda: reference.forward(X, W, reference.Router(5)), ValueError, "k: expected 1 … 4, got 5"),
    (lambda: reference.forward(X, {}, reference.Router(1)), ValueError, "weights: expected"),
    (
        lambda: reference.forward(X.astype("f4"), W, reference.Router(1)),
        TypeError,
        r"weights\['W'\]: expected float32 as x",
    ),
    (
        lambda: reference.forward(X, W, reference.Router(1), live=np.ones(2)),
        TypeError,
        "live: expected bool as a mask",
    ),
    (
        lambda: reference.forward(X, W | {"W_noise": W["W"]}, reference.Router(1), noise=X),
        ValueError,
        r"noise: expected \(2, 4\)",
    ),
    (lambda: reference.hashed(np.array([3]), np.zeros((2, 1), int)), ValueError, "ids: expected"),
    (lambda: reference.expert_choice(X, W, 0), ValueError, "capacity: expected at least 1"),
    (
        lambda: reference.soft_slots(X[None], np.ones((2, 4)), np.array(1.0)),
        ValueError,
        r"slots: expected \(2, 3\)",
    ),
    (
        lambda: reference.mixture_of_depths(X[None], np.ones(2), X[None], 1),
        ValueError,
        r"w: expected \(3,\)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
