"""JANET: an LSTM of which the forget gate alone is left, as equations.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

Inputs `a_k` are preactivations W_k x_t + U_k h_{t−1} + b_k: of the gate f, and of the candidate n.
"""

from __future__ import annotations

import math

from gatelib.cell import named
from gatelib.spec import Spec


def janet(beta: float = 1) -> Spec:
    """The cell; beta says how much more than it forgets it writes.

    At 0 a unit writes what it forgets, and the cell is a GRU without its reset gate. Raises
    ValueError unless beta is a finite number.
    """
    if not math.isfinite(beta):
        raise ValueError(f"beta: expected a finite number, got {beta}")
    cell = Spec.parse(
        "janet",
        "a_f a_n beta h_prev -> h",
        """
        f = sigmoid(a_f)
        i = 1 - sigmoid(a_f - beta)
        n = tanh(a_n)
        h = f*h_prev + i*n
        """,
    )
    return cell.subs(beta=beta)


JANET = janet()
"""van der Westhuizen & Lasenby 2018, arXiv:1804.04849, with beta = 1: what is read is the cell."""

ALL = named(JANET)
