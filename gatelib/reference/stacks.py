"""Stacks of LSTM layers in NumPy: both directions, masks, shortcuts, pooling; backward by hand.
Imports NumPy and gatelib.reference: gate and lstm.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Sequences are (B, T, D) with `lengths` (B,) from 1 to T where rows are padded, else None. A layer is
a tuple of one or two directions; each direction is a dict of LSTM weights W, U and b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference import lstm
from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
Weights = dict[str, Array]
Layer = tuple[Weights, ...]
State = tuple[Array, Array]

POOLS = ("max", "mean", "last", "ends")


def reverse(x: Array, lengths: Array | None = None) -> Array:
    """Each row of x (B, T, D) from its own end; padding stays where it is. Its own inverse."""
    steps = np.arange(x.shape[1])
    ends = np.full(len(x), x.shape[1]) if lengths is None else lengths
    source = np.where(steps < ends[:, None], ends[:, None] - 1 - steps, steps)
    return np.asarray(np.take_along_axis(x, source[:, :, None], axis=1))


def mask(noise: Array, p: float) -> Array:
    """The gate of dropout: 1/(1 - p) where uniform noise is below 1 - p, and 0 elsewhere."""
    if not 0 <= p <= 1:
        raise ValueError(f"p: expected a probability in [0, 1], got {p}")
    keep = 1 - p
    return np.asarray((noise < keep) / (keep or 1.0), noise.dtype)


def zoneout(new: Array, old: Array, kept: Array) -> Array:
    """Old values where `kept` is 1, new ones where it is 0 (Krueger et al. 1606.01305, eq. 3)."""
    return np.asarray(kept * old + (1 - kept) * new)


@dataclass
class Saved:
    """What the backward pass needs: per layer its directions, its mask and whether x was added."""

    lengths: Array | None
    directions: list[list[lstm.Saved]] = field(default_factory=list)
    masks: list[Array | None] = field(default_factory=list)
    added: list[bool] = field(default_factory=list)


def forward(
    x: Array,
    layers: Sequence[Layer],
    starts: Sequence[Sequence[State]] | None = None,
    lengths: Array | None = None,
    masks: Sequence[Array | None] | None = None,
    residual: bool = False,
) -> tuple[Array, list[list[State]], Saved]:
    """Run layers on top of each other: y_k = layer_k(g_k y_{k-1}), plus y_{k-1} if residual.

    x (B, T, D); starts[k][way] the initial (h, c) of a direction, (B, H) each, zeros if absent;
    masks[k] the gate g_k of the input of layer k, (B, 1, D_k) for one that time shares, None for
    none; residual adds the input from the second layer on. Returns the output (B, T, ways·H), the
    final states like `starts`, and what `backward` needs. Raises ValueError where sizes don't fit.
    """
    saved = Saved(lengths)
    finals: list[list[State]] = []
    for k, layer in enumerate(layers):
        gate = masks[k] if masks is not None else None
        given = x if gate is None else gate * x
        y, final, kept = _layer(given, layer, starts[k] if starts else None, lengths)
        added = residual and k > 0
        if added and y.shape != x.shape:
            raise ValueError(f"layers[{k}]: expected {x.shape[2]} features, got {y.shape[2]}")
        saved.directions.append(kept)
        saved.masks.append(gate)
        saved.added.append(added)
        finals.append(final)
        x = x + y if added else y
    return x, finals, saved


def _layer(
    x: Array, layer: Layer, starts: Sequence[State] | None, lengths: Array | None
) -> tuple[Array, list[State], list[lstm.Saved]]:
    """One layer: its first direction reads x, its second reads it from the end of each row."""
    outputs, finals, saved = [], [], []
    for way, weights in enumerate(layer):
        turned = reverse(x, lengths) if way else x
        h, c = starts[way] if starts else (None, None)
        y, final, kept = lstm.forward(turned, weights, h, c, lengths)
        outputs.append(reverse(y, lengths) if way else y)
        finals.append(final)
        saved.append(kept)
    return np.concatenate(outputs, axis=2), finals, saved


def backward(dy: Array, finals: Sequence[Sequence[State]] | None, saved: Saved) -> dict[str, Array]:
    """Gradients of a loss, given those by the output (B, T, F) and by the final states (or None).

    Returns "x" and, for each layer k and direction d, "k.d.NAME" with NAME in W, U, b, h0, c0.
    """
    gradients: dict[str, Array] = {}
    for k in reversed(range(len(saved.directions))):
        kept, gate = saved.directions[k], saved.masks[k]
        dx = np.zeros_like(kept[0].x)
        for way, d in enumerate(np.split(dy, len(kept), axis=2)):
            turned = reverse(d, saved.lengths) if way else d
            dh, dc = finals[k][way] if finals else (None, None)
            found = lstm.backward(turned, dh, dc, kept[way])
            d_in = found.pop("x")
            dx += reverse(d_in, saved.lengths) if way else d_in
            gradients |= {f"{k}.{way}.{name}": value for name, value in found.items()}
        dx = dx if gate is None else gate * dx
        dy = dx + dy if saved.added[k] else dx
    return gradients | {"x": dy}


def pool(y: Array, lengths: Array | None = None, kind: str = "max") -> tuple[Array, Array]:
    """Pool y (B, T, H) over time. Returns (B, H), and the gate (B, T, H) that does it.

    Every kind is a sum over time of a gate times y. "mean": 1/length; "last": 1 at the last step;
    "max": 1 at the first largest value; "ends": 1 at the last step for the first half of the
    features, at step 0 for the second half. The gate is 0 in the padding.
    Raises ValueError for an unknown kind, for lengths outside 1 … T, and for "ends" of an odd H.
    """
    if kind not in POOLS:
        raise ValueError(f"kind: expected one of {POOLS}, got {kind!r}")
    batch, steps, features = y.shape
    ends = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    if batch and (ends.min() < 1 or ends.max() > steps):
        raise ValueError(f"lengths: expected 1 … {steps}, got {ends.min()} … {ends.max()}")
    if kind == "ends" and features % 2:
        raise ValueError(f"y: expected two halves of features for 'ends', got {features}")
    time, live = np.arange(steps)[:, None], np.arange(steps) < ends[:, None]
    if kind == "mean":
        gate = np.broadcast_to((live / ends[:, None])[:, :, None], y.shape)
    else:
        where = np.broadcast_to(ends[:, None] - 1, (batch, features)).copy()
        if kind == "max":
            where = np.where(live[:, :, None], y, -np.inf).argmax(axis=1)
        elif kind == "ends":
            where[:, features // 2 :] = 0
        gate = where[:, None, :] == time
    gate = gate.astype(y.dtype)
    return (gate * np.where(live[:, :, None], y, 0)).sum(axis=1), gate


def pool_backward(d: Array, gate: Array) -> Array:
    """The gradient (B, T, H) by what was pooled: each step gets what the gate let through."""
    return np.asarray(gate * d[:, None, :])


def word_gate(e: Array, w: Array, b: Array) -> tuple[Array, Array]:
    """Gate each word as a whole: e (..., D), w (D,), b () → σ(w·e + b) e, and the gates (...)."""
    gate = sigmoid(e @ w + b)
    return gate[..., None] * e, gate


def word_gate_backward(dy: Array, e: Array, w: Array, gate: Array) -> dict[str, Array]:
    """Gradients by e (through both factors), w and b."""
    da = (dy * e).sum(axis=-1) * gate * (1 - gate)
    flat = e.reshape(-1, e.shape[-1])
    de = dy * gate[..., None] + da[..., None] * w
    return {"e": de, "w": da.ravel() @ flat, "b": da.sum()}
