"""The witnesses of a layer of experts agree; capacity, shared experts, and what follows from it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import glu
from gatelib.equations import moe as equations
from gatelib.reference import moe as reference
from gatelib.reference import routers
from gatelib.reference.glu import forward_mlp
from gatelib.reference.glu import initialize as initialize_mlp
from tests.families.witnesses import assert_agree, close

KINDS = ("swiglu", "gpt_oss", "relu")


def problem(N=6, E=4, D=3, H=2, k=2, kind="swiglu", identity=0, seed=0):
    """Tokens, gates (N, E + identity) that are 0 but at k experts, the experts, their mask."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, E, D, H, kind)
    indices = routers.top_k(rng.normal(size=(N, E + identity)), k)
    mask = reference.mask_of(indices, E + identity)
    gates = np.where(mask, rng.uniform(0.1, 1, size=mask.shape), 0)
    case = {"x": rng.normal(size=(N, D)), "weights": gates} | weights
    return case, mask, {"y": rng.normal(size=(N, D))}


def by_hand(case, mask, upstream, kind="swiglu", scales="output"):
    """The gradients of gates that were not selected are not asked for: they are 0 here."""
    own = {name: case[name] for name in ("W_in", "W_out")}
    y, saved = reference.forward(case["x"], case["weights"], mask, own, kind, scales)
    found = reference.backward(upstream["y"], saved)
    found["weights"] = found.pop("gates")
    return {"y": y} | {f"d_{name}": found[name] for name in case}


def selected_only(found, mask):
    """The same with 0 as the gradient of every gate that was not selected."""
    return found | {"d_weights": found["d_weights"] * mask}


def by_equations(case, upstream, kind="swiglu", identity=0, scales="output"):
    spec = glu.KINDS[kind]
    run = partial(derived.moe.combine, spec, identity=identity, scales=scales)
    return derived.gradients(run, case, upstream)


def torch_mlp(x, w_in, w_out, kind):
    packed = x @ w_in.T
    parts = packed.chunk(2, -1) if kind in glu.GATED else (packed,)
    return glu.KINDS[kind].compile("torch")(*parts) @ w_out.T


def torch_combine(v, mask, kind="swiglu", scales="output"):
    """Each expert's rows gathered, and added where they came from."""
    y = torch.zeros_like(v["x"])
    for expert in range(mask.shape[1]):
        rows = torch.tensor(np.flatnonzero(mask[:, expert]))
        gate, seen = v["weights"][rows, expert, None], v["x"][rows]
        seen = gate * seen if scales == "input" else seen
        if expert < len(v["W_in"]):
            out = torch_mlp(seen, v["W_in"][expert], v["W_out"][expert], kind)
        else:
            out = seen
        y = y.index_add(0, rows, out if scales == "input" else gate * out)
    return {"y": y}


def by_torch(case, mask, upstream, kind="swiglu", scales="output"):
    run = partial(torch_combine, mask=mask, kind=kind, scales=scales)
    return lab.gradients(run, case, upstream)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 6), *(st.integers(1, 4) for _ in range(3))),
    kind=st.sampled_from(KINDS),
    identity=st.integers(0, 2),
    scales=st.sampled_from(["output", "input"]),
    seed=st.integers(0, 99),
)
def test_three_witnesses_of_the_experts_agree_in_outputs_and_all_gradients(
    shape, kind, identity, scales, seed
):
    identity = identity if scales == "output" else 0
    experts = shape[1] + identity
    case, mask, upstream = problem(*shape, seed % experts + 1, kind, identity, seed)
    expected = selected_only(by_equations(case, upstream, kind, identity, scales), mask)
    assert_agree(by_hand(case, mask, upstream, kind, scales), expected)
    assert_agree(by_torch(case, mask, upstream, kind, scales), expected)


@pytest.mark.parametrize("scales", ["output", "input"])
@pytest.mark.parametrize("rows", [[0, 0, 0, 0], [1, 1, 2, 2], [3, 3, 3, 0]])
def test_empty_experts_and_one_that_takes_all_agree(rows, scales):
    case, _, upstream = problem(N=4)
    mask = reference.mask_of(np.array(rows)[:, None], 4)
    case["weights"] = np.where(mask, 0.7, 0.0)
    found = by_hand(case, mask, upstream, scales=scales)
    expected = selected_only(by_equations(case, upstream, scales=scales), mask)
    assert_agree(found, expected)
    unused = ~mask.any(axis=0)
    assert not found["d_W_in"][unused].any() and not found["d_W_out"][unused].any()


