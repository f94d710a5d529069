"""Cases for experts on a GPU: grouped products, Triton's kernels, memory that holds NaN.

Imports torch, gatelib.kernels and tests.kernels. `test_segments_compiled.py` runs this file in a
process of its own, under the interpreter; `tests/gpu` runs it compiled.
"""

import pytest
import torch
import torch.nn.functional as F

from gatelib.kernels import glu, segment_grouped
from gatelib.kernels.launch import interpreted
from gatelib.kernels.segments import experts_mlp, experts_mlp_reference, segments
from tests.kernels.glu_leaves import draw
from tests.kernels.glu_specs import FAMILY, SWIGLU, named
from tests.kernels.segment_leaves import ROUTINGS, leaves_of, on_every_device, poisoned, run

if not interpreted() and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)
if not hasattr(F, "grouped_mm"):
    pytest.skip("needs torch 2.10", allow_module_level=True)

DEVICE = "cpu" if interpreted() else "cuda"
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
routed = pytest.mark.parametrize("indices", ROUTINGS.values(), ids=ROUTINGS)


@pytest.fixture(autouse=True)
def by_triton(monkeypatch):
    """Kernels and grouped products run here, and memory is NaN before anybody writes."""
    monkeypatch.setattr(glu, "by_triton", lambda value: True)
    on_every_device(monkeypatch)
    poisoned(monkeypatch)


def moved(leaves, dtype):
    return [v.detach().to(dtype).to(DEVICE).requires_grad_() for v in leaves]


def assert_agrees(spec, indices, dtype):
    """Twice the error of the plain loop in the same type, and 4 roundings."""
    leaves = leaves_of(spec, indices, 16, 24, outputs=8, scale=0.5)
    indices, results = indices.to(DEVICE), []
    pairs = ((experts_mlp, dtype), (experts_mlp_reference, dtype))
    for form, chosen in (*pairs, (experts_mlp_reference, torch.float64)):
        own = moved(moved(leaves, dtype), chosen)
        y = run(form, spec, indices)(*own)
        upstream = draw(*y.shape, seed=3).detach().to(dtype).to(chosen).to(DEVICE)
        results.append([y.detach(), *torch.autograd.grad(y, own, upstream)])
    for mine, usual, exact in zip(*results, strict=True):
        assert mine.shape == exact.shape and mine.isfinite().all()
        if exact.numel():
            own, theirs = ((v.double() - exact).abs().max() for v in (mine, usual))
            assert own <= 2 * theirs + 4 * torch.finfo(dtype).eps * exact.abs().max()


@routed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_agree_whoever_gets_the_tokens(indices, dtype):
    assert_agrees(SWIGLU, indices, dtype)


@named(FAMILY)
def test_experts_of_every_gate_agree(spec):
    assert_agrees(spec, next(iter(ROUTINGS.values())), torch.bfloat16)


@pytest.mark.parametrize("columns", [1, 3, 511, 513, 1100])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_slots_are_summed_and_rows_of_no_expert_left_out(columns, weighted, dtype):
    indices = next(iter(ROUTINGS.values())).to(DEVICE)
    where = segments(indices, 5)
    rows, weights = (draw(*n).detach().to(dtype).to(DEVICE) for n in ((10, columns), (5, 2)))
    rows[7:] = torch.nan
    got = segment_grouped.combined(rows, where, weights if weighted else None)
    pairs = torch.zeros(10, columns, dtype=got.dtype, device=DEVICE)
    pairs[where.order[:7]] = rows[:7].to(got.dtype)
    factor = weights.to(got.dtype) if weighted else torch.ones(5, 2, device=DEVICE)
    expected = (pairs.view(5, 2, columns) * factor[..., None]).sum(1)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_expanded_gradients_arrive_and_a_second_run_gives_the_same_bits():
    indices = next(iter(ROUTINGS.values()))
    leaves = moved(leaves_of(SWIGLU, indices, 16, 24, outputs=8), torch.bfloat16)
    runs = []
    for _ in range(2):
        y = run(experts_mlp, SWIGLU, indices.to(DEVICE))(*leaves)
        runs.append([y, *torch.autograd.grad(y.sum(), leaves)])
    assert all(map(torch.equal, *runs))
