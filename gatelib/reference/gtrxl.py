"""The block of GTrXL in NumPy, forward and backward by hand.

Imports NumPy, and of gatelib.reference check, gated_attention and highway.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Shapes: x (B, T, D), F hidden features. Weights: `norm1.gamma`, `norm1.beta`, `norm2.gamma`,
`norm2.beta` (D,); behind `attention.` those of gatelib.reference.gated_attention, behind `gate1.`
and `gate2.` those of the gate in gatelib.reference.highway; `W_in` (F, D), `b_in`, `W_out` (D, F)
and `b_out`. Without the weights of the gates a submodule is added to the stream, as in TrXL-I.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference import gated_attention, highway
from gatelib.reference.check import check_array, check_input, live_steps
from gatelib.reference.gated_attention import Kind

__all__ = ["backward", "forward", "initialize"]

Array = NDArray[Any]
Weights = dict[str, Array]
Saved = dict[str, Any]

EPS = 1e-5
"""What layer normalisation adds to the variance."""


def initialize(
    rng: np.random.Generator, features: int, hidden: int, kind: Kind, bias: float = 2.0
) -> Weights:
    """Uniform in ±1/√inputs, gains 1, biases 0, those of the gates as given."""
    weights = {f"{n}.gamma": np.ones(features) for n in ("norm1", "norm2")}
    weights |= {f"{n}.beta": np.zeros(features) for n in ("norm1", "norm2")}
    weights |= _behind("attention.", gated_attention.initialize(rng, features, kind))
    for gate in ("gate1.", "gate2."):
        weights |= _behind(gate, highway.initialize_gtrxl(rng, features, bias))
    for name, (rows, inputs) in {"in": (hidden, features), "out": (features, hidden)}.items():
        bound = 1 / np.sqrt(inputs)
        weights[f"W_{name}"] = rng.uniform(-bound, bound, (rows, inputs))
        weights[f"b_{name}"] = np.zeros(rows)
    return weights


def forward(
    x: Array, weights: Weights, kind: Kind, lengths: Array | None = None
) -> tuple[Array, Saved]:
    """y (B, T, D) from the stream x (B, T, D), and what `backward` needs.

    Each submodule reads the normalised stream and ends in a relu; a gate lets it into the stream.
    lengths as in gatelib.reference.gated_attention. Raises ValueError for a shape, TypeError for a
    dtype that does not fit. Source: Parisotto et al. 2019, arXiv:1910.06764, sections 3.1 and 3.2.
    """
    _check(x, weights)
    live = live_steps(lengths, x)[..., None]
    x = np.where(live, x, 0)
    n, norm1 = _norm(x, _under("norm1.", weights))
    o, attended = gated_attention.forward(n, _under("attention.", weights), kind, lengths)
    x1, gate1 = _gate(x, np.maximum(o, 0), _under("gate1.", weights))
    n2, norm2 = _norm(x1, _under("norm2.", weights))
    h = np.maximum(n2 @ weights["W_in"].T + weights["b_in"], 0)
    m = h @ weights["W_out"].T + weights["b_out"]
    y, gate2 = _gate(x1, np.maximum(m, 0), _under("gate2.", weights))
    saved: Saved = {"weights": weights, "live": live, "norm1": norm1, "attended": attended, "o": o}
    saved |= {"gate1": gate1, "n2": n2, "norm2": norm2, "h": h, "m": m, "gate2": gate2}
    return np.where(live, y, 0), saved


def backward(dy: Array, saved: Saved) -> Weights:
    """Gradients of x and all weights from dy (B, T, D)."""
    w, h, grads = saved["weights"], saved["h"], dict[str, Array]()
    d = np.where(saved["live"], dy, 0)
    d_x1, d_m = _gate_backward("gate2", d, saved, grads)
    d_m = d_m * (saved["m"] > 0)
    grads |= {"W_out": np.einsum("btd,btf->df", d_m, h), "b_out": d_m.sum(axis=(0, 1))}
    d_h = (d_m @ w["W_out"]) * (h > 0)
    grads |= {"W_in": np.einsum("btf,btd->fd", d_h, saved["n2"]), "b_in": d_h.sum(axis=(0, 1))}
    d_x1 = d_x1 + _norm_backward("norm2", d_h @ w["W_in"], saved, grads)
    d_x, d_o = _gate_backward("gate1", d_x1, saved, grads)
    found = gated_attention.backward(d_o * (saved["o"] > 0), saved["attended"])
    d_n = found.pop("x")
    grads |= _behind("attention.", found)
    d_x = d_x + _norm_backward("norm1", d_n, saved, grads)
    return grads | {"x": np.where(saved["live"], d_x, 0)}


# ---- parts ----------------------------------------------------------------------------------


def _under(place: str, weights: Weights) -> Weights:
    return {k.removeprefix(place): v for k, v in weights.items() if k.startswith(place)}


def _behind(place: str, weights: Weights) -> Weights:
    return {place + name: value for name, value in weights.items()}


def _gate(x: Array, y: Array, weights: Weights) -> tuple[Array, highway.Saved | None]:
    """The gate of gatelib.reference.highway, at each position of (B, T, D), or a sum."""
    if not weights:
        return x + y, None
    rows = x.shape[-1]
    g, saved = highway.forward_gtrxl(x.reshape(-1, rows), y.reshape(-1, rows), weights)
    return g.reshape(x.shape), saved


def _gate_backward(place: str, d: Array, saved: Saved, grads: Weights) -> tuple[Array, Array]:
    """The gradients of both streams; those of the gate's weights go to grads."""
    if saved[place] is None:
        return d, d
    found = highway.backward_gtrxl(d.reshape(-1, d.shape[-1]), saved[place])
    d_x, d_y = (found.pop(name).reshape(d.shape) for name in "xy")
    grads |= _behind(f"{place}.", found)
    return d_x, d_y


def _norm(x: Array, weights: Weights) -> tuple[Array, tuple[Array, Array]]:
    """Layer normalisation over the features, and what its backward pass needs."""
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)
    return weights["gamma"] * centred * scale + weights["beta"], (centred * scale, scale)


def _norm_backward(place: str, d: Array, saved: Saved, grads: Weights) -> Array:
    unit, scale = saved[place]
    grads |= {f"{place}.gamma": (d * unit).sum((0, 1)), f"{place}.beta": d.sum((0, 1))}
    d_unit = d * saved["weights"][f"{place}.gamma"]
    along = (d_unit * unit).mean(axis=-1, keepdims=True)
    return np.asarray(scale * (d_unit - d_unit.mean(axis=-1, keepdims=True) - unit * along))


def _check(x: Array, weights: Weights) -> None:
    check_input(x)
    features, hidden = x.shape[2], len(weights.get("W_in", ()))
    shapes: dict[str, tuple[int, ...]] = {
        f"{norm}.{name}": (features,) for norm in ("norm1", "norm2") for name in ("gamma", "beta")
    }
    shapes |= {"W_in": (hidden, features), "b_in": (hidden,)}
    shapes |= {"W_out": (features, hidden), "b_out": (features,)}
    for name, shape in shapes.items():
        if name not in weights:
            raise ValueError(f"weights: expected {name!r} too, got {sorted(weights)}")
        check_array(f"weights[{name!r}]", weights[name], shape, x)
