"""Gated convolutions in NumPy: forward and backward by hand, weight norm, receptive fields.

Imports NumPy; check, convolution and glu of gatelib.reference.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

x is (B, D, T), as torch has it. `W` (G·C, D, k) and `b` (G·C,) hold the rows of the value first,
then those of the gate; a unit without a gate has one block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_input, check_weights
from gatelib.reference.convolution import Frame, convolve, convolve_backward, same
from gatelib.reference.glu import variant_of

Array = NDArray[Any]
Weights = dict[str, Array]


@dataclass
class Saved:
    """What the backward pass needs: what was given, and the preactivations."""

    variant: str
    weights: Weights
    x: Array
    frame: Frame
    parts: tuple[Array, ...]


def receptive_field(layers: Iterable[tuple[int, int]]) -> int:
    """How many inputs one output sees behind layers of (kernel size, dilation): 1 + Σ (k − 1) d.

    Found by walking back from one output: at each layer every place that is seen makes k more,
    d apart. The field reaches from the first to the last of them.
    """
    seen = {0}
    for size, dilation in layers:
        seen = {place - j * dilation for place in seen for j in (0, size - 1)}
    return 1 + max(seen) - min(seen)


def initialize(
    rng: np.random.Generator, in_channels: int, channels: int, size: int = 3, variant: str = "glu"
) -> Weights:
    """W (G·C, D, k) and b (G·C,), uniform in ±1/√(D k)."""
    bound, rows = 1 / np.sqrt(in_channels * size), (1 + variant_of(variant).gated) * channels
    W = rng.uniform(-bound, bound, (rows, in_channels, size))
    return {"W": W, "b": rng.uniform(-bound, bound, rows)}


def forward(
    x: Array, weights: Weights, variant: str = "glu", dilation: int = 1, causal: bool = True
) -> tuple[Array, Saved]:
    """Convolve x (B, D, T) and gate; returns y (B, C, T) and what `backward` needs.

    Where it is causal all zeros stand before the first input, so that y(t) sees nothing after t;
    otherwise half of them, an odd one behind. Raises ValueError for a shape, TypeError for a dtype
    that does not fit. Source: Dauphin et al. 2016, arXiv:1612.08083, section 2.
    """
    known = variant_of(variant)
    _check(x, weights, known.gated)
    frame = same(weights["W"].shape[2:], (dilation,))
    frame = Frame(((sum(frame.zeros[0]), 0),), frame.dilation) if causal else frame
    packed = convolve(x, weights["W"], frame) + weights["b"][:, None]
    parts = tuple(np.split(packed, 2, axis=1))[::-1] if known.gated else (packed,)
    return np.asarray(known.value(*parts)), Saved(variant, weights, x, frame, parts)


def backward(dy: Array, saved: Saved) -> Weights:
    """Gradients of x, W and b, from dy (B, C, T)."""
    slopes = variant_of(saved.variant).slopes(*saved.parts)
    packed = np.concatenate([dy * slope for slope in slopes[::-1]], axis=1)
    d_x, d_W = convolve_backward(packed, saved.x, saved.weights["W"], saved.frame)
    return {"x": d_x, "W": d_W, "b": packed.sum(axis=(0, 2))}


def normalized(g: Array, v: Array) -> Array:
    """Weight norm: each row of W = g v / ‖v‖ has the length g; g (R, 1, 1), v (R, D, k).

    Source: Salimans & Kingma 2016, arXiv:1602.07868, eq. 2.
    """
    return np.asarray(g * v / _length(v))


def normalized_backward(d_W: Array, g: Array, v: Array) -> Weights:
    """Gradients of g and v: what lies along v changes the length, the rest turns the row.

    Source: the same paper, eq. 3.
    """
    unit, length = v / _length(v), _length(v)
    d_g = (d_W * unit).sum(axis=(1, 2), keepdims=True)
    return {"g": d_g, "v": g / length * (d_W - d_g * unit)}


def _length(v: Array) -> Array:
    return np.asarray(np.sqrt((v**2).sum(axis=(1, 2), keepdims=True)))


def _check(x: Array, weights: Weights, gated: bool) -> None:
    check_input(x, "(B, D, T)")
    shape = weights["W"].shape if "W" in weights else ()
    rows, size = (shape[0], shape[2]) if len(shape) == 3 else (0, 0)
    if gated and rows % 2:
        raise ValueError(f"weights['W']: expected rows for a value and a gate alike, got {rows}")
    check_weights(weights, {"W": (rows, x.shape[1], size), "b": (rows,)}, x)
