"""Witnesses of depth agree: equations, NumPy by hand, autograd; and the laws of paths hold.

Imports every floor of the family, NumPy, torch and Hypothesis.
Must not hold a second implementation: a witness is a floor, a derived law, or a sum over all paths.
"""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

from gatelib import derived, lab
from gatelib.equations import depth as equations
from gatelib.nn import LSTM, Deep, Gate, Residual, StochasticDepth
from gatelib.reference import depth as reference
from tests.families.witnesses import assert_agree

KEEP = 0.75
KINDS = ("plain", "residual", "rezero", "layerscale", "stochastic", "postactivation", "dense")
ACTIVATIONS = reference.ACTIVATIONS


def spec_of(kind, activation):
    name = {"rezero": "gated", "layerscale": "gated", "dense": "plain"}.get(kind, kind)
    line = "x" if kind == "postactivation" else "h"
    inner = "x_prev + a" if line == "x" else "x"
    return equations.ALL[name].spec.replace(**{line: f"{activation}({inner})"})


def connection_of(kind):
    return kind if kind in reference.CONNECTIONS else "residual"


def problem(kind, activation="relu", B=3, D=4, L=3, growth=2, seed=0):
    rng = np.random.default_rng(seed)
    alpha = {"rezero": 0.7, "layerscale": rng.normal(size=D)}.get(kind)
    connection = connection_of(kind)
    layers = reference.initialize(rng, D, L, connection, 1.2, growth, alpha)
    for weights in layers:
        weights["b"] = 0.3 * rng.normal(size=weights["b"].shape)
    noise = rng.uniform(size=(L, B)) if kind == "stochastic" else None
    width = D + L * growth if kind == "dense" else D
    x, dy = rng.normal(size=(B, D)), rng.normal(size=(B, width))
    return {"kind": kind, "activation": activation, "x": x, "dy": dy} | {
        "layers": layers,
        "noise": noise,
        "growth": growth,
    }


def masks_of(p):
    if p["noise"] is None:
        return None
    return [(row < KEEP)[:, None] / KEEP for row in p["noise"]]


def case(p):
    """Inputs and upstream gradients by the names of all witnesses: `x`, `0.W`, `0.b`, …"""
    own = {f"{k}.{name}": v for k, w in enumerate(p["layers"]) for name, v in w.items()}
    return {"x": p["x"]} | own, {"y": p["dy"]}


def by_equations(p):
    spec, told = spec_of(p["kind"], p["activation"]), ()
    if p["noise"] is not None:
        told = [{"m": (row < KEEP)[:, None] * 1.0, "keep": KEEP} for row in p["noise"]]
    run = partial(derived.depth.layers, spec, told=told)
    run = partial(derived.depth.dense, spec) if p["kind"] == "dense" else run
    return derived.gradients(run, *case(p))


def run_by_hand(p):
    connection = connection_of(p["kind"])
    return reference.forward(p["x"], p["layers"], connection, p["activation"], masks_of(p))


def by_hand(p):
    y, saved = run_by_hand(p)
    found = reference.backward(p["dy"], saved)
    return {"y": y} | {f"d_{name}": value for name, value in found.items()}


class Chosen(StochasticDepth):
    """Stochastic depth whose noise was chosen beforehand."""

    noise: torch.Tensor | None = None

    def forward(self, x, noise=None):
        return super().forward(x, self.noise)


def module_of(p):
    kind, depth = p["kind"], len(p["layers"])
    connection = connection_of(kind)
    net = Deep(
        p["x"].shape[1],
        depth,
        connection,
        activation=p["activation"],
        growth=p["growth"] if kind == "dense" else None,
        gate=kind if kind in ("rezero", "layerscale") else None,
        drop=1 - KEEP if kind == "stochastic" else 0.0,
        dtype=torch.float64,
    )
    with torch.no_grad():
        for l, (layer, weights) in enumerate(zip(net.layers, p["layers"], strict=True)):
            net.matrices()[l].weight.copy_(torch.tensor(weights["W"]))
            net.matrices()[l].bias.copy_(torch.tensor(weights["b"]))
            if "alpha" in weights:
                layer.alpha.copy_(torch.tensor(weights["alpha"]))
            if p["noise"] is not None:
                layer.drop = Chosen(1 - KEEP)
                layer.drop.noise = torch.tensor(p["noise"][l])
    return net


