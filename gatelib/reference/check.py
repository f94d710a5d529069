"""What the references share: checks of arguments, the mask of a padded batch, what a pass keeps.

Imports NumPy alone.
Must not import SymPy, torch or any other floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class OverTime:
    """What a backward pass over time needs of a cell; `h` has one step more than x."""

    variant: Any
    weights: dict[str, Array]
    x: Array
    live: Array
    h: list[Array]


def check_input(x: Array, axes: str = "(B, T, D)") -> None:
    """It must have these axes and a floating dtype."""
    rank = axes.count(",") + 1
    if x.ndim != rank:
        raise ValueError(f"x: expected {rank} dimensions {axes}, got {x.ndim}")
    check_floats("x", x)


def check_floats(name: str, value: Array) -> None:
    """It must have a floating dtype."""
    if not np.issubdtype(value.dtype, np.floating):
        raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")


def check_weights(
    weights: dict[str, Array], shapes: dict[str, tuple[int, ...]], like: Array, what: str = "x"
) -> None:
    """Each must have its shape and the dtype of `like`, and there must be no other."""
    if set(weights) != set(shapes):
        raise ValueError(f"weights: expected {sorted(shapes)}, got {sorted(weights)}")
    for name, shape in shapes.items():
        check_array(f"weights[{name!r}]", weights[name], shape, like, what)


def check_array(
    name: str, value: Array, shape: tuple[int, ...], like: Array, what: str = "x"
) -> None:
    """It must have the shape, and the dtype of `like`, which the caller knows as `what`."""
    if value.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {value.shape}")
    check_dtype(name, value, like, what)


def check_dtype(name: str, value: Array, like: Array, what: str = "x") -> None:
    """It must have the dtype of `like`."""
    if value.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} as {what}, got {value.dtype}")


def initial_state(state: Array | None, name: str, x: Array, *sizes: int) -> Array:
    """The state (B, *sizes) as given, checked, or zeros."""
    expected = (x.shape[0], *sizes)
    if state is None:
        return np.zeros(expected, x.dtype)
    check_array(name, state, expected, x)
    return state


def row_lengths(lengths: Array | None, x: Array, least: int = 0) -> Array:
    """(B,), how many steps each row of x (B, T, …) has: all T, or as given and checked."""
    batch, steps = x.shape[0], x.shape[1] if x.ndim > 1 else 0
    lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: expected ({batch},), got {lengths.shape}")
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"lengths: expected whole numbers, got {lengths.dtype}")
    if batch and (lengths.min() < least or lengths.max() > steps):
        low, high = lengths.min(), lengths.max()
        raise ValueError(f"lengths: expected {least} … {steps}, got {low} … {high}")
    return lengths


def live_steps(lengths: Array | None, x: Array, least: int = 0) -> Array:
    """(B, T), true where a row still has input."""
    return np.asarray(np.arange(x.shape[1]) < row_lengths(lengths, x, least)[:, None])
