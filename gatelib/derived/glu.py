"""The GLU family between two linear maps.

Imports gatelib.spec and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from gatelib.derived.tape import Value, Values, gate, linear, split
from gatelib.spec import Spec

__all__ = ["mlp"]


def mlp(spec: Spec, given: Values) -> dict[str, Value]:
    """The gated MLP: `x` (N, D), `W_in` (G·H, D), `W_out` (O, H) to `y` (N, O).

    The rows of W_in are in the order of the Spec's inputs: a, then v where it has a gate. `b_in`
    (G·H,) and `b_out` (O,) are added where they are given.
    """
    packed = linear(given["x"], given["W_in"], given.get("b_in"))
    names = [str(v) for v in spec.inputs]
    parts = dict(zip(names, split(packed, len(names)), strict=True))
    return {"y": linear(gate(spec, **parts)["y"], given["W_out"], given.get("b_out"))}
