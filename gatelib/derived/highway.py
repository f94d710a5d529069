"""Gates over depth: highway layers, the gate of GTrXL, recurrent highway nets.

Imports gatelib.cell, gatelib.spec, gatelib.derived.tape and gatelib.derived.rnn.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from gatelib.cell import cell
from gatelib.derived.rnn import preactivations, through
from gatelib.derived.tape import Value, Values, gate, linear, stack
from gatelib.spec import Spec

__all__ = ["gtrxl", "layers", "recurrent"]


def layers(spec: Spec, given: Values) -> dict[str, Value]:
    """Layers of one Spec: `x` (N, D), `W` (L, G·D, D), `b` (L, G·D) to `y` (N, D)."""
    x = given["x"]
    for k in range(given["W"].shape[0]):
        packed = linear(x, given["W"][k], given["b"][k])
        x = gate(spec, x=x, **preactivations(spec, packed))["y"]
    return {"y": x}


def recurrent(spec: Spec, given: Values) -> dict[str, Value]:
    """L micro-steps of a Spec in each step of time; x comes in with the first.

    given: `x` (B, T, D), `h0` (B, H), `W` (G·H, D), `U` (L, G·H, H), `b` (L, G·H). Returns `y`
    (B, T, H) and `final_h` (B, H).
    """
    h, ys = given["h0"], []
    for t in range(given["x"].shape[1]):
        for k in range(given["U"].shape[0]):
            a = linear(h, given["U"][k], given["b"][k])
            a = a if k else a + linear(given["x"][:, t], given["W"])
            h = gate(spec, h_prev=h, **preactivations(spec, a))["h"]
        ys.append(h)
    return {"y": stack(ys, like=given["h0"]), "final_h": h}


def gtrxl(stages: Sequence[Spec], given: Values) -> dict[str, Value]:
    """GTrXL's gate: `x`, `y` (N, D), `W_y`, `W_x` (3·D, D) and `b` (D,) to `g` (N, D)."""
    from_y = linear(given["y"], given["W_y"])
    known = {name: given[name] for name in "xb"}
    return {"g": through(cell(stages), from_y, given["x"], given["W_x"], known)["y"]}
