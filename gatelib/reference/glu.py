"""The GLU family in NumPy: every gate and unit, and the MLP around it, backward by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

a is the preactivation of the gate, v the value, of one shape. `W_in` (G·H, D) holds the rows of
the gate first, then those of the value; a unit without a gate has a alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_array, check_floats, check_input, check_weights
from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
Weights = dict[str, Array]
Function = Callable[[Array], Array]


# ---- activations and their slopes -----------------------------------------------------------


def normal_cdf(a: Array) -> Array:
    """Φ(a), from the complementary error function, which keeps its digits far to the left."""
    return np.asarray(np.vectorize(math.erfc, otypes=[a.dtype])(-a / math.sqrt(2)) / 2)


def normal_pdf(a: Array) -> Array:
    """φ(a), the slope of Φ."""
    return np.asarray(np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi))


def silu(a: Array) -> Array:
    """a·σ(a)."""
    return np.asarray(a * sigmoid(a))


def silu_slope(a: Array, alpha: float = 1.0) -> Array:
    """d/da of a·σ(α a): σ + α a σ (1 − σ)."""
    s = sigmoid(alpha * a)
    return np.asarray(s + alpha * a * s * (1 - s))


INNER = math.sqrt(2 / math.pi)
CUBIC = 0.044715


def gelu_tanh(a: Array) -> Array:
    """a (1 + tanh(√(2/π) (a + 0.044715 a³))) / 2."""
    return np.asarray(a * (1 + np.tanh(INNER * (a + CUBIC * a**3))) / 2)


def gelu_tanh_slope(a: Array) -> Array:
    """The product rule, with tanh' = 1 − tanh²."""
    t = np.tanh(INNER * (a + CUBIC * a**3))
    return np.asarray((1 + t) / 2 + a * (1 - t**2) * INNER * (1 + 3 * CUBIC * a**2) / 2)


def above_zero(a: Array) -> Array:
    """1 where a > 0, else 0."""
    return (a > 0).astype(a.dtype)


ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "sigmoid": (sigmoid, lambda a: sigmoid(a) * (1 - sigmoid(a))),
    "identity": (lambda a: a, np.ones_like),
    "relu": (lambda a: np.maximum(a, 0), above_zero),
    "gelu": (lambda a: a * normal_cdf(a), lambda a: normal_cdf(a) + a * normal_pdf(a)),
    "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
    "silu": (silu, silu_slope),
    "relu_squared": (lambda a: np.maximum(a, 0) ** 2, lambda a: 2 * np.maximum(a, 0)),
}
"""Each activation, and its slope."""


# ---- gates ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """y = act(a) v: the whole list of Shazeer, and Dauphin's GLU."""

    activation: str
    gated = True

    def value(self, a: Array, v: Array) -> Array:
        """The gated value y, (..., H), of preactivations and values."""
        return ACTIVATIONS[self.activation][0](a) * v

    def slopes(self, a: Array, v: Array) -> tuple[Array, Array]:
        """∂y/∂a and ∂y/∂v. The second is the gate itself: nothing squashes what flows to v."""
        act, slope = ACTIVATIONS[self.activation]
        return slope(a) * v, act(a)


@dataclass(frozen=True)
class Squashed:
    """y = σ(a) tanh(v): the GTU."""

    gated = True

    def value(self, a: Array, v: Array) -> Array:
        """The gated value y, with the value squashed too."""
        return sigmoid(a) * np.tanh(v)

    def slopes(self, a: Array, v: Array) -> tuple[Array, Array]:
        """∂y/∂a and ∂y/∂v; both have a slope that dies far out."""
        s, t = sigmoid(a), np.tanh(v)
        return s * (1 - s) * t, s * (1 - t**2)


@dataclass(frozen=True)
class Clamped:
    """y = c σ(α c) (u + shift), c = min(a, limit) and u = v between −limit and limit."""

    limit: float
    alpha: float
    shift: float
    gated = True

    def value(self, a: Array, v: Array) -> Array:
        """The gated value y of inputs within the limit."""
        c, u = np.minimum(a, self.limit), np.clip(v, -self.limit, self.limit)
        return c * sigmoid(self.alpha * c) * (u + self.shift)

    def slopes(self, a: Array, v: Array) -> tuple[Array, Array]:
        """∂y/∂a and ∂y/∂v: 0 beyond the limits, and not at them."""
        c, u = np.minimum(a, self.limit), np.clip(v, -self.limit, self.limit)
        by_c = silu_slope(c, self.alpha) * (u + self.shift)
        by_u = c * sigmoid(self.alpha * c)
        return by_c * (a <= self.limit), by_u * (np.abs(v) <= self.limit)


@dataclass(frozen=True)
class Softcapped:
    """y = C tanh(a/C) σ(a) · K tanh(v/K): caps C of the gate, K of the value."""

    gate: float
    cap: float
    gated = True

    def value(self, a: Array, v: Array) -> Array:
        """The gated value y between soft caps."""
        return self.gate * np.tanh(a / self.gate) * sigmoid(a) * self.cap * np.tanh(v / self.cap)

    def slopes(self, a: Array, v: Array) -> tuple[Array, Array]:
        """∂y/∂a and ∂y/∂v; the sigmoid sees the raw a."""
        t, s, u = np.tanh(a / self.gate), sigmoid(a), np.tanh(v / self.cap)
        by_a = (1 - t**2) * s + self.gate * t * s * (1 - s)
        return by_a * self.cap * u, self.gate * t * s * (1 - u**2)


