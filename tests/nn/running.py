"""Runs a layer forward and backward, and says whether results are near enough.

Imports torch.
Must not import Hypothesis or SciPy: a machine with a GPU may have neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

BUDGET = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 0.08, torch.float16: 0.02}
"""The largest error, as a share of the largest value (or of 1)."""


def floats(value: Any) -> list[Tensor]:
    """The floating-point tensors of a result, in order."""
    return [v for v in tree_leaves(value) if torch.is_tensor(v) and v.is_floating_point()]


def forward_and_backward(
    module: nn.Module, inputs: Sequence[Tensor], options: dict[str, Any]
) -> list[Tensor]:
    """The outputs, and the gradients of the inputs and of every parameter."""
    outputs = floats(module(*inputs, **options))
    weighted = [(v.float() if v.dtype.itemsize < 4 else v) for v in outputs if v.requires_grad]
    loss = sum(
        (v * torch.linspace(0.2, 1, v.numel(), device=v.device, dtype=v.dtype).view_as(v)).sum()
        for v in weighted
    )
    wanted = [*(x for x in inputs if x.requires_grad), *module.parameters()]
    return [*outputs, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)]


def assert_near(found: Sequence[Tensor], truth: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Each value within the budget of its type from what float64 gives on the CPU."""
    assert len(found) == len(truth)
    for index, (mine, exact) in enumerate(zip(found, truth, strict=True)):
        assert mine.shape == exact.shape
        largest = max(1.0, exact.abs().max().item() if exact.numel() else 0.0)
        error = (
            (mine.detach().double().cpu() - exact.detach().double().cpu()).abs().max().item()
            if exact.numel()
            else 0.0
        )
        assert error <= BUDGET[dtype] * largest, (
            f"value {index}: {error:.2e} off, {largest:.2e} large"
        )
