"""The gated attention unit in NumPy, forward and backward by hand.

Imports NumPy, gatelib.reference.attention, gatelib.reference.check and
gatelib.reference.gated_attention.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Shapes: x (B, T, D), E hidden features, S features of queries and keys. Weights: `W` (2E + S, D) and
`b`, rows of u, v and z; `scale` and `offset` (2, S), of the query and of the key; `W_o` (D, E) and
`b_o`; where pairs have a bias `bias_vectors` (2, S). A unit without biases has no `b` and `b_o`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.attention import sigmoid
from gatelib.reference.check import check_input, check_weights, live_steps
from gatelib.reference.gated_attention import rotate

__all__ = ["backward", "forward", "initialize"]

Array = NDArray[Any]
Weights = dict[str, Array]
Saved = dict[str, Any]


def initialize(
    rng: np.random.Generator, features: int, hidden: int, key_size: int, rotary: bool = False
) -> Weights:
    """Matrices uniform in ±1/√inputs, scales 1, the rest 0; bias vectors as wide as 1/√S."""
    shapes = _shapes(features, hidden, key_size, rotary)
    weights = {name: np.zeros(shape) for name, shape in shapes.items()}
    weights["scale"] += 1.0
    for name in weights.keys() & {"W", "W_o", "bias_vectors"}:
        bound = 1 / np.sqrt(shapes[name][-1])
        weights[name] = rng.uniform(-bound, bound, shapes[name])
    return weights


def _shapes(
    features: int, hidden: int, key_size: int, rotary: bool, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """The shapes of a unit's weights."""
    rows = 2 * hidden + key_size
    shapes: dict[str, tuple[int, ...]] = {"W": (rows, features), "b": (rows,)}
    shapes |= {"scale": (2, key_size), "offset": (2, key_size)}
    shapes |= {"bias_vectors": (2, key_size)} if rotary else {}
    shapes |= {"W_o": (features, hidden), "b_o": (features,)}
    return {name: shape for name, shape in shapes.items() if bias or name not in ("b", "b_o")}


def forward(
    x: Array,
    weights: Weights,
    causal: bool = True,
    n: float | None = None,
    lengths: Array | None = None,
) -> tuple[Array, Saved]:
    """y (B, T, D) from x (B, T, D), and what `backward` needs.

    n: what divides the products of queries and keys; None for the number of positions that the
    query sees. A bias of a pair is ⟨R_i α, R_j β⟩, the bias vectors turned by their positions.
    lengths (B,), whole numbers in 0…T: positions past them are read by none, and give 0. Raises
    ValueError for a shape, TypeError for a dtype that does not fit. Source: Hua et al. 2022,
    arXiv:2202.10447, equations 3 and 4.
    """
    _check(x, weights, n)
    live = live_steps(lengths, x)
    mask = live[:, None] & (np.tri(x.shape[1], dtype=bool) if causal else True)
    x = np.where(live[..., None], x, 0)
    a = x @ weights["W"].T + weights.get("b", 0)
    hidden = weights["W_o"].shape[1]
    u, v, z = np.split(a * sigmoid(a), [hidden, 2 * hidden], axis=-1)
    q, k = (weights["scale"][i] * z + weights["offset"][i] for i in (0, 1))
    seen = np.maximum(mask.sum(axis=-1, keepdims=True), 1).astype(x.dtype) if n is None else n
    r = np.maximum(q @ k.swapaxes(1, 2) / seen + _bias(weights, x.shape[1]), 0)
    g = np.where(mask, r**2, 0)
    c = g @ v
    y = (u * c) @ weights["W_o"].T + weights.get("b_o", 0)
    saved: Saved = {"weights": weights, "live": live[..., None], "mask": mask, "x": x, "a": a}
    saved |= {"u": u, "v": v, "z": z, "q": q, "k": k, "seen": seen, "r": r, "g": g, "c": c}
    return np.where(live[..., None], y, 0), saved


def _bias(weights: Weights, steps: int) -> Array:
    """The bias (T, T) of each pair, or 0."""
    if "bias_vectors" not in weights:
        return np.zeros((steps, steps), weights["W"].dtype)
    at_i, at_j = (rotate(row) for row in _everywhere(weights["bias_vectors"], steps))
    return np.asarray(at_i @ at_j.T)


def _everywhere(vectors: Array, steps: int) -> Array:
    """Both vectors (2, S) at each position (2, T, S)."""
    return np.repeat(vectors[:, None], steps, axis=1)


def backward(dy: Array, saved: Saved) -> Weights:
    """Gradients of x and all weights from dy (B, T, D)."""
    w, u, c, z = (saved[name] for name in ("weights", "u", "c", "z"))
    d = np.where(saved["live"], dy, 0)
    grads = {"W_o": np.einsum("btd,bte->de", d, u * c), "b_o": d.sum(axis=(0, 1))}
    d_y = d @ w["W_o"]
    d_c = d_y * u
    d_v = saved["g"].swapaxes(1, 2) @ d_c
    d_e = np.where(saved["mask"], 2 * saved["r"] * (d_c @ saved["v"].swapaxes(1, 2)), 0)
    if "bias_vectors" in w:
        grads["bias_vectors"] = _bias_backward(d_e.sum(axis=0), w["bias_vectors"])
    d_e = d_e / saved["seen"]
    d_q, d_k = d_e @ saved["k"], d_e.swapaxes(1, 2) @ saved["q"]
    grads["scale"] = np.stack([(part * z).sum(axis=(0, 1)) for part in (d_q, d_k)])
    grads["offset"] = np.stack([part.sum(axis=(0, 1)) for part in (d_q, d_k)])
    d_z = d_q * w["scale"][0] + d_k * w["scale"][1]
    a, open_ = saved["a"], sigmoid(saved["a"])
    d_a = np.concatenate([d_y * c, d_v, d_z], axis=-1) * open_ * (1 + a * (1 - open_))
    grads["W"] = np.einsum("btr,btd->rd", d_a, saved["x"])
    grads["b"] = d_a.sum(axis=(0, 1))
    grads["x"] = np.where(saved["live"], d_a @ w["W"], 0)
    return {name: value for name, value in grads.items() if name == "x" or name in w}


def _bias_backward(d_bias: Array, vectors: Array) -> Array:
    """The gradient (2, S) of both vectors from that (T, T) of the biases."""
    at_i, at_j = (rotate(row) for row in _everywhere(vectors, len(d_bias)))
    return np.stack([rotate(d, back=True).sum(axis=0) for d in (d_bias @ at_j, d_bias.T @ at_i)])


def _check(x: Array, weights: Weights, n: float | None) -> None:
    check_input(x)
    hidden = weights["W_o"].shape[-1] if "W_o" in weights else 0
    key_size = weights["scale"].shape[-1] if "scale" in weights else 0
    rotary = "bias_vectors" in weights
    check_weights(weights, _shapes(x.shape[2], hidden, key_size, rotary, "b" in weights), x)
    if rotary and key_size % 2:
        raise ValueError(f"weights['bias_vectors']: expected an even S, got {key_size}")
    if n is not None and n <= 0:
        raise ValueError(f"n: expected a number above 0, got {n}")
