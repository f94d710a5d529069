"""Cases for the Triton kernels of gates over features: right by autograd, tails, strides, rows.

Imports torch, gatelib.kernels and tests.kernels. `test_glu_compiled.py` runs this file in a process
of its own, under the interpreter; `tests/gpu` runs it compiled.
"""

import math

import pytest
import torch

from gatelib.kernels import glu as kernel
from gatelib.kernels.glu import gated, gated_linear
from gatelib.kernels.launch import interpreted
from tests.kernels.glu_leaves import draw, eager, eager_linear, leaves_of
from tests.kernels.glu_specs import ALL, SWIGLU, named

if not interpreted() and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

DEVICE = "cpu" if interpreted() else "cuda"
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


@pytest.fixture(autouse=True)
def by_triton(monkeypatch):
    """The kernels run here, and every buffer is NaN before a kernel writes."""
    new_empty = torch.Tensor.new_empty

    def spoiled(*given, **options):
        return new_empty(*given, **options).fill_(math.nan)

    monkeypatch.setattr(kernel, "by_triton", lambda value: True)
    monkeypatch.setattr(torch.Tensor, "new_empty", spoiled)


def moved(leaves, dtype):
    return [v.detach().to(dtype).to(DEVICE).requires_grad_() for v in leaves]


def assert_agrees(fused, plain, leaves, dtype):
    """float64: 1e-12 of the largest; below, twice the error of torch's own form and a rounding."""
    results = []
    for run, chosen in ((fused, dtype), (plain, dtype), (plain, torch.float64)):
        given = moved(moved(leaves, dtype), chosen)
        y = run(*given)
        upstream = draw(*y.shape, seed=3).detach().to(dtype).to(chosen).to(DEVICE)
        slopes = torch.autograd.grad(y, given, upstream, materialize_grads=True)
        results.append([y, *slopes])
    for mine, theirs, exact in zip(*results, strict=True):
        assert mine.shape == exact.shape and mine.isfinite().all()
        if exact.numel():
            largest = exact.abs().max()
            own = (theirs.double() - exact).abs().max()
            eps = torch.finfo(dtype).eps
            budget = 1e-12 * (1 + largest) if eps < 1e-12 else 2 * own + 4 * eps * largest
            assert (mine.double() - exact).abs().max() <= budget


@named(ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_agree_with_autograd_over_the_equations(spec, dtype):
    leaves = leaves_of(spec, rows=7, size=33, outputs=5)
    assert_agrees(
        lambda *v: gated_linear(spec, *v), lambda *v: eager_linear(spec, *v), leaves, dtype
    )
    assert_agrees(lambda v: gated(spec, v), lambda v: eager(spec, v), leaves[:1], dtype)


@pytest.mark.parametrize("rows", [0, 1, 3, 17])
@pytest.mark.parametrize("columns", [1, 3, 64, 127, 129, 1000, 1100])
def test_tails_of_rows_and_columns_are_masked(rows, columns):
    """Memory behind the results holds what it held."""
    packed = draw(rows, 2 * columns)
    assert_agrees(lambda v: gated(SWIGLU, v), lambda v: eager(SWIGLU, v), [packed], torch.float64)


@pytest.mark.parametrize("gate", ["first", "second"])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_packed_along_any_axis(dim, gate):
    assert_agrees(
        lambda v: gated(SWIGLU, v, dim=dim, gate=gate),
        lambda v: eager(SWIGLU, v, dim, gate),
        [draw(4, 6, 10)],
        torch.float64,
    )


def test_turned_strided_and_expanded_values():
    a, v = draw(40, 6), draw(6, 1, seed=1)
    assert_agrees(
        lambda a, v: gated(SWIGLU, a.t()[:, ::2], v.expand(6, 20)),
        lambda a, v: SWIGLU.compile("torch")(a.t()[:, ::2], v.expand(6, 20)),
        [a, v],
        torch.float64,
    )


def test_expanded_gradients_arrive():
    (packed,) = moved([draw(5, 12)], torch.float64)
    (got,) = torch.autograd.grad(gated(SWIGLU, packed).sum(), packed)
    (expected,) = torch.autograd.grad(eager(SWIGLU, packed).sum(), packed)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_second_backward_gives_the_same_bits_and_inputs_are_not_written():
    leaves = moved(leaves_of(SWIGLU, 9, 40, 5), torch.float32)
    before = [v.detach().clone() for v in leaves]
    y = gated_linear(SWIGLU, *leaves)
    first = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    bits = [g.clone() for g in first]
    second = torch.autograd.grad(y, leaves, torch.ones_like(y))
    assert all(map(torch.equal, second, bits)) and all(map(torch.equal, before, leaves))


def test_second_derivatives_agree():
    results = []
    for run in (gated_linear, eager_linear):
        leaves = moved(leaves_of(SWIGLU), torch.float64)
        once = gradients_here(run(SWIGLU, *leaves), leaves)
        total = sum(g.square().sum() for g in once)
        twice = torch.autograd.grad(total, leaves, materialize_grads=True)
        results.append([*once, *twice])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def gradients_here(value, wanted):
    """First derivatives in a graph."""
    upstream = draw(*value.shape, seed=3).detach().to(DEVICE)
    return torch.autograd.grad(value, wanted, upstream, create_graph=True)
