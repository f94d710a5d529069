"""Gates over depth: highway layers, the gate of GTrXL, and the recurrent highway step.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

`x` is what a layer receives. `a_h` is the preactivation of its transform, `a_t` of the transform
gate, `a_c` of the carry gate: W_k x + b_k each.
"""

from __future__ import annotations

from gatelib.cell import cell, named
from gatelib.spec import Spec


def _uncoupled(name: str, y: str, h: str, x: str, activation: str) -> Spec:
    """y = t h + c x: a transform h of W x + b and what was there, x, with a gate each."""
    text = f"{h} = {activation}(a_{h})\nt = sigmoid(a_t)\nc = sigmoid(a_c)\n{y} = t*{h} + c*{x}"
    return Spec.parse(name, f"a_{h} a_t a_c {x} -> {y}", text)


UNCOUPLED = _uncoupled("uncoupled", "y", "h", "x", "relu")
"""Srivastava, Greff & Schmidhuber 2015, arXiv:1505.00387, eq. 2: transform and carry each have a
gate of their own."""

HIGHWAY = UNCOUPLED.replace("highway", y="t*h + (1 - t)*x")
"""The same paper's eq. 3: the carry gate is 1 − t."""

RESIDUAL = Spec.parse(
    "residual_layer",
    "a_h x -> y",
    """
    h = relu(a_h)
    y = h + x
    """,
)
"""A residual layer with the same transform: y = f(x) + x (He et al. 2016, arXiv:1512.03385)."""

PLAIN = Spec.parse(
    "plain_layer",
    "a_h -> y",
    """
    y = relu(a_h)
    """,
)
"""A layer without a way around it."""

GTRXL_RESET = Spec.parse(
    "gtrxl_reset",
    "a_r a_z b x -> z q",
    """
    r = sigmoid(a_r)
    z = sigmoid(a_z - b)
    q = r*x
    """,
)
"""First stage of GTrXL's gate; `a_r` and `a_z` see the stream x and the sublayer's output."""

GTRXL_WRITE = Spec.parse(
    "gtrxl_write",
    "a_h z x -> y",
    """
    h = tanh(a_h)
    y = (1 - z)*x + z*h
    """,
)
"""Second stage; `a_h` sees the sublayer's output and q in the place of x."""

GTRXL = cell((GTRXL_RESET, GTRXL_WRITE), "gtrxl")
"""The gate of GRU type of Parisotto et al. 2019, arXiv:1910.06764: a GRU over depth.

The residual stream x takes the place of h_{t−1}, the sublayer's output that of the input x_t.
"""

RECURRENT_UNCOUPLED = _uncoupled("recurrent_uncoupled", "h", "n", "h_prev", "tanh")
"""One micro-step of a recurrent highway net (Zilly et al. 2016, arXiv:1607.03474)."""

RECURRENT_HIGHWAY = RECURRENT_UNCOUPLED.replace("recurrent_highway", h="t*n + (1 - t)*h_prev")
"""The same micro-step with its gates coupled: what isn't written is kept."""

ACTIVATIONS = ("relu", "tanh", "sigmoid", "identity")
"""The transforms that `layer` makes; each has a slope that its value tells."""

ALL = named(HIGHWAY, UNCOUPLED, RESIDUAL, PLAIN, GTRXL, RECURRENT_HIGHWAY, RECURRENT_UNCOUPLED)


def layer(activation: str = "relu", coupled: bool = True) -> Spec:
    """The highway layer with another transform; ValueError for one that is not in ACTIVATIONS."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
    spec = HIGHWAY if coupled else UNCOUPLED
    return spec if activation == "relu" else spec.replace(h=f"{activation}(a_h)")