def test_a_token_that_no_expert_sees_gets_zero_and_gives_nothing():
    case, mask, upstream = problem()
    mask[2] = False
    case["weights"][2] = 0
    case["x"][2] = np.nan
    found = by_hand(case, mask, upstream)
    assert not found["y"][2].any() and not found["d_x"][2].any()
    assert all(np.isfinite(value).all() for value in found.values())


def test_one_token_is_a_sum_of_its_experts():
    case, mask, _ = problem(N=1)
    own = {name: case[name] for name in ("W_in", "W_out")}
    y, _ = reference.forward(case["x"], case["weights"], mask, own)
    parts = [
        case["weights"][0, e] * forward_mlp(case["x"], {n: v[e] for n, v in own.items()})[0]
        for e in np.flatnonzero(mask[0])
    ]
    close(y, sum(parts), 1e-14)


def test_with_all_experts_and_equal_gates_it_is_the_mean_of_dense_layers():
    case, _, _ = problem(k=4)
    mask = np.ones((6, 4), bool)
    own = {name: case[name] for name in ("W_in", "W_out")}
    y, _ = reference.forward(case["x"], np.full((6, 4), 0.25), mask, own)
    dense = [forward_mlp(case["x"], {n: v[e] for n, v in own.items()})[0] for e in range(4)]
    close(y, np.mean(dense, axis=0), 1e-14)


def test_identity_experts_give_back_their_input():
    case, _, _ = problem(identity=2)
    mask = np.zeros((6, 6), bool)
    mask[:, 5] = True
    own = {name: case[name] for name in ("W_in", "W_out")}
    y, _ = reference.forward(case["x"], 0.5 * mask, mask, own)
    np.testing.assert_array_equal(y, 0.5 * case["x"])


@pytest.mark.parametrize(("kind", "equal"), [("swiglu", False), ("relu", True)])
def test_a_weight_on_the_input_is_one_on_the_output_only_for_a_homogeneous_unit(kind, equal):
    case, mask, _ = problem(kind=kind)
    own = {name: case[name] for name in ("W_in", "W_out")}
    y = [
        reference.forward(case["x"], case["weights"], mask, own, kind, scales)[0]
        for scales in ("output", "input")
    ]
    assert (np.abs(y[0] - y[1]).max() < 1e-14) == equal


def test_the_gradient_of_a_gate_needs_no_output_of_an_expert():
    """∂L/∂g = ⟨dy, W_out h⟩ = ⟨W_outᵀ dy, h⟩: the same number from what is kept anyway."""
    case, mask, upstream = problem(k=1)
    own = {name: case[name] for name in ("W_in", "W_out")}
    _, saved = reference.forward(case["x"], case["weights"], mask, own)
    found = reference.backward(upstream["y"], saved)["gates"]
    for token, expert in zip(*np.nonzero(mask), strict=True):
        out = forward_mlp(case["x"][[token]], {n: v[expert] for n, v in own.items()})[0][0]
        assert abs(found[token, expert] - upstream["y"][token] @ out) < 1e-14


@pytest.mark.parametrize("experts", [4, 64])
def test_what_is_saved_does_not_grow_with_the_number_of_experts(experts):
    case, mask, _ = problem(N=32, E=experts)
    own = {name: case[name] for name in ("W_in", "W_out")}
    _, saved = reference.forward(case["x"], case["weights"], mask, own)
    assert sum(part.size for parts in saved.parts for part in parts) == 32 * 2 * 2 * 2  # N k G H


def test_fine_grained_experts_cut_from_one_give_together_what_it_gave():
    case, mask, _ = problem(H=6)
    own = {name: case[name] for name in ("W_in", "W_out")}
    y, _ = reference.forward(case["x"], case["weights"], mask, own)
    fine = reference.fine_grained(own, 3)
    again = [np.repeat(v, 3, axis=1) for v in (case["weights"], mask)]
    close(reference.forward(case["x"], *again, fine)[0], y, 1e-14)
    assert fine["W_in"].size == own["W_in"].size


