"""Runs attention's equations over a batch: the witness that knows nothing but the Specs.

Imports NumPy, gatelib.spec and gatelib.printers.
Must not import gatelib.reference or gatelib.nn: it is compared with both.

Forward is the generated NumPy of the Specs, backward that of `Spec.vjp()`. Only the matrices in
front of a score and the sums over broadcast axes are written here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.spec import Spec

Array = NDArray[Any]
Arrays = dict[str, Array]


def symbolic(
    score: Spec,
    read: Spec,
    queries: Array,
    keys: Array,
    weights: Arrays,
    d_context: Array,
    lengths: Array | None = None,
) -> Arrays:
    """Contexts and all gradients of attention over its own keys, from its equations alone.

    queries (B, T, Q), keys (B, S, K), d_context (B, T, K); `W`, where given, multiplies the
    queries, `U` the keys, and `w` is the score's own vector. Returns `context`, `attention`, and
    `d_NAME` for the queries, the keys and each weight.
    """
    positions = keys.shape[1]
    live = np.arange(positions) < (positions if lengths is None else lengths[:, None])
    query, key = queries, keys
    if "W" in weights:
        query = queries @ weights["W"].T
    if "U" in weights:
        key = keys @ weights["U"].T
    axes = np.broadcast_arrays(query[:, :, None], key[:, None])
    features: Arrays = {"q": axes[0], "k": axes[1], "d": np.array(float(keys.shape[-1]))}
    features |= weights
    known, scores = _values(score, features)
    e = scores["e"][..., 0][:, :, None]  # (B, T, 1, S): the positions are now the last axis
    given = {"e": np.broadcast_to(e, (*e.shape[:2], keys.shape[-1], positions))}
    given["v"] = np.broadcast_to(keys.transpose(0, 2, 1)[:, None], given["e"].shape)
    if any(str(v) == "mask" for v in read.inputs):
        given["mask"] = np.broadcast_to(live[:, None, None].astype(float), given["e"].shape)
    else:
        given["e"] = np.where(live[:, None, None], given["e"], -np.inf)
    saved, out = _values(read, given)
    seeds = read.vjp().evaluate(saved | {"g_c": d_context[..., None]})
    d_e = seeds["d_e"].sum(axis=2)[..., None]  # every feature sends its part to the same score
    back = score.vjp().evaluate(known | {"g_e": d_e})
    found = {"context": out["c"][..., 0], "attention": out["g"][:, :, 0]}
    return found | _gradients(back, seeds, queries, keys, weights)


def _values(spec: Spec, given: Arrays) -> tuple[Arrays, Arrays]:
    """Everything that is known after a forward pass, and what was computed."""
    everything = tuple(v for v, _ in spec.equations)
    computed = Spec(f"{spec.name}_values", spec.equations, spec.inputs, everything).evaluate(given)
    return given | computed, computed


def _gradients(back: Arrays, seeds: Arrays, queries: Array, keys: Array, weights: Arrays) -> Arrays:
    """Sum over the axes along which a value was repeated, then go back through the matrices."""
    d_query, d_key = back["d_q"].sum(axis=2), back["d_k"].sum(axis=1)
    found = {"d_queries": d_query, "d_keys": d_key}
    if "W" in weights:
        found["d_W"] = np.einsum("bta,btq->aq", d_query, queries)
        found["d_queries"] = d_query @ weights["W"]
    if "U" in weights:
        found["d_U"] = np.einsum("bsa,bsk->ak", d_key, keys)
        found["d_keys"] = d_key @ weights["U"]
    if "w" in weights:
        found["d_w"] = back["d_w"].sum(axis=(0, 1, 2))
    found["d_keys"] = found["d_keys"] + seeds["d_v"].sum(axis=1).transpose(0, 2, 1)
    return found
