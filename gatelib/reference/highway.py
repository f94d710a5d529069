"""Highway layers, GTrXL's gate and the recurrent highway net in NumPy, backward by hand.

Imports NumPy and gatelib.reference.check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Blocks of rows of packed weights are in the order h, t and, where the carry gate is not 1 − t, c;
in GTrXL's gate r, z, h. x (N, D) holds one example a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_input, check_weights, initial_state

Array = NDArray[Any]
Weights = dict[str, Array]
Step = dict[str, Array]


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^−x) without overflow: tanh saturates where exp would not fit."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda a: np.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "sigmoid": (sigmoid, lambda h: h * (1 - h)),
    "identity": (lambda a: a, np.ones_like),
}
"""Each transform, and its slope in terms of its value."""


@dataclass
class Saved:
    """What a backward pass needs: the weights, the input, and the values of each layer or step."""

    weights: Weights
    x: Array
    steps: list[Step]
    activation: str = "tanh"


def initialize(
    rng: np.random.Generator, features: int, layers: int, bias: float = -1.0, coupled: bool = True
) -> Weights:
    """W (L, G·D, D) and b (L, G·D), uniform in ±1/√D; transform gates at `bias`, carry at −bias."""
    rows, bound = (2 if coupled else 3) * features, 1 / np.sqrt(features)
    weights = {"W": rng.uniform(-bound, bound, (layers, rows, features))}
    weights["b"] = rng.uniform(-bound, bound, (layers, rows))
    weights["b"][:, features : 2 * features] = bias
    weights["b"][:, 2 * features :] = -bias
    return weights


# ---- a stack of highway layers --------------------------------------------------------------


def forward(
    x: Array, weights: Weights, activation: str = "relu", coupled: bool = True
) -> tuple[Array, Saved]:
    """Pass x (N, D) through all layers; returns y (N, D) and what `backward` needs.

    Raises ValueError for a shape or an activation, TypeError for a dtype that does not fit.
    Source: Srivastava, Greff & Schmidhuber 2015, arXiv:1505.00387, eq. 2 and 3.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)}, got {activation!r}")
    _check(x, weights, coupled)
    saved = Saved(weights, x, [], activation)
    for W, b in zip(weights["W"], weights["b"], strict=True):
        step = _layer(x @ W.T + b, x, activation, coupled)
        saved.steps.append(step)
        x = step["y"]
    return x, saved


def _layer(packed: Array, x: Array, activation: str, coupled: bool) -> Step:
    """One layer from its packed preactivations."""
    a = np.split(packed, 2 if coupled else 3, axis=-1)
    h, t = ACTIVATIONS[activation][0](a[0]), sigmoid(a[1])
    c = 1 - t if coupled else sigmoid(a[2])
    values = {"x": x, "h": h, "t": t, "y": t * h + c * x}
    return values if coupled else values | {"c": c}


def backward(dy: Array, saved: Saved) -> Weights:
    """Gradients of x (N, D), W and b, from dy (N, D)."""
    grads = {name: np.zeros_like(value) for name, value in saved.weights.items()}
    d = dy
    for k in reversed(range(len(saved.steps))):
        step = saved.steps[k]
        packed, d = _layer_backward(d, step, saved.activation)
        grads["W"][k] = packed.T @ step["x"]
        grads["b"][k] = packed.sum(axis=0)
        d = d + packed @ saved.weights["W"][k]
    return grads | {"x": d}


def _layer_backward(d: Array, s: Step, activation: str) -> tuple[Array, Array]:
    """Adjoints of the packed preactivations, and of x along the carry."""
    d_h = d * s["t"] * ACTIVATIONS[activation][1](s["h"])
    slope = s["t"] * (1 - s["t"])
    if "c" in s:
        d_c = d * s["x"] * s["c"] * (1 - s["c"])
        return np.concatenate([d_h, d * s["h"] * slope, d_c], axis=-1), d * s["c"]
    d_t = d * (s["h"] - s["x"]) * slope
    return np.concatenate([d_h, d_t], axis=-1), d * (1 - s["t"])


# ---- the gate of GTrXL ----------------------------------------------------------------------


def initialize_gtrxl(rng: np.random.Generator, features: int, bias: float = 2.0) -> Weights:
    """W_y and W_x (3·D, D), uniform in ±1/√D, and b (D,), all at `bias`."""
    bound = 1 / np.sqrt(features)
    weights = {k: rng.uniform(-bound, bound, (3 * features, features)) for k in ("W_y", "W_x")}
    return weights | {"b": np.full(features, float(bias))}


