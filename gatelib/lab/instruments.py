"""Single numbers and curves that say what gates do to memory and to gradients.

Imports NumPy and torch.
Must not import the floors below; it measures whatever layer it is given.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

__all__ = ["gradient_by_distance", "half_life", "jacobian_spectrum", "saturation"]

Array = NDArray[Any]
LARGEST = 2048
"""Rows of a Jacobian; more would cost too much memory."""


def _gate(name: str, values: Any) -> Array:
    try:
        values = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, NotImplementedError):
        raise TypeError(f"{name}: expected numbers, got {values!r:.60}") from None
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
    if signed is not None and not isinstance(signed, bool):
        raise TypeError(f"signed: expected True, False or None, got {type(signed).__name__}")
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise TypeError(f"margin: expected a number, got {type(margin).__name__}")
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

    Raises:
        TypeError: x holds tokens, or other integers; `loss` isn't callable.
        ValueError: x isn't (B, T, D) with at least one step, or `probes` is below 1.
    """
    _check_layer(layer)
    inputs = _floats("x", x).clone()
    if inputs.dim() != 3:
        raise ValueError(f"x: expected (B, T, D), got shape {tuple(inputs.shape)}")
    if inputs.shape[1] == 0:
        raise ValueError(f"x: expected at least one step, got shape {tuple(inputs.shape)}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: expected a function, got {type(loss).__name__}")
    _check_integer("probes", probes, least=1)
    _check_integer("seed", seed, least=0)
    result = layer(inputs.requires_grad_())
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
    copies = value.detach().expand(shape).clone()
    return copies.requires_grad_() if copies.is_floating_point() else copies


def _flat(values: Iterable[Tensor], axes: Iterable[int]) -> Tensor:
    """Each with its axis of examples in front -> (B, everything)."""
    parts = [value.movedim(axis, 0).flatten(1) for value, axis in zip(values, axes, strict=True)]
    return torch.cat(parts, 1)


def _check_rows(rows: int) -> int:
    if rows > LARGEST:
        raise ValueError(f"layer: expected at most {LARGEST} rows of a Jacobian, got {rows}")
    return rows


def jacobian_spectrum(layer: nn.Module, x: Tensor | Array, *others: Tensor | Array) -> Array:
    """Return the singular values of a layer's Jacobian at the first example, largest first.

    A recurrent layer, which returns (output, final_state): d(final state)/d(initial state) over the
    whole sequence, all its states together (an LSTM's h and c, those of each layer of a stack),
    from the zero state. Any other layer, one whose second argument is `lengths` and so no state,
    and one whose state grows as a cache does: dy/dx; `others` are its further inputs, and of a
    tuple the first entry is y. Rows are computed as one batch, so the layer must treat examples
    independently.

    Raises:
        TypeError: x holds tokens, or other integers, which have no derivative.
        ValueError: the Jacobian has more than 2048 rows.
    """
    _check_layer(layer)
    inputs = [_floats("x", x), *(torch.as_tensor(value).detach() for value in others)]
    batch_dim = 0 if getattr(layer, "batch_first", True) else 1
    if inputs[0].dim() <= batch_dim or inputs[0].shape[batch_dim] == 0:
        shape = tuple(inputs[0].shape)
        raise ValueError(f"x: expected examples in dimension {batch_dim}, got shape {shape}")
    one = [value.narrow(batch_dim, 0, 1) for value in inputs]
    with torch.no_grad():
        result = layer(*one)
    recurrent = isinstance(result, tuple) and not others and _takes_state(layer)
    if recurrent and not _grows(layer, one[0], result[1]):
        starts, ends, axes = _state_map(layer, one[0], batch_dim)
        end = _flat(ends, axes)
    else:
        result = result[0] if isinstance(result, tuple) else result
        copies = [_copies(value, batch_dim, _check_rows(result.numel())) for value in one]
        made = layer(*copies)
        starts, axes = copies[:1], [batch_dim]
        end = _flat([made[0] if isinstance(made, tuple) else made], axes)
    seeds = torch.eye(end.shape[1]).to(end)
    slopes = torch.autograd.grad(end, starts, seeds, allow_unused=True, materialize_grads=True)
    singular: Array = torch.linalg.svdvals(_flat(slopes, axes).double()).numpy()
    return singular


def _state_after(layer: nn.Module, *inputs: Any) -> Any:
    """The final state; all that an LSTMCell returns is its state."""
    result = layer(*inputs)
    return result if isinstance(layer, nn.RNNCellBase) else result[1]


def _takes_state(layer: nn.Module) -> bool:
    """Whether its second argument may be a state: a pool's is `lengths`."""
    names = list(inspect.signature(getattr(layer, "forward", layer)).parameters)
    return names[1:2] != ["lengths"]


def _grows(layer: nn.Module, one: Tensor, state: Any) -> bool:
    """Whether the state that a second pass leaves has another shape than the first one's."""
    if isinstance(layer, nn.RNNCellBase):
        return False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        after = _state_after(layer, one, state)
    shapes = ([leaf.shape for leaf in tree_leaves(value)] for value in (state, after))
    return next(shapes) != next(shapes)


def _state_map(
    layer: nn.Module, one: Tensor, batch_dim: int
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Zero states, a copy for each row of the Jacobian; what they become; their batch axes."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        leaves, form = tree_flatten(_state_after(layer, one))
        pair = tree_leaves(_state_after(layer, _copies(one, batch_dim, 2)))
    axes = [_axis_that_differs(a.shape, b.shape) for a, b in zip(leaves, pair, strict=True)]
    rows = _check_rows(sum(leaf.numel() for leaf in leaves))
    zeros = (torch.zeros_like(leaf) for leaf in leaves)
    starts = [_copies(zero, axis, rows) for zero, axis in zip(zeros, axes, strict=True)]
    final = _state_after(layer, _copies(one, batch_dim, rows), tree_unflatten(starts, form))
    return starts, tree_leaves(final), axes


def _axis_that_differs(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Which axis of a state counts the examples."""
    found = [axis for axis, sizes in enumerate(zip(one, other, strict=True)) if len({*sizes}) > 1]
    if len(found) != 1:
        raise ValueError(
            f"x: expected a batch of examples, each with a state of its own; the state of one is "
            f"{tuple(one)} and of two {tuple(other)}"
        )
    return found[0]


def _floats(name: str, x: Any) -> Tensor:
    """x as a tensor that has derivatives."""
    try:
        found = torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}") from None
    if not found.is_floating_point():
        raise TypeError(f"{name}: expected floats, got {found.dtype}, which has no derivative")
    return found


def _check_integer(name: str, number: object, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}: expected an integer, got {type(number).__name__}")
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")


def _check_layer(layer: object) -> None:
    if not callable(layer):
        raise TypeError(f"layer: expected a torch.nn.Module, got {type(layer).__name__}")