def by_torch(p):
    net, short = module_of(p), {"weight": "W", "bias": "b", "alpha": "alpha"}
    places = {name: name.split(".") for name, _ in net.named_parameters()}
    names = {name: f"{at[1]}.{short[at[-1]]}" for name, at in places.items()}

    def run(given):
        weights = {place: given[name] for place, name in names.items()}
        return {"y": lab.called(net, weights, given["x"])}

    return lab.gradients(run, *case(p))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_equations_numpy_and_autograd_agree_in_output_and_every_gradient(kind, activation):
    p = problem(kind, activation)
    assert_agree(by_hand(p), by_equations(p))
    assert_agree(by_torch(p), by_hand(p))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    activation=st.sampled_from(ACTIVATIONS),
    sizes=st.tuples(*(st.integers(1, 5) for _ in range(4))),
    seed=st.integers(0, 99),
)
def test_all_witnesses_agree_for_any_shape(kind, activation, sizes, seed):
    p = problem(kind, activation, *sizes, seed=seed)
    assert_agree(by_hand(p), by_equations(p))
    assert_agree(by_torch(p), by_hand(p))


# --- paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_all_path_lengths_add_up_to_the_gradient(kind):
    p = problem(kind, "tanh")
    saved = run_by_hand(p)[1]
    paths = reference.gradient_by_path_length(p["dy"], saved)
    assert paths.shape == (4, *p["x"].shape)
    np.testing.assert_allclose(paths.sum(0), reference.backward(p["dy"], saved)["x"], atol=1e-12)


def test_a_plain_net_has_paths_of_one_length_only():
    p = problem("plain")
    paths = reference.gradient_by_path_length(p["dy"], run_by_hand(p)[1])
    assert np.abs(paths[:3]).max() == 0 and np.abs(paths[3]).max() > 0


@pytest.mark.parametrize("kind", ["residual", "rezero", "layerscale", "stochastic"])
def test_each_entry_is_the_sum_over_all_paths_of_that_length(kind):
    """Every path alone: the branches outside a subset are cut, at the slopes of the whole net."""
    p = problem(kind, "relu", L=4)
    _, saved = run_by_hand(p)
    paths = reference.gradient_by_path_length(p["dy"], saved)
    masks = masks_of(p) or [np.ones((3, 1))] * 4
    expected = np.zeros_like(paths)
    for chosen in itertools.product((False, True), repeat=4):
        d = p["dy"]
        for l in reversed(range(4)):
            if chosen[l]:
                w = p["layers"][l]
                d = (d * w.get("alpha", 1.0) * masks[l]) @ w["W"] * (saved.x[l] > 0)
        expected[sum(chosen)] += d
    np.testing.assert_allclose(paths, expected, atol=1e-12)


def test_a_tied_nets_gradient_is_the_sum_over_its_layers():
    p = problem("residual", "tanh")
    p["layers"] = [p["layers"][0]] * 3
    net = Deep(4, 3, activation="tanh", tied=True, dtype=torch.float64)
    assert len(list(net.parameters())) == 2 and len(net.matrices()) == 3
    with torch.no_grad():
        net.matrices()[0].weight.copy_(torch.tensor(p["layers"][0]["W"]))
        net.matrices()[0].bias.copy_(torch.tensor(p["layers"][0]["b"]))
    (net(torch.tensor(p["x"])) * torch.tensor(p["dy"])).sum().backward()
    by_layer = by_hand(p)
    total = sum(by_layer[f"d_{l}.W"] for l in range(3))
    np.testing.assert_allclose(net.matrices()[0].weight.grad.numpy(), total, atol=1e-12)


def test_a_dense_net_with_tied_columns_is_a_residual_net():
    p = problem("residual", "identity")
    y, _ = run_by_hand(p)
    wide = [
        {"W": np.tile(w["W"], (1, l + 1)), "b": w["b"].copy()} for l, w in enumerate(p["layers"])
    ]
    parts, _ = reference.forward(p["x"], wide, "dense", "identity")
    np.testing.assert_allclose(parts.reshape(3, 4, 4).sum(1), y, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 4])
