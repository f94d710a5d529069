"""Which implementation a layer takes: the one rule for "reference", "fused" and "auto".

Imports torch.
Must not import any other module of gatelib.

"reference" is plain torch, readable, under autograd. "fused" is a fast path. "auto" is the fast
path wherever it can go, and the reference where it can't: in forward-mode differentiation, inside
the transforms of torch.func that the path doesn't know, and in an ONNX export where it has no form.
"fused" raises there instead, and says why.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import get_interpreter_stack
from torch.autograd.forward_ad import unpack_dual

__all__ = [
    "OPERATOR",
    "Impl",
    "check_impl",
    "may_need_gradient",
    "takes_reference",
    "traced",
    "transforms",
]

Impl = Literal["auto", "fused", "reference"]

OPERATOR = ("vmap", "functionalize")
"""Where a custom operator of `gatelib.kernels` can go."""


def check_impl(impl: object) -> None:
    """Raise ValueError unless `impl` is one of Impl."""
    if impl not in get_args(Impl):
        raise ValueError(f"impl: expected 'auto', 'fused' or 'reference', got {impl!r}")


def takes_reference(
    impl: Impl, tensors: Sequence[Tensor | None], goes: Collection[str] = OPERATOR
) -> bool:
    """Whether to take the reference: on request, or where "auto" can't take the fast path.

    Args:
        impl: what was asked for.
        tensors: what the layer computes with; None is passed over.
        goes: where the fast path can go: of torch.func's transforms "grad" (reverse mode, vjp and
            jacrev too), "vmap" and "functionalize"; and "onnx". Forward mode it never can.

    Raises:
        ValueError: "fused" was asked for where the fast path can't go.
    """
    if impl == "reference":
        return True
    hindrance = _hindrance(tensors, goes)
    if hindrance and impl == "fused":
        raise ValueError(
            f"impl: expected 'auto' or 'reference' {hindrance}, got 'fused', whose fast path has "
            "no rule for it"
        )
    return bool(hindrance)


def _hindrance(tensors: Sequence[Tensor | None], goes: Collection[str]) -> str:
    """Where the layer runs and the fast path can't; empty if there is no such thing."""
    if "onnx" not in goes and torch.onnx.is_in_onnx_export():
        return "in an ONNX export"
    if torch.compiler.is_compiling():
        return ""
    unknown = [name for name in transforms() if name not in goes]
    if unknown:
        return f"inside torch.func's {unknown[0]}"
    given = (t for t in tensors if t is not None)
    if any(unpack_dual(t).tangent is not None for t in given):  # type: ignore[no-untyped-call]
        return "in forward-mode differentiation"
    return ""


def transforms() -> list[str]:
    """The transforms of torch.func around this call, from outside in: "vmap", "jvp", "grad"…"""
    return [interpreter.key().name.lower() for interpreter in get_interpreter_stack() or ()]


def may_need_gradient(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a backward pass may follow; inside vmap a tensor doesn't say."""
    if not torch.is_grad_enabled():
        return False
    inside = not torch.compiler.is_compiling() and bool(transforms())
    return inside or any(t is not None and t.requires_grad for t in tensors)


def traced(layer: nn.Module, *arguments: Any) -> fx.Proxy | None:
    """The layer as one node of the graph where `torch.fx` traces it, otherwise None.

    A loop over time can't be traced by symbols. The node calls the module, as for torch's own
    layers, so a traced model computes the same and keeps the module's name.

    Raises:
        TypeError: the layer is itself what is traced, so that it can't be a node.
    """
    if not isinstance(arguments[0], fx.Proxy):
        return None
    tracer: Any = arguments[0].tracer
    kind = type(layer).__name__
    if tracer.root is layer:
        raise TypeError(
            f"input: expected a tensor, got {type(arguments[0]).__name__}: torch.fx keeps a {kind} "
            "whole, as one node of a model; trace a module that holds it, or use torch.export"
        )
    path = tracer.path_of_module(layer)
    node: fx.Proxy = tracer.create_proxy("call_module", path, arguments, {})
    return node
