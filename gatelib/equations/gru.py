"""The GRU as it was published four times, the minimal gated unit, lighter variants and controls.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

Inputs `a_k` are preactivations W_k x_t + U_k h_{t−1} + b_k. Where a Spec has `u_k` as well, `a_k`
is W_k x_t + b_k and `u_k` is U_k h_{t−1} + b'_k. A cell whose reset gate acts before the product
has two stages: the first makes `q`, and U of the second multiplies `q` in the place of h_{t−1}.
"""

from __future__ import annotations

from gatelib.cell import cell, named
from gatelib.spec import Spec

GRU = Spec.parse(
    "gru",
    "a_r a_z a_n u_n h_prev -> h",
    """
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    n = tanh(a_n + r*u_n)
    h = (1 - z)*n + z*h_prev
    """,
)
"""Reset after the product, z keeps: cuDNN, torch.nn.GRU, and Keras by default.

The first two versions of Cho et al. 2014, arXiv:1406.1078, have it so, without biases.
"""

RESET = Spec.parse(
    "reset",
    "a_r a_z h_prev -> z q",
    """
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    q = r*h_prev
    """,
)
"""The first stage of a GRU whose reset gate acts before the product."""


def _write(name: str, gate: str) -> Spec:
    """A second stage: the gate writes the candidate n, which reads q, over the old state."""
    text = f"n = tanh(a_n)\nh = (1 - {gate})*h_prev + {gate}*n"
    return Spec.parse(name, f"a_n {gate} h_prev -> h", text)


WRITE = _write("write", "z")
"""The second stage where z writes the candidate."""

KEEP = WRITE.replace("keep", h="(1 - z)*n + z*h_prev")
"""The second stage where z keeps the old state."""

CHO = cell((RESET, KEEP), "cho")
"""Cho et al. 2014 as printed, eq. 5–8 (arXiv:1406.1078v3): reset before the product, z keeps."""

CHUNG = cell((RESET, WRITE), "chung")
"""Chung et al. 2014, arXiv:1412.3555, section 3.2: reset before the product, z writes."""

FORGET = Spec.parse(
    "forget",
    "a_f h_prev -> f q",
    """
    f = sigmoid(a_f)
    q = f*h_prev
    """,
)
"""The first stage of the minimal gated unit."""

MGU_WRITE = _write("mgu_write", "f")
"""Its second stage: the same gate writes."""

MGU = cell((FORGET, MGU_WRITE), "mgu")
"""Minimal gated unit (Zhou et al. 2016, arXiv:1603.09420): one gate resets and writes."""


def _without_reset(name: str, inputs: str, z: str) -> Spec:
    """A GRU of one gate, z, which keeps."""
    text = f"z = sigmoid({z})\nn = tanh(a_n)\nh = (1 - z)*n + z*h_prev"
    return Spec.parse(name, f"{inputs} h_prev -> h", text)


NO_RESET = _without_reset("no_reset", "a_z a_n", "a_z")
"""A GRU without its reset gate: what every convention becomes at r = 1."""

LIGHT = NO_RESET.replace("light", n="relu(a_n)")
"""Li-GRU (Ravanelli et al. 2018, arXiv:1803.10225): no reset gate, a ReLU for the tanh.

The paper also normalises W x over the batch, which stands outside the cell.
"""

LEAKY = _without_reset("leaky", "a_n b_z", "b_z")
"""Gates made of biases alone (Dey & Salem 2017, arXiv:1701.05923, variant GRU3).

Their reset gate is then a constant, which the rows or columns of U_n take up: it is left out.
"""

RESET_ONLY = Spec.parse(
    "reset_only",
    "a_r a_n u_n -> h",
    """
    r = sigmoid(a_r)
    h = tanh(a_n + r*u_n)""",
)
"""A GRU without its update gate: a plain RNN that may leave its history out."""

RESET_INPUT = GRU.replace("reset_input", n="tanh(r*a_n + u_n)")
"""The reset gate on the input instead of the history, with as many parameters as a GRU: does it
matter where the product stands?"""

MGU_AFTER = Spec.parse(
    "mgu_after",
    "a_f a_n u_n h_prev -> h",
    """
    f = sigmoid(a_f)
    n = tanh(a_n + f*u_n)
    h = (1 - f)*h_prev + f*n""",
)
"""The minimal gated unit of Zhou et al. 2016, arXiv:1603.09420, with its reset behind the product,
as torch's GRU has it; the paper's, before the product, is `MGU`."""

ALL = named(GRU, CHO, CHUNG, MGU, NO_RESET, LIGHT, LEAKY, RESET_ONLY, RESET_INPUT, MGU_AFTER)
