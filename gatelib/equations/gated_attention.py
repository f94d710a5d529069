"""What stands around the reads of a gated attention layer: norms, rotations, log-gates, biases.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

In a norm and a rotation the axis holds the features of one head; elsewhere `e` is the scaled score
of one pair, and `s` what becomes of it. Gates on queries, keys, values and reads are `OUTPUT_GATE`
of gatelib.equations.attention, and the reads stand there too.
"""

from gatelib.cell import named
from gatelib.spec import Spec

QK_NORM = Spec.parse(
    "qk_norm",
    "x w -> n",
    """
    r = 1/sqrt(mean(x**2) + 0.000001)
    n = w*x*r""",
)
"""A query or a key over the root of its mean square (Zhang & Sennrich 2019, arXiv:1910.07467)."""

ROTATION = Spec.parse("rotation", "x p c s -> y", "y = c*x + s*p")
"""A feature x and its partner p turned by an angle with cosine c and sine s, which has a minus for
the first of the two (Su et al. 2021, arXiv:2104.09864, equation 34)."""

LOG_GATE = Spec.parse("log_gate", "a -> l", "l = -softplus(-a)")
"""log σ(a), the logarithm of a forget gate, without the rounding of a σ near 0."""

SCORE_GATE = Spec.parse(
    "score_gate",
    "a e -> s",
    """
    t = sigmoid(a)
    s = t*e""",
)
"""A gate on the score of a pair: one a for a query, or a sum a_i + a_j of query and key."""

FORGET_BIAS = Spec.parse("forget_bias", "e l_i l_j -> s", "s = e + l_i - l_j")
"""The running sums of a head's log-gates up to the query and up to the key."""

ALIBI_BIAS = Spec.parse("alibi_bias", "e m r -> s", "s = e - m*r")
"""The slope m of a head, times how far back the key lies."""

ALL = named(QK_NORM, ROTATION, LOG_GATE, SCORE_GATE, FORGET_BIAS, ALIBI_BIAS)