def forward_gtrxl(x: Array, y: Array, weights: Weights) -> tuple[Array, Saved]:
    """The gated stream (N, D) from the stream x and the sublayer's output y, (N, D) each.

    Source: Parisotto et al. 2019, arXiv:1910.06764, gating of GRU type.
    """
    D = x.shape[-1]
    check_weights(weights, {"W_y": (3 * D, D), "W_x": (3 * D, D), "b": (D,)}, x)
    if y.shape != x.shape:
        raise ValueError(f"y: expected x's shape {x.shape}, got {y.shape}")
    a_r, a_z, a_h = np.split(y @ weights["W_y"].T, 3, axis=-1)
    U_r, U_z, U_h = np.split(weights["W_x"], 3)
    r, z = sigmoid(a_r + x @ U_r.T), sigmoid(a_z + x @ U_z.T - weights["b"])
    h = np.tanh(a_h + (r * x) @ U_h.T)
    saved = Saved(weights, x, [{"y": y, "r": r, "z": z, "h": h}])
    return (1 - z) * x + z * h, saved


def backward_gtrxl(dg: Array, saved: Saved) -> Weights:
    """Gradients of x, y, W_y, W_x and b, from dg (N, D)."""
    x, s, w = saved.x, saved.steps[0], saved.weights
    r, z, h, y = s["r"], s["z"], s["h"], s["y"]
    U_r, U_z, U_h = np.split(w["W_x"], 3)
    d_h = dg * z * (1 - h**2)
    d_z = dg * (h - x) * z * (1 - z)
    d_q = d_h @ U_h
    d_r = d_q * x * r * (1 - r)
    packed = np.concatenate([d_r, d_z, d_h], axis=-1)
    seen = ((d_r, x), (d_z, x), (d_h, r * x))
    return {
        "x": dg * (1 - z) + d_q * r + d_r @ U_r + d_z @ U_z,
        "y": packed @ w["W_y"],
        "W_y": packed.T @ y,
        "W_x": np.concatenate([d.T @ v for d, v in seen]),
        "b": -d_z.sum(axis=0),
    }


# ---- the recurrent highway net --------------------------------------------------------------


def initialize_recurrent(
    rng: np.random.Generator,
    input_size: int,
    hidden_size: int,
    depth: int = 1,
    bias: float = -2.0,
    coupled: bool = True,
) -> Weights:
    """W (G·H, D), U (L, G·H, H) and b (L, G·H); see `initialize`."""
    own = initialize(rng, hidden_size, depth, bias, coupled)
    bound, rows = 1 / np.sqrt(hidden_size), own["b"].shape[1]
    W = rng.uniform(-bound, bound, (rows, input_size))
    return {"W": W, "U": own["W"], "b": own["b"]}


def forward_recurrent(
    x: Array, weights: Weights, h0: Array | None = None, coupled: bool = True
) -> tuple[Array, Array, Saved]:
    """Run over x (B, T, D) from h0 (B, H), zeros if absent: y (B, T, H), the last state, saved.

    Each time step is a stack of L highway layers on the state; x enters the first of them.
    Source: Zilly et al. 2016, arXiv:1607.03474, section 4.
    """
    check_input(x)
    depth, rows, hidden = weights["U"].shape
    shapes = {"W": (rows, x.shape[2]), "U": (depth, rows, hidden), "b": (depth, rows)}
    check_weights(weights, shapes, x)
    s, ys = initial_state(h0, "h0", x, hidden), []
    saved = Saved(weights, x, [])
    for t in range(x.shape[1]):
        for k in range(depth):
            packed = s @ weights["U"][k].T + weights["b"][k]
            packed = packed + x[:, t] @ weights["W"].T if k == 0 else packed
            saved.steps.append(_layer(packed, s, "tanh", coupled))
            s = saved.steps[-1]["y"]
        ys.append(s)
    empty = np.zeros((x.shape[0], 0, hidden), x.dtype)
    return np.stack(ys, axis=1) if ys else empty, s, saved


def backward_recurrent(dy: Array, dh: Array | None, saved: Saved) -> Weights:
    """Gradients of x, h0, W, U and b, from dy (B, T, H) and dh (B, H), zeros if absent."""
    w, x = saved.weights, saved.x
    grads = {name: np.zeros_like(value) for name, value in w.items()}
    depth, hidden = w["U"].shape[0], w["U"].shape[2]
    d = np.zeros((x.shape[0], hidden), x.dtype) if dh is None else dh
    d_x = np.zeros_like(x)
    for j in reversed(range(len(saved.steps))):
        t, k = divmod(j, depth)
        d = d + dy[:, t] if k == depth - 1 else d
        packed, carried = _layer_backward(d, saved.steps[j], "tanh")
        grads["U"][k] += packed.T @ saved.steps[j]["x"]
        grads["b"][k] += packed.sum(axis=0)
        d = carried + packed @ w["U"][k]
        if k == 0:
            grads["W"] += packed.T @ x[:, t]
            d_x[:, t] = packed @ w["W"]
    return grads | {"x": d_x, "h0": d}


def _check(x: Array, weights: Weights, coupled: bool) -> None:
    check_input(x, "(N, D)")
    layers = len(weights["W"]) if "W" in weights else 0
    rows = (2 if coupled else 3) * x.shape[1]
    check_weights(weights, {"W": (layers, rows, x.shape[1]), "b": (layers, rows)}, x)
