"""Context gates: two linear maps, and a gate that sees what both see.

Imports gatelib.spec and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from gatelib.derived.tape import Value, Values, gate, join, linear
from gatelib.spec import Spec

__all__ = ["mix"]


def mix(spec: Spec, given: Values) -> dict[str, Value]:
    """`target` (..., T) and `source` (..., S) to `y` (..., H).

    given: `W_t`, `b_t`, `W_s`, `b_s`, and `W_z` (H, T + S), `b_z` where the Spec has a gate.
    """
    target, source = given["target"], given["source"]
    known = {
        "target": linear(target, given["W_t"], given["b_t"]),
        "source": linear(source, given["W_s"], given["b_s"]),
    }
    if "W_z" in given:
        known["a"] = linear(join([target, source]), given["W_z"], given["b_z"])
    return {"y": gate(spec, **known)["y"]}
