"""The witnesses of gates over depth agree: equations, NumPy by hand, torch by autograd, fused."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatelib import derived, lab
from gatelib.equations import gru, lstm
from gatelib.equations import highway as equations
from gatelib.kernels import highway as kernel
from gatelib.kernels.layers import layer as layer_of
from gatelib.nn import GTrXLGate, Highway, Recurrent, RecurrentHighway
from gatelib.reference import highway as reference
from tests.families.witnesses import assert_agree, assert_read_in_pieces, named

KINDS = [(a, c) for a in equations.ACTIVATIONS for c in (True, False)]


def problem(N=4, D=5, L=3, coupled=True, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    weights = reference.initialize(rng, D, L, coupled=coupled)
    return scale * rng.normal(size=(N, D)), weights, rng.normal(size=(N, D))


def by_hand(x, weights, dy, activation="relu", coupled=True):
    y, saved = reference.forward(x, weights, activation, coupled)
    return {"y": y} | {f"d_{k}": v for k, v in reference.backward(dy, saved).items()}


def by_equations(spec, x, weights, dy):
    run = partial(derived.highway.layers, spec)
    return derived.gradients(run, {"x": x} | weights, {"y": dy})


def by_torch(x, weights, dy, activation="relu", coupled=True, impl="auto"):
    layers, _, size = weights["W"].shape
    module = Highway(size, layers, activation, coupled=coupled, impl=impl)

    def run(given):
        return {"y": lab.called(module, {"weight": given["W"], "bias": given["b"]}, given["x"])}

    return lab.gradients(run, {"x": x} | weights, {"y": dy})


# --- the stack --------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    shape=st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 4)),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_four_witnesses_agree_for_any_shape_and_size(kind, shape, scale, seed):
    x, weights, dy = problem(*shape, kind[1], seed, scale)
    expected = by_equations(equations.layer(*kind), x, weights, dy)
    bound = 1e-11 * (1 + max(np.abs(v).max(initial=0.0) for v in expected.values()))
    assert_agree(by_hand(x, weights, dy, *kind), expected, bound)
    assert_agree(by_torch(x, weights, dy, *kind, impl="reference"), expected, bound)
    assert_agree(by_torch(x, weights, dy, *kind, impl="fused"), expected, bound)


@pytest.mark.parametrize("gate", [-50.0, 50.0])
@pytest.mark.parametrize("coupled", [True, False])
def test_gates_far_out_are_open_or_shut_and_everything_stays_finite(gate, coupled):
    x, weights, dy = problem(coupled=coupled)
    weights["b"][:, 5:10] = gate
    weights["b"][:, 10:] = -gate
    found = by_torch(x, weights, dy, coupled=coupled, impl="fused")
    assert_agree(found, by_hand(x, weights, dy, coupled=coupled))
    if gate < 0:
        assert np.abs(found["y"] - x).max() < 1e-12
        assert np.abs(found["d_x"] - dy).max() < 1e-12
    else:
        for W, b in zip(weights["W"], weights["b"], strict=True):
            x = np.maximum(x @ W[:5].T + b[:5], 0)
        assert np.abs(found["y"] - x).max() < 1e-12


def test_the_fused_path_errs_no_more_than_the_plain_one_in_single_precision():
    x, weights, dy = problem(32, 16, 20, seed=3)
    exact = by_hand(x, weights, dy)
    found = {}
    for impl in ("reference", "fused"):
        module = Highway(16, 20, impl=impl)
        module.weight.data, module.bias.data = (torch.tensor(weights[k]).float() for k in "Wb")
        inputs = torch.tensor(x, dtype=torch.float32, requires_grad=True)
        y = module(inputs)
        (y * torch.tensor(dy).float()).sum().backward()
        parts = {"y": y, "d_x": inputs.grad, "d_W": module.weight.grad, "d_b": module.bias.grad}
        found[impl] = {k: v.detach().double().numpy() for k, v in parts.items()}
    for key, truth in exact.items():
        plain = np.abs(found["reference"][key] - truth).max()
        budget = 2 * (plain + np.finfo(np.float32).eps * np.abs(truth).max())
        assert np.abs(found["fused"][key] - truth).max() <= budget, key


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives_of_the_operator_pass_gradcheck(kind):
    x, weights, _ = problem(2, 2, 2, kind[1], seed=5)
    inputs = [torch.tensor(v, requires_grad=True) for v in (x, weights["W"], weights["b"])]
    known = layer_of(equations.layer(*kind))
    assert torch.autograd.gradcheck(lambda *a: kernel.fused(known, *a, True), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: kernel.fused(known, *a, True), inputs)


def test_only_what_needs_a_gradient_gets_one():
    module, x = Highway(3, 2), torch.randn(4, 3)
    module(x).sum().backward()
    assert x.grad is None and module.weight.grad is not None
    module.requires_grad_(False)
    x.requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not module(x).requires_grad


def test_expanded_and_strided_gradients_and_inputs_are_read_right():
    module = Highway(4, 3, impl="fused", dtype=torch.float64)
    plain = copy.deepcopy(module)
    plain.impl = "reference"
    base = torch.randn(4, 6, dtype=torch.float64)
    found = []
    for layer in (module, plain):
        x = base.clone().requires_grad_()
        layer(x.t()).sum().backward()
        found.append((x.grad, layer.weight.grad))
    for fused, expected in zip(*found, strict=True):
        torch.testing.assert_close(fused, expected)


def test_rows_do_not_leak_into_each_other():
    module, x = Highway(4, 3), torch.randn(5, 4)
    y = module(x)
    x[2] = torch.nan
    again = module(x)
    rest = torch.tensor([0, 1, 3, 4])
    assert torch.equal(again[rest], y[rest]) and again[2].isnan().all()


def saved_values(layer, x):
    """Numbers that the graph holds on to, apart from weights and the input."""
    sizes = {}

    def keep(value):
        storage = value.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes() // value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        y = layer(x)
    own = {v.untyped_storage().data_ptr() for v in (x, layer.weight, layer.bias)}
    assert y.requires_grad
    return sum(size for at, size in sizes.items() if at not in own)


def test_the_fused_path_saves_at_most_two_values_a_unit_and_layer():
    x = torch.randn(32, 16)
    fused, plain = (saved_values(Highway(16, 10, impl=i), x) for i in ("fused", "reference"))
    assert fused <= 2 * 32 * 16 * 10
    assert fused <= 0.7 * plain


def test_compile_and_export_see_one_operator():
    module, x = Highway(4, 3), torch.randn(2, 5, 4)
    graphs = []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), module(x))
    assert sum("highway" in name for name in graphs[0]) == 1
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x))
    torch._dynamo.reset()


def deep_and_narrow(impl):
    """A net whose weights bfloat16 holds exactly, an input of that kind, and the true output."""
    torch.manual_seed(0)
    module, x = Highway(8, 60, bias=-3.0, impl=impl), torch.randn(16, 8).bfloat16()
    module.load_state_dict(module.bfloat16().state_dict())
    return module.float(), x, module.float()(x.float())


def test_the_fused_path_rounds_once_where_weights_or_autocast_are_of_low_precision():
    module, x, exact = deep_and_narrow("fused")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x.float()), exact.bfloat16())
    assert torch.equal(module.bfloat16()(x), exact.bfloat16())


def test_the_plain_path_keeps_the_stream_in_single_precision():
    module, x, exact = deep_and_narrow("reference")
    exact = exact.detach()
    with torch.no_grad():
        ours = module.bfloat16()(x)
        narrow = kernel.plain(module.layer, x, module.weight, module.bias)
    assert ours.dtype == torch.bfloat16
    error = {k: float((v.float() - exact).abs().mean()) for k, v in {0: ours, 1: narrow}.items()}
    assert error[0] < 0.5 * error[1]


def test_vmap_maps_the_operator_and_what_it_does_not_know_takes_the_plain_path():
    module, x = Highway(3, 2), torch.randn(4, 3)
    _, tangent = torch.func.jvp(module, (x,), (torch.ones_like(x),))
    assert tangent.shape == x.shape
    expected = module(x)
    module.impl = "fused"
    torch.testing.assert_close(torch.vmap(module)(x), expected)
    torch.testing.assert_close(torch.vmap(module, in_dims=1)(x.T), expected)
    with pytest.raises(ValueError, match=r"impl: expected 'auto' or 'reference' inside .*grad"):
        torch.func.grad(lambda x: module(x).sum())(x)


def test_values_are_those_of_the_forward_pass():
    for coupled in (True, False):
        module, x = Highway(3, 4, coupled=coupled), torch.randn(2, 5, 3)
        values = module.values(x)
        assert all(v.shape == (4, 2, 5, 3) for v in values.values())
        torch.testing.assert_close(values["y"][-1], module(x))
        torch.testing.assert_close(values["x"][1:], values["y"][:-1])


def test_a_gate_starts_where_its_bias_says():
    module = Highway(64, 2, bias=-3.0, coupled=False)
    with torch.no_grad():
        values = module.values(torch.zeros(1, 64))
    assert abs(float(values["t"][0].mean()) - 1 / (1 + np.exp(3.0))) < 1e-6
    assert abs(float(values["c"][0].mean()) - 1 / (1 + np.exp(-3.0))) < 1e-6


# --- algebra ----------------------------------------------------------------------------------


def test_open_gates_of_the_uncoupled_layer_tend_to_the_residual_layer():
    assert equations.UNCOUPLED.limit(a_t=sp.oo, a_c=sp.oo).same_as(equations.RESIDUAL)


def test_the_coupled_layer_tends_to_the_identity_and_to_the_plain_layer():
    assert equations.HIGHWAY.limit(a_t=-sp.oo).compose()["y"] == sp.Symbol("x", real=True)
    assert equations.HIGHWAY.limit(a_t=sp.oo).same_as(equations.PLAIN)


def test_no_fixed_gate_makes_the_coupled_layer_residual():
    t, h, x = sp.symbols("t h x", real=True)
    y = t * h + (1 - t) * x
    equal = sp.solve(sp.Poly(y - (h + x), h, x).coeffs(), t, dict=True)
    assert equal == []


def test_a_coupled_lstm_cell_is_a_highway_layer_turned_on_its_side():
    cell = lstm.CIFG.compose()["c"]
    names = {"c_prev": "x", "a_g": "a_h", "a_f": "a_t"}
    turned = cell.subs({sp.Symbol(a, real=True): sp.Symbol(b, real=True) for a, b in names.items()})
    a_t = sp.Symbol("a_t", real=True)
    ours = equations.layer("tanh").compose()["y"]
    assert sp.simplify(turned.subs(a_t, -a_t) - ours) == 0


def test_the_gate_of_gtrxl_is_chungs_gru_over_depth():
    names = {"h_prev": "x", "a_n": "a_h"}
    renamed = {sp.Symbol(a, real=True): sp.Symbol(b, real=True) for a, b in names.items()}
    gate = equations.GTRXL_RESET.subs(b=0), equations.GTRXL_WRITE
    for theirs, ours in zip(gru.CHUNG.stages, gate, strict=True):
        found = theirs.compose().values()
        for mine, other in zip(ours.compose().values(), found, strict=True):
            assert sp.simplify(mine - other.subs(renamed)) == 0


# --- GTrXL ------------------------------------------------------------------------------------


def gtrxl_problem(N=4, D=5, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    x, y = scale * rng.normal(size=(N, D)), scale * rng.normal(size=(N, D))
    return x, y, reference.initialize_gtrxl(rng, D), rng.normal(size=(N, D))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 5)),
    scale=st.sampled_from([0.0, 1.0, 50.0]),
    seed=st.integers(0, 99),
)
def test_three_witnesses_of_the_gtrxl_gate_agree(shape, scale, seed):
    x, y, weights, dg = gtrxl_problem(*shape, seed, scale)
    case = {"x": x, "y": y} | weights, {"g": dg}
    expected = derived.gradients(partial(derived.highway.gtrxl, equations.GTRXL), *case)
    bound = 1e-11 * (1 + max(np.abs(v).max(initial=0.0) for v in expected.values()))
    g, saved = reference.forward_gtrxl(x, y, weights)
    hand = {"g": g} | {f"d_{k}": v for k, v in reference.backward_gtrxl(dg, saved).items()}
    assert_agree(hand, expected, bound)
    layer, names = GTrXLGate(shape[1]), {"weight_y": "W_y", "weight_x": "W_x", "bias": "b"}

    def run(given):
        own = {name: given[key] for name, key in names.items()}
        return {"g": lab.called(layer, own, given["x"], given["y"])}

    assert_agree(lab.gradients(run, *case), expected, bound)


def test_the_gtrxl_gate_starts_near_the_identity():
    torch.manual_seed(0)
    x, y = torch.randn(64, 16), torch.randn(64, 16)
    with torch.no_grad():
        moved = {b: GTrXLGate(16, bias=b)(x, y) - x for b in (0.0, 2.0, 40.0)}
    gap = {b: float(change.abs().mean()) for b, change in moved.items()}
    assert gap[40.0] < 1e-6 < gap[2.0] < 0.5 * gap[0.0]


# --- recurrent highway ------------------------------------------------------------------------


def recurrent_problem(B=3, T=4, D=2, H=5, depth=3, coupled=True, seed=0):
    rng = np.random.default_rng(seed)
    weights = reference.initialize_recurrent(rng, D, H, depth, coupled=coupled)
    x, h0 = rng.normal(size=(B, T, D)), rng.normal(size=(B, H))
    return x, weights, h0, rng.normal(size=(B, T, H)), rng.normal(size=(B, H))


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_three_witnesses_of_the_recurrent_highway_agree(depth, coupled):
    x, weights, h0, dy, dh = recurrent_problem(depth=depth, coupled=coupled)
    case = named(x, weights, h0, dy, dh)
    kinds = {True: equations.RECURRENT_HIGHWAY, False: equations.RECURRENT_UNCOUPLED}
    expected = derived.gradients(partial(derived.highway.recurrent, kinds[coupled]), *case)
    y, h, saved = reference.forward_recurrent(x, weights, h0, coupled)
    hand = {f"d_{k}": v for k, v in reference.backward_recurrent(dy, dh, saved).items()}
    assert_agree({"y": y, "final_h": h} | hand, expected)
    layer = RecurrentHighway(2, 5, depth, coupled=coupled)
    run = lab.over_time(layer, W="weight_ih", U="weight_hh", b="bias")
    assert_agree(lab.gradients(run, *case), expected)


def test_at_depth_one_it_is_the_recurrent_layer_of_its_spec():
    x, weights, h0, _, _ = recurrent_problem(depth=1)
    peer = Recurrent(equations.RECURRENT_HIGHWAY, 2, 5, dtype=torch.float64)
    peer.weight_ih_l0.data, peer.weight_hh_l0.data, peer.bias_ih_l0.data = (
        torch.tensor(v) for v in (weights["W"], weights["U"][0], weights["b"][0])
    )
    y, _ = peer(torch.tensor(x), {"h": torch.tensor(h0)[None]})
    ours, _, _ = reference.forward_recurrent(x, weights, h0)
    assert np.abs(y.detach().numpy() - ours).max() < 1e-12


def test_micro_steps_with_tied_weights_are_steps_without_input():
    x, weights, h0, _, _ = recurrent_problem(depth=1)
    tied = {"W": weights["W"], "U": weights["U"].repeat(3, 0), "b": weights["b"].repeat(3, 0)}
    stretched = np.zeros((3, 12, 2))
    stretched[:, ::3] = x
    y, _, _ = reference.forward_recurrent(x, tied, h0)
    long, _, _ = reference.forward_recurrent(stretched, weights, h0)
    np.testing.assert_allclose(y, long[:, 2::3], atol=1e-12)


def test_a_sequence_may_be_empty_or_read_in_pieces():
    layer, x = RecurrentHighway(2, 4, 2), torch.randn(3, 6, 2)
    assert_read_in_pieces(layer, x)
    state = layer(x)[1]
    empty, same = layer(x[:, :0], state)
    assert empty.shape == (3, 0, 4) and torch.equal(same, state)


# --- bad input --------------------------------------------------------------------------------

BAD = [
    (lambda: Highway(0), ValueError, "features: expected at least 1, got 0"),
    (lambda: Highway(3, 1.5), TypeError, "layers: expected an integer, got float"),
    (lambda: Highway(3, activation="gelu"), ValueError, "activation: expected one of"),
    (lambda: Highway(3, bias=True), TypeError, "bias: expected a real number, got bool"),
    (lambda: Highway(3, bias=float("nan")), ValueError, "bias: expected a finite number, got nan"),
    (lambda: Highway(3, coupled=1), TypeError, "coupled: expected True or False, got int"),
    (lambda: Highway(3, impl="fast"), ValueError, "impl: expected 'auto', 'fused' or 'reference'"),
    (lambda: Highway(3, dtype=torch.int64), TypeError, "dtype: expected a floating-point"),
    (lambda: Highway(3)(torch.zeros(2, 4)), ValueError, r"input: expected \(..., 3\), got shape"),
    (lambda: Highway(3)(np.zeros((2, 3))), TypeError, "input: expected a tensor, got ndarray"),
    (lambda: Highway(3)(torch.zeros(2, 3).double()), TypeError, "input: expected torch.float32"),
    (lambda: Highway(3)(torch.tensor(1.0)), ValueError, "input: expected"),
    (lambda: GTrXLGate(3, bias="2"), TypeError, "bias: expected a real number, got str"),
    (
        lambda: GTrXLGate(3)(torch.zeros(2, 3), torch.zeros(1, 3)),
        ValueError,
        r"y: expected x's shape \(2, 3\), got \(1, 3\)",
    ),
    (lambda: RecurrentHighway(3, 4, 0), ValueError, "depth: expected at least 1, got 0"),
    (
        lambda: RecurrentHighway(3, 4)(torch.zeros(2, 5, 3), torch.zeros(2, 3)),
        ValueError,
        r"initial_state: expected shape \(2, 4\), got \(2, 3\)",
    ),
    (lambda: equations.layer("gelu"), ValueError, "activation: expected one of"),
    (
        lambda: reference.forward(np.zeros((2, 3)), problem(D=4)[1]),
        ValueError,
        r"weights\['W'\]: expected \(3, 6, 3\), got \(3, 8, 4\)",
    ),
    (lambda: reference.forward(np.zeros(3), {}), ValueError, "x: expected 2 dimensions"),
    (
        lambda: reference.forward(*problem()[:2], activation="gelu"),
        ValueError,
        "activation: expected one of",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
