"""Balance of experts in NumPy: losses with gradients by hand, updates of a bias, measures.

Imports NumPy, gatelib.reference.gate, gatelib.reference.glu and gatelib.reference.routers.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

A loss returns its value and its gradient. N tokens, E experts, k of them for each token; indices
(N, k), where index E names no expert. Tokens of padding count nowhere; where none is left, a loss
is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.gate import sigmoid, softmax
from gatelib.reference.glu import normal_cdf, normal_pdf
from gatelib.reference.routers import softplus, top_k

Array = NDArray[Any]


def counts_of(indices: Array, experts: int) -> Array:
    """(E,), how many tokens each expert sees; index E is not counted."""
    if indices.size and not 0 <= indices.min() <= indices.max() <= experts:
        low, high = indices.min(), indices.max()
        raise ValueError(f"indices: expected 0 … {experts}, got {low} … {high}")
    return np.bincount(indices.ravel(), minlength=experts + 1)[:experts]


# ---- 2017: importance and load ----------------------------------------------------------------


def variation(quantity: Array) -> tuple[float, Array]:
    """The variance of (E,) over its mean², and the gradient; 0 where the mean is 0."""
    mean = quantity.mean()
    if mean == 0:
        return 0.0, np.zeros_like(quantity)
    away = quantity - mean
    variance = (away**2).mean()
    d = 2 * (away / mean**2 - variance / mean**3) / len(quantity)
    return float(variance / mean**2), d


def importance(weights: Array) -> tuple[float, Array]:
    """The variation of the sums of weights (N, E) over tokens, and its gradient (N, E).

    Source: Shazeer et al. 2017, arXiv:1701.06538, eq. 6 and 7, without its factor.
    """
    value, d = variation(weights.sum(axis=0))
    return value, np.broadcast_to(d, weights.shape).copy()


def load(
    logits: Array, spread: Array, noisy: Array, k: int, live: Array | None = None
) -> tuple[float, dict[str, Array]]:
    """The variation of the expected load, and its gradients by logits, spread and noisy (N, E).

    An expert's load is the sum over tokens of Φ((logit − t)/softplus(spread)), where t is the
    k-th largest noisy logit among the other experts. Needs k < E. Source: the same, eq. 8 to 11.
    """
    if not k < logits.shape[1]:
        raise ValueError(f"k: expected less than the {logits.shape[1]} experts, got {k}")
    here = np.ones((len(logits), 1)) if live is None else live[:, None].astype(logits.dtype)
    where = threshold_places(noisy, k)
    size = softplus(spread)
    z = (logits - np.take_along_axis(noisy, where, axis=1)) / size
    value, d_load = variation((normal_cdf(z) * here).sum(axis=0))
    d_z = d_load * here * normal_pdf(z)
    d_noisy = np.zeros_like(noisy)
    np.add.at(d_noisy, (np.arange(len(noisy))[:, None], where), -d_z / size)
    d_spread = -d_z * z / size * sigmoid(spread)
    return value, {"logits": d_z / size, "spread": d_spread, "noisy": d_noisy}


def threshold_places(noisy: Array, k: int) -> Array:
    """(N, E): the expert whose noisy logit is the k-th largest when this expert is left out."""
    order = top_k(noisy, k + 1)
    inside = np.zeros(noisy.shape, bool)
    np.put_along_axis(inside, order[:, :k], True, axis=1)
    return np.where(inside, order[:, k:], order[:, k - 1 : k])


# ---- Switch and its kin -----------------------------------------------------------------------


def switch(
    probabilities: Array,
    indices: Array,
    live: Array | None = None,
    share: Array | None = None,
    by_slots: bool = False,
) -> tuple[float, Array]:
    """E Σ f_e P_e / k over the tokens, and its gradient by the probabilities (N, E).

    P is the mean of the probabilities, f = share (E,) how many of its choices a token makes for an
    expert on average, Σf = k; counted here unless given: the balance of a global batch counts it
    over all parts of the batch. by_slots: without the division by k. Source: Fedus et al. 2021,
    arXiv:2101.03961, eq. 4; global: Qiu et al. 2025, arXiv:2501.11873.
    """
    experts, k = probabilities.shape[1], indices.shape[1]
    live = np.ones(len(indices), bool) if live is None else live
    count = int(live.sum())
    if not count:
        return 0.0, np.zeros_like(probabilities)
    if share is None:
        share = counts_of(indices[live], experts) / count
    factor = experts / (1 if by_slots else k)
    mean = probabilities[live].sum(axis=0) / count
    return float(factor * (share * mean).sum()), factor * share / count * live[:, None]


def per_sequence(
    probabilities: Array, indices: Array, live: Array | None = None
) -> tuple[float, Array]:
    """The mean over sequences of `switch`, for (B, T, E) and (B, T, k); gradient (B, T, E).

    Sequences of padding alone don't count. Source: DeepSeek-V3, arXiv:2412.19437, eq. 17 to 20.
    """
    live = np.ones(indices.shape[:2], bool) if live is None else live
    parts = [switch(p, i, here) for p, i, here in zip(probabilities, indices, live, strict=True)]
    count = max(int(live.any(axis=1).sum()), 1)
    return sum(value for value, _ in parts) / count, np.array([d for _, d in parts]) / count


def gshard(probabilities: Array, indices: Array, live: Array | None = None) -> tuple[float, Array]:
    """The mean over experts of f_e P_e, where f counts first choices; 1/E² when even.

    Source: Lepikhin et al. 2020, arXiv:2006.16668, algorithm 1.
    """
    value, d = switch(probabilities, indices[:, :1], live)
    experts = probabilities.shape[1]
    return value / experts**2, d / experts**2


def normalized_scores(scores: Array) -> Array:
    """s/Σs over the experts, for scores that no softmax made (DeepSeek-V3, eq. 19)."""
    return np.asarray(scores / scores.sum(axis=-1, keepdims=True))


def normalized_scores_backward(d: Array, scores: Array) -> Array:
    """The gradient of the scores."""
    total = scores.sum(axis=-1, keepdims=True)
    return np.asarray((d - (d * scores).sum(axis=-1, keepdims=True) / total) / total)


def z_loss(logits: Array, live: Array | None = None) -> tuple[float, Array]:
    """The mean over tokens of (log Σ exp)², and its gradient (N, E).

    Source: Zoph et al. 2022, arXiv:2202.08906, eq. 5, without its factor.
    """
    live = np.ones(len(logits), bool) if live is None else live
    logits = np.where(live[:, None], logits, 0)
    highest = logits.max(axis=1, keepdims=True)
    z = highest + np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))
    count = max(int(live.sum()), 1)
    return float((z[live] ** 2).sum() / count), 2 * z * softmax(logits) * live[:, None] / count


# ---- biases that select -----------------------------------------------------------------------


def update_bias(bias: Array, counts: Array, rate: float, centered: bool = True) -> Array:
    """The bias (E,) of the next step: higher by `rate` for experts below the mean of `counts`.

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1; centered: torchtitan.
    """
    sign = np.sign(counts.mean() - counts).astype(bias.dtype)
    return np.asarray(bias + rate * (sign - sign.mean() if centered else sign))


def quantile_bias(scores: Array, k: int, bias: Array | None = None, rounds: int = 1) -> Array:
    """The bias (E,), to be added to the scores (N, E), with which loads would be even.

    One step of descent in each of the two sets of dual variables of the assignment of most score
    under equal loads: α is the first score that a token leaves out, the (k+1)-th largest of
    s + bias; −bias becomes the (⌊N k/E⌋ + 1)-th largest of s − α in each expert. Needs k < E.
    Source: J. Su 2026, kexue.fm/archives/11619; Megatron's `qb_dual_update`, which subtracts it.
    """
    tokens, experts = scores.shape
    if not 1 <= k < experts:
        raise ValueError(f"k: expected 1 … {experts - 1}, got {k}")
    bias = np.zeros(experts, scores.dtype) if bias is None else bias
    target = tokens * k // experts
    for _ in range(rounds if tokens else 0):
        alpha = -np.sort(-(scores + bias), axis=1)[:, k : k + 1]
        bias = np.sort(-(scores - alpha), axis=0)[target]
    return bias


# ---- measures ---------------------------------------------------------------------------------


def max_violation(counts: Array) -> float:
    """The largest load over the mean load, less 1: 0 when even, E/k − 1 at worst; 0 for no load.

    Source: Wang et al. 2024, arXiv:2408.15664, section 4.1.
    """
    mean = counts.mean()
    return float(counts.max() / mean - 1) if mean else 0.0


def dead_experts(counts: Array) -> int:
    """How many experts saw no token."""
    return int((counts == 0).sum())


def entropy(probabilities: Array) -> Array:
    """−Σ p log p over the experts, in nats, for each token."""
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return np.asarray(-(probabilities * logs).sum(axis=-1))
