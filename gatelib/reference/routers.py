"""Routers of experts in NumPy: which experts see a token, with what weight, backward by hand.

Imports NumPy, gatelib.reference.check and gatelib.reference.gate.
Must not import SymPy, torch or any other floor: its agreement with them is evidence.

N tokens of D features, E experts, k of them for each token. `W` (E, D) and perhaps `b` (E,) make
the logits, `W_noise` (E, D) how much noise is added to them. An index E names no expert: that is
where the tokens of padding go, with weight 0. Among equals the lowest index is selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.reference.check import check_array, check_input, check_weights
from gatelib.reference.gate import sigmoid, softmax

Array = NDArray[Any]
Weights = dict[str, Array]
SCORES = ("softmax", "sigmoid", "sqrt_softplus")


@dataclass(frozen=True)
class Router:
    """How logits become experts and weights; every argument as in `equations.RouterConfig`."""

    k: int
    score: str = "softmax"
    select: str = "after"
    renormalize: bool = True
    scale: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    group_score: int = 1

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score: expected one of {SCORES}, got {self.score!r}")
        if self.select not in ("after", "before"):
            raise ValueError(f"select: expected 'after' or 'before', got {self.select!r}")
        if self.k < 1:
            raise ValueError(f"k: expected at least 1, got {self.k}")


@dataclass
class Routing:
    """What a router gives, and what its backward pass needs.

    indices and weights (N, k), scores and logits (N, E). spread (N, E): the preactivation of the
    noise's size; noise (N, E); noisy: the logits with it, or without noise the logits again.
    """

    router: Router
    inputs: Weights
    indices: Array
    weights: Array
    scores: Array
    logits: Array
    noisy: Array
    live: Array
    spread: Array | None = None
    noise: Array | None = None

    @property
    def dense(self) -> Array:
        """The weights as (N, E), 0 for what was not selected."""
        return scattered(self.weights, self.indices, self.logits.shape[1])


def initialize(
    rng: np.random.Generator, features: int, experts: int, bias: bool = False, noise: bool = False
) -> Weights:
    """Uniform weights in ±1/√features: `W` (E, D), and perhaps `b` (E,) and `W_noise` (E, D)."""
    shapes = _shapes(experts, features, bias, noise)
    bound = 1 / np.sqrt(features)
    return {name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}


def _shapes(experts: int, features: int, bias: bool, noise: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"W": (experts, features)}
    shapes |= {"b": (experts,)} if bias else {}
    return shapes | ({"W_noise": (experts, features)} if noise else {})


# ---- selection ------------------------------------------------------------------------------


def top_k(scores: Array, k: int) -> Array:
    """(N, k), where the k largest of each row stand, the largest first; a tie to the lowest."""
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(f"k: expected 1 … {scores.shape[-1]}, got {k}")
    return np.asarray(np.argsort(-scores, axis=-1, kind="stable")[..., :k])


def select(scores: Array, router: Router, bias: Array | None = None) -> Array:
    """(N, k), the experts that `router` selects by scores (N, E) with a bias (E,) added.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1.2 (groups); DeepSeek-V3, arXiv:2412.19437,
    eq. 16 (bias), whose program rates a group by the sum of its two best.
    """
    rated = scores if bias is None else scores + bias
    if router.groups == 1:
        return top_k(rated, router.k)
    count, experts = rated.shape
    grouped = rated.reshape(count, router.groups, experts // router.groups)
    best = -np.sort(-grouped, axis=-1)[..., : router.group_score].sum(axis=-1)
    kept = np.zeros((count, router.groups), bool)
    np.put_along_axis(kept, top_k(best, router.kept_groups), True, axis=-1)
    open_to = np.where(kept[..., None], grouped, -np.inf)  # 0 would win against a negative score
    return top_k(open_to.reshape(count, experts), router.k)


def scattered(values: Array, indices: Array, experts: int) -> Array:
    """(N, E) with values (N, k) at their experts; index E is dropped."""
    whole = np.zeros((len(values), experts + 1), values.dtype)
    np.put_along_axis(whole, indices, values, axis=1)
    return whole[:, :experts]


def gathered(values: Array, indices: Array) -> Array:
    """(N, k), the values (N, E) of the selected experts; 0 at index E."""
    padded = np.concatenate([values, np.zeros_like(values[:, :1])], axis=1)
    return np.take_along_axis(padded, indices, axis=1)


# ---- scores ---------------------------------------------------------------------------------


def softplus(a: Array) -> Array:
    """log(1 + exp(a)), with no exponential of a positive number."""
    return np.asarray(np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a))))


def score(a: Array, kind: str) -> Array:
    """The score of each expert from the logits (…, E)."""
    if kind == "softmax":
        return softmax(a)
    return np.asarray(sigmoid(a) if kind == "sigmoid" else np.sqrt(softplus(a)))


def score_backward(d: Array, a: Array, s: Array, kind: str) -> Array:
    """The gradient by the logits from that by the scores s."""
    if kind == "softmax":
        return np.asarray(s * (d - (d * s).sum(axis=-1, keepdims=True)))
    if kind == "sigmoid":
        return np.asarray(d * s * (1 - s))
    return np.asarray(d * np.divide(sigmoid(a), 2 * s, out=np.zeros_like(s), where=s > 0))


# ---- one router ------------------------------------------------------------------------------


def forward(
    x: Array,
    weights: Weights,
    router: Router,
    *,
    selection_bias: Array | None = None,
    noise: Array | None = None,
    live: Array | None = None,
    indices: Array | None = None,
) -> Routing:
    """The routing of tokens x (N, D).

    selection_bias (E,) counts for the selection alone. noise (N, E), drawn by the caller from a
    standard normal distribution, is multiplied by softplus(W_noise x) and added to the logits.
    live (N,): false for padding. indices (N, k): experts that something else selected, such as a
    table of token ids. Raises ValueError for a shape or a name, TypeError for a dtype.
    """
    check_input(x, "(N, D)")
    experts = weights["W"].shape[0] if "W" in weights else 0
    check_weights(weights, _shapes(experts, x.shape[1], "b" in weights, noise is not None), x)
    x, live = _cleaned(x, live)
    logits, spread = x @ weights["W"].T + weights.get("b", 0), None
    noisy = logits
    if noise is not None:
        check_array("noise", noise, logits.shape, x)
        spread = x @ weights["W_noise"].T
        noisy = logits + noise * softplus(spread)
    scores = score(noisy, router.score)
    if indices is None:
        rated = noisy if router.select == "before" else scores
        indices = select(rated, router, selection_bias)
    indices = np.where(live[:, None], indices, experts)
    inputs = {"x": x} | weights
    made = Routing(router, inputs, indices, x, scores, logits, noisy, live, spread, noise)
    made.weights = _weighed(made)
    return made


def _weighed(routing: Routing) -> Array:
    """The weights (N, k)."""
    picked, total = _picked(routing)
    return np.asarray(routing.router.scale * picked / total)


def _picked(routing: Routing) -> tuple[Array, Array]:
    """(N, k), what the selected experts are weighed by; and (N, 1), what they are divided by."""
    router, indices, one = routing.router, routing.indices, np.ones_like(routing.logits[:, :1])
    if router.select == "before":
        logits = gathered(routing.noisy, indices)
        return score(logits, router.score) * routing.live[:, None], one
    picked = gathered(routing.scores, indices)
    if not router.renormalize:
        return picked, one
    return picked, np.where(routing.live, picked.sum(axis=1), 1)[:, None]


def backward(
    routing: Routing,
    d_weights: Array | None = None,
    d_scores: Array | None = None,
    d_logits: Array | None = None,
    d_noisy: Array | None = None,
    d_spread: Array | None = None,
) -> Weights:
    """Gradients of x and of each weight from those of the weights (N, k) and of what losses see.

    d_scores, d_logits, d_noisy, d_spread (N, E): 0 where none is given. The selection has none.
    """
    inputs, zeros = routing.inputs, np.zeros_like(routing.logits)
    into_noisy = zeros if d_noisy is None else d_noisy
    into_scores = zeros if d_scores is None else d_scores
    if d_weights is not None:
        by_logits, by_scores = _weights_backward(d_weights, routing)
        into_noisy, into_scores = into_noisy + by_logits, into_scores + by_scores
    kind = routing.router.score
    into_noisy = into_noisy + score_backward(into_scores, routing.noisy, routing.scores, kind)
    d_a = into_noisy if d_logits is None else into_noisy + d_logits
    found = {"x": d_a @ inputs["W"], "W": d_a.T @ inputs["x"]}
    if "b" in inputs:
        found["b"] = d_a.sum(axis=0)
    if routing.noise is not None and routing.spread is not None:
        d_n = into_noisy * routing.noise * sigmoid(routing.spread)
        d_n = d_n if d_spread is None else d_n + d_spread
        found["x"] = found["x"] + d_n @ inputs["W_noise"]
        found["W_noise"] = d_n.T @ inputs["x"]
    found["x"] = found["x"] * routing.live[:, None]
    return found


def _weights_backward(d: Array, routing: Routing) -> tuple[Array, Array]:
    """The gradients by the noisy logits and by the scores, (N, E) each."""
    router, indices, experts = routing.router, routing.indices, routing.logits.shape[1]
    picked, total = _picked(routing)
    d, zeros = router.scale * d * routing.live[:, None], np.zeros_like(routing.logits)
    if router.select == "before":
        logits = gathered(routing.noisy, indices)
        d_logits = score_backward(d, logits, picked, router.score)
        return scattered(d_logits, indices, experts), zeros
    if router.renormalize:
        d = (d - (d * picked).sum(axis=1, keepdims=True) / total) / total
    return zeros, scattered(d, indices, experts)


def hashed(ids: Array, table: Array, dtype: Any = np.float64) -> tuple[Array, Array]:
    """Indices (N, k) and weights 1/k of token ids (N,) by a table (V, k).

    Source: Roller et al. 2021, arXiv:2106.04426.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < len(table):
        raise ValueError(f"ids: expected 0 … {len(table) - 1}, got {ids.min()} … {ids.max()}")
    indices = table[ids]
    return indices, np.full(indices.shape, 1 / table.shape[1], dtype)


