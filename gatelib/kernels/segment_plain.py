"""Gated experts under autograd: each on the rows that came to it, or each on all.

Imports torch, and of gatelib.kernels gated, launch and pairs.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

How many rows an expert has is a number in a tensor. Where it can't be read, under vmap, on meta,
and while torch compiles, exports or traces, every expert runs on all rows, in fixed shapes: E/k
times the work.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack

from gatelib.kernels import launch
from gatelib.kernels.gated import Gated
from gatelib.kernels.pairs import ROWS, Segments, sorted_pairs

__all__ = ["all_rows", "forward", "mapped", "own_rows"]


def forward(
    known: Gated,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
) -> Tensor:
    """y_t = sum over slots of w_ts f_i(x_t), i = indices[t, s]: (N, O), of x's type.

    Args:
        known: what stands between both maps.
        x: (N, D).
        indices: (N, k); what isn't in [0, E) is no expert, and gives 0.
        weights: (N, k), of x's type or of float32.
        weight_in: (E, G*H, D), of x's type.
        weight_out: (E, O, H), of x's type.

    The sum over slots is a sum along an axis, in float32 at least, and rounded once: no two rows
    are added in an order that may change. Autocast changes nothing here.
    """
    where, wide = _segments(indices, len(weight_in)), launch.compute_dtype(x.dtype)
    there = (indices >= 0) & (indices < len(weight_in))
    with _without_autocast(x.device.type):
        if where is None:
            slots = all_rows(known, x, indices, weight_in, weight_out)
        else:
            slots = own_rows(known, x, where, weight_in, weight_out)
        shares = torch.where(there, weights, 0).to(wide).unsqueeze(-1)
        return (slots.to(wide) * shares).sum(1).to(x.dtype)


def own_rows(
    known: Gated, x: Tensor, where: Segments, weight_in: Tensor, weight_out: Tensor
) -> Tensor:
    """(N, k, O): each slot's expert on its token; 0 where there is none.

    A segment is filled up with zeros, to a multiple of ROWS.
    """
    starts = [0, *where.ends[:-1]]
    lengths = [end - start for start, end in zip(starts, where.ends, strict=True)]
    rows = x.unsqueeze(1).expand(-1, where.slots, -1).flatten(0, 1).index_select(0, where.order)
    *own, none = torch.split(rows, [*lengths, len(rows) - where.ends[-1]])
    found = [
        mapped(known, F.pad(segment, (0, 0, 0, -len(segment) % ROWS)), w_in, w_out)[: len(segment)]
        for segment, w_in, w_out in zip(own, weight_in.unbind(), weight_out.unbind(), strict=True)
    ]
    found.append(x.new_zeros(len(none), weight_out.shape[1]))
    shape = len(x), where.slots, weight_out.shape[1]
    return torch.cat(found).index_select(0, where.place).view(shape)


def all_rows(
    known: Gated, x: Tensor, indices: Tensor, weight_in: Tensor, weight_out: Tensor
) -> Tensor:
    """The same from (N, k) indices, by way of every expert on every token."""
    every = mapped(known, x, weight_in, weight_out).transpose(0, 1)  # (N, E, O)
    there = ((indices >= 0) & (indices < len(weight_in))).unsqueeze(-1)
    named = torch.where(there, indices.unsqueeze(-1), 0).long()
    found = every.gather(1, named.expand(-1, -1, weight_out.shape[1]))
    return torch.where(there, found, 0)


def mapped(known: Gated, rows: Tensor, weight_in: Tensor, weight_out: Tensor) -> Tensor:
    """Every expert on its own rows, (E, M, D) to (E, M, O), or on the same (M, D); or one on these.

    Low precision is widened between both products.
    """
    packed = torch.matmul(rows, weight_in.mT)
    wide = launch.compute_dtype(packed.dtype)
    parts = (part.to(wide) for part in packed.chunk(len(known.inputs), -1))
    product: Tensor = known.in_torch(*parts)
    return torch.matmul(product.to(packed.dtype), weight_out.mT)


def _segments(indices: Tensor, experts: int) -> Segments | None:
    """The pairs where their numbers can be read: nothing traces or maps them, and there are some.
    None elsewhere."""
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return None
    around = get_interpreter_stack() or ()
    traced = torch._C._get_tracing_state() is not None
    if traced or any(transform.key() == TransformType.Vmap for transform in around):
        return None
    where = sorted_pairs(indices, experts)
    try:
        _ = where.ends
    except RuntimeError:  # meta, fake and functional tensors raise one each, all of this kind
        return None
    return where


def _without_autocast(kind: str) -> contextlib.AbstractContextManager[object]:
    """Autocast turned off where it is on; nothing that a graph would show where it isn't."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
