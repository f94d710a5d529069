"""Losses that balance experts: the equations over tokens.

Imports NumPy, gatelib.equations.balance, gatelib.equations.routers, gatelib.spec and
gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.

N tokens, E experts, the last axis; `mask` (N, E) is what was selected, live (N,) false for padding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived.routers import best
from gatelib.derived.tape import Value, gate, swap
from gatelib.equations.balance import IMPORTANCE, LOAD, NORMALIZED_SCORES, SWITCH_LOSS, Z_LOSS
from gatelib.equations.routers import LOAD_PROBABILITY
from gatelib.spec import Spec

__all__ = ["importance", "load", "normalized_scores", "switch", "z_loss"]

Array = NDArray[Any]

_SUM = Spec.parse("masked_sum", "v mask -> s", "s = total(mask*v)")


def over_tokens(values: Value, mask: Array) -> Value:
    """(E,), the sum of (N, E) over the tokens, each times its mask (N,)."""
    return gate(_SUM, v=swap(values, 0, 1), mask=mask)["s"][:, 0]


def importance(weights: Value) -> dict[str, Value]:
    """The loss of importance () of weights (N, E)."""
    summed = over_tokens(weights, np.ones(weights.shape[0]))
    return {"l": gate(IMPORTANCE, I=summed)["l"][0]}


def load(
    logits: Value, spread: Value, noisy: Value, k: int, live: Array | None = None
) -> dict[str, Value]:
    """The loss of load () from the logits, the noise's size and the noisy logits, (N, E) each."""
    count, experts = logits.shape
    others = np.where(np.eye(experts, dtype=bool), -np.inf, noisy.array[:, None])
    kth = best(others, k) & ~best(others, k - 1)
    t = noisy[np.arange(count)[:, None], kth.argmax(axis=-1)]
    p = gate(LOAD_PROBABILITY, a=logits, n=spread, t=t)["p"]
    here = np.ones(count) if live is None else live.astype(float)
    return {"l": gate(LOAD, L=over_tokens(p, here))["l"][0]}


def switch(
    probabilities: Value,
    mask: Array,
    k: int,
    live: Array | None = None,
    share: Array | None = None,
    spec: Spec = SWITCH_LOSS,
) -> dict[str, Value]:
    """The loss () of probabilities (N, E); share (E,): f, where it is not counted here."""
    count, experts = probabilities.shape
    here = np.ones(count) if live is None else live.astype(float)
    p = over_tokens(probabilities, here / here.sum())
    f = here @ mask / here.sum() if share is None else share
    return {"l": gate(spec, f=f, p=p, n=float(experts), k=float(k))["l"][0]}


def normalized_scores(logits: Value) -> Value:
    """(N, E), the sigmoid scores divided by their sum."""
    return gate(NORMALIZED_SCORES, a=logits)["p"]


def z_loss(logits: Value, live: Array | None = None) -> dict[str, Value]:
    """The mean over tokens of (log Σ exp)²."""
    here = np.ones(logits.shape[0]) if live is None else live.astype(float)
    each = gate(Z_LOSS, a=logits)["l"]
    return {"l": over_tokens(each, here / here.sum())[0]}