# ---- experts that choose, and positions that are passed by -------------------------------------


@dataclass
class Choice:
    """What experts chose: weights, mask and scores, each (N, E), and the inputs."""

    inputs: Weights
    weights: Array
    mask: Array
    scores: Array


def expert_choice(x: Array, weights: Weights, capacity: int, live: Array | None = None) -> Choice:
    """Each expert takes the `capacity` tokens that have the highest score for it.

    A token may be taken by none. Not causal: a later token takes an earlier one's place. Source:
    Zhou et al. 2022, arXiv:2202.09368, section 3.2.
    """
    check_input(x, "(N, D)")
    experts = weights["W"].shape[0] if "W" in weights else 0
    check_weights(weights, _shapes(experts, x.shape[1], "b" in weights, False), x)
    x, live = _cleaned(x, live)
    scores = softmax(x @ weights["W"].T + weights.get("b", 0))
    mask = _best(np.where(live[:, None], scores, -np.inf).T, capacity).T & live[:, None]
    return Choice({"x": x} | weights, mask * scores, mask, scores)


def expert_choice_backward(d: Array, choice: Choice) -> Weights:
    """Gradients of x and the router's weights from that of the weights (N, E)."""
    inputs = choice.inputs
    d_a = score_backward(d * choice.mask, choice.scores, choice.scores, "softmax")
    found = {"x": d_a @ inputs["W"], "W": d_a.T @ inputs["x"]}
    return found | ({"b": d_a.sum(axis=0)} if "b" in inputs else {})


