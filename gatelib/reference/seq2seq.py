"""Attention in NumPy, forward and backward by hand, and search over one sentence in plain loops.

Imports NumPy alone.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Shapes: B sentences, T queries, S positions. `queries` (B, T, Q), `keys` (B, S, K), and `values`
(B, S, V), which are the keys where none are given. Weights: additive attention has `W` (A, Q),
`U` (A, K) and `w` (A,); general attention has `W` (K, Q); dot and scaled have none and need Q = K.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Weights = dict[str, Array]
Tokens = tuple[int, ...]
NextLogProbs = Callable[[Tokens], Array]
"""From the tokens so far to log-probabilities (V,) of the next one."""

SCORES = ("additive", "dot", "scaled", "general")


def initialize(
    rng: np.random.Generator, query_size: int, key_size: int, size: int, score: str = "additive"
) -> Weights:
    """Uniform weights in ±1/√(inputs): what torch draws for a linear layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    if score == "additive":
        shapes = {"W": (size, query_size), "U": (size, key_size), "w": (size,)}
    elif score == "general":
        shapes = {"W": (key_size, query_size)}
    bounds = {name: 1 / np.sqrt(shape[-1]) for name, shape in shapes.items()}
    return {name: rng.uniform(-bounds[name], bounds[name], shapes[name]) for name in shapes}


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


# ---- searching for the best answer to one sentence ------------------------------------------


def normalised(total: float, length: int, length_power: float, length_offset: float) -> float:
    """A hypothesis' score: its log-probability over ((offset + length)/(offset + 1))^power.

    Offset 5 is Wu et al. 2016, arXiv:1609.08144, equation 14, without coverage; offset 0 divides
    by a power of the length alone; power 0 leaves the log-probability as it is.
    """
    return float(total / ((length_offset + length) / (length_offset + 1)) ** length_power)


def exhaustive(
    next_log_probs: NextLogProbs,
    end: int,
    max_length: int,
    length_power: float = 0.0,
    length_offset: float = 0.0,
) -> tuple[Tokens, float]:
    """The best hypothesis of all, and its score, by looking at every one.

    A hypothesis ends with its first `end`, or is cut after `max_length` tokens.
    """
    best: tuple[Tokens, float] = ((), -np.inf)
    vocabulary = len(next_log_probs(()))
    for length in range(1, max_length + 1):
        for tokens in product(range(vocabulary), repeat=length):
            whole = tokens[-1] == end or length == max_length
            if end in tokens[:-1] or not whole:
                continue
            total = sum(float(next_log_probs(tokens[:t])[tokens[t]]) for t in range(length))
            score = normalised(total, length, length_power, length_offset)
            if score > best[1]:
                best = tokens, score
    return best


def beam(
    next_log_probs: NextLogProbs,
    end: int,
    max_length: int,
    width: int,
    length_power: float = 0.0,
    length_offset: float = 0.0,
) -> list[tuple[Tokens, float]]:
    """At most `width` hypotheses and their scores, the best first.

    At each step every unfinished hypothesis is tried with every next token, finished ones stay as
    they are, and the `width` best scores of all survive.
    """
    alive: list[tuple[Tokens, float]] = [((), 0.0)]

    def score(hypothesis: tuple[Tokens, float]) -> float:
        tokens, total = hypothesis
        return normalised(total, len(tokens), length_power, length_offset)

    for _ in range(max_length):
        tried: list[tuple[Tokens, float]] = []
        for tokens, total in alive:
            if end in tokens:
                tried.append((tokens, total))
                continue
            steps = next_log_probs(tokens)
            tried += [((*tokens, v), total + float(steps[v])) for v in range(len(steps))]
        alive = sorted(tried, key=score, reverse=True)[:width]
    return [(tokens, score((tokens, total))) for tokens, total in alive]


# ---- checks ---------------------------------------------------------------------------------


def _check(queries: Array, keys: Array, values: Array, weights: Weights, score: str) -> None:
    if score not in SCORES:
        raise ValueError(f"score: expected one of {SCORES}, got {score!r}")
    for name, array in (("queries", queries), ("keys", keys), ("values", values)):
        if array.ndim != 3:
            raise ValueError(f"{name}: expected 3 dimensions, got {array.shape}")
        if not np.issubdtype(array.dtype, np.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
        if array.dtype != queries.dtype:
            raise TypeError(f"{name}: expected {queries.dtype} as queries, got {array.dtype}")
    if len(keys) != len(queries) or values.shape[:2] != keys.shape[:2]:
        raise ValueError(
            f"keys: expected ({len(queries)}, S, K) beside values, got {keys.shape}, {values.shape}"
        )
    _check_weights(queries, keys, weights, score)


def _check_weights(queries: Array, keys: Array, weights: Weights, score: str) -> None:
    query_size, key_size = queries.shape[2], keys.shape[2]
    shapes: dict[str, tuple[int, ...]] = {}
    if score == "additive":
        size = weights["w"].size if "w" in weights else 0
        shapes = {"W": (size, query_size), "U": (size, key_size), "w": (size,)}
    elif score == "general":
        shapes = {"W": (key_size, query_size)}
    elif query_size != key_size:
        raise ValueError(f"queries: expected {key_size} features as keys, got {query_size}")
    if set(weights) != set(shapes):
        raise ValueError(f"weights: expected {sorted(shapes)}, got {sorted(weights)}")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise ValueError(f"weights[{name!r}]: expected {shape}, got {weights[name].shape}")
        if weights[name].dtype != queries.dtype:
            found = weights[name].dtype
            raise TypeError(f"weights[{name!r}]: expected {queries.dtype} as queries, got {found}")


def _live(lengths: Array | None, keys: Array) -> Array:
    """(B, S), true where a sentence has a position."""
    batch, positions = keys.shape[:2]
    if lengths is None:
        return np.ones((batch, positions), bool)
    lengths = np.asarray(lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: expected ({batch},), got {lengths.shape}")
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"lengths: expected whole numbers, got {lengths.dtype}")
    if batch and (lengths.min() < 1 or lengths.max() > positions):
        low, high = lengths.min(), lengths.max()
        raise ValueError(f"lengths: expected 1 … {positions}, got {low} … {high}")
    return np.asarray(np.arange(positions) < lengths[:, None])


__all__ = [
    "SCORES",
    "backward",
    "beam",
    "exhaustive",
    "forward",
    "initialize",
    "normalised",
    "softmax",
]
