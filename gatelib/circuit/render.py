"""The sheet as SVG text, with one look for every gate.

Imports gatelib.circuit.labels and gatelib.circuit.sheet.
Must not import printers, equations, references, torch or anything that draws.

The SVG has no ids and no styles, so that two figures on a page never clash.
"""

from __future__ import annotations

from html import escape

from gatelib.circuit.labels import SIZE, decimals, label_svg
from gatelib.circuit.sheet import BOX, RADIUS, Segment, Sheet, Wire

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