def _best(rated: Array, capacity: int) -> Array:
    """True at the `capacity` best of each row, or at all where there are fewer."""
    if capacity < 1:
        raise ValueError(f"capacity: expected at least 1, got {capacity}")
    mask = np.zeros(rated.shape, bool)
    if rated.size:
        np.put_along_axis(mask, top_k(rated, min(capacity, rated.shape[-1])), True, axis=-1)
    return mask


def _cleaned(x: Array, live: Array | None) -> tuple[Array, Array]:
    """x with zeros for padding, and the mask of what is none; checked."""
    if live is None:
        return x, np.ones(x.shape[:-1], bool)
    check_array("live", live, x.shape[:-1], np.zeros(0, bool), "a mask")
    return np.where(live[..., None], x, 0), live


EPSILON = 1e-6


def unit(x: Array) -> Array:
    """x/√(Σx² + 10⁻⁶) over the last axis."""
    return np.asarray(x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + EPSILON))


def unit_backward(d: Array, x: Array) -> Array:
    """The gradient of x from that of unit(x): what isn't along it, over its length."""
    size = np.sqrt((x**2).sum(axis=-1, keepdims=True) + EPSILON)
    return np.asarray(d / size - x * (d * x).sum(axis=-1, keepdims=True) / size**3)


