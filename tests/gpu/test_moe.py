"""Experts on a GPU: the cases of the interpreter, and what it can't show.

Imports torch, gatelib.kernels and the cases alone, so that no Hypothesis is needed.
"""

import pytest
import torch

from gatelib.kernels import segment_grouped
from gatelib.kernels.segments import experts_mlp, experts_mlp_reference, segments

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from tests.kernels.glu_specs import SWIGLU
from tests.kernels.segment_cases import *  # noqa: F403

pytestmark = pytest.mark.gpu


def layer(tokens=4096, features=512, size=256, experts=64, slots=8, dtype=torch.bfloat16):
    """Indices, and leaves of ordinary sizes."""

    def made(*shape, scale=1.0):
        return (scale * torch.randn(*shape, device="cuda")).to(dtype).requires_grad_()

    indices = torch.rand(tokens, experts, device="cuda").topk(slots, -1).indices
    weights = torch.rand(tokens, slots, device="cuda", requires_grad=True)
    stacks = made(experts, 2 * size, features, scale=0.05), made(experts, features, size, scale=0.1)
    return indices, (made(tokens, features), weights, *stacks)


def results(form, indices, leaves):
    x, weights, *stacks = leaves
    y = form(SWIGLU, x, indices, weights, *stacks)
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


def test_a_full_size_agrees_and_a_second_run_gives_the_same_bits():
    indices, leaves = layer()
    assert segment_grouped.goes(leaves[0], segments(indices, 64), leaves[2:])
    first, second = (results(experts_mlp, indices, leaves) for _ in range(2))
    assert all(map(torch.equal, first, second))
    plain = results(experts_mlp_reference, indices, leaves)
    wide = [v.detach().float().requires_grad_() for v in leaves]
    exact = results(experts_mlp_reference, indices, wide)
    for mine, usual, truth in zip(first, plain, exact, strict=True):
        own, theirs = ((v.float() - truth).abs().max() for v in (mine, usual))
        assert own <= 2 * theirs + 0.01 * truth.abs().max()


def test_no_expert_of_many_gets_a_gradient_that_it_has_not_earned():
    """An empty group's product once came back as it was in memory."""
    indices, leaves = layer(experts=64)
    d_in, d_out = results(experts_mlp, indices % 5, leaves)[3:]
    assert not d_in[5:].any() and not d_out[5:].any() and d_in[:5].any()


def test_nothing_waits_for_the_gpu():
    indices, leaves = layer()
    results(experts_mlp, indices, leaves)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(experts_mlp, indices, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_wider_types_agree(dtype):
    indices, leaves = layer(512, 64, 32, 8, 2, dtype)
    weights = leaves[1].detach().to(dtype).requires_grad_()
    leaves = leaves[0], weights, *leaves[2:]
    for got, known in zip(
        *(results(form, indices, leaves) for form in (experts_mlp, experts_mlp_reference)),
        strict=True,
    ):
        torch.testing.assert_close(got, known, rtol=1e-3, atol=1e-3)
