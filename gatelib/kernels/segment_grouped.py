"""Gated experts all at once: `F.grouped_mm` over the segments, and a kernel that sums the slots.

Imports torch, and of gatelib.kernels gated, glu, launch, pairs and segment_loop.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

Nothing here waits for a GPU: how long the segments are is read there. `F.grouped_mm` leaves the
rows behind the last segment as they were in memory, where there may be NaN, and NaN * 0 is NaN. So
what comes from such rows is never multiplied away: the sum over slots and the weights' gradients
leave it out. Sums are taken in the order of the slots, without atomics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelib.kernels import glu, launch
from gatelib.kernels.gated import Gated
from gatelib.kernels.pairs import Segments
from gatelib.kernels.segment_loop import Stacks, back_again, halves

__all__ = ["backward", "combined", "forward", "goes"]

DEVICES = ("cuda",)
"""Where this is faster than the loop. On a CPU the loop is, whose buffers stay in the cache."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ALIGNED = 16
"""Bytes: of each stride of a matrix, and of where it begins."""
LANES = 512
COMBINED = """\
import triton
import triton.language as tl


@triton.jit
def combined(
    rows_ptr, place_ptr, weight_ptr, live_ptr, y_ptr, columns,
    SLOTS: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):
    tiles = tl.cdiv(columns, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    token = program // tiles
    column = program % tiles * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    live = tl.load(live_ptr)
    total = tl.zeros([BLOCK], DTYPE)
    for slot in tl.static_range(SLOTS):
        pair = token * SLOTS + slot
        at = tl.load(place_ptr + pair)
        known = inside & (at < live)
        part = tl.load(rows_ptr + at * columns + column, known, 0).to(DTYPE)
        if WEIGHTED:
            part = tl.where(known, part * tl.load(weight_ptr + pair).to(DTYPE), 0.0)
        total += part.to(DTYPE)
    tl.store(y_ptr + token * columns + column, total, inside)
"""
"""Sums the rows of each token's pairs, in the order of the slots, times weights if WEIGHTED."""


def goes(x: Tensor, where: Segments, stacks: Stacks) -> bool:
    """Whether `F.grouped_mm` is there (torch 2.10), knows the type, and can take the strides."""
    if not hasattr(F, "grouped_mm") or x.device.type not in DEVICES or x.dtype not in DTYPES:
        return False
    size = x.dtype.itemsize
    made = (x.shape[1], *(n for stack in stacks for n in stack.shape[1:]))
    return (
        len(where.order) > 0
        and all(n and n * size % ALIGNED == 0 for n in made)
        and all(map(_aligned, stacks))
    )


def _aligned(stack: Tensor) -> bool:
    distances = [n * stack.element_size() for n in stack.stride()[:2]]
    whole = stack.stride(2) == 1 and all(n % ALIGNED == 0 for n in distances)
    return whole and stack.data_ptr() % ALIGNED == 0


def forward(
    known: Gated, x: Tensor, where: Segments, weights: Tensor, stacks: Stacks
) -> tuple[Tensor, Tensor]:
    """(y, packed), as `segment_loop.forward` makes them, but for weights (N, k), as they came."""
    weight_in, weight_out = stacks
    packed = F.grouped_mm(x.index_select(0, where.token), weight_in.mT, offs=where.offsets)
    product = packed.new_empty(len(packed), weight_out.shape[2])
    glu.run(known, "ahead", halves(known.inputs, packed), {known.output: product})
    own = F.grouped_mm(product, weight_out.mT, offs=where.offsets)
    return combined(own, where, weights), packed


def backward(
    known: Gated,
    d_y: Tensor,
    x: Tensor,
    where: Segments,
    weights: Tensor,
    stacks: Stacks,
    packed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of weights (N*k, 1) in the order of the pairs, and of both stacks."""
    (weight_in, weight_out), ends = stacks, where.offsets
    rows, d_rows = (v.index_select(0, where.token) for v in (x, d_y))
    slope, d_weights = F.grouped_mm(d_rows, weight_out, offs=ends), torch.empty_like(weights)
    product, d_a = back_again(known, slope, packed, weights, d_weights)
    numbers = torch.arange(len(weights), device=ends.device)[:, None]
    d_weights.masked_fill_(numbers >= where.live, 0)
    d_out = F.grouped_mm(d_rows.t(), product, offs=ends)
    d_in = F.grouped_mm(d_a.t(), rows, offs=ends)
    for stack in (d_in, d_out):
        stack.masked_fill_((where.counts == 0)[:, None, None], 0)
    return combined(F.grouped_mm(d_a, weight_in, offs=ends), where, None), d_weights, d_in, d_out


def combined(rows: Tensor, where: Segments, weights: Tensor | None) -> Tensor:
    """Sums over the slots: (N, columns), float32 at least, of the pairs' rows.

    Args:
        rows: (N*k, columns), contiguous, in the order of the pairs; those of pairs without an
            expert may hold anything.
        where: the pairs.
        weights: (N, k), which the rows are multiplied by; None for no weights.
    """
    count, wide = len(rows) // max(1, where.slots), launch.compute_dtype(rows.dtype)
    if glu.by_triton(rows):
        y = rows.new_empty(count, rows.shape[1], dtype=wide)
        given = rows, where.place, rows if weights is None else weights.contiguous(), where.live
        sizes = {"SLOTS": where.slots, "WEIGHTED": weights is not None, "BLOCK": LANES}
        programs = count * -(-rows.shape[1] // LANES)
        kernel, dtype = launch.load(COMBINED)["combined"], launch.in_triton(wide)
        launch.run(kernel, programs, [*given, y, rows.shape[1]], **sizes, DTYPE=dtype)
        return y
    own = rows.index_select(0, where.place).to(wide)
    own.masked_fill_((where.place >= where.live)[:, None], 0)
    shape = count, where.slots, rows.shape[1]
    if weights is None:
        return own.view(shape).sum(1)
    weight = weights.reshape(-1, 1).to(wide)
    own.mul_(weight.masked_fill((where.place >= where.live)[:, None], 0))
    return own.view(shape).sum(1)
