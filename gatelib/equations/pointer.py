"""The switch between writing a word of the vocabulary and copying one of the source.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

`a` is the preactivation of the switch `p`. Of one word, `u` is its probability by the vocabulary's
softmax, `v` the sum of the attention on every place of the source where it stands: each is 0 for a
word that the other alone knows. `l_u` and `l_v` are their logarithms, −∞ for such a word.
"""

from __future__ import annotations

from gatelib.cell import named
from gatelib.spec import Spec

POINTER = Spec.parse(
    "pointer",
    "a u v -> y",
    """
    p = sigmoid(a)
    y = p*u + (1 - p)*v""",
)
"""See, Liu & Manning 2017, arXiv:1704.04368, section 2.2: their generation probability is p."""

LOG_POINTER = Spec.parse(
    "log_pointer",
    "a l_u l_v -> y",
    """
    s = l_u - softplus(-a)
    t = l_v - softplus(a)
    y = maximum(s, t) + softplus(minimum(s, t) - maximum(s, t))""",
)
"""The logarithm of the same from logarithms: no product can be 0 however far the switch is shut.

log σ(a) is −softplus(−a), log (1 − σ(a)) is −softplus(a), and the last line is the logarithm of
e^s + e^t. A word that only one of the two knows has the other's s or t at −∞, which adds nothing.
"""

ALL = named(POINTER, LOG_POINTER)