# --- shared experts, and slots --------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
def test_shared_experts_agree_on_three_floors(gated):
    rng = np.random.default_rng(0)
    case = {"y": rng.normal(size=(5, 3)), "x": rng.normal(size=(5, 3))}
    case |= initialize_mlp(rng, 3, 4)
    case |= {"gate": rng.normal(size=3)} if gated else {}
    upstream = {"o": rng.normal(size=(5, 3))}
    expected = derived.gradients(partial(derived.moe.share, glu.SWIGLU), case, upstream)
    own = {name: case[name] for name in ("W_in", "W_out")}
    f, saved = reference.shared(case["x"], own, gate=case.get("gate"))
    found = reference.shared_backward(upstream["o"], saved) | {"y": upstream["o"]}
    hand = {"o": case["y"] + f} | {f"d_{name}": found[name] for name in case}
    assert_agree(hand, expected)

    def run(v):
        f = torch_mlp(v["x"], v["W_in"], v["W_out"], "swiglu")
        return {"o": v["y"] + (torch.sigmoid(v["x"] @ v["gate"])[:, None] * f if gated else f)}

    assert_agree(lab.gradients(run, case, upstream), expected)


def torch_soft(v, each):
    mixed = torch.einsum("bts,btd->bsd", v["dispatch"], v["x"])
    outs = [
        torch_mlp(rows, v["W_in"][e], v["W_out"][e], "swiglu")
        for e, rows in enumerate(mixed.split(each, 1))
    ]
    return {"y": torch.einsum("bts,bsd->btd", v["combine"], torch.cat(outs, 1))}


@settings(max_examples=30, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 4),
    E=st.integers(1, 3),
    each=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_soft_experts_agree_on_three_floors(B, T, E, each, seed):
    rng = np.random.default_rng(seed)
    own = reference.initialize(rng, E, 3, 2)
    case = {"x": rng.normal(size=(B, T, 3))} | own
    case |= {name: rng.random((B, T, E * each)) for name in ("dispatch", "combine")}
    upstream = {"y": rng.normal(size=(B, T, 3))}
    expected = derived.gradients(partial(derived.moe.soft, glu.SWIGLU), case, upstream)
    y, saved = reference.soft(case["x"], case["dispatch"], case["combine"], own)
    found = reference.soft_backward(upstream["y"], saved)
    assert_agree({"y": y} | {f"d_{name}": found[name] for name in case}, expected)
    assert_agree(lab.gradients(partial(torch_soft, each=each), case, upstream), expected)


# --- capacity ------------------------------------------------------------------------------------


def test_an_expert_takes_the_first_of_its_tokens_or_the_most_certain():
    indices = np.array([[0], [0], [1], [0]])
    weights = np.array([[0.5], [0.9], [0.1], [0.7]])
    keep = reference.kept(indices, weights, 2, capacity=2)
    np.testing.assert_array_equal(keep[:, 0], [True, True, True, False])
    keep = reference.kept(indices, weights, 2, capacity=2, priority="probability")
    np.testing.assert_array_equal(keep[:, 0], [False, True, True, True])


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(0, 8),
    E=st.integers(1, 4),
    capacity=st.integers(0, 5),
    priority=st.sampled_from(reference.PRIORITIES),
    seed=st.integers(0, 99),
)
def test_no_expert_overflows_and_none_has_room_that_it_was_asked_for(
    N, E, capacity, priority, seed
):
    """As counts by one-hot and cumulative sum have it: a second way to the same places."""
    rng = np.random.default_rng(seed)
    k = seed % E + 1
    indices, weights = routers.top_k(rng.normal(size=(N, E)), k), rng.random((N, k))
    keep = reference.kept(indices, weights, E, capacity, priority)
    asked = np.bincount(indices.ravel(), minlength=E)
    held = np.bincount(indices[keep], minlength=E)
    np.testing.assert_array_equal(held, np.minimum(asked, capacity))
    order = np.arange(N)
    if priority == "probability" and N:
        order = np.argsort(-weights.max(1), kind="stable")
    flat = indices[order].T.ravel()  # all first choices, then all second ones
    place = np.cumsum(np.eye(E, dtype=int)[flat], axis=0)[np.arange(N * k), flat] - 1
    expected = np.zeros((N, k), bool)
    expected[order] = (place < capacity).reshape(k, N).T
    np.testing.assert_array_equal(keep, expected)


