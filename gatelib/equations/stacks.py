"""What stands between and behind recurrent layers, as equations: masks, shortcuts, pooling.
Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

Symbols: `m` a mask of zeros and ones, `keep` the probability of a one, `v` the value that is gated,
`f` a layer's output, `e` the embedding of one word with its features, `w` and `b` weight and bias.
"""

from gatelib.cell import named
from gatelib.spec import Spec

DROPOUT = Spec.parse(
    "dropout",
    "m keep v -> y",
    """
    g = m/keep
    y = g*v""",
)
"""Dropout (Hinton et al. 2012) as a gate. It doesn't say whether the next step has the same m."""

RESIDUAL = Spec.parse("shortcut", "x f -> y", "y = x + f")
"""A shortcut around a layer (He et al. 2016, equation 1)."""

ZONEOUT = Spec.parse("zoneout", "m h_prev v -> h", "h = m*h_prev + (1 - m)*v")
"""Zoneout (Krueger et al. 2017): where m is 1 a unit keeps its old value instead of losing it."""

POOL = Spec.parse("pool", "g v -> y", "y = total(g*v)")
"""Pooling as a gate. Here the features of the Spec are the time steps of one unit."""

WORD_GATE = Spec.parse(
    "word_gate",
    "w b e -> y",
    """
    a = total(w*e) + b
    g = sigmoid(a)
    y = g*e""",
)
"""One gate for a whole word: all features of its embedding are let through alike."""

ALL = named(DROPOUT, RESIDUAL, ZONEOUT, POOL, WORD_GATE)
