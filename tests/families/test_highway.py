"""The witnesses of gates over depth agree: equations, NumPy by hand, torch by autograd, fused."""

from __future__ import annotations

import copy
import pickle
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
from gatelib.spec import Spec
from tests.families.witnesses import assert_agree, named

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


# --- derivatives in graphs with several calls -------------------------------------------------


def pair_of(kind=("tanh", True), features=4, layers=2):
    """The same stack by the operator and by the plain loop."""
    torch.manual_seed(1)
    fused = Highway(features, layers, kind[0], coupled=kind[1], impl="fused", dtype=torch.float64)
    plain = copy.deepcopy(fused)
    plain.impl = "reference"
    return fused, plain


def gradients(value, wanted, **options):
    return torch.autograd.grad(value, wanted, allow_unused=True, **options)


def assert_all_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def chained(layer, x):
    return layer(layer(x)).sum(), (x, *layer.parameters())


def carried(layer, x):
    """What one call gives is kept, and enters a later call beside a new input."""
    state = torch.zeros_like(x)
    for _ in range(3):
        state = layer(x + state)
    return state.square().sum(), (x, *layer.parameters())


def computed_from_each_other(layer, x):
    """The input is made of the weights, and the weights of the input."""
    weight = layer.weight + 0.1 * x.mean()
    seen = x * layer.bias.sum()
    call = torch.func.functional_call(layer, {"weight": weight}, (seen,))
    return call.square().sum(), (x, *layer.parameters())


def tied(layer, x):
    """One leaf is the input and each layer's weight."""
    weight = x.T @ x
    shape = layer.weight.shape
    tied_weight = weight.repeat(shape[1] // 4, 1).expand(shape)
    given = {"weight": tied_weight, "bias": layer.bias}
    return torch.func.functional_call(layer, given, (x,)).sum(), (x, layer.bias)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", [chained, carried, computed_from_each_other, tied])
def test_gradients_are_the_same_where_a_graph_of_them_is_asked_for(graph, kind):
    base = torch.randn(5, 4, dtype=torch.float64)
    for layer in pair_of(kind):
        x = base.clone().requires_grad_()
        once = gradients(*graph(layer, x))
        again = gradients(*graph(layer, x), create_graph=True)
        assert_all_close(again, once)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", [chained, carried, computed_from_each_other, tied])
def test_first_and_second_derivatives_of_several_calls_are_the_plain_loops(graph, kind):
    base, found = torch.randn(5, 4, dtype=torch.float64), []
    for layer in pair_of(kind):
        x = base.clone().requires_grad_()
        value, wanted = graph(layer, x)
        first = gradients(value, wanted, create_graph=True)
        penalty = sum(g.square().sum() for g in first if g is not None)
        found.append([*first, *gradients(penalty, wanted)])
    assert_all_close(*found)


def test_two_chained_calls_give_the_weight_the_gradient_that_was_seen_in_a_report():
    """‖∂L/∂weight‖ was half as large again with create_graph."""
    torch.manual_seed(0)
    layer, x = Highway(4), torch.randn(3, 4)
    norms = []
    for create_graph in (False, True):
        value = layer(layer(x)).sum()
        (gradient,) = torch.autograd.grad(value, layer.weight, create_graph=create_graph)
        norms.append(float(gradient.detach().norm()))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_the_cost_of_chained_calls_grows_linearly_with_their_number(monkeypatch):
    """Counted in runs of the plain loop: one a call."""
    layer, _ = pair_of()
    runs = []
    plain = kernel.plain
    monkeypatch.setattr(kernel, "plain", lambda *given: runs.append(0) or plain(*given))
    for calls in (1, 2, 4, 8):
        x = start = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
        for _ in range(calls):
            x = layer(x)
        runs.clear()
        gradients(x.sum(), (start, layer.weight), create_graph=True)
        assert len(runs) == calls


def test_a_step_of_maml_is_differentiated_through():
    x, base = torch.randn(5, 4, dtype=torch.float64), []
    for layer in pair_of(("relu", True)):
        weight = layer.weight.detach().clone().requires_grad_()

        def loss(weight, layer=layer):
            return torch.func.functional_call(layer, {"weight": weight}, (x,)).square().mean()

        (step,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
        base.append(torch.autograd.grad(loss(weight - 0.5 * step), weight))
    assert_all_close(*base)


def test_many_upstream_gradients_at_once_are_as_one_by_one():
    fused, plain = pair_of()
    x = torch.randn(5, 4, dtype=torch.float64)
    found = []
    for layer in (fused, plain):
        vectorized = torch.autograd.functional.jacobian(layer, x, vectorize=True)
        assert_all_close([vectorized], [torch.autograd.functional.jacobian(layer, x)])
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        seeds = torch.eye(20, dtype=torch.float64).view(20, 5, 4)
        (batched,) = torch.autograd.grad(y, inputs, seeds, is_grads_batched=True)
        torch.testing.assert_close(batched.view(5, 4, 5, 4), vectorized)
        found.append(vectorized)
    torch.testing.assert_close(*found)


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).square().sum()),
    "vjp": lambda f: lambda x: torch.func.vjp(f, x)[1](torch.ones_like(x))[0],
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "hessian": lambda f: torch.func.hessian(lambda x: f(x).square().sum()),
    "vmap": torch.vmap,
    "gradients of each example": lambda f: torch.vmap(torch.func.grad(lambda x: f(x).sum())),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_default_works_under_torch_funcs_transforms(transform, kind):
    fused, plain = pair_of(kind)
    fused.impl = "auto"
    x = torch.randn(3, 4, dtype=torch.float64)
    assert_all_close([transform(fused)(x)], [transform(plain)(x)])


