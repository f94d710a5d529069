"""The generic gate in NumPy, forward and backward by hand: W x + b, then the gate g, then y = g v.
Imports NumPy alone.
Must not import `gatelib.spec`, the equations or torch.

Shapes: x (..., D), W (H, D), b (H,); a, g, value, noise and y (..., H).
Without W the gates are free: H = D and every example sees the same b.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LOW, HIGH = -0.1, 1.1  # the hard concrete is stretched to (LOW, HIGH), then clipped to [0, 1]
NOISY = ("bernoulli", "concrete", "gumbel_softmax", "hard_concrete")
CERTAIN = tuple("sigmoid hard_sigmoid softmax exp relu relu_squared linear step".split())


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), with no exponential of a positive number."""
    small = np.exp(-np.abs(a))
    result: Array = np.where(a >= 0, 1 / (1 + small), small / (1 + small))
    return result


def softmax(a: Array) -> Array:
    """exp(a_k) / sum_j exp(a_j) over the last axis; the largest exponent is 0."""
    shifted = np.exp(a - a.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def logistic_noise(u: Array) -> Array:
    """Logistic noise log u - log(1 - u) from uniform u in (0, 1)."""
    result: Array = np.log(u) - np.log1p(-u)
    return result


def gumbel_noise(u: Array) -> Array:
    """Gumbel noise -log(-log u) from uniform u in (0, 1)."""
    result: Array = -np.log(-np.log(u))
    return result


def stretch(s: Array) -> Array:
    """Clip LOW + (HIGH - LOW) s to [0, 1] (Louizos et al. 1712.01312, equations 10 and 11)."""
    result: Array = np.clip(LOW + (HIGH - LOW) * s, 0.0, 1.0)
    return result


def scaled(a: Array, kind: str, temperature: float, noise: Array | None) -> Array:
    """(a + noise) / temperature; a Bernoulli gate compares its noise later, in `open_gate`."""
    if noise is None or kind == "bernoulli":
        return a / temperature
    added = gumbel_noise(noise) if kind == "gumbel_softmax" else logistic_noise(noise)
    return (a + added) / temperature


def open_gate(s: Array, kind: str, noise: Array | None) -> Array:
    """The gate g from the scaled preactivation s (the concrete kinds have their noise in s)."""
    if kind == "bernoulli":
        assert noise is not None
        return (noise < sigmoid(s)).astype(s.dtype)
    gates: dict[str, Callable[[Array], Array]] = {
        "sigmoid": sigmoid,
        "hard_sigmoid": lambda s: np.clip(s / 6 + 0.5, 0.0, 1.0),
        "softmax": softmax,
        "exp": np.exp,
        "relu": lambda s: np.maximum(s, 0.0),
        "relu_squared": lambda s: np.maximum(s, 0.0) ** 2,
        "linear": lambda s: s,
        "step": lambda s: (s > 0).astype(s.dtype),
        "concrete": sigmoid,
        "gumbel_softmax": softmax,
        "hard_concrete": lambda s: stretch(sigmoid(s)),
    }
    return gates[kind](s)


def close_gate(dg: Array, g: Array, s: Array, kind: str) -> Array:
    """ds from dg: the slope of each gate, in terms of its value where that is enough.

    The two hard kinds have slope 0 almost everywhere, so their gradient is a choice, not a
    derivative (straight-through, Bengio et al. 1308.3432): step is treated as the identity,
    bernoulli as its mean sigmoid(s).
    """
    if kind in ("softmax", "gumbel_softmax"):
        result: Array = g * (dg - (dg * g).sum(axis=-1, keepdims=True))
        return result
    p = sigmoid(s)
    slopes: dict[str, Callable[[], Any]] = {
        "sigmoid": lambda: g * (1 - g),
        "hard_sigmoid": lambda: (np.abs(s) < 3) / 6,
        "exp": lambda: g,
        "relu": lambda: s > 0,
        "relu_squared": lambda: 2 * np.maximum(s, 0.0),
        "linear": lambda: 1.0,
        "step": lambda: 1.0,
        "bernoulli": lambda: p * (1 - p),
        "concrete": lambda: g * (1 - g),
        "hard_concrete": lambda: ((g > 0) & (g < 1)) * (HIGH - LOW) * p * (1 - p),
    }
    return np.asarray(dg * slopes[kind]())


def forward(
    x: Array,
    weights: dict[str, Array],
    kind: str = "sigmoid",
    value: Array | None = None,
    temperature: float = 1.0,
    noise: Array | None = None,
) -> tuple[Array, dict[str, Any]]:
    """y = g v, where g is the gate of W x + b.

    Args:
        x: (..., D). weights: "b" (H,) and, unless the gates are free, "W" (H, D).
        kind: sigmoid, hard_sigmoid, softmax, exp, relu, relu_squared, linear, step, or a NOISY one.
        value: v (..., H); None gates x itself and needs H = D.
        temperature: divides the (noisy) preactivation. noise: uniform in (0, 1), (..., H).

    Returns: y (..., H) and what `backward` needs; saved["g"] is the gate.
    Raises: ValueError for an unknown kind, and where a noisy kind has no noise or another has some.
    """
    if kind not in CERTAIN + NOISY:
        raise ValueError(f"kind: expected one of {CERTAIN + NOISY}, got {kind!r}")
    if (kind in NOISY) != (noise is not None):
        raise ValueError(f"noise: expected only, and always, for {NOISY}; kind is {kind!r}")
    a = np.broadcast_to(weights["b"], (*x.shape[:-1], len(weights["b"])))
    if "W" in weights:
        a = x @ weights["W"].T + a
    s = scaled(a, kind, temperature, noise)
    g = open_gate(s, kind, noise)
    v = x if value is None else value
    return g * v, {"x": x, "weights": weights, "kind": kind, "value": value} | {
        "temperature": temperature,
        "s": s,
        "g": g,
        "v": v,
    }


def backward(dy: Array, saved: dict[str, Any]) -> dict[str, Array]:
    """Gradients of sum(dy * y): a dict with a, b, temperature, x, and W and value where given."""
    dg, dv = dy * saved["v"], dy * saved["g"]
    ds = close_gate(dg, saved["g"], saved["s"], saved["kind"])
    da = ds / saved["temperature"]
    rows = da.reshape(-1, da.shape[-1])
    grads: dict[str, Array] = {"a": da, "b": rows.sum(axis=0), "x": np.zeros_like(saved["x"])}
    grads["temperature"] = -(ds * saved["s"]).sum() / saved["temperature"]
    if "W" in saved["weights"]:
        grads["W"] = rows.T @ saved["x"].reshape(-1, saved["x"].shape[-1])
        grads["x"] = da @ saved["weights"]["W"]
    if saved["value"] is None:
        grads["x"] = grads["x"] + dv
    else:
        grads["value"] = dv
    return grads


def interpolate(a: Array, b: Array, g: Array) -> Array:
    """(1 - g) a + g b: the gate as a choice between two values of one shape."""
    result: Array = (1 - g) * a + g * b
    return result


def interpolate_backward(dy: Array, a: Array, b: Array, g: Array) -> tuple[Array, Array, Array]:
    """da, db and dg of `interpolate`."""
    return dy * (1 - g), dy * g, dy * (b - a)


def probability_open(a: Array, temperature: float) -> Array:
    """P(g > 0) of the hard concrete gate (Louizos et al. 1712.01312, equation 12)."""
    return sigmoid(a - temperature * np.log(-LOW / HIGH))


def probability_full(a: Array, temperature: float) -> Array:
    """P(g = 1) of the hard concrete gate: the noise carries s past (1 - LOW) / (HIGH - LOW)."""
    return sigmoid(a - temperature * np.log((1 - LOW) / (HIGH - 1)))


def expected_l0(a: Array, temperature: float) -> tuple[Array, Array]:
    """Expected number (...) of hard concrete gates above 0, and its gradient (..., H) in a."""
    p = probability_open(a, temperature)
    return p.sum(axis=-1), p * (1 - p)


def bias_for_openness(p: float) -> float:
    """The bias logit p at which a sigmoid gate is open by p; p strictly between 0 and 1."""
    if not 0.0 < p < 1.0:
        raise ValueError(f"p: expected a number strictly between 0 and 1, got {p!r}")
    return float(np.log(p) - np.log1p(-p))