def test_a_residual_chain_multiplies_one_plus_each_weight(depth):
    spec = equations.chain(depth, "residual")
    rng = np.random.default_rng(0)
    values = {str(v): rng.normal() for v in spec.inputs}
    expected = math.prod(1 + values[f"w_{l}"] for l in range(1, depth + 1))
    found = spec.evaluate(values)[f"x_{depth}"]
    assert np.isclose(found, expected * values["x_0"])


def test_a_dense_chain_has_a_path_for_each_subset_of_layers():
    import sympy as sp

    for depth in (1, 2, 4):
        terms = sp.expand(equations.chain(depth, "dense").partial("y", "x_0")).args
        assert len(terms) == 2**depth


# --- modules ----------------------------------------------------------------------------------


def test_a_residual_net_with_gates_at_zero_is_the_identity_and_its_gates_learn_first():
    net = Deep(5, 20, gate="rezero")
    x = torch.randn(3, 5)
    assert torch.equal(net(x), x)
    net(x).square().sum().backward()
    assert all(layer.alpha.grad.abs() > 0 for layer in net.layers)
    assert all(m.weight.grad.abs().max() == 0 for m in net.matrices())


def test_gates_start_where_they_are_told():
    assert Residual(nn.Linear(3, 3), "rezero").alpha.tolist() == [0.0]
    scaled = Residual(nn.Linear(3, 3), "layerscale", features=3)
    assert scaled.alpha.tolist() == pytest.approx([0.1] * 3)
    scaled = Residual(nn.Linear(3, 3), "layerscale", features=3, initial=1e-6)
    assert scaled.alpha.tolist() == pytest.approx([1e-6] * 3)
    with torch.no_grad():
        scaled.alpha.fill_(9.0)
    scaled.reset_parameters()
    assert scaled.alpha.tolist() == pytest.approx([1e-6] * 3)


def test_layerscale_of_images_gates_channels():
    block = nn.Conv2d(2, 2, 1, bias=False)
    layer = Residual(block, "layerscale", features=2, dim=1)
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([0.0, 2.0]))
    x = torch.randn(3, 2, 4, 2)
    y, f = layer(x), block(x)
    torch.testing.assert_close(y[:, 0], x[:, 0])
    torch.testing.assert_close(y[:, 1], x[:, 1] + 2 * f[:, 1])


def test_a_module_may_be_the_gate_and_a_shortcut_may_change_the_shape():
    block, gate, way = nn.Linear(3, 5), Gate(3, 5), nn.Linear(3, 5)
    x = torch.randn(4, 3)
    found = Residual(block, gate, shortcut=way, activation=nn.ReLU())(x)
    torch.testing.assert_close(found, torch.relu(way(x) + gate(x) * block(x)))


def test_a_recurrent_block_keeps_its_state_beside_the_sum():
    lstm = LSTM(4, 4, batch_first=True)
    x, start = torch.randn(2, 3, 4), (torch.ones(1, 2, 4), torch.ones(1, 2, 4))
    y, state = Residual(lstm)(x, start)
    expected, final = lstm(x, start)
    torch.testing.assert_close(y, x + expected)
    assert all(torch.equal(a, b) for a, b in zip(state, final, strict=True))


def test_stochastic_depth_drops_whole_rows_keeps_the_mean_and_rests_in_eval():
    layer, x = StochasticDepth(0.25), torch.ones(4000, 3)
    torch.manual_seed(0)
    y = layer(x)
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(y.amin(1), y.amax(1))
    assert abs(float(y.mean()) - 1) < 4 * math.sqrt(0.25 / 0.75 / 4000)
    assert layer.eval()(x) is x


def test_stochastic_depth_at_one_shuts_every_branch():
    y = StochasticDepth(1.0)(torch.ones(5, 2))
    assert torch.equal(y, torch.zeros(5, 2))
    net = Deep(3, 2, drop=(0.0, 1.0))
    x = torch.randn(4, 3)
    assert torch.equal(net(x), net.layers[0](x))
    assert not torch.equal(net.eval()(x), net.layers[0](x))


