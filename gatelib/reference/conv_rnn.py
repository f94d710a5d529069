"""Recurrent layers over films in NumPy: convolutions, forward, and a backward written by hand.

Imports NumPy; check and convolution of gatelib.reference.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Films are x (B, T, D, H, W), states (B, C, H, W). Weights: `W` (G·C, D, k, l), `U` (G·C, C, k, l)
and `b` (G·C,), blocks of rows in the order of the variant's gates; the peephole LSTM adds `w_i`,
`w_f`, `w_o` (C, H, W), and the GRU that resets after the product a bias `b_u` of U * h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_array, check_input, check_weights, initial_state
from gatelib.reference.convolution import Frame, convolve, convolve_backward, same

Array = NDArray[Any]
Weights = dict[str, Array]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Variant:
    """What sets one cell apart: its gates, its states, and the vectors and biases of its own."""

    gates: str
    states: str = "h"
    peepholes: str = ""
    own_bias: bool = False


VARIANTS = {
    "lstm": Variant("ifgo", "hc"),
    "peephole": Variant("ifgo", "hc", "ifo"),
    "gru": Variant("rzn", own_bias=True),
    "cho": Variant("rzn"),
    "elman": Variant("h"),
    "relu_rnn": Variant("h"),
}
"""By the names of the equations; cho is the GRU that resets before the product."""


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^−x) without overflow: tanh saturates where exp would not fit."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


# ---- over a film ----------------------------------------------------------------------------


@dataclass
class Saved:
    """What the backward pass needs; `states` has one step more than x."""

    variant: str
    weights: Weights
    x: Array
    frames: tuple[Frame, Frame]
    states: list[Weights]
    steps: list[Weights] = field(default_factory=list)


def initialize(
    rng: np.random.Generator,
    in_channels: int,
    channels: int,
    kernel: Pair = (3, 3),
    variant: str = "lstm",
    image: Pair = (1, 1),
) -> Weights:
    """Every weight uniform in ±1/√(C k l); `image` is the size of the states, for peepholes."""
    bound = 1 / np.sqrt(channels * np.prod(kernel))
    shapes = _shapes(_variant(variant), in_channels, channels, kernel, image)
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def forward(
    x: Array,
    weights: Weights,
    h0: Array | None = None,
    c0: Array | None = None,
    variant: str = "lstm",
    padding: Pair | None = None,
    dilation: Pair = (1, 1),
    wrap: bool = False,
) -> tuple[Array, Weights, Saved]:
    """Run a cell over films x (B, T, D, H, W).

    padding: zeros (above and below, left and right) for the convolution of x; None for as many as
    keep its size; with `wrap` the image goes on from the other edge in their place. The
    convolution of h always keeps its size. h0 and c0 are zeros if absent.
    Returns the outputs (B, T, C, H, W), the final states by name, and what `backward` needs.
    Raises ValueError for a shape, TypeError for a dtype that does not fit.

    Source: Shi et al. 2015, arXiv:1506.04214, eq. 3; Ballas et al. 2015, arXiv:1511.06432.
    """
    kind, U = _variant(variant), _check(x, weights, variant)
    inner = same(U.shape[2:], dilation, wrap)
    outer = inner if padding is None else Frame(tuple((p, p) for p in padding), dilation, wrap)
    B, T = x.shape[:2]
    flat = convolve(x.reshape(B * T, *x.shape[2:]), weights["W"], outer)
    from_x = flat.reshape(B, T, *flat.shape[1:]) + _over_image(weights["b"])
    size = U.shape[1], *from_x.shape[3:]
    for name in kind.peepholes:
        check_array(f"weights['w_{name}']", weights[f"w_{name}"], size, x)
    given = {"h": h0, "c": c0}
    states = {name: initial_state(given[name], f"{name}0", x, *size) for name in kind.states}
    saved = Saved(variant, weights, x, (outer, inner), [states])
    for t in range(T):
        saved.steps.append(_step(variant, from_x[:, t], saved.states[-1], weights, inner))
        saved.states.append({name: saved.steps[-1][name] for name in kind.states})
    empty = np.zeros((B, 0, *size), x.dtype)
    y = np.stack([state["h"] for state in saved.states[1:]], axis=1) if T else empty
    return y, saved.states[-1], saved


def _step(variant: str, a: Array, state: Weights, w: Weights, frame: Frame) -> Weights:
    """The values of one step, from a = W * x + b."""
    h = state["h"]
    if variant in ("gru", "cho"):
        return _gru(variant, a, h, w, frame)
    a = a + convolve(h, w["U"], frame)
    if variant == "elman":
        return {"h": np.tanh(a)}
    if variant == "relu_rnn":
        return {"h": np.maximum(a, 0)}
    return _lstm(a, state["c"], w)


def _lstm(a: Array, c_prev: Array, w: Weights) -> Weights:
    """i and f see the old cell state through their peepholes, o the new one."""
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    i = sigmoid(a_i + w.get("w_i", 0.0) * c_prev)
    f = sigmoid(a_f + w.get("w_f", 0.0) * c_prev)
    g = np.tanh(a_g)
    c = f * c_prev + i * g
    o = sigmoid(a_o + w.get("w_o", 0.0) * c)
    m = np.tanh(c)
    return {"i": i, "f": f, "g": g, "o": o, "c": c, "m": m, "h": o * m}


def _gru(variant: str, a: Array, h: Array, w: Weights, frame: Frame) -> Weights:
    """The reset gate acts after the convolution with U_n, or before it in "cho"."""
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    rows = 2 * h.shape[1]
    if variant == "gru":
        u_r, u_z, u_n = np.split(convolve(h, w["U"], frame) + _over_image(w["b_u"]), 3, axis=1)
    else:
        u_r, u_z = np.split(convolve(h, w["U"][:rows], frame), 2, axis=1)
    r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
    if variant == "gru":
        inner = r * u_n
    else:
        u_n = r * h
        inner = convolve(u_n, w["U"][rows:], frame)
    n = np.tanh(a_n + inner)
    return {"r": r, "z": z, "n": n, "u": u_n, "h": (1 - z) * n + z * h}


# ---- and back -------------------------------------------------------------------------------


def backward(dy: Array, d_final: Weights, saved: Saved) -> Weights:
    """Gradients of a loss, from those by the outputs and by the final states.

    dy (B, T, C, H, W); `d_final` has `h` and `c` (B, C, H, W), zeros where one is absent. Returns
    `x`, `h0`, for an LSTM `c0`, and one gradient for each weight.
    """
    kind, (outer, inner) = VARIANTS[saved.variant], saved.frames
    zeros = np.zeros_like(saved.states[0]["h"])
    d_state = {name: d_final.get(name, zeros) for name in kind.states}
    grads = {name: np.zeros_like(value) for name, value in saved.weights.items()}
    B, T, D = saved.x.shape[:3]
    d_a = np.zeros((B, T, len(grads["b"]), *zeros.shape[2:]), saved.x.dtype)
    for t in reversed(range(T)):
        d_state["h"] = d_state["h"] + dy[:, t]
        walk = _gru_backward if kind.gates == "rzn" else _lstm_backward
        walk = _rnn_backward if kind.gates == "h" else walk
        d_a[:, t], d_state = walk(d_state, saved, t, grads, inner)
    flat = d_a.reshape(B * T, *d_a.shape[2:])
    x = saved.x.reshape(B * T, D, *saved.x.shape[3:])
    d_x, grads["W"] = convolve_backward(flat, x, saved.weights["W"], outer)
    grads["b"] = flat.sum(axis=(0, 2, 3))
    return grads | {"x": d_x.reshape(saved.x.shape)} | {f"{k}0": d for k, d in d_state.items()}


def _lstm_backward(
    d_state: Weights, saved: Saved, t: int, grads: Weights, frame: Frame
) -> tuple[Array, Weights]:
    """The adjoints of the preactivations and of the states before the step."""
    s, before, w = saved.steps[t], saved.states[t], saved.weights
    d_o = d_state["h"] * s["m"] * s["o"] * (1 - s["o"])
    d_c = d_state["c"] + d_state["h"] * s["o"] * (1 - s["m"] ** 2)
    if "w_o" in w:
        d_c = d_c + d_o * w["w_o"]
        grads["w_o"] += (d_o * s["c"]).sum(axis=0)
    d_i = d_c * s["g"] * s["i"] * (1 - s["i"])
    d_f = d_c * before["c"] * s["f"] * (1 - s["f"])
    d_g = d_c * s["i"] * (1 - s["g"] ** 2)
    d_c = d_c * s["f"]
    for name, d in (("w_i", d_i), ("w_f", d_f)):
        if name in w:
            d_c = d_c + d * w[name]
            grads[name] += (d * before["c"]).sum(axis=0)
    d_a = np.concatenate([d_i, d_f, d_g, d_o], axis=1)
    d_h, d_U = convolve_backward(d_a, before["h"], w["U"], frame)
    grads["U"] += d_U
    return d_a, {"h": d_h, "c": d_c}


def _gru_backward(
    d_state: Weights, saved: Saved, t: int, grads: Weights, frame: Frame
) -> tuple[Array, Weights]:
    s, h, U = saved.steps[t], saved.states[t]["h"], saved.weights["U"]
    d, rows = d_state["h"], 2 * h.shape[1]
    d_n = d * (1 - s["z"]) * (1 - s["n"] ** 2)
    d_z = d * (h - s["n"]) * s["z"] * (1 - s["z"])
    slope, carried = s["r"] * (1 - s["r"]), d * s["z"]
    if saved.variant == "gru":
        d_r = d_n * s["u"] * slope
        d_u = np.concatenate([d_r, d_z, d_n * s["r"]], axis=1)
        d_h, d_U = convolve_backward(d_u, h, U, frame)
        grads["b_u"] += d_u.sum(axis=(0, 2, 3))
    else:
        d_q, d_U_n = convolve_backward(d_n, s["u"], U[rows:], frame)
        d_r = d_q * h * slope
        first = np.concatenate([d_r, d_z], axis=1)
        d_h, d_U_rz = convolve_backward(first, h, U[:rows], frame)
        d_h, d_U = d_h + d_q * s["r"], np.concatenate([d_U_rz, d_U_n])
    grads["U"] += d_U
    return np.concatenate([d_r, d_z, d_n], axis=1), {"h": d_h + carried}


def _rnn_backward(
    d_state: Weights, saved: Saved, t: int, grads: Weights, frame: Frame
) -> tuple[Array, Weights]:
    h = saved.steps[t]["h"]
    slope = 1 - h**2 if saved.variant == "elman" else (h > 0).astype(h.dtype)
    d_a = d_state["h"] * slope
    d_h, d_U = convolve_backward(d_a, saved.states[t]["h"], saved.weights["U"], frame)
    grads["U"] += d_U
    return d_a, {"h": d_h}


# ---- what it is called with -----------------------------------------------------------------


def _over_image(bias: Array) -> Array:
    """One number a channel, for every pixel."""
    return bias[:, None, None]


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"variant: expected one of {sorted(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def _shapes(
    kind: Variant, in_channels: int, channels: int, kernel: Pair, image: Pair
) -> dict[str, tuple[int, ...]]:
    rows = len(kind.gates) * channels
    shapes: dict[str, tuple[int, ...]] = {"W": (rows, in_channels, *kernel)}
    shapes |= {"U": (rows, channels, *kernel), "b": (rows,)}
    shapes |= {"b_u": (rows,)} if kind.own_bias else {}
    return shapes | {f"w_{name}": (channels, *image) for name in kind.peepholes}


def _check(x: Array, weights: Weights, variant: str) -> Array:
    """Check what is given, peepholes apart, whose size follows; U."""
    check_input(x, "(B, T, D, H, W)")
    kind, U = _variant(variant), weights.get("U", np.zeros(()))
    channels, *kernel = U.shape[1:] if U.ndim == 4 else (0, 0, 0)
    image = next((w.shape[1:] for name, w in weights.items() if name.startswith("w_")), (1, 1))
    shapes = _shapes(kind, x.shape[2], channels, (kernel[0], kernel[1]), (0, 0))
    shapes |= {f"w_{name}": (channels, *image) for name in kind.peepholes}
    check_weights(weights, shapes, x)
    return U
