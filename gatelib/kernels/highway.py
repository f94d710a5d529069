"""A stack of highway layers: the plain loop for autograd, and one operator that saves little.

Imports torch.
Must not import any other floor: gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

The operator `gatelib::highway` saves two values a unit and layer: what the layer received and its
transform h. Its gates come back from the weights in the backward pass, by half of the forward
product (two thirds where the carry gate is its own). Autograd would save four: x, h, t and 1 − t.
Rows of x are examples: (N, D). Blocks of rows of the weights are transform, transform gate, carry
gate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ACTIVATIONS", "fused", "plain"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda a: a,
}
Stack = tuple[Tensor, Tensor, Tensor]
"""x, weight and bias: see `plain`."""

_aten = torch.ops.aten
FORWARD: dict[str, Callable[..., Any]] = {
    "relu": lambda a, out: torch.clamp_min(a, 0.0, out=out),
    "tanh": lambda a, out: torch.tanh(a, out=out),
    "sigmoid": lambda a, out: torch.sigmoid(a, out=out),
    "identity": lambda a, out: out.copy_(a),
}
BACKWARD: dict[str, Callable[..., Any]] = {
    "relu": lambda d, h, out: _aten.threshold_backward.grad_input(d, h, 0, grad_input=out),
    "tanh": lambda d, h, out: _aten.tanh_backward.grad_input(d, h, grad_input=out),
    "sigmoid": lambda d, h, out: _aten.sigmoid_backward.grad_input(d, h, grad_input=out),
    "identity": lambda d, h, out: out.copy_(d),
}


def plain(x: Tensor, weight: Tensor, bias: Tensor, activation: str, coupled: bool) -> Tensor:
    """The layers one by one, differentiated by autograd.

    Args:
        x: (N, D), of the type of the result.
        weight: (L, G*D, D), G = 2, or 3 where not `coupled`.
        bias: (L, G*D).
        activation: one of ACTIVATIONS.
        coupled: whether the carry gate is one minus the transform gate.

    Returns:
        What the last layer gives, (N, D).
    """
    for w, b in zip(weight, bias, strict=True):
        packed = F.linear(x.to(w.dtype), w, b).to(x.dtype)
        a_h, *a = packed.chunk(2 if coupled else 3, -1)
        h, t = ACTIVATIONS[activation](a_h), torch.sigmoid(a[0])
        x = t * h + (1 - t if coupled else torch.sigmoid(a[1])) * x
    return x


def fused(x: Tensor, weight: Tensor, bias: Tensor, activation: str, coupled: bool) -> Tensor:
    """The fast path; arguments and result as in `plain`, all float32 or all float64.

    A backward pass with `create_graph=True` runs `plain` again and differentiates that.
    """
    save = torch.is_grad_enabled() and any(v.requires_grad for v in (x, weight, bias))
    y: Tensor = _highway(x, weight, bias, activation, coupled, save)[0]
    return y


def _run_forward(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str, coupled: bool, save: bool
) -> list[Tensor]:
    """[y, x of all layers but the first, h of all layers]; without `save` y alone."""
    layers, width, size = weight.shape
    kept = x.new_empty(layers - 1 if save else 1, *x.shape)
    transforms = x.new_empty(layers if save else 1, *x.shape)
    packed, y = x.new_empty(x.shape[0], width), x.new_empty(x.shape)
    a_h, gates, t = packed[:, :size], packed[:, size:], packed[:, size : 2 * size]
    outs = [*itertools.islice(itertools.cycle(kept.unbind(0)), layers - 1), y]
    hs = itertools.cycle(transforms.unbind(0))
    for w, b, h, out in zip(weight.mT.unbind(0), bias.unbind(0), hs, outs, strict=False):
        torch.addmm(b, x, w, out=packed)
        FORWARD[activation](a_h, out=h)
        torch.sigmoid(gates, out=gates)
        if coupled:
            torch.lerp(x, h, t, out=out)
        else:
            torch.mul(packed[:, 2 * size :], x, out=out).addcmul_(t, h)
        x = out
    return [y, kept, transforms] if save else [y]


def _run_backward(
    d_y: Tensor, given: Stack, saved: tuple[Tensor, Tensor], activation: str, coupled: bool
) -> list[Tensor]:
    """Gradients of x, weight and bias."""
    x, weight, bias = given
    width, size = weight.shape[1:]
    d = d_y.clone(memory_format=torch.contiguous_format)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    d_a, ones = x.new_empty(x.shape[0], width), x.new_ones(x.shape[0])
    gates, scratch = x.new_empty(x.shape[0], width - size), torch.empty_like(d)
    d_h, d_gates, d_at, t = d_a[:, :size], d_a[:, size:], d_a.t(), gates[:, :size]
    results = zip(weight.unbind(0), d_weight.unbind(0), d_bias.unbind(0), strict=True)
    layers = list(zip(_layers(given, saved), results, strict=True))
    for (x_k, h, b, w), (back, d_w, d_b) in reversed(layers):
        torch.sigmoid(torch.addmm(b, x_k, w, out=gates), out=gates)
        BACKWARD[activation](torch.mul(d, t, out=scratch), h, out=d_h)
        _gates_back(d, x_k, h, gates, d_gates, scratch, coupled)
        torch.mm(d_at, x_k, out=d_w)
        torch.mv(d_at, ones, out=d_b)
        torch.addmm(d, d_a, back, out=d)
    return [d, d_weight, d_bias]


def _layers(given: Stack, saved: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """For each layer what it received, its transform, and the bias and weight of its gates."""
    (x, weight, bias), (kept, transforms) = given, saved
    size = x.shape[1]
    gates = bias[:, size:].unbind(0), weight[:, size:].mT.unbind(0)
    return zip((x, *kept.unbind(0)), transforms.unbind(0), *gates, strict=True)


def _gates_back(
    d: Tensor, x: Tensor, h: Tensor, gates: Tensor, d_a: Tensor, scratch: Tensor, coupled: bool
) -> None:
    """Adjoints of the gates' preactivations into `d_a`; of the carried x into `d`."""
    if coupled:
        torch.sub(h, x, out=scratch).mul_(d)
        _aten.sigmoid_backward.grad_input(scratch, gates, grad_input=d_a)
        d.addcmul_(d, gates, value=-1)
        return
    (t, c), (d_t, d_c) = gates.chunk(2, -1), d_a.chunk(2, -1)
    _aten.sigmoid_backward.grad_input(torch.mul(d, h, out=scratch), t, grad_input=d_t)
    _aten.sigmoid_backward.grad_input(torch.mul(d, x, out=scratch), c, grad_input=d_c)
    d.mul_(c)


