"""A Spec as one fused Triton kernel on torch tensors, differentiable to any order.

Imports torch, gatelib.spec, and gatelib.kernels' launch, operator and triton_source.
Must not import gatelib.nn, gatelib.lab or gatelib.reference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gatelib.kernels import launch, triton_source
from gatelib.kernels.launch import State
from gatelib.kernels.operator import Operator
from gatelib.spec import Spec

__all__ = ["Elementwise", "elementwise"]

BLOCK = 512
"""Elements per program."""


class Elementwise:
    """A Spec as one fused kernel: call it with one tensor per input, all of one shape.

    Returns the output, or a tuple of outputs, in the inputs' dtype. The backward kernel is the
    Spec's own VJP; it saves the inputs alone and computes the rest again. One operator,
    `gatelib::elementwise`: compile and vmap know it; second derivatives run the torch source.
    Raises TypeError or ValueError, naming the input, for a wrong count, dtype, device, shape or
    layout.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec, self.key = spec, repr(spec)
        self.names = [str(v) for v in spec.inputs]
        self.text = _plan(self.key).text

    def __call__(self, *inputs: Tensor) -> State:
        launch.check_count(self.spec, self.names, inputs)
        first = launch.check_tensor(self.names[0], inputs[0])
        for name, value in zip(self.names, inputs, strict=True):
            launch.check_tensor(name, value)
            launch.check_like(name, value, first.shape, self.names[0], first)
            launch.check_dtype(name, value, [first.dtype], self.names[0])
        return launch.one_or_all(OPERATOR(self.key, list(inputs)))


class _Plan(NamedTuple):
    """A Spec and its VJP with their kernels, and which input of the VJP brings which adjoint."""

    spec: Spec
    text: str
    vjp: Spec
    vjp_text: str
    seeds: dict[str, str]


@functools.lru_cache(maxsize=256)
def _plan(gate: str) -> _Plan:
    spec = Spec.read(gate)
    text, vjp = triton_source.elementwise(spec), spec.vjp("")
    seeds = triton_source.seeds(spec, vjp)
    return _Plan(spec, text, vjp, triton_source.elementwise(vjp) if vjp.inputs else "", seeds)


def _run(spec: Spec, text: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Launch the elementwise kernel of `spec`."""
    like = inputs[0]
    outputs = [launch.empty(like.shape, like.dtype, like.device) for _ in spec.outputs]
    kernel = launch.load(text)[f"{spec.name}_elementwise"]
    count, dtype = like.numel(), launch.in_triton(like.dtype)
    arguments = [*(v.contiguous() for v in inputs), *outputs, count]
    launch.run(kernel, -(-count // BLOCK), arguments, BLOCK_=BLOCK, DTYPE_=dtype)
    return outputs


def _forward(gate: str, values: list[Tensor]) -> list[Tensor]:
    return _run(_plan(gate).spec, _plan(gate).text, values)


def _shapes(gate: str, values: list[Tensor]) -> list[Tensor]:
    like = values[0]
    return [like.new_empty(like.shape) for _ in _plan(gate).spec.outputs]


def _backward(
    d_results: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    gate: str,
    values: list[Tensor],
) -> list[Tensor]:
    """The VJP's own kernel; a VJP without inputs is zero everywhere."""
    plan, like = _plan(gate), values[0]
    named = dict(zip(map(str, plan.spec.inputs), values, strict=True))
    arrived = dict(zip(map(str, plan.spec.outputs), d_results, strict=True))
    for output, seed in plan.seeds.items():
        adjoint = arrived[output]
        named[seed] = torch.zeros_like(like) if adjoint is None else adjoint
    if not plan.vjp.inputs:
        return [torch.zeros_like(like) for _ in values]
    return _run(plan.vjp, plan.vjp_text, [named[str(v)] for v in plan.vjp.inputs])


def _plain(gate: str, values: list[Tensor]) -> list[Tensor]:
    """The same by torch's operations: for second derivatives."""
    spec, dtype = _plan(gate).spec, values[0].dtype
    wide = [v.to(launch.compute_dtype(dtype)) for v in values]
    found = spec.evaluate(dict(zip(map(str, spec.inputs), wide, strict=True)), "torch")
    return [found[str(v)].to(dtype) for v in spec.outputs]


OPERATOR = Operator(
    "elementwise",
    forward=_forward,
    shapes=_shapes,
    results=lambda gate, values: len(_plan(gate).spec.outputs),
    backward=_backward,
    kept=lambda outputs, count: [],
    plain=_plain,
)


@functools.lru_cache(maxsize=256)
def elementwise(spec: Spec) -> Elementwise:
    """The fused kernel of `spec`, differentiable to any order: `elementwise(SWIGLU)(a, b)`.

    Raises SpecError for a Spec that looks across the features.
    """
    return Elementwise(spec)
