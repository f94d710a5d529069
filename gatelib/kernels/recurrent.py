"""Any recurrent cell over a sequence as one operator, with a generated backward.

Imports torch and gatelib.kernels.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

`gatelib::recurrent` is a single node for `torch.compile` and `torch.export`. Its cell is an
argument as text, the same in every process. All tensors are time first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gatelib.kernels.inplace import COLUMN, FULL
from gatelib.kernels.operator import Operator
from gatelib.kernels.recurrent_backward import run_backward
from gatelib.kernels.recurrent_forward import buffer, run_forward
from gatelib.kernels.steps import Steps, steps_of_text
from gatelib.kernels.unrolled import Inputs, Weights, unrolled

__all__ = ["Inputs", "Weights", "fused", "unrolled"]


def fused(steps: Steps, inputs: Inputs, save: bool) -> tuple[Tensor, list[Tensor]]:
    """The fast path; arguments and results as in `unrolled`, all of one dtype, float32 or float64.

    `save` says whether a backward pass may follow. With `create_graph=True` that runs `unrolled`
    again and differentiates it, so higher derivatives are exact but have the plain loop's speed.
    """
    x, weights, vectors, initial, mask = inputs
    found = OPERATOR(steps.text, x, *weights, list(vectors), list(initial), mask, save)
    return found[0], list(found[1 : 1 + len(initial)])


def _forward(
    cell: str,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    vectors: list[Tensor],
    initial: list[Tensor],
    mask: Tensor | None,
    save: bool,
) -> list[Tensor]:
    """[h of every step, final states…, saved…]; see `run_forward`."""
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    with torch.autocast(x.device.type, enabled=False):
        inputs = Inputs(x, weights, _as_rows(vectors), initial, mask)
        return run_forward(steps_of_text(cell), inputs, save)


def _given(cell: str, x: Tensor, *rest: Any) -> tuple[Steps, Inputs, bool]:
    """The operator's arguments, as `_forward` names them, taken together."""
    *weights, vectors, initial, mask, save = rest
    w, u, b_ih, b_hh = weights
    return steps_of_text(cell), Inputs(x, (w, u, b_ih, b_hh), vectors, initial, mask), save


def _shapes(*arguments: Any) -> list[Tensor]:
    """Buffers as `_forward` gives them."""
    steps, inputs, save = _given(*arguments)
    x, initial = inputs.x, inputs.initial
    count, batch, hidden = x.shape[0], x.shape[1], inputs.weights[1].shape[1]
    final = [x.new_empty(batch, hidden) for _ in initial]
    shapes = [FULL] * (len(initial) - 1) + list(steps.saved.values())
    saved = [buffer(x, shape, batch, hidden, count) for shape in shapes] if save else []
    return [buffer(x, FULL, batch, hidden, count), *final, *saved]


def _backward(
    d_results: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    *arguments: Any,
) -> list[Tensor | None]:
    """The gradients of x, the weights, biases, vectors and initial states."""
    steps, inputs, _ = _given(*arguments)
    with torch.autocast(inputs.x.device.type, enabled=False):
        inputs = inputs._replace(vectors=_as_rows(inputs.vectors))
        return run_backward(steps, inputs, d_results[0], d_results[1:], kept, needs[0])


def _plain(*arguments: Any) -> list[Tensor]:
    """h of every step and the final states, by the plain loop."""
    y, final = unrolled(*_given(*arguments)[:2])
    return [y, *final]


def _row_axes(*arguments: Any) -> list[int | None]:
    """The axis of examples of h, the final states, and what is saved."""
    steps, inputs, save = _given(*arguments)
    shapes = [FULL] * (len(inputs.initial) - 1) + list(steps.saved.values())
    saved = [1 if shape in (FULL, COLUMN) else None for shape in shapes if save]
    return [1, *(0 for _ in inputs.initial), *saved]


def _as_rows(vectors: Sequence[Tensor]) -> list[Tensor]:
    return [v.reshape(1, -1) for v in vectors]


OPERATOR = Operator(
    "recurrent",
    forward=_forward,
    shapes=_shapes,
    results=lambda *arguments: 1 + len(_given(*arguments)[1].initial),
    backward=_backward,
    kept=lambda outputs, count: [outputs[0], *outputs[count:]],
    plain=_plain,
    rows={"x": 1, "initial": 0, "mask": 1},
    row_axes=_row_axes,
)