# ---- the operators --------------------------------------------------------------------------


@torch.library.custom_op("gatelib::highway", mutates_args=())
def _highway(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str, coupled: bool, save: bool
) -> list[Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return _run_forward(x, weight, bias, activation, coupled, save)


@_highway.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, activation: str, coupled: bool, save: bool
) -> list[Tensor]:
    layers, rows = weight.shape[0], tuple(x.shape)
    kept = [x.new_empty(layers - 1, *rows), x.new_empty(layers, *rows)] if save else []
    return [x.new_empty(rows), *kept]


@torch.library.custom_op("gatelib::highway_backward", mutates_args=())
def _highway_backward(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    kept: Tensor,
    transforms: Tensor,
    activation: str,
    coupled: bool,
) -> list[Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        given, saved = (x, weight, bias), (kept, transforms)
        return _run_backward(d_y, given, saved, activation, coupled)


@_highway_backward.register_fake
def _(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    kept: Tensor,
    transforms: Tensor,
    activation: str,
    coupled: bool,
) -> list[Tensor]:
    return [v.new_empty(v.shape) for v in (x, weight, bias)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weight, bias, ctx.activation, ctx.coupled, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(ctx: Any, d_outputs: list[Tensor | None]) -> tuple[Any, ...]:
    """The gradient for each argument of `gatelib::highway`."""
    x, weight, bias, *saved = ctx.saved_tensors
    d_y = d_outputs[0]
    if d_y is None:
        return (None,) * 6
    if torch.is_grad_enabled():
        found = _differentiable_backward(d_y, (x, weight, bias), ctx.activation, ctx.coupled)
    else:
        found = _highway_backward(d_y, x, weight, bias, *saved, ctx.activation, ctx.coupled)
    return (*found, None, None, None)


def _differentiable_backward(
    d_y: Tensor, inputs: Stack, activation: str, coupled: bool
) -> list[Tensor | None]:
    """The same gradients as a graph that can be differentiated again: the plain loop's."""
    y = plain(*inputs, activation, coupled)
    wanted = [v for v in inputs if v.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, d_y, create_graph=True))
    return [next(found) if v.requires_grad else None for v in inputs]


torch.library.register_autograd("gatelib::highway", _backward, setup_context=_setup_context)
