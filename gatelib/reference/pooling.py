"""Pooling by attention and by a softmax of each feature in NumPy, forward and backward by hand.

Imports NumPy and gatelib.reference: attention and check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

`x` (B, T, D) holds the steps, `lengths` (B,) whole numbers in 0…T. A row without a step pools to 0.
Weights: `W` (A, D) and `b` (A,) of the layer, `w` (R, A) of the R hops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.attention import softmax
from gatelib.reference.check import check_array, check_input, check_weights, live_steps

Array = NDArray[Any]
Weights = dict[str, Array]


def initialize(rng: np.random.Generator, features: int, size: int, hops: int = 1) -> Weights:
    """Uniform weights in ±1/√(inputs), as torch draws a linear layer's."""
    bounds = {"W": 1 / np.sqrt(features), "b": 1 / np.sqrt(features), "w": 1 / np.sqrt(size)}
    shapes = _shapes(features, size, hops)
    return {name: rng.uniform(-bounds[name], bounds[name], shapes[name]) for name in shapes}


def forward(
    x: Array, weights: Weights, lengths: Array | None = None, scale: float = 1.0
) -> tuple[Array, Array, dict[str, Any]]:
    """What the hops pool (B, R, D), how far they open to each step (B, R, T), and what to save.

    Raises ValueError for a shape, TypeError for a dtype that does not fit. Source: Yang et al.
    2016, "Hierarchical attention networks", section 2.2; Lin et al. 2017, arXiv:1703.03130, section
    2.1.
    """
    check_input(x)
    hops, size = weights["w"].shape if "w" in weights else (0, 0)
    check_weights(weights, _shapes(x.shape[2], size, hops), x)
    live = live_steps(lengths, x)[:, None]
    m = np.tanh(x @ weights["W"].T + weights["b"])
    g = _shares(scale * (weights["w"] @ m.swapaxes(1, 2)), live)
    saved = {"x": x, "m": m, "g": g, "weights": weights, "scale": scale, "live": live}
    return g @ np.where(live.swapaxes(1, 2), x, 0), g, saved


def _shares(e: Array, live: Array) -> Array:
    """The softmax over the live places of the last axis; 0 where there is none."""
    some = live.any(axis=-1, keepdims=True)
    return np.where(live, softmax(np.where(live | ~some, e, -np.inf)), 0)


def _by_score(d_g: Array, g: Array) -> Array:
    """The gradient by what stood in the softmax."""
    return np.asarray(g * (d_g - (d_g * g).sum(axis=-1, keepdims=True)))


def backward(d_pooled: Array, d_g: Array | None, saved: dict[str, Any]) -> Weights:
    """Gradients by `x`, `W`, `b` and `w`, given d_pooled (B, R, D) and perhaps d_g (B, R, T)."""
    x, m, g, weights = (saved[name] for name in ("x", "m", "g", "weights"))
    live = saved["live"].swapaxes(1, 2)
    by_share = d_pooled @ np.where(live, x, 0).swapaxes(1, 2)
    d_e = saved["scale"] * _by_score(by_share + (0 if d_g is None else d_g), g)
    d_a = (d_e.swapaxes(1, 2) @ weights["w"]) * (1 - m**2)  # (B, T, A)
    d_a = np.where(live, d_a, 0)
    return {
        "x": g.swapaxes(1, 2) @ d_pooled + d_a @ weights["W"],
        "W": np.einsum("bta,btd->ad", d_a, x),
        "b": d_a.sum(axis=(0, 1)),
        "w": np.einsum("brt,bta->ra", d_e, m),
    }


def soft_forward(
    x: Array, scale: Array, lengths: Array | None = None
) -> tuple[Array, dict[str, Any]]:
    """What a softmax over time of each feature pools, (B, D), and what to save; scale (D,)."""
    check_input(x)
    check_array("scale", scale, (x.shape[2],), x)
    live = live_steps(lengths, x)[:, None]
    v = np.where(live, x.swapaxes(1, 2), 0)
    g = _shares(scale[:, None] * v, live & np.ones_like(v, bool))
    return (g * v).sum(axis=-1), {"v": v, "g": g, "scale": scale}


def soft_backward(d_pooled: Array, saved: dict[str, Any]) -> Weights:
    """Gradients by `x` (B, T, D) and `scale` (D,), given d_pooled (B, D)."""
    v, g = saved["v"], saved["g"]
    d = d_pooled[..., None]
    d_e = _by_score(d * v, g)
    d_v = d * g + d_e * saved["scale"][:, None]
    return {"x": d_v.swapaxes(1, 2), "scale": (d_e * v).sum(axis=(0, 2))}


def hop_penalty(g: Array) -> float:
    """The mean over rows of ‖g gᵀ − I‖² (squared Frobenius norm): hops that read the same cost it.

    g (B, R, T). Source: Lin et al. 2017, arXiv:1703.03130, section 2.2.
    """
    return float(((g @ g.swapaxes(1, 2) - np.eye(g.shape[1])) ** 2).sum() / len(g))


def hop_penalty_backward(g: Array) -> Array:
    """Its gradient by g, (B, R, T)."""
    return np.asarray(4 * (g @ g.swapaxes(1, 2) - np.eye(g.shape[1])) @ g / len(g))


def _shapes(features: int, size: int, hops: int) -> dict[str, tuple[int, ...]]:
    return {"W": (size, features), "b": (size,), "w": (hops, size)}
