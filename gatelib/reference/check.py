"""What the recurrent references check of their arguments, and the mask of a padded batch.

Imports NumPy alone.
Must not import SymPy, torch or any other floor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def check_input(x: Array) -> None:
    """It must be (B, T, D) of a floating dtype."""
    if x.ndim != 3:
        raise ValueError(f"x: expected 3 dimensions (B, T, D), got {x.ndim}")
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"x: expected a floating dtype, got {x.dtype}")


def check_weights(weights: dict[str, Array], shapes: dict[str, tuple[int, ...]], x: Array) -> None:
    """Each must have its shape and x's dtype, and there must be no other."""
    if set(weights) != set(shapes):
        raise ValueError(f"weights: expected {sorted(shapes)}, got {sorted(weights)}")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"weights[{name!r}]: expected {shape}, got {weights[name].shape}")
        check_dtype(f"weights[{name!r}]", weights[name], x)


def check_dtype(name: str, value: Array, x: Array) -> None:
    """It must be x's dtype."""
    if value.dtype != x.dtype:
        raise TypeError(f"{name}: expected {x.dtype} as x, got {value.dtype}")


def initial_state(state: Array | None, name: str, x: Array, hidden: int) -> Array:
    """The state (B, H) as given, checked, or zeros."""
    expected = (x.shape[0], hidden)
    if state is None:
        return np.zeros(expected, x.dtype)
    if state.shape != expected:
        raise ValueError(f"{name}: expected {expected}, got {state.shape}")
    check_dtype(name, state, x)
    return state


def live_steps(lengths: Array | None, x: Array) -> Array:
    """(B, T), true where a row still has input."""
    batch, steps = x.shape[:2]
    if lengths is None:
        return np.ones((batch, steps), bool)
    lengths = np.asarray(lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: expected ({batch},), got {lengths.shape}")
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"lengths: expected whole numbers, got {lengths.dtype}")
    if batch and (lengths.min() < 0 or lengths.max() > steps):
        raise ValueError(f"lengths: expected 0 … {steps}, got {lengths.min()} … {lengths.max()}")
    return np.asarray(np.arange(steps) < lengths[:, None])