def test_states_are_the_values_between_the_layers():
    net = Deep(4, 3)
    x = torch.randn(2, 4)
    found = net.states(x)
    assert len(found) == 4 and found[0] is x and torch.equal(found[-1], net(x))


@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_default_gain_keeps_signals_at_depth_100(activation):
    """Within a factor of e for a residual net, and of width's chance for a plain ReLU net."""
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    end = Deep(256, 100, "residual", activation=activation)(x)
    ratio = float(end.var() / x.var())
    assert 1.2 < ratio < 4
    plain = Deep(256, 100, "plain", activation=activation, initialization="orthogonal")
    assert float(plain(x).norm() / x.norm()) > 0.05


def test_initialisation_has_the_variance_it_says():
    torch.manual_seed(0)
    net = Deep(200, 2, "plain", gain=1.5)
    assert float(net.matrices()[0].weight.detach().std()) == pytest.approx(
        1.5 / math.sqrt(200), rel=0.02
    )
    narrow = Deep(400, 1, "dense", gain=1.5, growth=100).matrices()[0].weight.detach()
    assert float(narrow.std()) == pytest.approx(1.5 / math.sqrt(400), rel=0.02)
    net = Deep(50, 1, "plain", gain=1.5, initialization="orthogonal")
    w = net.matrices()[0].weight.detach()
    torch.testing.assert_close(w @ w.T, 2.25 * torch.eye(50), atol=1e-4, rtol=1e-4)
    rng = np.random.default_rng(0)
    drawn = reference.initialize(rng, 300, 2, "dense", 1.5, growth=200)[1]["W"]
    assert drawn.shape == (200, 500) and drawn.std() == pytest.approx(
        1.5 / math.sqrt(500), rel=0.02
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_in_float64(kind):
    net = module_of(problem(kind, "tanh", B=2, D=3, L=2))
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(net, (x,))


@pytest.mark.parametrize("kind", ["residual", "rezero", "dense", "postactivation"])
def test_low_precision_stays_within_the_error_that_its_digits_allow(kind):
    p = problem(kind, "tanh", L=8)
    net = module_of(p)
    x = torch.tensor(p["x"])
    exact = net(x).detach()
    for dtype, budget in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        found = copy.deepcopy(net).to(dtype)(x.to(dtype)).detach()
        assert found.dtype == dtype
        assert float((found.double() - exact).abs().max()) < budget


# --- bad input --------------------------------------------------------------------------------


def spoiled(**changes):
    p = problem("rezero")
    layers = [dict(w) for w in p["layers"]]
    x, options = p["x"], {}
    for name, value in changes.items():
        if name == "x":
            x = value
        elif name in ("connection", "activation", "masks"):
            options[name] = value
        else:
            layers[1][name] = value
    return lambda: reference.forward(x, layers, **options)


REFERENCE_BAD = [
    ({"x": np.ones((2, 3, 4))}, ValueError, "x"),
    ({"x": np.ones((3, 4), int)}, TypeError, "x"),
    ({"connection": "skip"}, ValueError, "connection"),
    ({"activation": "gelu"}, ValueError, "activation"),
    ({"connection": "plain"}, ValueError, r"layers\[0\]"),
    ({"W": np.ones((4, 5))}, ValueError, r"layers\[1\]\['W'\]"),
    ({"b": np.ones(3)}, ValueError, r"layers\[1\]\['b'\]"),
    ({"alpha": np.ones(3)}, ValueError, r"layers\[1\]\['alpha'\]"),
    ({"W": np.ones((4, 4), np.float32)}, TypeError, r"layers\[1\]\['W'\]"),
    ({"U": np.ones((4, 4))}, ValueError, r"layers\[1\]"),
    ({"masks": [None]}, ValueError, "masks"),
    ({"masks": [None, np.ones(3), None]}, ValueError, r"masks\[1\]"),
]


@pytest.mark.parametrize("case", range(len(REFERENCE_BAD)))
def test_the_reference_names_what_is_wrong(case):
    changes, error, message = REFERENCE_BAD[case]
    with pytest.raises(error, match=message):
        spoiled(**changes)()


def test_a_chain_names_what_is_wrong():
    with pytest.raises(ValueError, match="depth"):
        equations.chain(0)
    with pytest.raises(ValueError, match="kind"):
        equations.chain(2, "highway")
