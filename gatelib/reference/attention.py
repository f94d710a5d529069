"""Attention in NumPy, forward and backward by hand.

Imports NumPy and gatelib.reference.check.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Shapes: B sentences, T queries, S positions. `queries` (B, T, Q), `keys` (B, S, K), and `values`
(B, S, V), which are the keys where none are given. Weights: additive attention has `W` (A, Q),
`U` (A, K) and `w` (A,); general attention has `W` (K, Q); dot and scaled have none and need Q = K.

`forward_masked` has any leading axes in the place of B, any mask in the place of lengths, and what
a gated layer puts on the scaled scores: a gate, a bias, a sink, sigmoids for the softmax.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_dtype, check_floats, check_weights, live_steps

__all__ = [
    "ACTIVATIONS",
    "SCORES",
    "backward",
    "backward_masked",
    "forward",
    "forward_masked",
    "initialize",
    "sigmoid",
    "softmax",
]

Array = NDArray[Any]
Weights = dict[str, Array]
SCORES = ("additive", "dot", "scaled", "general")
ACTIVATIONS = ("softmax", "sigmoid")


def initialize(
    rng: np.random.Generator, query_size: int, key_size: int, size: int, score: str = "additive"
) -> Weights:
    """Uniform weights in ±1/√(inputs): what torch draws for a linear layer."""
    shapes = _shapes(query_size, key_size, size, score)
    bounds = {name: 1 / np.sqrt(shape[-1]) for name, shape in shapes.items()}
    return {name: rng.uniform(-bounds[name], bounds[name], shapes[name]) for name in shapes}


def _shapes(query_size: int, key_size: int, size: int, score: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a score's weights."""
    if score == "additive":
        return {"W": (size, query_size), "U": (size, key_size), "w": (size,)}
    return {"W": (key_size, query_size)} if score == "general" else {}


def forward(
    queries: Array,
    keys: Array,
    weights: Weights,
    score: str = "additive",
    lengths: Array | None = None,
    values: Array | None = None,
) -> tuple[Array, Array, dict[str, Any]]:
    """Contexts (B, T, V), attention weights (B, T, S), and what `backward` needs.

    lengths (B,) are whole numbers in 1…S; positions past them get the weight 0, exactly. Raises
    ValueError for a shape or a name, TypeError for a dtype that does not fit. Source: Bahdanau et
    al. 2014, arXiv:1409.0473, appendix A.1.2; Luong et al. 2015, arXiv:1508.04025, section 3.1.
    """
    read = keys if values is None else values
    _check(queries, keys, read, weights, score)
    live = _live(lengths, keys)
    saved: dict[str, Any] = {"queries": queries, "keys": keys, "values": values, "score": score}
    if score == "additive":
        query, key = queries @ weights["W"].T, keys @ weights["U"].T
        saved["m"] = np.tanh(query[:, :, None] + key[:, None])
        e = saved["m"] @ weights["w"]
    else:
        saved["q"] = queries @ weights["W"].T if score == "general" else queries
        e = saved["q"] @ keys.transpose(0, 2, 1) / _scale(score, keys)
    g = softmax(np.where(live[:, None], e, -np.inf))
    return g @ read, g, saved | {"g": g, "weights": weights}


