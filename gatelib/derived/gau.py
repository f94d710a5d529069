"""The gated attention unit.

Imports NumPy, gatelib.equations.gau, gatelib.equations.gmlp, and of gatelib.derived gated_attention
and tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.gated_attention import live_steps, turned
from gatelib.derived.tape import Value, Values, gate, linear, swap
from gatelib.equations import gau
from gatelib.equations.gmlp import MASK

__all__ = ["unit"]


def unit(
    given: Values,
    causal: bool = True,
    n: float | None = None,
    lengths: NDArray[Any] | None = None,
) -> dict[str, Value]:
    """`x` (B, T, D) to `y` (B, T, D).

    given: `W` (2E + S, D), `b`, rows of u, v and z; `scale`, `offset` (2, S) of query and key; for
    a bias of pairs `bias_vectors` (2, S); `W_o` (D, E), `b_o`. n: what divides the products, None
    for the number of positions that a query sees. lengths (B,): live positions.
    """
    live = live_steps(given["x"], lengths)
    x = gate(MASK, x=given["x"], mask=live)["y"]
    steps, hidden = x.shape[1], given["W_o"].shape[1]
    lower = np.tri(steps) if causal else np.ones((steps, steps))
    mask = (live[:, None, :, 0] * lower)[:, :, None]
    h = gate(gau.HIDDEN, a=linear(x, given["W"], given.get("b")))["h"]
    u, v, z = h[..., :hidden], h[..., hidden : 2 * hidden], h[..., 2 * hidden :]
    q, k = (
        gate(gau.OFFSET, z=z, gamma=given["scale"][i], beta=given["offset"][i])["q"] for i in (0, 1)
    )
    seen = np.maximum(mask.sum(axis=-1, keepdims=True), 1) if n is None else n
    bias = _bias(given["bias_vectors"], steps) if "bias_vectors" in given else 0.0
    e = gate(gau.SCORE, q=q[:, :, None], k=k[:, None], n=seen, b=bias)["e"]
    e = e[..., 0][:, :, None]
    c = gate(gau.READ, e=e, mask=mask, v=swap(v, 1, 2)[:, None])["c"][..., 0]
    y = linear(gate(gau.GATE, u=u, c=c)["y"], given["W_o"], given.get("b_o"))
    return {"y": gate(MASK, x=y, mask=live)["y"]}


def _bias(vectors: Value, steps: int) -> Value:
    """⟨R_i α, R_j β⟩ of each pair (T, T, 1)."""
    first = np.zeros(steps, int)
    at_i, at_j = (turned(vectors[i : i + 1][first]) for i in (0, 1))
    return linear(at_i, at_j)[..., None]
