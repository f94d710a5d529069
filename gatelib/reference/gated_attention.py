"""Causal multi-head attention with its gates in NumPy, forward and backward by hand.

Imports NumPy, gatelib.reference.attention and gatelib.reference.check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Shapes: x (B, T, D); H heads of d = D/H features, K heads of keys and values, each read by H/K heads
of queries; C = K·d. Weights, those that the `Kind` asks for: `W` (D + 2C, D) and `b`, rows of
queries, keys, values, each head by head; `W_g` (R, D) and `b_g` of the gate; `w_q`, `w_k` (d,) of
the norms; `s` (H,) of the sinks; `W_f` (H, D), `b_f` of the forget gates; `W_o` (D, D) and `b_o`.
A layer without biases has no `b`, `b_g` and `b_o`. R is a row for each feature of what is gated, or
for each of its heads; a score for each pair of positions has rows for H queries, then for K keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.attention import ACTIVATIONS, backward_masked, forward_masked, sigmoid
from gatelib.reference.check import check_input, check_weights, live_steps

__all__ = ["GATES", "Kind", "backward", "forward", "initialize", "rotate", "slopes"]

Array = NDArray[Any]
Weights = dict[str, Array]
Saved = dict[str, Any]

GATES = ("none", "query", "key", "value", "score", "output")
CHOICES = {
    "gate": GATES,
    "per": ("element", "head"),
    "sink": (None, "learned", "zero"),
    "activation": ACTIVATIONS,
    "position": (None, "rope", "alibi"),
}
EPS, BASE = 1e-6, 10_000.0
"""What a norm adds to the mean square, and what the wavelengths of the rotations grow to."""


@dataclass(frozen=True)
class Kind:
    """What a layer does. Raises ValueError for a choice that is unknown, or excludes another.

    gate: what is gated, by sigmoid(W_g x + b_g) of the token whose row it is. A score is gated by
    head, with one gate for each query, or by element, with one for each pair: sigmoid(a_i + a_j).
    """

    heads: int = 1
    kv_heads: int | None = None
    gate: str = "none"
    per: str = "element"
    sink: str | None = None
    forget: bool = False
    qk_norm: bool = False
    activation: str = "softmax"
    position: str | None = None

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")
        if self.heads % self.shared:
            raise ValueError(f"kv_heads: expected a divisor of {self.heads}, got {self.shared}")
        if self.sink is not None and self.activation == "sigmoid":
            raise ValueError("sink: expected None beside sigmoids, which share nothing, got one")

    @property
    def shared(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def gated(self) -> int:
        """Heads of what is gated."""
        return self.shared if self.gate in ("key", "value") else self.heads

    @property
    def of_pairs(self) -> bool:
        """Whether each pair of positions has a gate of its own."""
        return self.gate == "score" and self.per == "element"


def initialize(
    rng: np.random.Generator, features: int, kind: Kind, bias: bool = True, forget_bias: float = 0.0
) -> Weights:
    """Uniform in ±1/√D, biases 0, gains 1, sinks 0; the forget gates' biases as given."""
    shapes = _shapes(features, kind, bias)
    bound = 1 / np.sqrt(features)
    weights = {k: rng.uniform(-bound, bound, s) for k, s in shapes.items() if len(s) == 2}
    levels = {"b_f": float(forget_bias), "w_q": 1.0, "w_k": 1.0}
    weights |= {k: np.full(s, levels.get(k, 0.0)) for k, s in shapes.items() if len(s) == 1}
    return {name: weights[name] for name in shapes}


