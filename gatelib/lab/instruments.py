"""Single numbers and curves that say what gates do to memory and to gradients.

Imports NumPy and torch.
Must not import the floors below; it measures whatever layer it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["gradient_by_distance", "half_life", "jacobian_spectrum", "saturation"]

Array = NDArray[Any]
LARGEST = 2048
"""Rows of a Jacobian; more would cost too much memory."""


def _gate(name: str, values: Any) -> Array:
    values = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one value that is not nan, got none")
    return array


def half_life(keep: Any) -> float:
    """Return the number of steps after which half of a memory is left: ln 2 / -mean(ln f).

    `keep` holds values of the gate that multiplies the old memory, an LSTM's f or a GRU's z, of any
    shape; nan (padding) is skipped. Since the product of gates is what decays, logarithms are
    averaged. A gate that is always 1 gives inf, one that is 0 somewhere gives 0.

    Raises:
        ValueError: a value lies outside [0, 1].
    """
    values = _gate("keep", keep)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"keep: expected values from 0 to 1, got {values.min():.3g} to {values.max():.3g}"
        )
    with np.errstate(divide="ignore"):
        decay = -float(np.log(values).mean())
    return math.log(2) / decay if decay > 0 else math.inf


def saturation(gate: Any, margin: float = 0.05, *, signed: bool | None = None) -> float:
    """Return the share of values within `margin` of an end of the gate's range.

    The range is 0 to 1, or -1 to 1 with `signed` (by default, if any value is negative). There the
    slope of a sigmoid is below margin·(1 - margin), so hardly any gradient reaches its weights.
    """
    values = _gate("gate", gate)
    if not 0 < margin < 0.5:
        raise ValueError(f"margin: expected a number between 0 and 0.5, got {margin!r}")
    low = -1.0 if (values.min() < 0 if signed is None else signed) else 0.0
    ends = (values > 1 - margin) | (values < low + margin)
    return float(ends.mean())


def gradient_by_distance(
    layer: nn.Module,
    x: Tensor | Array,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    probes: int = 8,
    seed: int = 0,
) -> Array:
    """Return the gradient norm (T,) that reaches each input, by its distance from the last step.

    Args:
        x: (B, T, D), batch first.
        loss: a number from what `layer(x)` returns. Without it, the norm is that of the whole
            Jacobian of the last output, dy_T/dx_{T-d}, estimated by `probes` random signs.

    Entry d is the root mean square over the batch of the norm at the input d steps before the end.
    Only inputs are looked at, so it works for every layer alike.
    """
    inputs = torch.as_tensor(x).detach().clone().requires_grad_()
    if inputs.dim() != 3:
        raise ValueError(f"x: expected (B, T, D), got shape {tuple(inputs.shape)}")
    result = layer(inputs)
    if loss is not None:
        total = [loss(result) * len(inputs)]
    else:
        last = (result[0] if isinstance(result, tuple) else result)[:, -1]
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (probes, *last.shape), generator=generator) * 2 - 1
        total = [(last * sign.to(last)).sum() for sign in signs]
    squares = [
        torch.autograd.grad(value, inputs, retain_graph=True)[0].double().pow(2).sum(2)
        for value in total
    ]
    norms: Array = torch.stack(squares).mean((0, 1)).sqrt().flip(0).numpy()
    return norms


def _copies(value: Tensor, dim: int, count: int) -> Tensor:
    shape = [count if axis == dim else size for axis, size in enumerate(value.shape)]
    return value.detach().expand(shape).clone().requires_grad_()


def _flat(values: tuple[Tensor, ...]) -> Tensor:
    """(rows, B, H) or (B, H) each -> (B, everything)."""
    parts = [v.transpose(0, 1) if v.dim() == 3 else v for v in values]
    return torch.cat([part.flatten(1) for part in parts], 1)


def _tuple(state: Any) -> tuple[Tensor, ...]:
    if isinstance(state, Mapping):
        return tuple(state.values())
    return (state,) if isinstance(state, Tensor) else tuple(state)


def _like(state: Any, parts: list[Tensor]) -> Any:
    """`parts` in the form of `state`: a tensor, a dict or a tuple."""
    if isinstance(state, Mapping):
        return dict(zip(state, parts, strict=True))
    return parts[0] if isinstance(state, Tensor) else tuple(parts)


def _check_rows(rows: int) -> int:
    if rows > LARGEST:
        raise ValueError(f"layer: expected at most {LARGEST} rows of a Jacobian, got {rows}")
    return rows


def jacobian_spectrum(layer: nn.Module, x: Tensor | Array) -> Array:
    """Return the singular values of a layer's Jacobian at the first example, largest first.

    A recurrent layer, which returns (output, final_state): d(final state)/d(initial state) over the
    whole sequence, all its states together (an LSTM's h and c), from the zero state. Any other
    layer: dy/dx. Rows are computed as one batch, so the layer must treat examples independently.

    Raises:
        ValueError: the Jacobian has more than 2048 rows.
    """
    inputs = torch.as_tensor(x).detach()
    batch_dim = 0 if getattr(layer, "batch_first", True) else 1
    one = inputs.narrow(batch_dim, 0, 1)
    with torch.no_grad():
        result = layer(one)
    if isinstance(result, tuple):
        zeros = [torch.zeros_like(state) for state in _tuple(result[1])]
        rows = _check_rows(sum(state.numel() for state in zeros))
        starts = [_copies(state, 1 if state.dim() == 3 else 0, rows) for state in zeros]
        given = _like(result[1], starts)
        ends = _flat(_tuple(layer(_copies(one, batch_dim, rows), given)[1]))
    else:
        rows = _check_rows(result.numel())
        starts = [_copies(one, batch_dim, rows)]
        ends = layer(starts[0]).transpose(0, batch_dim).flatten(1)
    seeds = torch.eye(rows).to(ends)
    slopes = torch.autograd.grad(ends, starts, seeds, allow_unused=True, materialize_grads=True)
    if isinstance(result, tuple):
        jacobian = _flat(slopes)
    else:
        jacobian = slopes[0].transpose(0, batch_dim).flatten(1)
    singular: Array = torch.linalg.svdvals(jacobian.double()).numpy()
    return singular