def soft_slots(
    x: Array, slots: Array, scale: Array, live: Array | None = None
) -> tuple[Array, Array, Array]:
    """Soft MoE: what slots read of tokens, what tokens take of slots, and the logits (B, T, S).

    x (B, T, D), slots (S, D), scale (): logits scale · unit(x) · unit(slots); a softmax over the
    live tokens and one over all slots. A row of padding reads nothing and takes nothing. Source:
    Puigcerver et al. 2023, arXiv:2308.00951, eq. 1 and 2.
    """
    check_input(x)
    check_array("slots", slots, (slots.shape[0], x.shape[2]), x)
    x, live = _cleaned(x, live)
    a, here = scale * (unit(x) @ unit(slots).T), live[..., None]
    highest = a.max(axis=1, keepdims=True, initial=-np.inf, where=here)
    shifted = np.exp(np.where(here, a - highest, -np.inf))
    total = shifted.sum(axis=1, keepdims=True)
    dispatch = np.divide(shifted, total, out=np.zeros_like(a), where=total > 0)
    return dispatch, softmax(a) * here, a


def soft_slots_backward(
    d_dispatch: Array,
    d_combine: Array,
    x: Array,
    slots: Array,
    scale: Array,
    live: Array | None = None,
) -> Weights:
    """Gradients of x, slots and scale."""
    dispatch, combine, a = soft_slots(x, slots, scale, live)
    x, live = _cleaned(x, live)
    d_a = dispatch * (d_dispatch - (d_dispatch * dispatch).sum(axis=1, keepdims=True))
    d_a = d_a + score_backward(d_combine, a, combine, "softmax")
    d_units = scale * (d_a @ unit(slots)), scale * np.einsum("bts,btd->sd", d_a, unit(x))
    return {
        "x": unit_backward(d_units[0], x),
        "slots": unit_backward(d_units[1], slots),
        "scale": np.asarray((d_a * (unit(x) @ unit(slots).T)).sum()),
    }


def mixture_of_depths(
    x: Array, w: Array, f: Array, capacity: int, live: Array | None = None
) -> tuple[Array, Array]:
    """y = x + r f where a position is among the best `capacity` of its sequence, else x; the mask.

    x and f (B, T, D), f what the block makes of x; w (D,), r = x·w. Not causal: a later position
    takes an earlier one's place. Source: Raposo et al. 2024, arXiv:2404.02258, eq. 1.
    """
    check_input(x)
    check_array("w", w, x.shape[2:], x)
    check_array("f", f, x.shape, x)
    live = _cleaned(x, live)[1]
    mask = _best(np.where(live, x @ w, -np.inf), capacity) & live
    return x + np.where(mask[..., None], (x @ w)[..., None] * f, 0), mask


def mixture_of_depths_backward(dy: Array, x: Array, w: Array, f: Array, mask: Array) -> Weights:
    """Gradients of x (past the block and through r), w and f."""
    d_r = np.where(mask, (dy * np.where(mask[..., None], f, 0)).sum(axis=-1), 0)
    return {
        "x": dy + d_r[..., None] * w,
        "w": np.einsum("bt,btd->d", d_r, x),
        "f": np.where(mask[..., None], (x @ w)[..., None] * dy, 0),
    }
