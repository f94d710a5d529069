"""Gated experts one by one: the rows of each gathered, mapped, and added where they belong.

Imports torch, and of gatelib.kernels gated, glu and pairs.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

What a step needs, the step before it left in the cache, and no tensor but the results and what is
saved has a row for each pair. Forward, a segment is filled up with the rows that stand behind it;
what they give is written over by the next. Of low precision one segment at a time is widened:
between the products all is float32, and rounded once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelib.kernels import glu
from gatelib.kernels.gated import Gated
from gatelib.kernels.pairs import ROWS, Segments

__all__ = ["Stacks", "back_again", "backward", "forward", "halves"]

Stacks = tuple[Tensor, Tensor]
"""`weight_in` (E, G*H, D) and `weight_out` (E, O, H)."""


def forward(
    known: Gated, x: Tensor, where: Segments, weights: Tensor, stacks: Stacks, packed: Tensor
) -> Tensor:
    """y (N, O), of the type of `weights`, in which it is summed.

    Args:
        known: the gate.
        x: (N, D).
        where: the pairs.
        weights: (N*k, 1), in the order of the pairs.
        stacks: the experts' maps.
        packed: filled with the preactivations: (N*k, G*H), 0 for pairs without an expert; or no
            rows, where nobody wants them.
    """
    y = x.new_zeros(len(x), stacks[1].shape[1], dtype=weights.dtype)
    starts = [0, *where.ends[:-1]]
    for w_in, w_out, start, end in zip(*stacks, starts, where.ends, strict=True):
        stop = end + -(end - start) % ROWS
        token = F.pad(where.token[start:stop], (0, max(0, stop - len(where.token))))
        own = packed[start:stop] if stop <= len(packed) else None
        found = torch.mm(x.index_select(0, token), w_in.t(), out=own)
        if own is None and len(packed):
            packed[start:end] = found[: end - start]
        a = found.to(weights.dtype)
        product = a.new_empty(len(a), w_out.shape[1])
        glu.run(known, "ahead", halves(known.inputs, a), {known.output: product})
        turned = torch.mm(product.to(x.dtype), w_out.t())[: end - start].to(weights.dtype)
        y.index_add_(0, token[: end - start], turned.mul_(weights[start:end]))
    packed[where.ends[-1] :] = 0
    return y


def backward(
    known: Gated,
    d_y: Tensor,
    x: Tensor,
    where: Segments,
    weights: Tensor,
    stacks: Stacks,
    packed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and weights, of the type of `weights`, and of both stacks.

    d_y is (N, O); the others are as in `forward`, after it.
    """
    d_stacks = [x.new_empty(stack.shape) for stack in stacks]
    d_x, d_weights = torch.zeros_like(x, dtype=weights.dtype), torch.zeros_like(weights)
    by_pair = (where.token, weights, packed, d_weights)
    columns = zip(*stacks, *d_stacks, *(_parts(where, v) for v in by_pair), strict=True)
    for w_in, w_out, d_in, d_out, token, weight, own, d_weight in columns:
        rows, d_rows = x.index_select(0, token), d_y.index_select(0, token)
        product, d_a = back_again(known, torch.mm(d_rows, w_out), own, weight, d_weight)
        torch.mm(d_rows.t(), product, out=d_out)
        torch.mm(d_a.t(), rows, out=d_in)
        d_x.index_add_(0, token, torch.mm(d_a, w_in).to(weights.dtype))
    return d_x, d_weights, d_stacks[0], d_stacks[1]


def back_again(
    known: Gated, slope: Tensor, packed: Tensor, weight: Tensor, d_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The product again and the adjoint of `packed`, both times the pairs' weights.

    slope: the adjoint of an expert's product, without its weight. Fills `d_weight`.
    """
    dtype = slope.dtype if glu.by_triton(slope) else weight.dtype  # a kernel widens by itself
    a, d = packed.to(dtype), slope.to(dtype)
    product, d_a = torch.empty_like(d), torch.empty_like(a)
    filled = {known.output: product} | halves(known.adjoints, d_a)
    glu.run(known, "back_again", {known.seed: d} | halves(known.inputs, a), filled)
    torch.sum(d.to(weight.dtype).mul_(product), 1, keepdim=True, out=d_weight)
    return product.mul_(weight).to(slope.dtype), d_a.mul_(weight).to(slope.dtype)


def halves(names: tuple[str, ...], packed: Tensor) -> dict[str, Tensor]:
    """The parts of packed columns by name."""
    return dict(zip(names, packed.chunk(len(names), 1), strict=True))


def _parts(where: Segments, values: Tensor) -> list[Tensor]:
    """The rows of each expert."""
    starts = [0, *where.ends[:-1]]
    return [values[start:end] for start, end in zip(starts, where.ends, strict=True)]