@dataclass(frozen=True)
class Unit:
    """y = act(a): no gate."""

    activation: str
    gated = False

    def value(self, a: Array) -> Array:
        """The activated value y of preactivations alone."""
        return ACTIVATIONS[self.activation][0](a)

    def slopes(self, a: Array) -> tuple[Array]:
        """∂y/∂a."""
        return (ACTIVATIONS[self.activation][1](a),)


VARIANTS: dict[str, Any] = {
    "glu": Product("sigmoid"),
    "gtu": Squashed(),
    "bilinear": Product("identity"),
    "reglu": Product("relu"),
    "geglu": Product("gelu"),
    "geglu_tanh": Product("gelu_tanh"),
    "swiglu": Product("silu"),
    "relu_squared_glu": Product("relu_squared"),
    "gpt_oss": Clamped(7.0, 1.702, 1.0),
    "deepseek_v4": Clamped(10.0, 1.0, 0.0),
    "softcapped": Softcapped(10.0, 10.0),
    "situ": Softcapped(4.0, 25.0),
    "relu": Unit("relu"),
    "gelu": Unit("gelu"),
    "gelu_tanh": Unit("gelu_tanh"),
    "silu": Unit("silu"),
    "relu_squared": Unit("relu_squared"),
}
"""The family by name; numbers of the clamped forms as their models have them."""


def variant_of(name: str) -> Any:
    """The variant; ValueError, with the known names, for another."""
    if name not in VARIANTS:
        raise ValueError(f"variant: expected one of {sorted(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def forward(a: Array, v: Array | None = None, variant: str = "glu") -> Array:
    """y from a and, where the variant has a gate, v, of one shape and dtype.

    Raises ValueError for an unknown variant or a v that doesn't fit it, TypeError for a dtype.
    Source: Dauphin et al. 2016, arXiv:1612.08083; Shazeer 2020, arXiv:2002.05202.
    """
    known = variant_of(variant)
    return np.asarray(known.value(*_parts(a, v, known.gated, variant)))


def backward(dy: Array, a: Array, v: Array | None = None, variant: str = "glu") -> dict[str, Array]:
    """Gradients of a and, where there is one, v, from dy."""
    known = variant_of(variant)
    slopes = known.slopes(*_parts(a, v, known.gated, variant))
    return {name: dy * slope for name, slope in zip("av", slopes, strict=False)}


def _parts(a: Array, v: Array | None, gated: bool, variant: str) -> tuple[Array, ...]:
    check_floats("a", a)
    if gated != (v is not None):
        expected = "a value beside a" if gated else "None"
        raise ValueError(f"v: expected {expected} for the variant {variant!r}")
    if v is None:
        return (a,)
    check_array("v", v, a.shape, a, "a")
    return a, v


# ---- the MLP around it ----------------------------------------------------------------------


@dataclass
class Saved:
    """What the backward pass needs: the preactivations, and y computed from them again."""

    variant: str
    weights: Weights
    x: Array
    parts: tuple[Array, ...]


def initialize(
    rng: np.random.Generator,
    features: int,
    hidden: int,
    out_features: int | None = None,
    variant: str = "swiglu",
    bias: bool = False,
) -> Weights:
    """W_in (G·H, D) and W_out (O, H), uniform in ±1/√(inputs), and perhaps b_in, b_out likewise."""
    out = features if out_features is None else out_features
    rows = (1 + variant_of(variant).gated) * hidden
    weights = {}
    for name, shape in {"in": (rows, features), "out": (out, hidden)}.items():
        bound = 1 / np.sqrt(shape[1])
        weights[f"W_{name}"] = rng.uniform(-bound, bound, shape)
        if bias:
            weights[f"b_{name}"] = rng.uniform(-bound, bound, shape[0])
    return weights


def forward_mlp(x: Array, weights: Weights, variant: str = "swiglu") -> tuple[Array, Saved]:
    """W_out f(W_in x + b_in) + b_out of x (N, D); returns (N, O) and what `backward_mlp` needs.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """
    known = variant_of(variant)
    _check(x, weights, known.gated)
    packed = x @ weights["W_in"].T + weights.get("b_in", 0)
    parts = tuple(np.split(packed, 2, axis=-1)) if known.gated else (packed,)
    y = known.value(*parts) @ weights["W_out"].T + weights.get("b_out", 0)
    return y, Saved(variant, weights, x, parts)


def backward_mlp(dy: Array, saved: Saved) -> Weights:
    """Gradients of x and of every weight, from dy (N, O)."""
    known, w = variant_of(saved.variant), saved.weights
    d_hidden = dy @ w["W_out"]
    packed = np.concatenate([d_hidden * s for s in known.slopes(*saved.parts)], axis=-1)
    grads = {"x": packed @ w["W_in"], "W_in": packed.T @ saved.x}
    grads["W_out"] = dy.T @ known.value(*saved.parts)
    if "b_in" in w:
        grads |= {"b_in": packed.sum(axis=0), "b_out": dy.sum(axis=0)}
    return grads


def _check(x: Array, weights: Weights, gated: bool) -> None:
    check_input(x, "(N, D)")
    shape = weights["W_out"].shape if "W_out" in weights else ()
    out, hidden = shape if len(shape) == 2 else (0, 0)
    rows = (1 + gated) * hidden
    shapes: dict[str, tuple[int, ...]] = {"W_in": (rows, x.shape[1]), "W_out": (out, hidden)}
    if {"b_in", "b_out"} & set(weights):
        shapes |= {"b_in": (rows,), "b_out": (out,)}
    check_weights(weights, shapes, x)
