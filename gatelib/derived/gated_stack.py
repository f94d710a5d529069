"""LSTM layers that take over the memory of the layer below.

Imports gatelib.spec and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.
"""

from __future__ import annotations

from gatelib.derived.tape import Value, Values, gate, linear, split, stack, under
from gatelib.spec import Spec

__all__ = ["layers"]


def layers(lowest: Spec, upper: Spec, given: Values) -> dict[str, Value]:
    """The lowest layer's Spec, then the upper one in all layers above it.

    given: `x` (B, T, D), and for layer K `K.W` (4·H or 5·H, D), `K.U` (4·H, H), `K.b`, its vectors
    by name, `K.h0` and `K.c0`. Returns `y` (B, T, H) and the final states `K.final_h`, `K.final_c`.
    """
    x, below, found, k = given["x"], None, dict[str, Value](), 0
    while f"{k}.W" in given:
        own = under(f"{k}.", given)
        x, below, h, c = _layer(upper if k else lowest, own, x, below)
        found |= {f"{k}.final_h": h, f"{k}.final_c": c}
        k += 1
    return found | {"y": x}


def _layer(
    spec: Spec, own: dict[str, Value], x: Value, below: Value | None
) -> tuple[Value, Value, Value, Value]:
    """Outputs and memories (B, T, H) of one layer, and its final states."""
    h, c, outputs, memories = own["h0"], own["c0"], [], []
    count = own["W"].shape[0] // own["U"].shape[1]
    for t in range(x.shape[1]):
        from_x = split(linear(x[:, t], own["W"], own["b"]), count)
        from_h = split(linear(h, own["U"]), 4)
        both = [a + u for a, u in zip(from_x[:4], from_h, strict=True)] + from_x[4:]
        known = own | {f"a_{name}": a for name, a in zip("ifgod", both, strict=False)}
        known |= {"c_prev": c} | ({} if below is None else {"c_below": below[:, t]})
        made = gate(spec, **known)
        h, c = made["h"], made["c"]
        outputs.append(h)
        memories.append(c)
    return stack(outputs, h), stack(memories, c), h, c
