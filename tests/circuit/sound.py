"""What every drawing of a circuit must obey, whatever it shows.

Imports gatelib.circuit.
Must not import torch: a diagram needs nothing but equations.
"""

from __future__ import annotations

import math
from xml.etree import ElementTree

from gatelib.circuit import Circuit, Shape

SVG = "{http://www.w3.org/2000/svg}"


def box(shape: Shape, grow: float = 0.0) -> tuple[float, float, float, float]:
    w, h = shape.width / 2 + grow, shape.height / 2 + grow
    return shape.x - w, shape.y - h, shape.x + w, shape.y + h


def meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def upright(segment: tuple[float, ...]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = segment
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def no_shapes_overlap(circuit: Circuit) -> None:
    solid = [s for s in circuit.shapes if s.kind != "tap"]
    for number, a in enumerate(solid):
        for b in solid[number + 1 :]:
            assert not meet(box(a, 1), box(b, 1)), (a, b)


def runs_through(segment: tuple[float, ...], shape: Shape, own: bool) -> bool:
    """Whether a stretch of wire enters a shape; its own it may touch, a circle at its edge."""
    if shape.kind == "tap" or (own and shape.kind in ("pin", "out")):
        return False
    x1, y1, x2, y2 = upright(segment)
    if own and shape.kind == "circle":
        x, y = min(max(shape.x, x1), x2), min(max(shape.y, y1), y2)
        return math.hypot(x - shape.x, y - shape.y) < shape.width / 2 - 1.5
    inside = box(shape, -1.5 if own else 2.0)
    return inside[0] < inside[2] and meet((x1, y1, x2, y2), inside)


def no_wire_runs_through_a_shape(circuit: Circuit) -> None:
    for wire in circuit.wires:
        for index, shape in enumerate(circuit.shapes):
            own = index in (wire.source, *wire.sinks)
            for segment in wire.segments:
                assert not runs_through(segment, shape, own), (wire, shape)


def wires_only_cross(circuit: Circuit) -> None:
    """Two values never share a stretch of line."""
    for number, a in enumerate(circuit.wires):
        for b in circuit.wires[number + 1 :]:
            for one in map(upright, a.segments):
                for two in map(upright, b.segments):
                    across = min(one[2], two[2]) - max(one[0], two[0])
                    along = min(one[3], two[3]) - max(one[1], two[1])
                    assert not (across > 0 and along == 0 and one[1] == one[3] == two[1]), (a, b)
                    assert not (along > 0 and across == 0 and one[0] == one[2] == two[0]), (a, b)


def wires_reach_their_sinks(circuit: Circuit) -> None:
    for wire in circuit.wires:
        for sink in wire.sinks:
            near = box(circuit.shapes[sink], 10)
            assert any(meet(upright(s), near) or s[1] == near[1] for s in wire.segments), (
                wire,
                circuit.shapes[sink],
            )


def everything_is_on_the_sheet(circuit: Circuit) -> None:
    width, height = circuit.size
    for shape in circuit.shapes:
        x1, y1, x2, y2 = box(shape)
        assert x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height, shape


def no_name_runs_into_a_shape(circuit: Circuit) -> None:
    """The names on wires, at six units a letter: narrower than any font sets them."""
    for text in ElementTree.fromstring(circuit.svg).iter(f"{SVG}text"):
        if text.get("text-anchor") == "start":
            x, y = float(text.get("x", "")), float(text.get("y", ""))
            place = (x, y - 9, x + 6 * len("".join(text.itertext())), y)
            for shape in circuit.shapes:
                assert shape.kind in ("pin", "out", "tap") or not meet(place, box(shape)), shape


def is_sound(circuit: Circuit) -> None:
    no_name_runs_into_a_shape(circuit)
    no_shapes_overlap(circuit)
    no_wire_runs_through_a_shape(circuit)
    wires_only_cross(circuit)
    wires_reach_their_sinks(circuit)
    everything_is_on_the_sheet(circuit)
