"""Cases for the elementwise kernels; `test_scan.py` runs this file in a process of its own.

Imports torch, gatelib.kernels and tests.kernels.
Must not be run where Triton has neither its interpreter nor a GPU.
"""

import math

import pytest
import torch

from gatelib.kernels.elementwise import elementwise
from gatelib.spec import Spec
from tests.kernels import agreement
from tests.kernels.agreement import (
    DEVICE,
    FUNCTIONS,
    SPECS,
    assert_close,
    both_dtypes,
    draw,
    gradients,
    in_dtype,
    together,
    upstream,
)
from tests.kernels.triton_cells import LSTM, named

spoiled_buffers = agreement.spoiled_buffers
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


def assert_elementwise_agrees(spec, inputs, dtype):
    results = []
    plain = spec.compile("torch")
    for run, chosen in ((elementwise(spec), dtype), (plain, dtype), (plain, torch.float64)):
        xs = in_dtype(inputs, chosen)
        values = together(run(*xs.values()))
        results.append([*values, *gradients(values, xs)])
    assert_close(*results, dtype)


@both_dtypes
@named(SPECS)
def test_elementwise_kernel_agrees_with_autograd(spec, dtype):
    inputs = {str(v): draw(str(v), (7, 151), dtype) for v in spec.inputs}
    assert_elementwise_agrees(spec, inputs, dtype)


@both_dtypes
@pytest.mark.parametrize("function", FUNCTIONS.split())
def test_functions_are_right_from_minus_fifty_to_fifty(function, dtype):
    spec = Spec.parse(f"only_{function}", "x y -> z", f"z = {function}(x)*y")
    x = torch.cat([torch.linspace(-50, 50, 1001), torch.tensor([-3.5, 1e-6, -1e-6, 0.499, 0.501])])
    inputs = {"x": x.to(dtype).to(DEVICE), "y": torch.ones_like(x).to(dtype).to(DEVICE)}
    assert_elementwise_agrees(spec, inputs, dtype)


@both_dtypes
@pytest.mark.parametrize("function", ["log", "sqrt"])
def test_log_and_sqrt_are_right_from_tiny_to_large(function, dtype):
    spec = Spec.parse(f"only_{function}", "x -> z", f"z = {function}(x)")
    inputs = {"x": torch.logspace(-6, 6, 301).to(dtype).to(DEVICE)}
    assert_elementwise_agrees(spec, inputs, dtype)


@both_dtypes
@pytest.mark.parametrize("function", ["sigmoid", "tanh", "softplus", "silu", "gelu", "hardsigmoid"])
def test_far_out_values_are_the_limits(function, dtype):
    spec = Spec.parse(f"only_{function}", "x -> z", f"z = {function}(x)")
    far = torch.tensor([-1e4, -1e3, -90.0, 90.0, 1e3, 1e4], dtype=dtype, device=DEVICE)
    x = far.clone().requires_grad_()
    value = elementwise(spec)(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    expected = spec.compile("torch")(far)
    assert torch.allclose(value, expected, rtol=1e-6, atol=1e-30)
    assert torch.isfinite(slope).all()


@both_dtypes
def test_small_values_keep_their_digits(dtype):
    tanh = elementwise(Spec.parse("only_tanh", "x -> z", "z = tanh(x)"))
    softplus = elementwise(Spec.parse("only_softplus", "x -> z", "z = softplus(x)"))
    x = torch.logspace(-8, 0, 200, dtype=torch.float64).to(dtype).to(DEVICE)
    eps = torch.finfo(dtype).eps
    assert ((tanh(x).double() / torch.tanh(x.double()) - 1).abs() < 4 * eps).all()
    x = torch.linspace(-60, 0, 200, dtype=torch.float64).to(dtype).to(DEVICE)
    truth = torch.log1p(torch.exp(x.double()))
    allowed = (4 + x.double().abs()) * eps
    assert ((softplus(x).double() / truth - 1).abs() < allowed).all()


def test_nan_is_not_hidden():
    for function in FUNCTIONS.split():
        if function != "step":
            spec = Spec.parse(f"only_{function}", "x -> z", f"z = {function}(x)")
            value = elementwise(spec)(torch.full((3,), math.nan, device=DEVICE))
            assert value.isnan().all(), function
    nan, one = torch.full((3,), math.nan, device=DEVICE), torch.ones(3, device=DEVICE)
    for function in ("maximum", "minimum"):
        spec = Spec.parse(f"only_{function}", "x y -> z", f"z = {function}(x, y)")
        assert elementwise(spec)(nan, one).isnan().all()
        assert elementwise(spec)(one, nan).isnan().all()


def test_no_elements_give_no_elements():
    x = torch.empty(0, 4, device=DEVICE, requires_grad=True)
    y = elementwise(Spec.parse("only_tanh", "x -> z", "z = tanh(x)"))(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 4)


def test_elementwise_takes_expanded_gradients():
    spec = Spec.parse("swiglu", "a b -> y", "y = silu(a)*b")
    a, b = (draw(n, (3, 5), torch.float64).requires_grad_() for n in "ab")
    got = torch.autograd.grad(elementwise(spec)(a, b).sum(), [a, b])
    truth = torch.autograd.grad((torch.nn.functional.silu(a) * b).sum(), [a, b])
    assert_close(got, truth, truth, torch.float64)


def test_second_derivatives_of_an_elementwise_kernel_agree():
    for spec in (LSTM, Spec.parse("only_gelu", "x y -> z", "z = gelu(x)*y")):
        xs = {str(v): draw(str(v), (3, 5), torch.float64).requires_grad_() for v in spec.inputs}
        results = []
        for run in (elementwise(spec), spec.compile("torch")):
            values = together(run(*xs.values()))
            total = sum((v * g).sum() for v, g in zip(values, upstream(values), strict=True))
            first = torch.autograd.grad(total, list(xs.values()), create_graph=True)
            results.append([*first, *gradients(first, xs)])
        assert_close(results[0], results[1], results[1], torch.float64)


def test_an_elementwise_kernel_can_be_mapped_and_compiled():
    spec = Spec.parse("swiglu", "a b -> y", "y = silu(a)*b")
    a, b = (draw(n, (3, 5, 4), torch.float64) for n in "ab")
    run = elementwise(spec)
    assert torch.equal(torch.vmap(run, (2, 0))(a.movedim(0, 2), b), run(a, b))
    assert torch.equal(torch.vmap(run, (0, None))(a, b[0]), run(a, b[:1].repeat(3, 1, 1)))
    compiled = torch.compile(lambda a, b: 2 * run(a, b), fullgraph=True, backend="aot_eager")
    a.requires_grad_()
    (slope,) = torch.autograd.grad(compiled(a, b).sum(), a)
    (truth,) = torch.autograd.grad(2 * run(a, b).sum(), a)
    assert torch.equal(slope, truth)


def test_wrong_elementwise_input_is_refused_by_name():
    a, b = torch.zeros(3, 4, device=DEVICE), torch.zeros(3, 5, device=DEVICE)
    swiglu = elementwise(Spec.parse("swiglu", "a b -> y", "y = silu(a)*b"))
    with pytest.raises(ValueError, match=r"b: expected shape \(3, 4\) to go with a"):
        swiglu(a, b)
    with pytest.raises(TypeError, match=r"b: expected torch.float32"):
        swiglu(a, a.double())
    with pytest.raises(ValueError, match="b: expected a contiguous tensor"):
        swiglu(a, torch.zeros(4, 3, device=DEVICE).mT)