def softmax(e: Array) -> Array:
    """exp(e_j) / Σ exp(e_k) over the last axis; −∞ gives 0."""
    shifted = np.exp(e - e.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def backward(d_context: Array, d_attention: Array | None, saved: dict[str, Any]) -> Weights:
    """Gradients of a loss, given its gradients by the contexts and by the attention weights.

    d_context (B, T, V); d_attention (B, T, S), zeros if None. Returns `queries`, `keys`, `values`
    where values were given (otherwise the keys collect both parts), and each weight's gradient.
    """
    g, keys = saved["g"], saved["keys"]
    values = keys if saved["values"] is None else saved["values"]
    d_g = d_context @ values.transpose(0, 2, 1)
    if d_attention is not None:
        d_g = d_g + d_attention
    d_e = g * (d_g - (d_g * g).sum(axis=-1, keepdims=True))
    into = _additive_backward if saved["score"] == "additive" else _dot_backward
    found = into(d_e, saved)
    d_values = g.transpose(0, 2, 1) @ d_context
    if saved["values"] is None:
        found["keys"] = found["keys"] + d_values
    else:
        found["values"] = d_values
    return found


def _additive_backward(d_e: Array, saved: dict[str, Any]) -> Weights:
    """Through e = wᵀ tanh(W q + U k): the tanh is saved, everything else is a product."""
    m, weights = saved["m"], saved["weights"]
    d_pre = d_e[..., None] * weights["w"] * (1 - m**2)
    by_query, by_key = d_pre.sum(axis=2), d_pre.sum(axis=1)
    return {
        "queries": by_query @ weights["W"],
        "keys": by_key @ weights["U"],
        "W": np.einsum("bta,btq->aq", by_query, saved["queries"]),
        "U": np.einsum("bsa,bsk->ak", by_key, saved["keys"]),
        "w": np.einsum("bts,btsa->a", d_e, m),
    }


def _dot_backward(d_e: Array, saved: dict[str, Any]) -> Weights:
    """Through e = (W q)ᵀ k, with or without W, divided by √K where it is scaled."""
    d_e = d_e / _scale(saved["score"], saved["keys"])
    d_q = d_e @ saved["keys"]
    found = {"keys": d_e.transpose(0, 2, 1) @ saved["q"], "queries": d_q}
    if saved["score"] == "general":
        found["queries"] = d_q @ saved["weights"]["W"]
        found["W"] = np.einsum("btk,btq->kq", d_q, saved["queries"])
    return found


def _scale(score: str, keys: Array) -> float:
    return float(np.sqrt(keys.shape[-1])) if score == "scaled" else 1.0


# ---- scaled scores with any mask ------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^−x) without overflow: tanh saturates where exp would not fit."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def forward_masked(
    queries: Array,
    keys: Array,
    values: Array,
    mask: Array,
    gate: Array | None = None,
    bias: Array | None = None,
    sink: Array | None = None,
    activation: str = "softmax",
) -> tuple[Array, Array, dict[str, Any]]:
    """What queries (…, T, K) read of values (…, S, V), the gates (…, T, S), and what to save.

    mask: true where a query sees a position. The scores are gate · q k / √K + bias; `gate`, `bias`
    and `sink`, the logit that is dropped after the softmax, broadcast to (…, T, S). A sigmoid is
    that of the score − log n, n the positions that a query sees. A query that sees none reads 0.
    Raises ValueError for an unknown activation, or a sink beside sigmoids. Source: Vaswani et al.
    2017, arXiv:1706.03762, equation 1.
    """
    _check_activation(activation, sink)
    scores = queries @ keys.swapaxes(-1, -2) / _scale("scaled", keys)
    e = scores if gate is None else gate * scores
    e = e if bias is None else e + bias
    if activation == "sigmoid":
        seen = np.maximum(mask.sum(axis=-1, keepdims=True), 1)
        g, left = np.where(mask, sigmoid(e - np.log(seen)), 0), None
    else:
        g, left = _shares(np.where(mask, e, -np.inf), sink)
    saved = {"queries": queries, "keys": keys, "values": values, "g": g, "left": left}
    return g @ values, g, saved | {"scores": scores, "gate": gate, "activation": activation}


def _shares(e: Array, sink: Array | None) -> tuple[Array, Array]:
    """The softmax over the last axis and the sink, and the sink's share; 0 where all is −∞."""
    least = np.full((1,) * e.ndim, -np.inf, e.dtype) if sink is None else sink
    top = np.maximum(e.max(axis=-1, keepdims=True, initial=-np.inf), least)
    top = np.where(top > -np.inf, top, 0)
    y, rest = np.exp(e - top), np.exp(least - top)
    z = y.sum(axis=-1, keepdims=True) + rest
    z = np.where(z > 0, z, 1)
    return y / z, rest / z


def backward_masked(d_read: Array, saved: dict[str, Any]) -> Weights:
    """Gradients of queries, keys, values, and of gate, bias and sink as wide as they were spread.

    `gate` and `bias` are (…, T, S), `sink` is (…, T, 1): sum them over what was repeated.
    """
    q, k, g, gate = (saved[name] for name in ("queries", "keys", "g", "gate"))
    d_g = d_read @ saved["values"].swapaxes(-1, -2)
    found = {"values": g.swapaxes(-1, -2) @ d_read}
    if saved["activation"] == "sigmoid":
        d_e = d_g * g * (1 - g)
    else:
        level = (d_g * g).sum(axis=-1, keepdims=True)
        d_e = g * (d_g - level)
        found["sink"] = -saved["left"] * level
    found |= {"bias": d_e, "gate": d_e * saved["scores"]}
    d_scores = (d_e if gate is None else d_e * gate) / _scale("scaled", k)
    return found | {"queries": d_scores @ k, "keys": d_scores.swapaxes(-1, -2) @ q}


def _check_activation(activation: str, sink: object) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
    if activation == "sigmoid" and sink is not None:
        raise ValueError("sink: expected None beside sigmoids, which share nothing, got one")


# ---- checks ---------------------------------------------------------------------------------


def _check(queries: Array, keys: Array, values: Array, weights: Weights, score: str) -> None:
    if score not in SCORES:
        raise ValueError(f"score: expected one of {SCORES}, got {score!r}")
    for name, array in (("queries", queries), ("keys", keys), ("values", values)):
        if array.ndim != 3:
            raise ValueError(f"{name}: expected 3 dimensions, got {array.shape}")
        check_floats(name, array)
        check_dtype(name, array, queries, "queries")
    if len(keys) != len(queries) or values.shape[:2] != keys.shape[:2]:
        raise ValueError(
            f"keys: expected ({len(queries)}, S, K) beside values, got {keys.shape}, {values.shape}"
        )
    query_size, key_size = queries.shape[2], keys.shape[2]
    if score in ("dot", "scaled") and query_size != key_size:
        raise ValueError(f"queries: expected {key_size} features as keys, got {query_size}")
    size = weights["w"].size if "w" in weights else 0
    check_weights(weights, _shapes(query_size, key_size, size, score), queries, "queries")


def _live(lengths: Array | None, keys: Array) -> Array:
    """(B, S), true where a sentence has a position."""
    return live_steps(lengths, keys, least=1)