def _shapes(features: int, kind: Kind, bias: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of a layer's weights."""
    size = features // kind.heads
    rows = features + 2 * kind.shared * size
    shapes: dict[str, tuple[int, ...]] = {"W": (rows, features), "b": (rows,)}
    if kind.gate != "none":
        count = kind.gated * (size if kind.per == "element" else 1)
        count = kind.heads + kind.shared if kind.of_pairs else count
        shapes |= {"W_g": (count, features), "b_g": (count,)}
    shapes |= {"w_q": (size,), "w_k": (size,)} if kind.qk_norm else {}
    shapes |= {"s": (kind.heads,)} if kind.sink == "learned" else {}
    shapes |= {"W_f": (kind.heads, features), "b_f": (kind.heads,)} if kind.forget else {}
    shapes |= {"W_o": (features, features), "b_o": (features,)}
    return {k: s for k, s in shapes.items() if bias or k not in ("b", "b_g", "b_o")}


# ---- forward --------------------------------------------------------------------------------


def forward(
    x: Array, weights: Weights, kind: Kind, lengths: Array | None = None
) -> tuple[Array, Saved]:
    """y (B, T, D) from x (B, T, D), and what `backward` needs; position t reads 0 … t.

    lengths (B,), whole numbers in 0…T: positions past them are read by none, and give 0. Raises
    ValueError for a shape, TypeError for a dtype that does not fit. Source: Qiu et al. 2025,
    arXiv:2505.06708 (gates); Lin et al. 2025, arXiv:2503.02130 (forgetting); Ramapuram et al. 2024,
    arXiv:2409.04431 (sigmoids).
    """
    _check(x, weights, kind)
    live = live_steps(lengths, x)
    x = np.where(live[..., None], x, 0)
    q, k, v = _heads(_linear(x, weights, "W", "b"), kind)
    saved: Saved = {"weights": weights, "kind": kind, "live": live[..., None], "x": x}
    saved["t"] = t = _gate(x, weights, kind)
    q, k = _normed(q, "w_q", saved), _normed(k, "w_k", saved)
    q, k, v = (_gated(*part, saved) for part in (("query", q), ("key", k), ("value", v)))
    if kind.position == "rope":
        q, k = rotate(q), rotate(k)
    k, v = (np.repeat(part, kind.heads // kind.shared, axis=1) for part in (k, v))
    mask = live[:, None, None] & np.tri(x.shape[1], dtype=bool)
    gate, bias = t if kind.gate == "score" else None, _bias(x, weights, kind, saved)
    sink = _sink(x, weights, kind)
    c, saved["g"], saved["read"] = forward_masked(q, k, v, mask, gate, bias, sink, kind.activation)
    saved["o"] = _together(_gated("output", c, saved))
    y = _linear(saved["o"], weights, "W_o", "b_o")
    return np.where(live[..., None], y, 0), saved


def _linear(x: Array, weights: Weights, weight: str, bias: str) -> Array:
    return np.asarray(x @ weights[weight].T + weights.get(bias, 0))


def _heads(packed: Array, kind: Kind) -> list[Array]:
    """Queries (B, H, T, d), keys and values (B, K, T, d), from packed rows (B, T, D + 2C)."""
    size = packed.shape[-1] // (kind.heads + 2 * kind.shared)
    ends = [kind.heads * size, (kind.heads + kind.shared) * size]
    counts = kind.heads, kind.shared, kind.shared
    parts = np.split(packed, ends, axis=-1)
    return [_by_head(part, count) for part, count in zip(parts, counts, strict=True)]


def _by_head(values: Array, heads: int) -> Array:
    """(B, T, H·d) as (B, H, T, d)."""
    batch, steps, features = values.shape
    return values.reshape(batch, steps, heads, features // heads).transpose(0, 2, 1, 3)


def _together(values: Array) -> Array:
    """(B, H, T, d) as (B, T, H·d)."""
    batch, heads, steps, size = values.shape
    return values.transpose(0, 2, 1, 3).reshape(batch, steps, heads * size)


def _gate(x: Array, weights: Weights, kind: Kind) -> Array | None:
    """The gates (B, heads, T, d or 1) of what is gated; of pairs (B, H, T, T)."""
    if kind.gate == "none":
        return None
    a = _linear(x, weights, "W_g", "b_g")
    if not kind.of_pairs:
        return sigmoid(_by_head(a, kind.gated))
    own = _by_head(a[..., : kind.heads], kind.heads)
    read = _by_head(a[..., kind.heads :], kind.shared)
    read = np.repeat(read, kind.heads // kind.shared, axis=1)
    return sigmoid(own + read.swapaxes(-1, -2))


def _gated(place: str, value: Array, saved: Saved) -> Array:
    """The value, gated if this is the place."""
    if saved["kind"].gate != place:
        return value
    saved["ungated"] = value
    return np.asarray(saved["t"] * value)


def _normed(value: Array, name: str, saved: Saved) -> Array:
    """Over the root of the mean square, times a gain, where there are norms."""
    if not saved["kind"].qk_norm:
        return value
    scale = 1 / np.sqrt((value**2).mean(axis=-1, keepdims=True) + EPS)
    saved[name] = value * scale, scale
    return np.asarray(saved["weights"][name] * value * scale)


def rotate(value: Array, back: bool = False) -> Array:
    """Features m and m + d/2 of (…, T, d), turned by the position times 10000^(−2m/d).

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2, with a feature's partner half of all
    features away.
    """
    steps, size = value.shape[-2:]
    angle = np.arange(steps)[:, None] * BASE ** (-2 * np.arange(size // 2) / size)
    cosine, sine = np.cos(angle), np.sin(-angle if back else angle)
    first, second = np.split(value, 2, axis=-1)
    turned = first * cosine - second * sine, first * sine + second * cosine
    return np.concatenate(turned, axis=-1).astype(value.dtype)


def slopes(heads: int) -> Array:
    """ALiBi's slope of each head: 2^(−8h/H) for h = 1 … H where H is a power of two.

    Where it isn't, those of the power below, then every other one of the power above. Source:
    Press, Smith & Lewis 2021, arXiv:2108.12409, section 3, and the code of its authors.
    """
    below = 2 ** int(math.log2(heads))
    first = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    more = 2.0 ** (-4 * np.arange(1, 2 * below + 1, 2) / below)
    return np.concatenate([first, more[: heads - below]])


def _bias(x: Array, weights: Weights, kind: Kind, saved: Saved) -> Array | None:
    """What is added to the scores: sums of log-gates (B, H, T, T), slopes (H, T, T)."""
    steps = np.arange(x.shape[1])
    bias = None
    if kind.position == "alibi":
        bias = -slopes(kind.heads)[:, None, None] * (steps[:, None] - steps)
    if kind.forget:
        saved["a_f"] = a = _linear(x, weights, "W_f", "b_f").transpose(0, 2, 1)
        sums = np.cumsum(-np.logaddexp(0, -a), axis=-1)
        between = sums[..., :, None] - sums[..., None, :]
        bias = between if bias is None else bias + between
    return None if bias is None else bias.astype(x.dtype)


def _sink(x: Array, weights: Weights, kind: Kind) -> Array | None:
    """The logit (H, 1, 1) of each head's sink."""
    if kind.sink is None:
        return None
    return weights.get("s", np.zeros(kind.heads, x.dtype))[:, None, None]


# ---- backward -------------------------------------------------------------------------------


def backward(dy: Array, saved: Saved) -> Weights:
    """Gradients of x and all weights from dy (B, T, D)."""
    weights, kind, x = saved["weights"], saved["kind"], saved["x"]
    d = np.where(saved["live"], dy, 0)
    grads: Weights = {}
    d_c = _by_head(_linear_backward(d, saved["o"], ("W_o", "b_o"), weights, grads), kind.heads)
    d_c, d_t = _gated_backward("output", d_c, None, saved)
    found = backward_masked(d_c, saved["read"])
    d_t = found["gate"] if kind.gate == "score" else d_t
    packed, d_t = _parts_backward(found, d_t, saved, grads)
    d_x = _linear_backward(packed, x, ("W", "b"), weights, grads)
    if d_t is not None:
        d_x = d_x + _linear_backward(_gate_rows(d_t, saved), x, ("W_g", "b_g"), weights, grads)
    if kind.forget:
        d_a = _forget_backward(found["bias"], saved["a_f"])
        d_x = d_x + _linear_backward(d_a, x, ("W_f", "b_f"), weights, grads)
    if kind.sink == "learned":
        grads["s"] = found["sink"].sum(axis=(0, 2, 3))
    return grads | {"x": np.where(saved["live"], d_x, 0)}


def _parts_backward(
    found: Weights, d_t: Array | None, saved: Saved, grads: Weights
) -> tuple[Array, Array | None]:
    """The adjoints (B, T, D + 2C) of the packed rows, from those of what the heads were given."""
    kind, d_q = saved["kind"], found["queries"]
    d_k, d_v = (_grouped(found[name], kind) for name in ("keys", "values"))
    if kind.position == "rope":
        d_q, d_k = rotate(d_q, back=True), rotate(d_k, back=True)
    d_q, d_t = _gated_backward("query", d_q, d_t, saved)
    d_k, d_t = _gated_backward("key", d_k, d_t, saved)
    d_v, d_t = _gated_backward("value", d_v, d_t, saved)
    d_q, d_k = (
        _normed_backward(d_q, "w_q", saved, grads),
        _normed_backward(d_k, "w_k", saved, grads),
    )
    return np.concatenate([_together(part) for part in (d_q, d_k, d_v)], axis=-1), d_t


def _linear_backward(
    d: Array, x: Array, names: tuple[str, str], weights: Weights, grads: Weights
) -> Array:
    """The gradient of x; those of the weight and, where there is one, the bias go to grads."""
    weight, bias = names
    grads[weight] = np.einsum("bto,bti->oi", d, x)
    if bias in weights:
        grads[bias] = d.sum(axis=(0, 1))
    return np.asarray(d @ weights[weight])


def _grouped(d: Array, kind: Kind) -> Array:
    """The sum (B, K, T, d) over the heads of queries (B, H, T, d) that read the same."""
    batch, heads, *rest = d.shape
    each = heads // kind.shared
    return np.asarray(d.reshape(batch, kind.shared, each, *rest).sum(axis=2))


def _gated_backward(
    place: str, d: Array, d_t: Array | None, saved: Saved
) -> tuple[Array, Array | None]:
    """The gradient of what was gated here, and of the gate; both as they come elsewhere."""
    if saved["kind"].gate != place:
        return d, d_t
    return d * saved["t"], d * saved["ungated"]


def _gate_rows(d_t: Array, saved: Saved) -> Array:
    """The adjoint (B, T, R) of the gates' preactivations."""
    t, kind = saved["t"], saved["kind"]
    d_a = d_t * t * (1 - t)
    if kind.of_pairs:
        own, read = d_a.sum(axis=-1), _grouped(d_a.sum(axis=-2), kind)
        return np.concatenate([own, read], axis=1).transpose(0, 2, 1)
    if kind.per == "head":
        d_a = d_a.sum(axis=-1, keepdims=True)
    return _together(d_a)


def _normed_backward(d: Array, name: str, saved: Saved, grads: Weights) -> Array:
    if not saved["kind"].qk_norm:
        return d
    unit, scale = saved[name]
    grads[name] = (d * unit).sum(axis=(0, 1, 2))
    d_unit = d * saved["weights"][name]
    return np.asarray(scale * (d_unit - unit * (d_unit * unit).mean(axis=-1, keepdims=True)))


def _forget_backward(d_bias: Array, a: Array) -> Array:
    """The adjoint (B, T, H) of a, through l_i − l_j and the running sums of log σ(a)."""
    d_sums = d_bias.sum(axis=-1) - d_bias.sum(axis=-2)
    d_log = np.flip(np.cumsum(np.flip(d_sums, -1), axis=-1), -1)
    return np.asarray((d_log * sigmoid(-a)).transpose(0, 2, 1))


def _check(x: Array, weights: Weights, kind: Kind) -> None:
    check_input(x)
    features = x.shape[2]
    if features % kind.heads:
        raise ValueError(f"x: expected features that {kind.heads} heads divide, got {features}")
    if kind.position == "rope" and features // kind.heads % 2:
        raise ValueError(f"x: expected an even number of features a head, got {features}")
    check_weights(weights, _shapes(features, kind, "b" in weights), x)
