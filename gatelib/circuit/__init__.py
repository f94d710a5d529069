"""Draws the equations of a Spec as a circuit diagram in SVG, with one look for every gate.

Imports SymPy, gatelib.spec, gatelib.circuit.
Must not import printers, equations, references, torch or anything that draws.

Each module is one step: `graph` reads the equations and finds carries and gates, `layout` chooses
rows and columns, and `svg` gives them coordinates and draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sympy.printing.str import StrPrinter

from gatelib.circuit.graph import Graph, graph_of
from gatelib.circuit.layout import arrange
from gatelib.circuit.svg import Shape, Sheet, Wire, render, symbol_labels
from gatelib.spec import Spec, SpecError

__all__ = ["Circuit", "Shape", "Wire", "draw"]

MOST_NODES = 1_500
"""Of a circuit. Its layout has a budget of its own; this bounds what is not searched, and drawn."""


@dataclass(frozen=True)
class Circuit:
    """A drawn diagram. `svg` is a whole SVG document, `alt` says in words what it shows."""

    svg: str
    alt: str
    size: tuple[float, float]
    shapes: tuple[Shape, ...]
    wires: tuple[Wire, ...]

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        """Write the SVG to `path`, which must end in .svg."""
        target = Path(path)
        if target.suffix != ".svg":
            raise ValueError(f"path: expected a name ending in .svg, got {str(path)!r}")
        target.write_text(self.svg, encoding="utf-8")


def draw(
    spec: Spec, *, names: Mapping[str, str] | None = None, width: float | None = None
) -> Circuit:
    """Draw `spec` as a circuit.

    names: labels by symbol name, in the form `base_sub` or `base_{sub}` (`{"a_f": "f_pre"}`).
    width: the natural width in CSS pixels; by default 1.35 pixels for each drawing unit.
    Raises TypeError or ValueError that names the argument, and SpecError for a gate of more than
    1,500 pins, boxes and circles.
    """
    if not isinstance(spec, Spec):
        raise TypeError(f"spec: expected a gatelib.spec.Spec, got {type(spec).__name__}")
    _check_width(width)
    labels = symbol_labels(spec, names)
    _check_size(spec)
    graph = graph_of(spec)
    rows, columns = arrange(graph)
    sheet = Sheet(graph, rows, columns, labels)
    alt = _in_words(spec)
    svg = render(sheet, f"Circuit of {spec.name}", alt, width)
    return Circuit(svg, alt, (sheet.width, sheet.height), sheet.shapes(), sheet.wires())


def _check_width(width: object) -> None:
    if isinstance(width, bool) or not isinstance(width, int | float | None):
        raise TypeError(f"width: expected a number of pixels, got {type(width).__name__}")
    if width is not None and not 0 < width < float("inf"):
        raise ValueError(f"width: expected a positive number of pixels, got {width}")


def _check_size(spec: Spec) -> None:
    count = len(Graph(spec).nodes)
    if count > MOST_NODES:
        reason = f"expected at most {MOST_NODES:,} pins, boxes and circles, got {count:,}"
        raise SpecError(f"{spec.name}: too large to be drawn: {reason}")


def _in_words(spec: Spec) -> str:
    """The circuit in words, for readers who cannot see it."""
    printer = StrPrinter({"order": "none"})
    parts = [
        f"Circuit of {spec.name}",
        f"Inputs: {', '.join(map(str, spec.inputs))}",
        f"Outputs: {', '.join(map(str, spec.outputs))}",
    ]
    parts += [f"{old} is carried to {new}" for old, new in spec.carries.items()]
    parts += [f"{name} = {printer.doprint(value)}" for name, value in spec.equations]
    return ". ".join(parts) + "."