def test_capacity_is_rounded_up_and_tokens_of_padding_take_none():
    assert reference.capacity_of(10, 2, 8, 1.0) == 3
    assert reference.capacity_of(10, 1, 8, 1.25) == 2
    indices = np.array([[2, 2], [0, 1], [0, 1]])  # 2 names no expert
    keep = reference.kept(indices, np.ones((3, 2)), 2, capacity=1)
    np.testing.assert_array_equal(keep, [[False, False], [True, True], [False, False]])


@pytest.mark.parametrize("renormalize", [False, True])
def test_dropped_weights_agree_with_the_equations(renormalize):
    rng = np.random.default_rng(0)
    weights, keep = rng.random((5, 3)), rng.random((5, 3)) < 0.6
    keep[:, 0] = True
    spec = equations.DROP_RENORMALIZED if renormalize else equations.DROP
    expected = spec.evaluate({"w": weights, "keep": keep.astype(float)})["d"]
    close(reference.dropped(weights, keep, renormalize), expected, 1e-14)
    nothing = reference.dropped(weights, np.zeros_like(keep), renormalize)
    assert not nothing.any()


def test_the_gradient_passes_only_through_tokens_that_were_kept():
    case, _, upstream = problem(N=5, k=1)
    indices = np.zeros((5, 1), int)
    keep = reference.kept(indices, np.ones((5, 1)), 4, capacity=2)
    mask = reference.mask_of(indices, 4, keep)
    case["weights"] = np.where(mask, 0.5, 0.0)
    found = by_hand(case, mask, upstream)
    assert not found["y"][2:].any() and not found["d_x"][2:].any()
    full = derived.gradients(drop_and_combine(keep_all(indices, keep)), case, upstream)
    assert_agree(found, selected_only(full, mask))


def keep_all(indices, keep):
    return reference.mask_of(indices, 4, keep).astype(float)


def drop_and_combine(keep):
    def run(v):
        return derived.moe.combine(
            glu.SWIGLU, v | {"weights": derived.moe.drop(v["weights"], keep)}
        )

    return run


def changed(indices_of, priority, k, capacity=1):
    """Whether what the first tokens keep depends on the last one."""
    kept = [
        reference.kept(i, w, 3, capacity, priority)[:-1]
        for i, w in (indices_of(last, k) for last in range(3))
    ]
    return any(not np.array_equal(kept[0], other) for other in kept[1:])


def choices(last, k):
    first = np.array([[0, 1, 2], [1, 2, 0], np.roll([0, 1, 2], -last)])[:, :k]
    return first, np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.9, 0.05, 0.05]])[:, :k]


def test_capacity_by_position_is_causal_for_one_expert_a_token_and_for_more_it_is_not():
    """A later token's first choice comes before an earlier token's second one."""
    assert not changed(choices, "position", k=1)
    assert changed(choices, "position", k=2)


def test_capacity_by_probability_looks_into_the_future():
    assert changed(choices, "probability", k=1)


# --- bad input -----------------------------------------------------------------------------------

CASE, MASK, _ = problem()
OWN = {name: CASE[name] for name in ("W_in", "W_out")}
CALL = partial(reference.forward, CASE["x"])
BAD = [
    (lambda: CALL(CASE["weights"], MASK, OWN, scales="both"), ValueError, "scales: expected"),
    (lambda: CALL(CASE["weights"], MASK, {}), ValueError, r"weights: expected \['W_in', 'W_out'\]"),
    (lambda: CALL(CASE["weights"][:, :3], MASK, OWN), ValueError, r"gates: expected \(6, at least"),
    (lambda: CALL(CASE["weights"], MASK[:5], OWN), ValueError, r"mask: expected \(6, 4\)"),
    (lambda: CALL(CASE["weights"], MASK * 1.0, OWN), TypeError, "mask: expected bool as a mask"),
    (lambda: CALL(CASE["weights"].astype("f4"), MASK, OWN), TypeError, "gates: expected float64"),
    (lambda: reference.capacity_of(4, 1, 2, 0.0), ValueError, "factor: expected a number above 0"),
    (
        lambda: reference.kept(np.zeros((1, 1), int), np.ones((1, 1)), 2, 1, "luck"),
        ValueError,
        "priority: expected one of",
    ),
    (lambda: reference.fine_grained(OWN, 3), ValueError, "parts: expected a divisor of 2, got 3"),
    (
        lambda: reference.soft(CASE["x"][None], np.ones((1, 6, 3)), np.ones((1, 6, 3)), OWN),
        ValueError,
        "dispatch: expected equal slots for 4 experts, got 3",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
