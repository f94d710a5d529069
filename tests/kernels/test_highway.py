"""The highway operator: right in every graph and for every layer's Spec, each buffer written.

Its agreement with the other witnesses is tested in `tests/families/test_highway.py`.
"""

from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch

from gatelib import derived
from gatelib.equations import highway as equations
from gatelib.kernels import highway as kernel
from gatelib.kernels.layers import layer as layer_of
from gatelib.nn import Highway
from gatelib.spec import Spec

KINDS = [(a, c) for a in equations.ACTIVATIONS for c in (True, False)]


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
    "has derivative 0": ("a_h -> y", "d_x = 2 - a_h; y = a_h + d_x"),
    "mean": ("a_h a_t x -> y", "m = mean(a_h); t = sigmoid(a_t); y = t*(a_h - m) + (1 - t)*x"),
    "mean of a gate": ("a_h a_t x -> y", "t = sigmoid(a_t); m = mean(t); y = m*tanh(a_h) + t*x"),
    "normalised": ("a_h a_t x -> y", "n = normalize(a_h); t = sigmoid(a_t); y = t*n + x"),
    "maximum": ("a_h a_t x -> y", "h = maximum(a_h, 0.1*x); t = sigmoid(a_t); y = t*h + (1 - t)*x"),
    "fractions": ("a_h a_t x -> y", "t = sigmoid(a_t/0.3); y = 0.9*t*tanh(a_h) - (1 - t)*x/1.5"),
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
    run = partial(derived.highway.layers, spec)
    expected = derived.gradients(run, {"x": x} | weights, {"y": dy})
    module = Highway(3, 2, spec=spec, impl="fused", dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(weights["W"]))
        module.bias.copy_(torch.from_numpy(weights["b"]))
    leaf = torch.tensor(x, requires_grad=True)
    y = module(leaf)
    wanted = (leaf, module.weight, module.bias)
    found = gradients(y, wanted, grad_outputs=torch.from_numpy(dy))
    bound = 1e-11 * (1 + max(np.abs(v).max() for v in expected.values()))
    for got, name in zip((y, *found), ("y", "d_x", "d_W", "d_b"), strict=True):
        assert np.abs(got.detach().numpy() - expected[name]).max() <= bound, name


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
