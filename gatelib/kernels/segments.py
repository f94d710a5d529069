"""Gated experts over segments of rows: pairs sorted by expert, one product a segment, summed again.

Imports torch, gatelib.spec, and of gatelib.kernels gated, glu, launch, operator, pairs,
segment_grouped, segment_loop and segment_plain.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

Each of N tokens goes to k experts: N*k pairs. A stable sort puts the pairs of one expert side by
side, and all that is done is done for such segments. `gatelib::experts_mlp` keeps for the backward
pass its arguments, the packed preactivations of the pairs and their order: nothing grows with the
number of experts. What an expert gives isn't kept, since with y = sum_e w_e W_e a_e the gradient of
w_e is <W_e^T dy, a_e>, and W_e^T dy is needed in any case. A token's outputs are summed in the
order of its experts, always, so a second run gives the same bits. On a CPU what a token gets does
not depend, to the bit, on which experts others go to, where D and H are multiples of 8; for
`F.grouped_mm` on a GPU nobody has measured that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from gatelib.kernels import glu, launch, segment_grouped, segment_loop, segment_plain
from gatelib.kernels.gated import Gated, gated_of_text
from gatelib.kernels.operator import Operator
from gatelib.kernels.pairs import Segments, sorted_again, sorted_pairs
from gatelib.spec import Spec

__all__ = ["Segments", "experts_mlp", "experts_mlp_reference", "segments"]


def segments(indices: Tensor, experts: int) -> Segments:
    """Sort pairs by expert; stable, so that the result depends on the indices alone.

    Args:
        indices: (N, k), whole numbers; one below 0, or of `experts` and more, says that the pair
            has no expert: dropped, padded, or an expert that is none of these.
        experts: E.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    _check_indices(indices)
    if indices.dim() != 2:
        raise ValueError(f"indices: expected (N, k), got {tuple(indices.shape)}")
    return sorted_pairs(indices, experts)


