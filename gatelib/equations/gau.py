"""The gated attention unit: one small head with squared relus, whose read is gated by features.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

`a` is a preactivation W x + b of one of the three parts: `u` gates, `v` is read, and `z` is what
both the query and the key are made of. In the score the axis holds the features of z, in the read
the positions.
"""

from gatelib.cell import named
from gatelib.spec import Spec

HIDDEN = Spec.parse("gau_hidden", "a -> h", "h = silu(a)")
"""u, v and z alike."""

OFFSET = Spec.parse("gau_offset", "z gamma beta -> q", "q = gamma*z + beta")
"""A query, and with a γ and a β of its own a key: a scale and a shift for each feature of z."""

SCORE = Spec.parse("gau_score", "q k n b -> e", "e = total(q*k)/n + b")
"""Over the number n of positions, and with the bias b of the pair, which n does not divide."""

READ = Spec.parse(
    "gau_read",
    "e mask v -> c",
    """
    r = relu(e)
    g = mask*r**2
    c = total(g*v)""",
)
"""Squared relus for a softmax: a position's gate can be exactly 0, and none competes."""

GATE = Spec.parse("gau_gate", "u c -> y", "y = u*c")
"""Hua et al. 2022, arXiv:2202.10447, equations 3 and 4: a gated linear unit whose value is read."""

ALL = named(HIDDEN, OFFSET, SCORE, READ, GATE)
