"""A graph in rows and columns as SVG: labels, coordinates, shapes and wires, in one look.

Imports gatelib.spec, gatelib.circuit.graph.
Must not import printers, equations, references, torch or anything that draws.

A label is `base`, `base_sub`, `base_{sub}` or `base^sup`; Greek names stand for their letters. All
lengths are units of the viewBox; y grows downwards. The SVG has no ids and no styles, so that two
figures on a page never clash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from gatelib.circuit.graph import Graph, Node
from gatelib.spec import Spec

# ---- labels ------------------------------------------------------------------------------------

SIZE, SMALL = 18, 14  # font sizes in drawing units: names and functions, subscripts
GREEK = dict(
    zip(
        "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi "
        "chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega".split(),
        "αβγδεζηθκλμνξπρστφχψωΓΔΘΛΣΦΨΩ",
        strict=True,
    )
)


def symbol_labels(spec: Spec, names: Mapping[str, str] | None) -> dict[str, str]:
    """The label of every symbol of `spec`; `names` overrides. Raises TypeError or ValueError."""
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"names: expected a mapping of names to labels, got {type(names).__name__}")
    known = [str(s) for s in (*spec.inputs, *(s for s, _ in spec.equations))]
    for name, label in (names or {}).items():
        if name not in known:
            raise ValueError(
                f"names: expected names of {spec.name} ({' '.join(known)}), got {name!r}"
            )
        text: object = label
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"names: expected a label for {name!r}, got {label!r}")
    return {name: _default_label(spec, name) for name in known} | dict(names or {})


def _default_label(spec: Spec, name: str) -> str:
    """c_prev is c_{t−1}; in a Spec with a carry, states and outputs are at time t."""
    if name.endswith("_prev"):
        base, _, below = name.removesuffix("_prev").partition("_")
        return f"{base}_{{{below + ',' if below else ''}t−1}}"
    timed = {str(s) for s in (*spec.carries.values(), *(spec.outputs if spec.carries else ()))}
    return f"{name}_{{t}}" if name in timed and "_" not in name else name


def text_width(label: str) -> float:
    """An estimate, in drawing units, that holds for every font that may be used."""
    base, below, above = _split(label)
    wide = 0.6 * len(base) - 0.22 * sum(base.count(c) for c in "iljtf()1,. ")
    small = 0.56 * len(below + above) - 0.2 * sum((below + above).count(c) for c in "iljtf1,")
    return round(SIZE * wide + SMALL * small + 1, 2)


def label_svg(
    text: str, x: float, y: float, anchor: str, colour: str, *, italic: bool = True
) -> str:
    """A label as an SVG text element: its baseline at `y`, its `anchor` at `x`."""
    base, below, above = _split(text)
    style = ' font-style="italic"' if italic else ""
    inner = escape(base)
    if below:
        inner += f'<tspan dy="5" font-size="{SMALL}">{escape(below)}</tspan>'
    if above:
        inner += f'<tspan dy="{-12 if below else -7}" font-size="{SMALL}">{escape(above)}</tspan>'
    place = f'x="{decimals(x)}" y="{decimals(y)}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}"{style}>{inner}</text>'


def decimals(value: float) -> str:
    """Two decimals at most, without a trailing zero."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _split(label: str) -> tuple[str, str, str]:
    """`a_f` → ("a", "f", ""), `x^2` → ("x", "", "2"); Greek names become letters."""
    label, _, above = label.partition("^")
    base, _, below = label.partition("_")
    below = below.removeprefix("{").removesuffix("}").replace("_", ",")
    base, below = (GREEK.get(part.lstrip("\\"), part) for part in (base, below))
    return base, below, above.removeprefix("{").removesuffix("}")


# ---- the sheet ---------------------------------------------------------------------------------

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


# ---- the drawing -------------------------------------------------------------------------------

INK, GATE, STATE = "#33373d", "#c2410c", "#1d4ed8"
FILL = {"plain": "#eef0f3", "gate": "#fde6d8", "state": "#dfe8fd"}
STROKE = {"plain": INK, "gate": GATE, "state": STATE}
FONT = "'STIX Two Text','Latin Modern Roman','Cambria Math',Cambria,Georgia,'Times New Roman',serif"
CORNER, JUMP = 7, 5  # radii: of a wire's turn, of its jump over another
THIN, THICK = 1.9, 3.4  # wires, rails
PIXELS = 1.35  # for each drawing unit, where no width is asked for


def render(sheet: Sheet, title: str, description: str, width: float | None) -> str:
    """A whole SVG document, `width` CSS pixels wide."""
    natural = PIXELS * sheet.width if width is None else width
    height = natural * sheet.height / sheet.width
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {decimals(sheet.width)} '
        f'{decimals(sheet.height)}" width="{decimals(natural)}" height="{decimals(height)}" '
        f'role="img" aria-label="{escape(title)}" style="max-width:100%;height:auto">'
    )
    words = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    style = f'<g font-family="{FONT}" font-size="{SIZE}" stroke-linecap="round">'
    shapes = (_shape(sheet, index) for index in range(len(sheet.nodes)))
    body = filter(None, [*_wires(sheet), *shapes])
    return "\n".join((head, words, style, *body, "</g>", "</svg>")) + "\n"


# ---- wires ----------------------------------------------------------------------------------


def _wires(sheet: Sheet) -> list[str]:
    """Plain wires first, gates over them, rails on top."""
    wires = sheet.wires()
    role = {wire.source: sheet.nodes[wire.source].role for wire in wires}
    levels = [wire.segments[0] for wire in wires]
    order = sorted(wires, key=lambda w: (list(STROKE).index(role[w.source]), w.rail))
    return [_wire(sheet, wire, levels) for wire in order]


