"""Routers of experts: the equations over tokens, with a selection of their own.

Imports NumPy, gatelib.equations.moe, gatelib.equations.routers, gatelib.spec and
gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.

N tokens, E experts. What is selected is a mask (N, E), found by counting how many are better; the
gradient passes through the weights alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.tape import Value, Values, gate, linear, swap
from gatelib.equations.moe import DROP
from gatelib.equations.routers import (
    MIXTURE_OF_DEPTHS,
    NOISY_TOPK,
    SLOTS,
    SWITCH,
    UNIT_NORM,
    RouterConfig,
)
from gatelib.spec import Spec

__all__ = ["best", "choose", "mixture_of_depths", "route", "selected", "slots"]

Array = NDArray[Any]

_SCALED = Spec.parse("scaled", "a c -> y", "y = a*c")


def best(scores: Array, k: int) -> Array:
    """True at the k largest of the last axis: fewer than k are larger, or equal and before."""
    one, other = scores[..., :, None], scores[..., None, :]
    place = np.arange(scores.shape[-1])
    before = (other > one) | ((other == one) & (place < place[:, None]))
    return np.asarray(before.sum(axis=-1) < k)


def selected(scores: Array, config: RouterConfig) -> Array:
    """(N, E), true at the experts that a router selects by these scores."""
    size = config.experts // config.groups
    grouped = scores.reshape(*scores.shape[:-1], config.groups, size)
    rated = np.where(best(grouped, config.group_score), grouped, 0).sum(axis=-1)
    kept = np.repeat(best(rated, config.kept_groups), size, axis=-1)
    return np.asarray(best(np.where(kept, scores, -np.inf), config.k) & kept)


def route(
    config: RouterConfig,
    given: Values,
    selection_bias: Array | None = None,
    noise: Array | None = None,
    live: Array | None = None,
    mask: Array | None = None,
) -> dict[str, Value]:
    """`x` (N, D), `W` (E, D), perhaps `b` and `W_noise`, to `weights`, `scores`, `logits` (N, E).

    With noise (N, E) also `noisy` and `spread`. live (N,): false for padding, whose weights are 0.
    mask (N, E): what is selected, where something else than the scores selects.
    """
    here = np.ones(given["x"].shape[0]) if live is None else live.astype(float)
    x = gate(DROP, w=given["x"], keep=here[:, None])["d"]
    logits = linear(x, given["W"], given.get("b"))
    made, noisy = {"logits": logits}, logits
    spread = logits
    if noise is not None:
        spread = linear(x, given["W_noise"])
        noisy = gate(NOISY_TOPK, a=logits, n=spread, e=noise, mask=np.ones(noise.shape))["h"]
        made |= {"noisy": noisy, "spread": spread}
    scores = score(config, noisy)
    if mask is None:
        rated = noisy.array if config.select == "before" else scores.array
        mask = selected(rated if selection_bias is None else rated + selection_bias, config)
    given_mask = mask.astype(logits.array.dtype)
    if noise is None:
        w = gate(config.spec, a=logits, mask=given_mask, c=config.scale)["w"]
    else:
        w = gate(NOISY_TOPK, a=logits, n=spread, e=noise, mask=given_mask)["w"]
    return made | {"scores": scores, "weights": gate(DROP, w=w, keep=here[:, None])["d"]}


def score(config: RouterConfig, logits: Value) -> Value:
    """The score of every expert, selected or not."""
    if config.score == "softmax":
        return gate(SLOTS, a=logits)["p"]
    everything = np.ones(logits.shape)
    return gate(config.spec.exposed, a=logits, mask=everything, c=1.0)["s"]


def choose(given: Values, capacity: int, live: Array | None = None) -> dict[str, Value]:
    """Expert choice: `x` (N, D), `W` (E, D) to `weights` (N, E): the best tokens of each expert."""
    logits = linear(given["x"], given["W"], given.get("b"))
    scores = gate(SLOTS, a=logits)["p"].array
    here = np.ones(len(scores), bool) if live is None else live
    rated = np.where(here[:, None], scores, -np.inf)
    mask = best(rated.T, capacity).T & here[:, None]
    return {"weights": gate(SWITCH, a=logits, mask=mask.astype(scores.dtype))["w"]}


def slots(given: Values, live: Array | None = None) -> dict[str, Value]:
    """Soft MoE: `x` (B, T, D), `slots` (S, D), `scale` () to `dispatch` and `combine` (B, T, S)."""
    units = [gate(UNIT_NORM, x=given[name])["u"] for name in ("x", "slots")]
    a = gate(_SCALED, a=linear(*units), c=given["scale"])["y"]
    here = np.ones(given["x"].shape[:2], bool) if live is None else live
    outside = Value(np.where(here[..., None], 0.0, -1e300), a.tape)
    read = swap(gate(SLOTS, a=swap(a + outside, 1, 2))["p"], 1, 2)
    keep = here[..., None].astype(a.array.dtype)
    taken = gate(SLOTS, a=a)["p"]
    return {
        "dispatch": gate(DROP, w=read, keep=keep)["d"],
        "combine": gate(DROP, w=taken, keep=keep)["d"],
    }


def mixture_of_depths(given: Values, capacity: int, live: Array | None = None) -> dict[str, Value]:
    """`x`, `f` (B, T, D) and `w` (D,) to `y`: positions are the features, so axes are exchanged."""
    r = linear(given["x"], given["w"][None])[..., 0]
    here = np.ones(r.shape, bool) if live is None else live
    mask = best(np.where(here, r.array, -np.inf), capacity) & here
    x, f = swap(given["x"], 1, 2), swap(given["f"], 1, 2)
    made = gate(MIXTURE_OF_DEPTHS, r=r[:, None], mask=mask[:, None].astype(float), f=f, x=x)
    return {"y": swap(made["y"], 1, 2)}
