"""The block of GTrXL: attention and two layers, each between a norm and a gate.

Imports NumPy, of gatelib.equations gmlp and gtrxl, and of gatelib.derived gated_attention, highway
and tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.derived import highway
from gatelib.derived.gated_attention import Form, layer, live_steps
from gatelib.derived.tape import Value, Values, gate, linear, under
from gatelib.equations import gtrxl
from gatelib.equations.gmlp import MASK

__all__ = ["block"]


def block(form: Form, given: Values, lengths: NDArray[Any] | None = None) -> dict[str, Value]:
    """`x` (B, T, D) to `y` (B, T, D).

    given: `norm1.gamma`, `norm1.beta`, `norm2.gamma`, `norm2.beta` (D,); behind `attention.` the
    weights of a gated attention layer, behind `gate1.` and `gate2.` those of GTrXL's gate; `W_in`
    (F, D), `b_in`, `W_out` (D, F), `b_out`. Without the weights of the gates
    the stream is a sum. lengths (B,): live positions.
    """
    live = live_steps(given["x"], lengths)
    x = gate(MASK, x=given["x"], mask=live)["y"]
    inside = {**under("attention.", given), "x": _normed("norm1.", given, x)}
    x = _written("gate1.", given, x, layer(form, inside, lengths)["y"])
    n = _normed("norm2.", given, x)
    h = gate(gtrxl.RELU, a=linear(n, given["W_in"], given["b_in"]))["y"]
    x = _written("gate2.", given, x, linear(h, given["W_out"], given["b_out"]))
    return {"y": gate(MASK, x=x, mask=live)["y"]}


def _normed(place: str, given: Values, x: Value) -> Value:
    """The stream as a submodule reads it."""
    return gate(gtrxl.NORM, v=x, **under(place, given))["n"]


def _written(place: str, given: Values, x: Value, o: Value) -> Value:
    """The stream after a submodule gave o; the gate takes one position a row."""
    made = gate(gtrxl.RELU, a=o)["y"]
    if not under(place, given):
        return x + made
    batch, steps, _ = x.shape
    of_rows = np.divmod(np.arange(batch * steps), max(steps, 1))
    row_of = np.arange(batch * steps).reshape(batch, steps)
    rows = {"x": x[of_rows], "y": made[of_rows]}
    return highway.gtrxl(gtrxl.GTRXL.stages, {**under(place, given), **rows})["g"][row_of]
