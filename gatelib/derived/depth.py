"""Networks over depth: a layer adds to the stream, gates it, or takes its place.

Imports gatelib.spec and gatelib.derived.tape.
Must not import gatelib.reference, gatelib.nn or torch: all are compared with it.

A layer is a Spec of gatelib.equations.depth, with any activation. Its weights are `K.W`, `K.b` and
what else the Spec learns; what it is told (`m`, `keep`) comes as told[K], by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gatelib.derived.tape import Value, Values, gate, join, linear, under
from gatelib.spec import Spec

__all__ = ["dense", "layers"]


def layers(spec: Spec, given: Values, told: Sequence[Mapping[str, Any]] = ()) -> dict[str, Value]:
    """Each layer reads `h` of the one before it: `x` (B, D) to `y` (B, D)."""
    x, h = given["x"], _first(spec, given["x"])
    for k, own in enumerate(_own(given)):
        a = linear(h, own["W"], own["b"])
        made = gate(spec, a=a, x_prev=x, **own, **(told[k] if told else {}))
        x, h = made["x"], made["h"]
    return {"y": x}


def dense(spec: Spec, given: Values) -> dict[str, Value]:
    """Each layer reads every `h` before it; `y` holds `x` and what every layer made."""
    xs, hs = [given["x"]], [_first(spec, given["x"])]
    for own in _own(given):
        made = gate(spec, a=linear(join(hs), own["W"], own["b"]), x_prev=xs[-1])
        xs.append(made["x"])
        hs.append(made["h"])
    return {"y": join(xs)}


def _first(spec: Spec, x: Value) -> Value:
    """What the first layer reads: the Spec's last line, `h` from `x`, on the input itself."""
    return gate(Spec("first", spec.equations[-1:], spec.outputs[-1:], spec.outputs[:1]), x=x)["h"]


def _own(given: Values) -> list[dict[str, Value]]:
    """The weights of each layer, by their own names."""
    found: list[dict[str, Value]] = []
    while own := under(f"{len(found)}.", given):
        found.append(own)
    return found
