"""Pooling with a gate over time that is computed from what it pools.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

The last axis of a score holds the units of a small layer: `a` is W y_t + b, `w` is what they are
compared with. The last axis of a pool holds the time steps: `e` is the score of a step, `v` one
feature of its value, `mask` is 1 where there is a step and 0 for padding. `k` scales the scores: at
0 every pool here is the mean, and the larger it is the fewer steps are let through. `g` is how far
a step is.
"""

from __future__ import annotations

from gatelib.cell import named
from gatelib.spec import Spec

POOL_SCORE = Spec.parse(
    "pool_score",
    "a w -> e",
    """
    m = tanh(a)
    e = total(w*m)""",
)
"""The score of a step. Yang et al. 2016 have one vector w; Lin et al. 2017, arXiv:1703.03130, have
one for each of several hops, and no b. It is additive attention whose query is a constant."""

ATTENTION_POOL = Spec.parse(
    "attention_pool",
    "e k mask v -> c",
    """
    y = mask*exp(k*e)
    g = y/total(y)
    c = total(g*v)""",
)
"""All features of a step are let through alike. The papers have k = 1."""

SOFT_POOL = ATTENTION_POOL.replace("soft_pool", y="mask*exp(k*v)")
"""Each feature scores itself: the mean at k = 0, the maximum as k grows, the minimum below 0."""

ALL = named(POOL_SCORE, ATTENTION_POOL, SOFT_POOL)
