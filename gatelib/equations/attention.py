"""Attention as equations: a score for each position, a gate over positions that reads them, and
the gates that stand before, inside and behind it.

Imports SymPy, gatelib.algebra, gatelib.cell, gatelib.functions, gatelib.spec and
gatelib.equations.gate.
Must not import NumPy, torch or any other floor.

A `Spec` acts on one axis. In a score that axis holds the features: `q` is the query and `k` the
key of one position, both after their matrices (W s and U h_j in additive attention), and `w` are
learned weights. In a read the axis holds the positions of the source: `e` is the score of a
position, `v` one feature of its value, and `mask` is 1 where there is a position, 0 for padding.
`g` is how far a position is read. A gate's own preactivation is `a`, and its value `t`.
"""

from collections.abc import Iterable, Sequence

import sympy as sp

from gatelib.algebra import symbol
from gatelib.cell import named
from gatelib.equations.gate import SOFTMAX
from gatelib.functions import Expr, OverFeatures, exact, mean, softmax, total
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

SINK_READ = Spec.parse(
    "sink_read",
    "e mask v s -> c",
    """
    y = mask*exp(e)
    g = y/(total(y) + exp(s))
    c = total(g*v)""",
)
"""A softmax over the positions and one logit more, s, whose share is dropped: the gates sum to
less than 1. With s = 0 it is "softmax plus one"; where no position is live, c is 0."""

SINK_AS_GATE = Spec.parse(
    "sink_as_gate",
    "e mask v s -> c",
    """
    y = mask*exp(e)
    z = total(y)
    o = total(y*v)/z
    t = sigmoid(log(z) - s)
    c = t*o""",
)
"""The same read as an output gate on the masked read o: how far log z lies above s says how far it
is open. Where no position is live it is 0/0, which SINK_READ is not."""

SIGMOID_READ = Spec.parse(
    "sigmoid_read",
    "e mask n v -> c",
    """
    g = mask*sigmoid(e - log(n))
    c = total(g*v)""",
)
"""A gate for each position by itself, without competition (Ramapuram et al. 2024,
arXiv:2409.04431): where all scores are 0, each of n positions opens by 1/(n + 1), nearly a mean."""

FORGET_READ = Spec.parse(
    "forget_read",
    "e l_i l_j mask v -> c",
    """
    s = e + l_i - l_j
    y = mask*exp(s)
    g = y/total(y)
    c = total(g*v)""",
)
"""The forgetting attention of Lin et al. 2025, arXiv:2503.02130: l_i and l_j are the sums of a
gate's logarithms up to the query and up to the key, so l_i − l_j sums what came between them."""

ALIBI_READ = Spec.parse(
    "alibi_read",
    "e m r mask v -> c",
    """
    s = e - m*r
    y = mask*exp(s)
    g = y/total(y)
    c = total(g*v)""",
)
"""A slope m for the distance r from key to query (Press, Smith & Lewis 2021, arXiv:2108.12409)."""

GATED_READ = Spec.parse(
    "gated_read",
    "a e mask v -> c",
    """
    t = sigmoid(a)
    y = mask*exp(t*e)
    g = y/total(y)
    c = total(g*v)""",
)
"""A gate on the scores, before the softmax: shut, it makes the read a mean, not nothing."""

GATED_SCORE = Spec.parse(
    "gated_score",
    "a q k d -> e",
    """
    t = sigmoid(a)
    e = total(t*q*k)/sqrt(d)""",
)
"""The scaled score with a gate for each feature of the query; one a for all is a gate a head."""

OUTPUT_GATE = Spec.parse(
    "output_gate",
    "a o -> y",
    """
    t = sigmoid(a)
    y = t*o""",
)
"""Qiu et al. 2025, arXiv:2505.06708: a gate on what a head read (their G1), or on a query, a key
or a value after its matrix (G4, G3, G2); `a` comes from the token whose row it is."""

SCORES = {"additive": ADDITIVE, "dot": DOT, "scaled": SCALED, "general": DOT}
READS = {
    "softmax": MASKED,
    "sink": SINK_READ,
    "sigmoid": SIGMOID_READ,
    "forget": FORGET_READ,
    "alibi": ALIBI_READ,
    "gated": GATED_READ,
}
"""What reads a source of which some positions may be masked."""

ALL = named(
    ADDITIVE,
    DOT,
    SCALED,
    READ,
    *READS.values(),
    SINK_AS_GATE,
    GATED_SCORE,
    OUTPUT_GATE,
)

__all__ = [
    "ADDITIVE",
    "ALIBI_READ",
    "ALL",
    "DOT",
    "FORGET_READ",
    "GATED_READ",
    "GATED_SCORE",
    "MASKED",
    "OUTPUT_GATE",
    "READ",
    "READS",
    "SCALED",
    "SCORES",
    "SIGMOID_READ",
    "SINK_AS_GATE",
    "SINK_READ",
    "SOFTMAX",
    "written_out",
]


def written_out(
    spec: Spec, positions: int, shared: Iterable[str] = (), /, **given: Sequence[Expr]
) -> dict[str, list[Expr]]:
    """Every value of a Spec by name, at each of 1, 2, … positions, in SymPy's own functions.

    An input e is there e_1, e_2, …; one that is `shared` has one symbol for all positions; one
    that is `given` has these values, `mask=(1, 0, 1)` say. So what looks over the positions becomes
    a plain sum, which SymPy can differentiate and simplify. Raises ValueError for a function over
    the positions that is no sum, mean or softmax.
    """
    places, same = range(1, positions + 1), {*shared}
    values: dict[Expr, list[Expr]] = {}
    for v in spec.inputs:
        own = [v if str(v) in same else symbol(f"{v}_{place}") for place in places]
        values[v] = [sp.sympify(value) for value in given.get(str(v), own)]
    for v, expression in spec.equations:
        values[v] = _at_places(expression, values, positions)
    return {str(v): value for v, value in values.items()}


def _at_places(expression: Expr, values: dict[Expr, list[Expr]], count: int) -> list[Expr]:
    """An expression at each place, from the values of its names there."""
    if expression.is_Symbol:
        return values[expression]
    if not expression.args:
        return [expression] * count
    arguments = [_at_places(argument, values, count) for argument in expression.args]
    if isinstance(expression, OverFeatures):
        return _looked_over(expression, arguments[0])
    return [exact(expression.func(*row)) for row in zip(*arguments, strict=True)]


def _looked_over(expression: Expr, row: list[Expr]) -> list[Expr]:
    if isinstance(expression, softmax):
        weights = [sp.exp(value) for value in row]
        return [weight / sum(weights) for weight in weights]
    if not isinstance(expression, total | mean):
        raise ValueError(f"spec: expected sums, means and softmax over positions, got {expression}")
    found = sum(row) / (len(row) if isinstance(expression, mean) else 1)
    return [found] * len(row)
