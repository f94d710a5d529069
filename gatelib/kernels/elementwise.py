"""A Spec as one fused Triton kernel on torch tensors, differentiable to any order.

Imports torch, gatelib.spec, gatelib.kernels.launch and gatelib.kernels.triton_source.
Must not import gatelib.nn, gatelib.lab or gatelib.reference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatelib.kernels import launch, triton_source
from gatelib.kernels.launch import State
from gatelib.spec import Spec

__all__ = ["Elementwise", "elementwise"]

BLOCK = 512
"""Elements per program."""


class Elementwise:
    """A Spec as one fused kernel: call it with one tensor per input, all of one shape.

    Returns the output, or a tuple of outputs, in the inputs' dtype. The backward kernel is the
    Spec's own VJP; it saves the inputs alone and computes the rest again. Raises TypeError or
    ValueError, naming the input, for a wrong count, dtype, device, shape or layout.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec, self.vjp = spec, spec.vjp("")
        self.names = [str(v) for v in spec.inputs]
        self.seeds = triton_source.seeds(spec, self.vjp)
        self.text = triton_source.elementwise(spec)

    def __call__(self, *inputs: Tensor) -> State:
        launch.check_count(self.spec, self.names, inputs)
        first = launch.check_tensor(self.names[0], inputs[0])
        for name, value in zip(self.names, inputs, strict=True):
            launch.check_tensor(name, value)
            launch.check_like(name, value, first.shape, self.names[0], first)
            launch.check_dtype(name, value, [first.dtype], self.names[0])
        return launch.one_or_all(_Function.apply(self, *inputs))  # type: ignore[no-untyped-call]


def _run(spec: Spec, text: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Launch the elementwise kernel of `spec`."""
    like = inputs[0]
    outputs = [launch.empty(like.shape, like.dtype, like.device) for _ in spec.outputs]
    kernel = launch.load(text)[f"{spec.name}_elementwise"]
    count, dtype = like.numel(), launch.in_triton(like.dtype)
    arguments = [*inputs, *outputs, count]
    launch.run(kernel, -(-count // BLOCK), arguments, BLOCK_=BLOCK, DTYPE_=dtype)
    return outputs


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Elementwise, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        needed = {str(v) for v in plan.vjp.inputs}
        ctx.kept = [n for n in plan.names if n in needed]
        named = dict(zip(plan.names, inputs, strict=True))
        ctx.save_for_backward(*(named[n] for n in ctx.kept))
        return tuple(_run(plan.spec, plan.text, inputs))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The VJP is a Spec, so its kernel has a backward in turn: any order of derivative."""
        plan = ctx.plan
        named = dict(zip(ctx.kept, ctx.saved_tensors, strict=True))
        arrived = dict(zip(map(str, plan.spec.outputs), upstream, strict=True))
        for output, seed in plan.seeds.items():
            named[seed] = arrived[output].contiguous()
        if not named:
            return None, *(torch.zeros_like(upstream[0]) for _ in plan.names)
        inputs = [named[str(v)] for v in plan.vjp.inputs]
        return None, *_Function.apply(elementwise(plan.vjp), *inputs)  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=256)
def elementwise(spec: Spec) -> Elementwise:
    """The fused kernel of `spec`, differentiable to any order: `elementwise(SWIGLU)(a, b)`.

    Raises SpecError for a Spec that looks across the features.
    """
    return Elementwise(spec)