def experts_mlp(
    spec: Spec | Gated,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
) -> Tensor:
    """Gated MLPs, one an expert, each on the tokens that go to it, and their weighted sum.

        a, v = W_in[e] x;   y = sum over slots of weights * W_out[e] f(a, v),   e = indices[slot]

    Args:
        spec: one input or two, the gate's preactivation first, and one output, elementwise. Inside
            `torch.compile` pass `gated_of(spec)`, made outside.
        x: (..., D).
        indices: (..., k), whole numbers; see `segments` for pairs without an expert, which add
            nothing.
        weights: (..., k), of x's type or of float32.
        weight_in: (E, G*H, D), with G inputs of the Spec, the gate's rows first.
        weight_out: (E, O, H).

    Returns:
        (..., O), of x's type. The sum over slots is in float32 at least and rounded once. Under
        autocast x and both stacks are rounded to its type, but for float64.

    All derivatives are those of the formula, of second order too. vmap runs it once for each index;
    a compiled graph holds it as one node.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    known = glu.as_gated(spec)
    given = _rows(known, x, indices, weights, weight_in, weight_out)
    save = _may_need_gradient(x, weights, weight_in, weight_out)
    y = EXPERTS(known.text, *given, save)[0]
    return y.view(*x.shape[:-1], weight_out.shape[1])


def experts_mlp_reference(
    spec: Spec | Gated,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
) -> Tensor:
    """The same, expert by expert, under autograd; arguments and result as in `experts_mlp`.

    Where no number can be read, under vmap, on meta and in a graph that is traced, every expert
    runs on all tokens: E/k times the work.
    """
    known = glu.as_gated(spec)
    y = segment_plain.forward(known, *_rows(known, x, indices, weights, weight_in, weight_out))
    return y.view(*x.shape[:-1], weight_out.shape[1])


# ---- gatelib::experts_mlp ----------------------------------------------------------------------


def _forward(
    spec: str,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    save: bool,
) -> list[Tensor]:
    """[y], and where a backward pass may follow packed preactivations and order."""
    known, where = gated_of_text(spec), sorted_pairs(indices, len(weight_in))
    stacks = weight_in, weight_out
    with torch.autocast(x.device.type, enabled=False):
        if segment_grouped.goes(x, where, stacks):
            y, packed = segment_grouped.forward(known, x, where, weights, stacks)
        else:
            packed = x.new_empty(len(where.order) if save else 0, weight_in.shape[1])
            ordered = _ordered(weights, where, x)
            y = segment_loop.forward(known, x, where, ordered, stacks, packed)
    y = y.to(x.dtype)
    return [y, packed, where.order] if save else [y]


def _ordered(weights: Tensor, where: Segments, x: Tensor) -> Tensor:
    """(N*k, 1), the weights in the order of the pairs, of the type in which y is summed."""
    return weights.reshape(-1, 1).index_select(0, where.order).to(launch.compute_dtype(x.dtype))


def _shapes(
    spec: str,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    save: bool,
) -> list[Tensor]:
    y, pairs = x.new_empty(x.shape[0], weight_out.shape[1]), indices.shape[0] * indices.shape[1]
    if not save:
        return [y]
    order = indices.new_empty(pairs, dtype=torch.int64)
    return [y, x.new_empty(pairs, weight_in.shape[1]), order]


def _backward(
    d_results: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    spec: str,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    save: bool,
) -> list[Tensor]:
    """Gradients of x, weights and both stacks."""
    known, (d_y,), (packed, order) = gated_of_text(spec), d_results, kept
    assert d_y is not None
    where, stacks = sorted_again(indices, len(weight_in), order), (weight_in, weight_out)
    ordered = _ordered(weights, where, x)
    with torch.autocast(x.device.type, enabled=False):
        way = segment_grouped if segment_grouped.goes(x, where, stacks) else segment_loop
        found = way.backward(known, d_y, x, where, ordered, stacks, packed)
    d_x, d_ordered, d_in, d_out = found
    d_weights = d_ordered.index_select(0, where.place).view(weights.shape)
    return [d_x.to(x.dtype), d_weights.to(weights.dtype), d_in, d_out]


EXPERTS = Operator(
    "experts_mlp",
    forward=_forward,
    shapes=_shapes,
    results=lambda *arguments: 1,
    backward=_backward,
    kept=lambda outputs, count: outputs[count:],
    plain=lambda spec, *given: [segment_plain.forward(gated_of_text(spec), *given[:-1])],
)


# ---- what goes in ------------------------------------------------------------------------------


def _rows(
    known: Gated, x: Any, indices: Any, weights: Any, weight_in: Any, weight_out: Any
) -> tuple[Tensor, ...]:
    """The arguments, checked, in the type that autocast wants, and of leading axes one."""
    x, weights, weight_in, weight_out = _narrowed(x, weights, weight_in, weight_out)
    _check(known, x, indices, weights, weight_in, weight_out)
    rows = x.reshape(-1, x.shape[-1])
    pairs = rows.shape[0], indices.shape[-1]  # not len, which torch.jit.trace keeps as a constant
    return rows, indices.reshape(pairs), weights.reshape(pairs), weight_in, weight_out


def _may_need_gradient(*tensors: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    inside = not torch.compiler.is_compiling() and peek_interpreter_stack() is not None
    return inside or any(t.requires_grad for t in tensors)


def _narrowed(x: Any, weights: Any, weight_in: Any, weight_out: Any) -> list[Tensor]:
    """As autocast wants them: all but weights in its type, and weights, which may be of another,
    in float32. Like torch it leaves float64 alone."""
    given = {"x": x, "weights": weights, "weight_in": weight_in, "weight_out": weight_out}
    tensors = [launch.check_floating(name, value) for name, value in given.items()]
    kind = tensors[0].device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    wanted = [dtype, torch.float32, dtype, dtype]
    pairs = zip(tensors, wanted, strict=True)
    return [v if v.dtype == torch.float64 else v.to(own) for v, own in pairs]


def _check_indices(indices: object) -> None:
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices: expected a tensor, got {type(indices).__name__}")
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices: expected int64 or int32, got {indices.dtype}")


def _check(
    known: Gated, x: Tensor, indices: Any, weights: Any, weight_in: Tensor, weight_out: Tensor
) -> None:
    _check_indices(indices)
    if weight_out.dim() != 3 or not len(weight_out):
        raise ValueError(f"weight_out: expected (E, O, H), got {tuple(weight_out.shape)}")
    if x.dim() < 1:
        raise ValueError(f"x: expected (..., D), got {tuple(x.shape)}")
    experts, _, size = weight_out.shape
    shape = experts, size * len(known.inputs), x.shape[-1]
    if tuple(weight_in.shape) != shape:
        raise ValueError(
            f"weight_in: expected (E, G*H, D) = {shape} to go with x {tuple(x.shape)} and "
            f"weight_out {tuple(weight_out.shape)}, got {tuple(weight_in.shape)}"
        )
    if indices.dim() != x.dim() or indices.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"indices: expected {(*x.shape[:-1], 'k')} to go with x {tuple(x.shape)}, got "
            f"{tuple(indices.shape)}"
        )
    launch.check_like("indices", indices, indices.shape, "x", x)
    launch.check_like("weights", weights, indices.shape, "indices", indices)
    wide = launch.compute_dtype(x.dtype)
    launch.check_dtype("weights", weights, [x.dtype, wide], "x")
    for name, stack in (("weight_in", weight_in), ("weight_out", weight_out)):
        launch.check_like(name, stack, stack.shape, "x", x)
        launch.check_dtype(name, stack, [x.dtype], "x")
