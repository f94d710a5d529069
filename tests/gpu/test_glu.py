"""The fused gates over features on a GPU: the cases of the interpreter, and what it can't show.

Imports torch, gatelib.kernels and the cases alone, so that no Hypothesis is needed.
"""

import pytest
import torch

from gatelib.kernels.glu import gated, gated_linear

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from tests.kernels.glu_cases import *  # noqa: F403
from tests.kernels.glu_leaves import eager, eager_linear
from tests.kernels.glu_specs import FAMILY, SWIGLU

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(8192, 3072), (300, 11008), (77, 130)], ids=str)
@pytest.mark.parametrize("spec", FAMILY, ids=lambda spec: spec.name)
def test_a_full_size_agrees(spec, shape, dtype):
    rows, columns = shape
    packed = torch.randn(rows, len(spec.inputs) * columns, device="cuda", dtype=dtype)
    packed.requires_grad_()
    upstream = torch.randn(shape, device="cuda", dtype=dtype)
    y = gated(spec, packed)
    (slope,) = torch.autograd.grad(y, packed, upstream)
    wide = packed.detach().float().requires_grad_()
    truth = eager(spec, wide)
    (true_slope,) = torch.autograd.grad(truth, wide, upstream.float())
    for got, exact in ((y, truth), (slope, true_slope)):
        eps = torch.finfo(dtype).eps
        assert ((got.float() - exact).abs() <= eps * exact.abs() + 1e-5 * exact.abs().max()).all()


def test_elements_past_two_to_the_31_are_reached():
    packed = torch.zeros(2**19 + 1, 4096, dtype=torch.float16, device="cuda")
    packed[-1, 2047], packed[-1, -1] = 3.0, 2.0
    y = gated(SWIGLU, packed)
    expected = 2 * torch.nn.functional.silu(torch.tensor(3.0))
    assert abs(float(y[-1, -1]) - float(expected)) < 1e-2 and not y[:-1].any()
    assert not y[-1, :-1].any()


def test_a_long_row_past_two_to_the_31_is_reached():
    a = torch.zeros(2**31 + 5, dtype=torch.float16, device="cuda")
    a[-1] = 3.0
    y = gated(SWIGLU, a, a)
    assert y[-1] > 8 and y[-2] == 0


def test_a_graph_replays_a_training_step():
    packed = torch.randn(256, 512, device="cuda", requires_grad=True)
    weight = torch.randn(64, 256, device="cuda", requires_grad=True)

    def step():
        return torch.autograd.grad(gated_linear(SWIGLU, packed, weight).sum(), (packed, weight))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    with torch.no_grad():
        packed.copy_(torch.randn_like(packed))
    graph.replay()
    y = eager_linear(SWIGLU, packed, weight).sum()
    for got, expected in zip(found, torch.autograd.grad(y, (packed, weight)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def test_a_second_run_gives_the_same_bits():
    packed = torch.randn(1000, 6144, device="cuda", requires_grad=True)
    weight = torch.randn(512, 3072, device="cuda", requires_grad=True)
    results = []
    for _ in range(2):
        y = gated_linear(SWIGLU, packed, weight)
        results.append([y, *torch.autograd.grad(y.sum(), (packed, weight))])
    assert all(map(torch.equal, *results))