# --- a layer of the reader's own ----------------------------------------------------------------

OWN = {
    "swish": ("a_h a_t x -> y", "t = sigmoid(a_t); y = t*a_h*sigmoid(a_h) + (1 - t)*x"),
    "residual": ("a_h x -> y", "h = relu(a_h); y = h + x"),
    "never sees x itself": ("a_h -> y", "y = relu(a_h)"),
    "saves its output": ("a_h x -> y", "h = tanh(a_h); y = exp(h*x)"),
    "gate first": ("a_t a_h x -> y", "t = sigmoid(a_t); h = tanh(a_h); y = t*h + (1 - t)*x"),
    "output is a gate": ("a_h a_y x -> y", "h = tanh(a_h) * x; y = sigmoid(a_y + h)"),
    "gates apart": (
        "a_h a_t a_g a_c x -> y",
        "h = tanh(a_h); t = sigmoid(a_t); g = tanh(a_g); c = sigmoid(a_c); y = t*h*g + c*x",
    ),
    "a gate read twice": ("a_h a_t x -> y", "t = sigmoid(a_t); h = tanh(a_h*t + a_t); y = t*h + x"),
    "quotient": ("a_h a_t x -> y", "e = exp(-a_t); y = (tanh(a_h) + x)/(1.5 + e)"),
    "mean": ("a_h a_t x -> y", "m = mean(a_h); t = sigmoid(a_t); y = t*(a_h - m) + (1 - t)*x"),
    "mean of a gate": ("a_h a_t x -> y", "t = sigmoid(a_t); m = mean(t); y = m*tanh(a_h) + t*x"),
    "normalised": ("a_h a_t x -> y", "n = normalize(a_h); t = sigmoid(a_t); y = t*n + x"),
    "maximum": ("a_h a_t x -> y", "h = maximum(a_h, 0.1*x); t = sigmoid(a_t); y = t*h + (1 - t)*x"),
    "generated names": (
        "a_h a_d_x x -> y",
        "d_x = sigmoid(a_d_x); d_y = tanh(a_h); g_y = d_y*d_x; tmp_0 = g_y + 1; "
        "n_1 = tmp_0*x; d_h = n_1*d_y; y = d_x*d_h + (1 - d_x)*x",
    ),
    "names of copies": (
        "a_h a_t x -> y",
        "y_saved = tanh(a_h); a_h_saved = a_h*a_t; y = exp(y_saved)*a_h_saved + x",
    ),
}


def own(name):
    signature, text = OWN[name]
    return Spec.parse("own", signature, text.replace("; ", "\n"))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("layers", [1, 3])
