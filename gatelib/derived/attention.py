"""Attention: a score for each pair of positions, and a gate over positions that reads them.

Imports NumPy, gatelib.spec and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.tape import Value, Values, gate, linear, swap
from gatelib.spec import Spec

__all__ = ["attend"]


def attend(
    score: Spec,
    read: Spec,
    given: Values,
    lengths: NDArray[Any] | None = None,
    causal: bool = False,
) -> dict[str, Value]:
    """What queries read from keys, which are the values too unless `values` are given.

    given: `queries` (B, T, Q), `keys` (B, S, K), `values` (B, S, V); `W`, where given, multiplies
    the queries, `U` the keys, and `w` is the score's own vector. lengths (B,): live positions.
    causal: a query reads no position after its own. Returns `context` (B, T, V) and `attention`
    (B, T, S).
    """
    queries, keys = given["queries"], given["keys"]
    values = given.get("values", keys)
    live = np.arange(keys.shape[1]) < (keys.shape[1] if lengths is None else lengths[:, None])
    query = linear(queries, given["W"]) if "W" in given else queries
    key = linear(keys, given["U"]) if "U" in given else keys
    own = {name: value for name, value in given.items() if name == "w"}
    made = gate(score, q=query[:, :, None], k=key[:, None], d=float(keys.shape[-1]), **own)
    e = made["e"][..., 0][:, :, None]  # (B, T, 1, S): the last axis now holds the positions
    mask = live[:, None, None]
    if causal:
        mask = mask & np.tri(queries.shape[1], keys.shape[1], dtype=bool)[:, None]
    if all(str(v) != "mask" for v in read.inputs):
        e = e + Value(np.where(mask, 0.0, -np.inf), e.tape)
    made = gate(read.exposed, e=e, v=swap(values, 1, 2)[:, None], mask=mask.astype(float))
    return {"context": made["c"][..., 0], "attention": made["g"][:, :, 0]}
