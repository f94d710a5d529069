"""What a reset gate buys: GRUs in which it stands alone, stands elsewhere, or is the update gate.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

`a_k` is W_k x_t + b_k and `u_k` is U_k h_{t−1} + b'_k where a Spec has both; otherwise `a_k` is
their sum. The GRU itself, the GRU whose reset is 1 always (`NO_RESET`) and the minimal gated unit
are in `gatelib.equations.gru`. A reset gate made of a bias alone is not here: behind the product it
scales the rows of U_n and b'_n, and so gives the functions of `NO_RESET`.
"""

from __future__ import annotations

from gatelib.cell import named
from gatelib.spec import Spec

RESET_ONLY = Spec.parse(
    "reset_only",
    "a_r a_n u_n -> h",
    """
    r = sigmoid(a_r)
    h = tanh(a_n + r*u_n)""",
)
"""A GRU without its update gate: a plain RNN that may leave its history out."""

RESET_INPUT = Spec.parse(
    "reset_input",
    "a_r a_z a_n u_n h_prev -> h",
    """
    r = sigmoid(a_r)
    z = sigmoid(a_z)
    n = tanh(r*a_n + u_n)
    h = (1 - z)*n + z*h_prev""",
)
"""The same gate on the input instead of the history, with as many parameters as a GRU: does it
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
as torch's GRU has it; the paper's, before the product, is `MGU` of `gatelib.equations.gru`."""

ALL = named(RESET_ONLY, RESET_INPUT, MGU_AFTER)
