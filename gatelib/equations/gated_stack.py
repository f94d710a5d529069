"""Gated depth between recurrent layers: an LSTM that takes over the memory of the layer below.

Imports gatelib.cell and gatelib.spec.
Must not import NumPy, torch or any other floor.

`c_below` is the memory of the layer below after the same step, and `d` the gate that lets it in.
`a_d` is W_d x + b_d alone, without U h, where x is the output of the layer below; the other `a_k`
are an LSTM's. `w_d` and `w_l` weigh the old memory of this layer and the memory below it, unit by
unit. The lowest layer has nothing below it and is a plain LSTM.
"""

from __future__ import annotations

from gatelib.cell import named
from gatelib.equations.lstm import LSTM, PEEPHOLE
from gatelib.spec import Spec

GATES = {
    "gate": ("a_d w_d w_l", "d = sigmoid(a_d + w_d*c_prev + w_l*c_below)", "d*c_below"),
    "static": ("b_d", "d = sigmoid(b_d)", "d*c_below"),
    "open": ("", "", "c_below"),
}
"""What a kind adds to an LSTM: inputs, the line of the gate, what is taken over."""


def _depth(name: str, kind: str, lower: Spec) -> Spec:
    """An LSTM of one of the kinds."""
    inputs, gate, taken = GATES[kind]
    lines = [f"{v} = {e}" for v, e in lower.equations]
    place = next(k for k, line in enumerate(lines) if line.startswith("c = "))
    lines[place] = f"c = {taken} + f*c_prev + i*g"
    lines[place:place] = [gate] if gate else []
    own = " ".join(str(v) for v in lower.inputs if str(v) != "c_prev")
    return Spec.parse(name, f"{own} {inputs} c_below c_prev -> h c", "\n".join(lines))


DEPTH_GATE = _depth("depth_gate", "gate", LSTM)
"""The gate of Yao et al. 2015, arXiv:1508.03790, and of Zhang et al. 2016, arXiv:1510.08983, in an
LSTM without peepholes."""

DEPTH_GATE_PEEPHOLE = _depth("depth_gate_peephole", "gate", PEEPHOLE)
"""The same in an LSTM with peepholes."""

DEPTH_STATIC = _depth("depth_static", "static", LSTM)
"""A gate that sees nothing: must it depend on the input?"""

DEPTH_STATIC_PEEPHOLE = _depth("depth_static_peephole", "static", PEEPHOLE)
"""The same in an LSTM with peepholes."""

DEPTH_OPEN = _depth("depth_open", "open", LSTM)
"""No gate: the memory below is added, as a residual net adds what a layer receives."""

DEPTH_OPEN_PEEPHOLE = _depth("depth_open_peephole", "open", PEEPHOLE)
"""The same in an LSTM with peepholes."""

KINDS = {
    ("gate", False): DEPTH_GATE,
    ("gate", True): DEPTH_GATE_PEEPHOLE,
    ("static", False): DEPTH_STATIC,
    ("static", True): DEPTH_STATIC_PEEPHOLE,
    ("open", False): DEPTH_OPEN,
    ("open", True): DEPTH_OPEN_PEEPHOLE,
}
"""The upper layers by kind, and by whether their gates see the memory too."""

ALL = named(*KINDS.values())
