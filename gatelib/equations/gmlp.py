"""gMLP: a gate over the features whose preactivation is a mixture over the positions.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

A unit reads z, the activated hidden features of each position. `u` is what is gated and `v` what
the gate is made of: the first and the second half of z, or, without a split, both the whole of it.
`n` is v normalised over its features. Between two of these equations stands the one product over
positions: `m` = W n, a sum over the positions of each feature alone. `b` is one number a position.
`c`, in an aMLP, is what a small attention reads.
"""

from __future__ import annotations

from dataclasses import replace

from gatelib.cell import named
from gatelib.spec import Spec

NORM = Spec.parse(
    "feature_norm",
    "v gamma beta -> n",
    """
    n = gamma*normalize(v) + beta""",
)
"""Layer normalisation over the features of one position, of a block's input and of v."""

HIDDEN = Spec.parse(
    "gmlp_hidden",
    "a -> z",
    """
    z = gelu(a)""",
)
"""The hidden features of a block, from a = U n: each position by itself."""

AMLP = Spec.parse(
    "hybrid_gate",
    "u m b c -> s",
    """
    g = m + b + c
    s = u*g""",
)
"""The unit of an aMLP (Liu et al. 2021, arXiv:2105.08050, section 4.3): what attention reads is
added to the mixture."""

HYBRID = {
    "multiplicative": AMLP,
    "additive": AMLP.replace("hybrid_sum", s="u + g"),
    "linear": AMLP.replace("hybrid_linear", s="g"),
}
"""The same with another use of the mixture."""

MULTIPLICATIVE = replace(AMLP.subs(c=0), name="spatial_gate")
"""The spatial gating unit (section 2.1 there): at m = 0 and b = 1, as it starts, it hands u on."""

ADDITIVE = MULTIPLICATIVE.replace("spatial_sum", s="u + g")
"""The additive form of the paper's ablation; it hands u on at m = 0 and b = 0."""

LINEAR = MULTIPLICATIVE.replace("spatial_linear", s="g")
"""The linear form: the mixture takes the place of what it was made of."""

NONE = Spec.parse("spatial_none", "u -> s", "s = u")
"""No mixing: the positions never meet."""

GATES = {
    "multiplicative": MULTIPLICATIVE,
    "additive": ADDITIVE,
    "linear": LINEAR,
    "none": NONE,
}
"""What a unit may do with the mixture."""

UNITS = (*GATES.values(), *HYBRID.values())
"""Every gate of a unit."""

MASK = Spec.parse("spatial_mask", "x mask -> y", "y = mask*x")
"""1 keeps, 0 drops: positions that are padding, and weights W_st of a later position t > s."""

SHORTCUT = Spec.parse("gmlp_shortcut", "x o -> y", "y = x + o")
"""A block's output: what came in, and o = V s."""

ALL = named(NORM, HIDDEN, *UNITS, MASK, SHORTCUT)


def reads_both(gate: str) -> bool:
    """Whether the gate of this name reads u and the mixture, so that z may be split for them."""
    return {"u", "m"} <= {str(v) for v in GATES[gate].inputs}


def spec_of(gate: str, attention: bool = False) -> Spec:
    """The Spec of a unit's gate; ValueError for an unknown one, or "none" with attention."""
    known = HYBRID if attention else GATES
    if gate not in known:
        raise ValueError(f"gate: expected one of {', '.join(known)}, got {gate!r}")
    return known[gate]
