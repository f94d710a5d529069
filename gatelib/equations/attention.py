"""Attention as equations: a score for each position, and a softmax gate that reads them.

Imports gatelib.cell, gatelib.spec and gatelib.equations.gate.
Must not import NumPy, torch or any other floor.

A `Spec` acts on one axis. In a score that axis holds the features: `q` is the query and `k` the
key of one position, both after their matrices (W s and U h_j in additive attention), and `w` are
learned weights. In a read the axis holds the positions of the source: `e` is the score of a
position, `v` one feature of its value, and `mask` is 1 where there is a position, 0 for padding.
"""

from gatelib.cell import named
from gatelib.equations.gate import SOFTMAX
from gatelib.spec import Spec

ADDITIVE = Spec.parse(
    "additive_score",
    "q k w -> e",
    """
    m = tanh(q + k)
    e = total(w*m)""",
)
"""Bahdanau, Cho & Bengio 2014, arXiv:1409.0473, appendix A.1.2, with q = W s and k = U h_j."""

DOT = Spec.parse("dot_score", "q k -> e", "e = total(q*k)")
"""Luong, Pham & Manning 2015, arXiv:1508.04025, section 3.1: `dot`; `general` has q = W s."""

SCALED = Spec.parse("scaled_score", "q k d -> e", "e = total(q*k)/sqrt(d)")
"""The dot product over the square root of the number of features d (Vaswani et al. 2017)."""

READ = Spec.parse(
    "read",
    "e v -> c",
    """
    g = softmax(e)
    y = g*v
    c = total(y)""",
)
"""The context: chapter 1's softmax gate, then the sum over the positions."""

MASKED = Spec.parse(
    "masked_read",
    "e mask v -> c",
    """
    y = mask*exp(e)
    g = y/total(y)
    c = total(g*v)""",
)
"""The same with padding: an exponential gate, shut by the mask, over the sum of all gates."""

SCORES = {"additive": ADDITIVE, "dot": DOT, "scaled": SCALED, "general": DOT}
ALL = named(ADDITIVE, DOT, SCALED, READ, MASKED)

__all__ = ["ADDITIVE", "ALL", "DOT", "MASKED", "READ", "SCALED", "SCORES", "SOFTMAX"]
