"""The witnesses of the LSTM family agree: equations, NumPy by hand, torch by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib.equations import lstm as equations
from gatelib.lab.unrolled import symbolic
from gatelib.reference import lstm as reference

NAMES = sorted(equations.ALL)


def problem(name, B=3, T=5, D=4, H=6, seed=0):
    """Random weights, input, initial state and upstream gradients for one variant."""
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, H, name)
    for vector in reference.VARIANTS[name].vectors:
        weights[vector] = weights[vector] + rng.normal(size=H)
    x, dy = rng.normal(size=(B, T, D)), rng.normal(size=(B, T, H))
    initial = {"h": rng.normal(size=(B, H)), "c": rng.normal(size=(B, H))}
    final = {"h": rng.normal(size=(B, H)), "c": rng.normal(size=(B, H))}
    return x, weights, initial, dy, final


def by_hand(name, x, weights, initial, dy, final, lengths=None):
    y, (h, c), saved = reference.forward(
        x, weights, initial["h"], initial["c"], lengths, variant=name
    )
    grads = reference.backward(dy, final["h"], final["c"], saved)
    return {"y": y, "final_h": h, "final_c": c} | {f"d_{k}": v for k, v in grads.items()}


def by_autograd(name, x, weights, initial, dy, final):
    """The same cell as a torch loop over the Spec's torch source, differentiated by autograd."""
    leaf = {k: torch.tensor(v, requires_grad=True) for k, v in weights.items()}
    state = {k: torch.tensor(v, requires_grad=True) for k, v in initial.items()}
    start, inputs = dict(state), torch.tensor(x, requires_grad=True)
    spec = equations.ALL[name].spec
    step, gates = spec.compile("torch"), [str(v) for v in spec.inputs if str(v).startswith("a_")]
    ys = []
    for t in range(x.shape[1]):
        packed = inputs[:, t] @ leaf["W"].T + state["h"] @ leaf["U"].T + leaf["b"]
        known = dict(zip(gates, packed.chunk(len(gates), 1), strict=True)) | leaf
        known |= {f"{k}_prev": v for k, v in state.items()}
        out = step(*(known[str(v)] for v in spec.inputs))
        state = state | dict(zip(map(str, spec.outputs), out, strict=True))
        ys.append(state["h"])
    y = torch.stack(ys, 1)
    loss = (y * torch.tensor(dy)).sum()
    loss = loss + sum((state[k] * torch.tensor(final[k])).sum() for k in ("h", "c"))
    loss.backward()
    found = {"y": y, "final_h": state["h"], "final_c": state["c"], "d_x": inputs.grad}
    found |= {f"d_{k}": v.grad for k, v in leaf.items()}
    found |= {f"d_{k}0": v.grad for k, v in start.items()}
    return {k: v.detach().numpy() for k, v in found.items() if v is not None}


def assert_agree(found, expected, bound=1e-10):
    shared = sorted(found.keys() & expected.keys())
    assert {"y", "final_h", "d_W", "d_U", "d_b", "d_x", "d_h0"} <= set(shared)
    for key in shared:
        error = np.abs(found[key] - expected[key]).max()
        assert error <= bound, f"{key}: {error:.1e}"


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_written_by_hand_is_the_one_derived(name):
    x, weights, initial, dy, final = problem(name)
    derived = symbolic(equations.ALL[name].spec, x, weights, initial, {"y": dy, **final})
    assert_agree(by_hand(name, x, weights, initial, dy, final), derived)


@pytest.mark.parametrize("name", NAMES)
def test_the_backward_written_by_hand_is_the_one_of_autograd(name):
    args = problem(name, seed=1)
    assert_agree(by_hand(name, *args), by_autograd(name, *args))


def test_the_reference_is_torch_lstm():
    x, weights, initial, dy, final = problem("lstm", seed=2)
    peer = torch.nn.LSTM(4, 6, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for name, key in (("weight_ih_l0", "W"), ("weight_hh_l0", "U"), ("bias_ih_l0", "b")):
            getattr(peer, name).copy_(torch.tensor(weights[key]))
        peer.bias_hh_l0.zero_()
    state = tuple(torch.tensor(initial[k])[None].requires_grad_() for k in "hc")
    inputs = torch.tensor(x, requires_grad=True)
    y, last = peer(inputs, state)
    loss = (y * torch.tensor(dy)).sum()
    (
        loss + sum((v[0] * torch.tensor(final[k])).sum() for v, k in zip(last, "hc", strict=True))
    ).backward()
    expected = {"y": y, "final_h": last[0][0], "final_c": last[1][0], "d_x": inputs.grad}
    expected |= {"d_h0": state[0].grad[0], "d_c0": state[1].grad[0]}
    expected |= {"d_W": peer.weight_ih_l0.grad, "d_U": peer.weight_hh_l0.grad}
    expected["d_b"] = peer.bias_ih_l0.grad
    expected = {k: v.detach().numpy() for k, v in expected.items()}
    assert_agree(by_hand("lstm", x, weights, initial, dy, final), expected)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    shape=st.tuples(*(st.integers(1, 4) for _ in range(4))),
    seed=st.integers(0, 99),
)
def test_hand_and_derivation_agree_for_any_shape(name, shape, seed):
    x, weights, initial, dy, final = problem(name, *shape, seed=seed)
    derived = symbolic(equations.ALL[name].spec, x, weights, initial, {"y": dy, **final})
    # With one feature, or with two nearly equal ones, a normalised value is ill-conditioned: its
    # derivative is up to 1/√ε = 316 a layer, so rounding may grow by its power.
    bound = 1e-6 if name == "layernorm" else 1e-10
    assert_agree(by_hand(name, x, weights, initial, dy, final), derived, bound)


