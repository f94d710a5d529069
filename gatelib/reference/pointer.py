"""The pointer-generator's switch in NumPy, forward and backward by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

Shapes: B sentences, T steps, S places of the source, V words of the vocabulary, E words that only
the source has. `features` (B, T, F) is what the switch sees; weights `w` (F,) and `b` ().
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_dtype, check_floats, check_weights, live_steps
from gatelib.reference.gate import sigmoid

Array = NDArray[Any]
Weights = dict[str, Array]


def initialize(rng: np.random.Generator, features: int) -> Weights:
    """Uniform weights in ±1/√F, as torch draws a linear layer's."""
    bound = 1 / np.sqrt(features)
    return {"w": rng.uniform(-bound, bound, features), "b": np.array(rng.uniform(-bound, bound))}


def forward(
    logits: Array,
    attention: Array,
    source: Array,
    features: Array,
    weights: Weights,
    extra: int = 0,
    lengths: Array | None = None,
) -> tuple[Array, Array, dict[str, Any]]:
    """Log-probabilities (B, T, V + E), switches p (B, T), and what `backward` needs.

    logits (B, T, V); attention (B, T, S), each row a distribution; source (B, S), the word at each
    place, from V on for words that only the source has; extra: E; lengths (B,) in 0…S, beyond which
    no place is copied. A word that is neither in the vocabulary nor in the source has −∞. Raises
    ValueError for a shape or a word, TypeError for a dtype. Source: See, Liu & Manning 2017,
    arXiv:1704.04368, section 2.2.
    """
    _check(logits, attention, source, features, weights, extra)
    live = live_steps(lengths, source)[:, None]
    copied = np.where(live, attention, 0)
    of_word = (source[..., None] == np.arange(logits.shape[2] + extra)) * 1.0  # (B, S, V + E)
    a = features @ weights["w"] + weights["b"]
    p = sigmoid(a)
    top = logits.max(axis=-1, keepdims=True)
    log_u = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    nothing = np.full((*logits.shape[:2], extra), -np.inf, logits.dtype)
    with np.errstate(divide="ignore"):
        log_v = np.log(copied @ of_word)
    written = np.concatenate([log_u, nothing], axis=-1) - np.logaddexp(0, -a)[..., None]
    y = np.logaddexp(written, log_v - np.logaddexp(0, a)[..., None])
    saved = {"y": y, "p": p, "a": a, "log_u": log_u, "log_v": log_v, "of_word": of_word}
    saved |= {"written": written, "live": live, "features": features, "weights": weights}
    return y, p, saved


def backward(dy: Array, dp: Array | None, saved: dict[str, Any]) -> Weights:
    """Gradients by `logits`, `attention`, `features`, `w` and `b`.

    dy (B, T, V + E) by the log-probabilities, dp (B, T) by the switches, zeros if None. What
    stands in dy at an impossible word is passed over; a word whose places have no attention at all,
    exactly 0, gives these places no gradient.
    """
    y, p, log_u, log_v = (saved[name] for name in ("y", "p", "log_u", "log_v"))
    known = np.isfinite(y)
    dy = np.where(known, dy, 0)
    y = np.where(known, y, 0)
    d_written = dy * np.exp(saved["written"] - y)
    copies = known & np.isfinite(log_v)
    per_copy = np.exp(-np.logaddexp(0, saved["a"])[..., None] - np.where(copies, y, 0))
    d_v = np.where(copies, dy * per_copy, 0)  # by the probability to copy: dy (1 − p) / P
    d_copied = np.where(copies, d_v * np.exp(np.where(copies, log_v, 0)), 0)
    d_a = (d_written * (1 - p[..., None]) - d_copied * p[..., None]).sum(axis=-1)
    d_a = d_a + (0 if dp is None else dp * p * (1 - p))
    by_words = d_written[..., : log_u.shape[-1]]
    features, weights = saved["features"], saved["weights"]
    return {
        "logits": by_words - np.exp(log_u) * by_words.sum(axis=-1, keepdims=True),
        "attention": np.where(saved["live"], d_v @ saved["of_word"].swapaxes(1, 2), 0),
        "features": d_a[..., None] * weights["w"],
        "w": np.einsum("bt,btf->f", d_a, features),
        "b": d_a.sum(),
    }


def _check(
    logits: Array, attention: Array, source: Array, features: Array, weights: Weights, extra: int
) -> None:
    arrays = {"logits": logits, "attention": attention, "features": features}
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape[:2] != logits.shape[:2]:
            raise ValueError(f"{name}: expected (B, T, …) as the logits, got {array.shape}")
        check_floats(name, array)
        check_dtype(name, array, logits, "logits")
    expected = (logits.shape[0], attention.shape[2])
    if source.shape != expected:
        raise ValueError(f"source: expected {expected} beside attention, got {source.shape}")
    if not np.issubdtype(source.dtype, np.integer):
        raise TypeError(f"source: expected whole numbers, got {source.dtype}")
    words = logits.shape[2] + extra
    if source.size and (source.min() < 0 or source.max() >= words):
        raise ValueError(f"source: expected words from 0 to {words - 1}, got {source.max()}")
    check_weights(weights, {"w": (features.shape[2],), "b": ()}, logits, "logits")