def test_a_layer_of_the_readers_own_has_the_plain_loops_derivatives(name, layers):
    torch.manual_seed(0)
    fused = Highway(3, layers, spec=own(name), impl="fused", dtype=torch.float64)
    plain = copy.deepcopy(fused)
    plain.impl = "reference"
    base, found = torch.randn(4, 3, dtype=torch.float64), []
    for layer in (fused, plain):
        x = base.clone().requires_grad_()
        y, wanted = layer(x), (x, *layer.parameters())
        once = gradients(y.sin().sum(), wanted)
        first = gradients(layer(x).sin().sum(), wanted, create_graph=True)
        with torch.no_grad():
            quiet = layer(x)
        found.append([y, quiet, *once, *first, *gradients(sum(g.sum() for g in first), wanted)])
    assert_all_close(*found)


@pytest.mark.parametrize("name", [name for name in OWN if name != "generated names"])
def test_a_layer_of_the_readers_own_computes_what_its_equations_derive(name):
    spec, rng = own(name), np.random.default_rng(1)
    blocks = len(layer_of(spec).blocks)
    weights = {"W": rng.normal(size=(2, 3 * blocks, 3)), "b": rng.normal(size=(2, 3 * blocks))}
    x, dy = rng.normal(size=(2, 4, 3))
    expected = by_equations(spec, x, weights, dy)
    module = Highway(3, 2, spec=spec, impl="fused")

    def run(given):
        return {"y": lab.called(module, {"weight": given["W"], "bias": given["b"]}, given["x"])}

    bound = 1e-11 * (1 + max(np.abs(v).max() for v in expected.values()))
    assert_agree(lab.gradients(run, {"x": x} | weights, {"y": dy}), expected, bound)


@pytest.mark.parametrize("name", OWN)
def test_values_of_a_layer_of_the_readers_own_are_those_of_the_forward_pass(name):
    module, x = Highway(3, 2, spec=own(name)), torch.randn(4, 3)
    values = module.values(x)
    torch.testing.assert_close(values["y"][-1], module(x))


def test_every_buffer_of_the_operator_is_written_before_it_is_read(monkeypatch):
    """New memory holds NaN here, so what nobody wrote would be seen."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def filled(make):
        return lambda *args, **options: make(*args, **options).fill_(torch.nan)

    for name in OWN:
        module = Highway(3, 3, spec=own(name), impl="fused", dtype=torch.float64)
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "new_empty", filled(new_empty))
            patch.setattr(torch, "empty_like", filled(empty_like))
            y = module(x)
            found = [y, *gradients(y.sum(), (x, *module.parameters()))]
        assert not any(v.isnan().any() for v in found), name


def test_a_layer_of_the_readers_own_is_copied_pickled_and_shown_by_name():
    module = Highway(3, 2, spec=own("swish"))
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(torch.ones(1, 3)), module(torch.ones(1, 3)))
    assert repr(module) == "Highway(3, layers=2, spec=own, bias=-1, impl='auto')"
    assert repr(Highway(3)) == (
        "Highway(3, layers=1, activation='relu', bias=-1, coupled=True, impl='auto')"
    )


BAD_SPECS = {
    "text": ("y = x", TypeError, "spec: expected a Spec, got str"),
    "other input": (Spec.parse("odd", "a_h z x -> y", "y = a_h*z + x"), ValueError, "odd .*`z`"),
    "carry": (Spec.parse("odd", "a_h y_prev -> y", "y = a_h + y_prev"), ValueError, "y_prev"),
    "two outputs": (
        Spec.parse("odd", "a_h x -> h y", "h = a_h\ny = h + x"),
        ValueError,
        "`y` alone",
    ),
    "no weights": (Spec.parse("odd", "x -> y", "y = tanh(x)"), ValueError, "spec: .*odd"),
    "one number a row": (
        Spec.parse("odd", "a_h -> y", "y = mean(a_h)"),
        ValueError,
        "every feature",
    ),
}


@pytest.mark.parametrize("case", BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_a_spec_that_is_no_layer_is_refused(case):
    spec, kind, message = case
    with pytest.raises(kind, match=message):
        Highway(3, spec=spec)


def test_a_spec_beside_the_options_that_it_replaces_is_refused():
    with pytest.raises(ValueError, match="spec: expected None where activation or coupled"):
        Highway(3, coupled=False, spec=own("swish"))


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
    y, last = layer(x)
    first, state = layer(x[:, :2])
    second, end = layer(x[:, 2:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), y)
    torch.testing.assert_close(end, last)
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