def test_a_padded_row_is_the_row_alone():
    x, weights, initial, dy, final = problem("peephole", B=2, T=6, seed=3)
    lengths = np.array([6, 2])
    together = by_hand("peephole", x, weights, initial, dy, final, lengths)
    rows = {k: v[1:] for k, v in initial.items()}, {k: v[1:] for k, v in final.items()}
    alone = by_hand("peephole", x[1:, :2], weights, rows[0], dy[1:, :2], rows[1])
    np.testing.assert_allclose(together["y"][1, :2], alone["y"][0], atol=1e-14)
    assert not together["y"][1, 2:].any()
    for key in ("final_h", "final_c", "d_h0", "d_c0"):
        np.testing.assert_allclose(together[key][1:], alone[key], atol=1e-13)
    np.testing.assert_allclose(together["d_x"][1, :2], alone["d_x"][0], atol=1e-13)
    assert not together["d_x"][1, 2:].any()


def test_a_row_of_length_zero_keeps_its_state():
    x, weights, initial, dy, final = problem("lstm", B=2)
    found = by_hand("lstm", x, weights, initial, dy, final, np.array([0, 5]))
    np.testing.assert_array_equal(found["final_c"][0], initial["c"][0])
    np.testing.assert_array_equal(found["d_c0"][0], final["c"][0])


def test_an_empty_sequence_returns_the_initial_state():
    x, weights, initial, _, final = problem("lstm", T=1)
    found = by_hand("lstm", x[:, :0], weights, initial, np.zeros((3, 0, 6)), final)
    assert found["y"].shape == (3, 0, 6)
    np.testing.assert_array_equal(found["final_h"], initial["h"])
    np.testing.assert_array_equal(found["d_h0"], final["h"])


@pytest.mark.parametrize("name", NAMES)
def test_saturated_gates_stay_finite(name):
    x, weights, initial, dy, final = problem(name)
    found = by_hand(name, 1e4 * x, weights, initial, dy, final)
    bounded = "no_input_activation" not in name
    assert all(np.isfinite(v).all() for v in found.values())
    assert not bounded or np.abs(found["final_c"]).max() < 100


def test_the_article_network_never_uses_its_input_gate():
    args = problem("article")
    found = by_hand("article", *args)
    assert not found["d_W"][:6].any() and not found["d_U"][:6].any()
    assert found["d_W"][6:].any()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"x": np.zeros((3, 5))}, ValueError, "x: expected 3 dimensions"),
        ({"x": np.zeros((3, 5, 4), int)}, TypeError, "x: expected a floating dtype"),
        ({"x": np.zeros((3, 5, 4), "f4")}, TypeError, r"weights\['\w'\]: expected float32 as x"),
        ({"h0": np.zeros((3, 6), int)}, TypeError, "h0: expected float64 as x, got int64"),
        ({"x": np.zeros((3, 5, 9))}, ValueError, r"weights\['W'\]"),
        ({"h0": np.zeros((3, 5))}, ValueError, r"h0: expected \(3, 6\)"),
        ({"lengths": np.array([1, 2, 6])}, ValueError, "lengths: expected 0 … 5"),
        ({"lengths": np.array([1, 2, -1])}, ValueError, "lengths: expected 0 … 5"),
        ({"lengths": np.array([1.0, 2.0, 3.0])}, TypeError, "lengths: expected whole numbers"),
        ({"lengths": np.array([1])}, ValueError, r"lengths: expected \(3,\)"),
        ({"variant": "gru"}, ValueError, "variant: expected one of"),
        ({"variant": "peephole"}, ValueError, "weights: expected"),
    ],
)
def test_bad_input_is_named(change, error, says):
    x, weights, *_ = problem("lstm")
    arguments = {"x": x, "weights": weights} | change
    with pytest.raises(error, match=says):
        reference.forward(**arguments)
