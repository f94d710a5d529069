"""Pooling over time: a score for each step, or for each feature of it, and a gate over the steps.

Imports NumPy, gatelib.spec and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.tape import Value, Values, gate, linear, swap
from gatelib.spec import Spec

__all__ = ["attention", "soft"]

Lengths = NDArray[Any] | None


def attention(
    score: Spec, pool: Spec, given: Values, lengths: Lengths = None, scale: float = 1.0
) -> dict[str, Value]:
    """`x` (B, T, D), `W` (A, D), `b` (A,), `w` (R, A) to `pooled` (B, R, D), `weights` (B, R, T).

    lengths (B,): live steps, at least one a row.
    """
    a = linear(given["x"], given["W"], given["b"])[:, :, None]  # (B, T, 1, A)
    e = swap(gate(score, a=a, w=given["w"])["e"][..., 0], 1, 2)[:, :, None]  # (B, R, 1, T)
    v = swap(given["x"], 1, 2)[:, None]
    made = gate(pool.exposed, e=e, v=v, k=scale, mask=_live(given["x"], lengths)[:, None, None])
    return {"pooled": made["c"][..., 0], "weights": made["g"][:, :, 0]}


def soft(pool: Spec, given: Values, lengths: Lengths = None) -> dict[str, Value]:
    """`x` (B, T, D) and `scale` (D,) to `pooled` (B, D)."""
    v, k = swap(given["x"], 1, 2), given["scale"][:, None]
    return {"pooled": gate(pool, v=v, k=k, mask=_live(v, lengths, 2)[:, None])["c"][..., 0]}


def _live(x: Value, lengths: Lengths, axis: int = 1) -> NDArray[Any]:
    """(B, T) of 1 where there is a step, of 0 for padding."""
    steps = x.shape[axis]
    ends = np.full(x.shape[0], steps) if lengths is None else lengths
    return 1.0 * (np.arange(steps) < ends[:, None])
