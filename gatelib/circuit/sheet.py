"""Coordinates: the size and the place of every node on the sheet, and the wires between them.

Imports gatelib.circuit.graph and gatelib.circuit.labels.
Must not import printers, equations, references, torch or anything that draws.

All lengths are units of the SVG's viewBox; y grows downwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gatelib.circuit.graph import Graph, Node
from gatelib.circuit.labels import text_width

PITCH, BOX, RADIUS, EDGE = 44, 30, 14, 6  # row to row, box height, circle, margin
GAP, PORTS = 10.0, 12  # least room between two columns; between two wires into one side

Segment = tuple[float, float, float, float]  # x1, y1, x2, y2


@dataclass(frozen=True)
class Shape:
    """A node as drawn: centre, size and what it shows; units of the viewBox."""

    kind: str
    label: str
    name: str
    role: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Wire:
    """One value: straight segments (x1, y1, x2, y2), and the indices of the shapes it joins."""

    source: int
    sinks: tuple[int, ...]
    segments: tuple[Segment, ...]
    rail: bool


class Sheet:
    """A graph in rows and columns becomes shapes and wires with coordinates.

    `tags`: the name that stands on the wire of each node, or "".
    """

    def __init__(
        self, graph: Graph, rows: list[int], columns: list[int], labels: Mapping[str, str]
    ) -> None:
        self.nodes, self.sinks = graph.nodes, graph.sinks()
        self.rows, self.columns = rows, columns
        self.texts = [_text(node, labels) for node in self.nodes]
        self.tags = [self._tag(index, labels) for index in range(len(self.nodes))]
        sizes = [_size(node, text) for node, text in zip(self.nodes, self.texts, strict=True)]
        self.widths, self.heights = [w for w, _ in sizes], [h for _, h in sizes]
        self.x = self._across()
        top = PITCH - 6 if graph.rails else PITCH // 2 + 2
        self.y: list[float] = [top + PITCH * row for row in rows]
        self.width = round(max(map(self.right, range(len(self.nodes)))) + EDGE, 2)
        self.height = max(self.y) + PITCH // 2 + 2

    def left(self, index: int) -> float:
        """The left edge of a node."""
        return self.x[index] - self.widths[index] / 2

    def right(self, index: int) -> float:
        """The right edge of a node."""
        return self.x[index] + self.widths[index] / 2

    def shapes(self) -> tuple[Shape, ...]:
        """All nodes as they are drawn, in the graph's order."""
        places = zip(self.nodes, self.texts, self.x, self.y, self.widths, self.heights, strict=True)
        return tuple(
            Shape(node.kind, text, node.name, node.role, *place) for node, text, *place in places
        )

    def wires(self) -> tuple[Wire, ...]:
        """The wire of every node that is read."""
        return tuple(self._wire(index) for index, sinks in enumerate(self.sinks) if sinks)

    def port(self, source: int, sink: int) -> tuple[float, float]:
        """Where a wire enters from above or below: (x, y). The nearer source is further left."""
        distance = self.rows[source] - self.rows[sink]
        others = [self.rows[s] - self.rows[sink] for s, _ in self.nodes[sink].edges]
        same = [abs(other) for other in others if other * distance > 0]
        shift = PORTS * (sum(d < abs(distance) for d in same) - (len(same) - 1) / 2)
        half = self.heights[sink] / 2
        if self.nodes[sink].kind == "circle":
            half = round((RADIUS**2 - shift**2) ** 0.5, 2)
        return round(self.x[sink] + shift, 2), self.y[sink] + (-half if distance < 0 else half)

    def _tag(self, index: int, labels: Mapping[str, str]) -> str:
        """The name on a wire: of every equation whose value does not end in a pin of its own."""
        node = self.nodes[index]
        shown = node.kind in ("pin", "out") or any(
            self.nodes[sink].kind == "out" for sink in self.sinks[index]
        )
        return labels[node.name] if node.name and not shown else ""

    def _across(self) -> list[float]:
        """Centres of nodes; a gap is as wide as the widest name that stands in it."""
        count = max(self.columns) + 1
        widths, gaps = [0.0] * count, [GAP] * count
        for width, column in zip(self.widths, self.columns, strict=True):
            widths[column] = max(widths[column], width)
        for tag, width, column in zip(self.tags, self.widths, self.columns, strict=True):
            slack = (widths[column] - width) / 2 if column else 0
            gaps[column] = max(gaps[column], text_width(tag) + 9 - slack if tag else 0)
        centres, x = [], float(EDGE)
        for width, gap in zip(widths, gaps, strict=True):
            centres.append(x + width / 2)
            x += width + gap
        slacks = [(widths[c] - w) / 2 for c, w in zip(self.columns, self.widths, strict=True)]
        return [
            round(centres[column] + slacks[i] * self._side(i), 2)
            for i, column in enumerate(self.columns)
        ]

    def _side(self, index: int) -> int:
        """Where in its column a node stands: −1 left, 1 right, 0 in the middle."""
        node = self.nodes[index]
        outside = -1 if node.rail >= 0 else 1
        if node.kind == "pin" or (node.kind == "const" and self.columns[index] == 0):
            return outside
        return -outside if node.kind == "out" else 0

    def _wire(self, index: int) -> Wire:
        """One level stretch, then a drop for every sink in another row."""
        y, end = self.y[index], self._start(index)
        level, drops = [end], list[Segment]()
        for sink in self.sinks[index]:
            if self.rows[sink] == self.rows[index]:
                level.append(self._entry(sink))
            else:
                x, foot = self.port(index, sink)
                level.append(x)
                drops.append((x, y, x, foot))
        stretch = (level[0], y, max(level), y)
        rail = self.nodes[index].rail >= 0
        return Wire(index, tuple(self.sinks[index]), (stretch, *drops), rail)

    def _start(self, index: int) -> float:
        node = self.nodes[index]
        if node.kind == "pin" and node.rail >= 0:
            return 1.5
        return self.right(index) + (4 if self.columns[index] == 0 else 0)

    def _entry(self, sink: int) -> float:
        on_rail = self.nodes[sink].kind == "out" and self.nodes[sink].rail >= 0
        return self.width - 8 if on_rail else self.left(sink)


def _text(node: Node, labels: Mapping[str, str]) -> str:
    if node.vector:
        return node.label[0] + labels[node.vector]
    return labels[node.name] if node.kind in ("pin", "out") else node.label


def _size(node: Node, text: str) -> tuple[float, float]:
    if node.kind == "tap":
        return 0, 0
    if node.kind == "circle":
        return 2 * RADIUS, 2 * RADIUS
    if node.kind == "pin":
        return text_width(text), BOX
    if node.kind == "out":
        return text_width(text) + (8 if node.rail < 0 else 0), BOX  # room for an arrow
    return max(BOX + 2, text_width(text) + 12), BOX
