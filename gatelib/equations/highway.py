"""Gates over depth: highway layers, the gate of GTrXL, and the recurrent highway step.

Imports gatelib.spec.
Must not import NumPy, torch or any other floor.

`x` is what a layer receives. `a_h` is the preactivation of its transform, `a_t` of the transform
gate, `a_c` of the carry gate: W_k x + b_k each.
"""

from __future__ import annotations

from gatelib.spec import Spec

HIGHWAY = Spec.parse(
    "highway",
    "a_h a_t x -> y",
    """
    h = relu(a_h)
    t = sigmoid(a_t)
    y = t*h + (1 - t)*x
    """,
)
"""Srivastava, Greff & Schmidhuber 2015, arXiv:1505.00387, eq. 3: the carry gate is 1 − t."""

UNCOUPLED = Spec.parse(
    "uncoupled",
    "a_h a_t a_c x -> y",
    """
    h = relu(a_h)
    t = sigmoid(a_t)
    c = sigmoid(a_c)
    y = t*h + c*x
    """,
)
"""The same paper's eq. 2: transform and carry each have a gate of their own."""

RESIDUAL = Spec.parse(
    "residual",
    "a_h x -> y",
    """
    h = relu(a_h)
    y = h + x
    """,
)
"""A residual layer with the same transform: y = f(x) + x (He et al. 2016, arXiv:1512.03385)."""

PLAIN = Spec.parse(
    "plain",
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

GTRXL = (GTRXL_RESET, GTRXL_WRITE)
"""The gate of GRU type of Parisotto et al. 2019, arXiv:1910.06764: a GRU over depth.

The residual stream x takes the place of h_{t−1}, the sublayer's output that of the input x_t.
"""

RECURRENT_HIGHWAY = Spec.parse(
    "recurrent_highway",
    "a_n a_t h_prev -> h",
    """
    n = tanh(a_n)
    t = sigmoid(a_t)
    h = t*n + (1 - t)*h_prev
    """,
)
"""One micro-step of a recurrent highway net (Zilly et al. 2016, arXiv:1607.03474), coupled."""

RECURRENT_UNCOUPLED = Spec.parse(
    "recurrent_uncoupled",
    "a_n a_t a_c h_prev -> h",
    """
    n = tanh(a_n)
    t = sigmoid(a_t)
    c = sigmoid(a_c)
    h = t*n + c*h_prev
    """,
)
"""The same micro-step with a carry gate of its own."""

ACTIVATIONS = ("relu", "tanh", "sigmoid", "identity")
"""The transforms that `layer` makes; each has a slope that its value tells."""

ALL = {
    spec.name: spec
    for spec in (
        HIGHWAY,
        UNCOUPLED,
        RESIDUAL,
        PLAIN,
        *GTRXL,
        RECURRENT_HIGHWAY,
        RECURRENT_UNCOUPLED,
    )
}


def layer(activation: str = "relu", coupled: bool = True) -> Spec:
    """The highway layer with another transform; ValueError for one that is not in ACTIVATIONS."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {ACTIVATIONS}, got {activation!r}")
    spec = HIGHWAY if coupled else UNCOUPLED
    return spec if activation == "relu" else spec.replace(h=f"{activation}(a_h)")
