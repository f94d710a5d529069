"""Cells over films: the product of a cell is a convolution, a linear map of what a kernel covers.

Imports NumPy, gatelib.cell, gatelib.spec and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gatelib.cell import Cell, cell
from gatelib.derived.tape import Value, Values, gate, join, linear, split, stack, swap
from gatelib.spec import Spec

__all__ = ["convolution", "flattened", "over_time", "unfolded"]

Pair = tuple[int, int]


def unfolded(
    x: Value, kernel: Pair, zeros: tuple[Pair, Pair], dilation: Pair, wrap: bool = False
) -> Value:
    """What a kernel covers at each place, (B, H, W, C·k·l), from x (B, C, H, W).

    zeros: how many are put (above, below) and (left, right) of the image. wrap: the image goes on
    from its other edge in their place.
    """
    if wrap:
        sides = zip(x.shape[2:], zeros, strict=True)
        here, across = (np.arange(-before, n + behind) % n for n, (before, behind) in sides)
        x, zeros = x[:, :, here[:, None], across], ((0, 0), (0, 0))
    for axis, (before, behind) in zip((2, 3), zeros, strict=True):
        shapes = [[*x.shape[:axis], n, *x.shape[axis + 1 :]] for n in (before, behind)]
        first, last = (Value(np.zeros(shape), x.tape) for shape in shapes)
        x = join([first, x, last], axis)
    channel, row, column = _places(x.shape[1], *kernel)
    places = zip(x.shape[2:], dilation, kernel, strict=True)
    rows, columns = (np.arange(size - d * (k - 1))[:, None] for size, d, k in places)
    rows, columns = rows + dilation[0] * row, columns + dilation[1] * column
    return x[:, channel, rows[:, None], columns]


def _places(*sizes: int) -> tuple[Any, ...]:
    """Channel, row and column of each number of a kernel, in one row."""
    return tuple(axis.ravel() for axis in np.indices(sizes))


def flattened(weight: Value) -> Value:
    """A kernel (R, C, …) as a matrix, its columns in the order of `unfolded`."""
    return weight[(slice(None), *_places(*weight.shape[1:]))]


def convolution(
    x: Value,
    weight: Value,
    bias: Value | None = None,
    padding: Pair | None = None,
    dilation: Pair = (1, 1),
    wrap: bool = False,
) -> Value:
    """W * x + b with the channels last: (B, H, W, R) from x (B, C, H, W) and W (R, C, k, l).

    padding: zeros above and below, left and right; None for as many as keep the size, where an odd
    one goes below and to the right. wrap: as for `unfolded`.
    """
    kernel: Pair = weight.shape[2:]  # type: ignore[assignment]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    zeros = [(n // 2, n - n // 2) for n in reach] if padding is None else [(p, p) for p in padding]
    covered = unfolded(x, kernel, (zeros[0], zeros[1]), dilation, wrap)
    return linear(covered, flattened(weight), bias)


def over_time(
    stages: Spec | Sequence[Spec] | Cell,
    given: Values,
    padding: Pair | None = None,
    dilation: Pair = (1, 1),
    wrap: bool = False,
) -> dict[str, Value]:
    """A cell of one or several stages over films, its products convolutions.

    given: `x` (B, T, D, H, W); `W` (G·C, D, k, l), `U` (G·C, C, k, l) and `b` (G·C,) in the order
    of the cell's preactivations; where it has `u_k`, a second bias `b_u`; its vectors (C, H, W);
    and the initial states `h0`, … (B, C, H, W). padding, wrap: as for `convolution`; the
    padding is that of x alone. Returns
    `y` (B, T, C, H, W) and the final states as `final_h`, ….
    """
    read = cell(stages).checked()
    state = {name: _last(given[f"{name}0"]) for name in read.states}
    vectors, ys = {name: _last(given[name]) for name in read.vectors}, []
    for t in range(given["x"].shape[1]):
        known = vectors | {f"{name}_prev": value for name, value in state.items()}
        from_x = convolution(given["x"][:, t], given["W"], given["b"], padding, dilation, wrap)
        known = _through(read, from_x, state["h"], given, known, (dilation, wrap))
        state = {name: known[name] for name in read.states}
        ys.append(_first(state["h"]))
    finals = {f"final_{name}": _first(value) for name, value in state.items()}
    return {"y": stack(ys, like=given["h0"])} | finals


def _through(
    read: Cell, from_x: Value, h: Value, given: Values, known: Values, how: tuple[Pair, bool]
) -> dict[str, Value]:
    """All stages in one step; the U of a later one multiplies the `q` of the stage before it."""
    known, first, size = dict(known), 0, given["U"].shape[1]
    for stage in read.stages:
        gates, source = read.gates_of(stage), known.get("q", h)
        rows = slice(first, first + len(gates) * size)
        bias = given["b_u"][rows] if "b_u" in given else None
        from_h = convolution(_first(source), given["U"][rows], bias, None, *how)
        blocks = zip(split(from_x[..., rows], len(gates)), split(from_h, len(gates)), strict=True)
        for k, (a, u) in zip(gates, blocks, strict=True):
            known |= {f"a_{k}": a, f"u_{k}": u} if k in read.split else {f"a_{k}": a + u}
        known |= gate(stage, **known)
        first = rows.stop
    return known


def _last(value: Value) -> Value:
    """(..., C, H, W) with the channels last, as a gate has its features."""
    return swap(swap(value, -3, -2), -2, -1)


def _first(value: Value) -> Value:
    """(..., H, W, C) with the channels first, as films have them."""
    return swap(swap(value, -1, -2), -2, -3)