def _wire(sheet: Sheet, wire: Wire, levels: list[Segment]) -> str:
    """A level stretch and its drops. The furthest drop is a round corner, the others dots."""
    (start, y, end, _), *drops = wire.segments
    colour = STROKE[sheet.nodes[wire.source].role]
    corner = _corner(sheet, wire)
    level = f"M{decimals(start)} {decimals(y)}H{decimals(end - CORNER if corner else end)}"
    drops.sort(key=lambda drop: drop != corner)
    branches = "".join(_drop(drop, levels, drop == corner) for drop in drops)
    dots = sorted({x for x, *_ in drops if not corner or x != end})
    paths = [(level, THICK), (branches, THIN)] if wire.rail else [(level + branches, THIN)]
    return "".join(
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{thickness}"/>'
        for path, thickness in paths
        if path
    ) + "".join(
        f'<circle cx="{decimals(x)}" cy="{decimals(y)}" r="3.4" fill="{colour}"/>' for x in dots
    )


def _corner(sheet: Sheet, wire: Wire) -> Segment | None:
    """The drop in which a wire ends, if it is one alone and there is room for a corner."""
    (start, _, end, _), *drops = wire.segments
    last = [drop for drop in drops if drop[0] == end]
    goes_on = any(sheet.rows[sink] == sheet.rows[wire.source] for sink in wire.sinks)
    fits = end - start > CORNER and not wire.rail and not goes_on
    return last[0] if fits and len(last) == 1 else None


def _drop(drop: Segment, levels: list[Segment], corner: bool) -> str:
    """A vertical run; it jumps over the level wires that it does not join."""
    x, y, _, foot = drop
    way = 1 if foot > y else -1
    at = decimals(x)
    text = f"M{at} {decimals(y)}"
    if corner:
        text = f"Q{at} {decimals(y)} {at} {decimals(y + way * CORNER)}"
    crossed = (level[1] for level in levels if _crosses(level, drop))
    for height in sorted(crossed, reverse=way < 0):
        text += f"V{decimals(height - way * JUMP)}"
        text += f"A{JUMP} {JUMP} 0 0 {int(way > 0)} {at} {decimals(height + way * JUMP)}"
    return text + f"V{decimals(foot)}"


def _crosses(level: Segment, drop: Segment) -> bool:
    low, high = sorted((drop[1], drop[3]))
    return level[0] < drop[0] < level[2] + 0.01 and low < level[1] < high


# ---- shapes ---------------------------------------------------------------------------------


def _shape(sheet: Sheet, index: int) -> str:
    kind = sheet.nodes[index].kind
    if kind in ("pin", "out"):
        return _pin(sheet, index)
    drawn = "" if kind == "tap" else _outline(sheet, index) + _inside(sheet, index)
    return drawn + _tag(sheet, index) + _marks(sheet, index)


def _outline(sheet: Sheet, index: int) -> str:
    node, x, y = sheet.nodes[index], sheet.x[index], sheet.y[index]
    look = f'fill="{FILL[node.role]}" stroke="{STROKE[node.role]}" stroke-width="1.7"'
    if node.kind == "circle":
        return f'<circle cx="{decimals(x)}" cy="{decimals(y)}" r="{RADIUS}" {look}/>'
    if node.kind == "const":
        return ""
    left, top, width = sheet.left(index), y - BOX / 2, sheet.widths[index]
    return (
        f'<rect x="{decimals(left)}" y="{decimals(top)}" width="{decimals(width)}" '
        f'height="{BOX}" rx="7" {look}/>'
    )


def _inside(sheet: Sheet, index: int) -> str:
    """Operators are drawn, so that no font is needed; functions are text."""
    node, x, y = sheet.nodes[index], sheet.x[index], sheet.y[index]
    colour = STROKE[node.role]
    if node.label == "⊙":
        return f'<circle cx="{decimals(x)}" cy="{decimals(y)}" r="3.6" fill="{colour}"/>'
    if node.label in ("+", "−"):
        upright = f"M{decimals(x)} {decimals(y - 6.5)}v13" if node.label == "+" else ""
        return (
            f'<path d="M{decimals(x - 6.5)} {decimals(y)}h13{upright}" stroke="{colour}" '
            'stroke-width="2" fill="none"/>'
        )
    return label_svg(sheet.texts[index], x, y + 6, "middle", INK, italic=bool(node.vector))


def _pin(sheet: Sheet, index: int) -> str:
    """The name of an input or an output; above its rail, or beside its wire."""
    node, left, y = sheet.nodes[index], sheet.left(index), sheet.y[index]
    colour, rail = STROKE[node.role], node.rail >= 0
    x = left + (8 if node.kind == "out" and not rail else 0)
    label = label_svg(sheet.texts[index], x, y + (-13 if rail else 6), "start", colour)
    if node.kind == "pin":
        return label
    tip = sheet.width - 1 if rail else left + 5
    return label + f'<path d="M{decimals(tip)} {decimals(y)}l-9 -5v10z" fill="{colour}"/>'


def _tag(sheet: Sheet, index: int) -> str:
    tag, colour = sheet.tags[index], STROKE[sheet.nodes[index].role]
    x, y = sheet.right(index) + 5, sheet.y[index] - 6
    return label_svg(tag, x, y, "start", colour) if tag else ""


def _marks(sheet: Sheet, index: int) -> str:
    """The minus of a difference, beside the port of what is taken away."""
    found = ""
    for source, mark in sheet.nodes[index].edges:
        x, y = sheet.left(index) - 8, sheet.y[index] - 4
        if sheet.rows[source] != sheet.rows[index]:
            port, foot = sheet.port(source, index)
            x, y = port + 9, foot + (-2 if foot < sheet.y[index] else 13)
        found += label_svg(mark, x, y, "middle", INK, italic=False) if mark else ""
    return found
