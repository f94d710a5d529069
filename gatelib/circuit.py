"""Draws the equations of a Spec as a circuit diagram in SVG, with one look for every gate.
Imports SymPy and gatelib.spec.
Must not import printers, equations, references, torch or anything that draws.

How a diagram is made. Equations become a graph of pins, boxes (functions) and circles (⊙, +, 1−).
Columns are longest-path layers. Each value runs straight to the right in its own row, and turns
once, at the column of the node that reads it. A carry keeps one row, its rail, across the top.
Rows start in barycentre order and are then improved by a seeded search over integers, so every
machine draws the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

import sympy as sp
from sympy.printing.str import StrPrinter

from gatelib.spec import Spec

INK, GATE, STATE = "#33373d", "#c2410c", "#1d4ed8"
FILL = {"plain": "#eef0f3", "gate": "#fde6d8", "state": "#dfe8fd"}
STROKE = {"plain": INK, "gate": GATE, "state": STATE}
FONT = "'STIX Two Text','Latin Modern Roman','Cambria Math',Cambria,Georgia,'Times New Roman',serif"
SIZE, SMALL = 18, 14  # font sizes in drawing units: names and functions, subscripts
PITCH, BOX, RADIUS, CORNER, JUMP, EDGE = 44, 30, 14, 7, 5, 6
LABELS = {
    "sigmoid": "σ",
    "sqrt": "√",
    "maximum": "max",
    "silu": "SiLU",
    "gelu": "GELU",
    "relu": "ReLU",
    "hardsigmoid": "hard σ",
    "identity": "id",
    "normalize": "norm",
    "rstd": "1/std",
}
# What makes a factor a gate: a bounded function, or, where a product has none, a one-sided one.
BOUNDED = frozenset("sigmoid hardsigmoid softmax step".split())
ONE_SIDED = frozenset("exp relu softplus silu gelu".split())
THROUGH_GATES = frozenset(("1−", "⊙", "√", "x^2"))  # of gates only, these are gates again
GREEK = dict(
    zip(
        "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi "
        "chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega".split(),
        "αβγδεζηθκλμνξπρστφχψωΓΔΘΛΣΦΨΩ",
        strict=True,
    )
)


@dataclass
class _Node:
    """A pin, const, box, circle, tap or out; edges are (source index, mark beside the port)."""

    kind: str
    label: str
    edges: list[tuple[int, str]] = field(default_factory=list)
    name: str = ""
    role: str = "plain"
    rail: int = -1
    vector: str = ""  # the learned vector that a box holds


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
    segments: tuple[tuple[float, float, float, float], ...]
    rail: bool


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
    Raises TypeError or ValueError that names the argument.
    """
    labels = _checked(spec, names, width)
    graph = _Graph(spec)
    rows, columns = _arrange(graph)
    return _Drawing(spec, graph, rows, columns, labels).circuit(width)


def _checked(spec: Spec, names: Mapping[str, str] | None, width: float | None) -> dict[str, str]:
    """Validate draw's arguments; return the labels of all symbols."""
    if not isinstance(spec, Spec):
        raise TypeError(f"spec: expected a gatelib.spec.Spec, got {type(spec).__name__}")
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"names: expected a mapping of names to labels, got {type(names).__name__}")
    number: object = width
    if isinstance(number, bool) or not isinstance(number, int | float | None):
        raise TypeError(f"width: expected a number of pixels, got {type(width).__name__}")
    if width is not None and not 0 < width < float("inf"):
        raise ValueError(f"width: expected a positive number of pixels, got {width}")
    known = [str(s) for s in (*spec.inputs, *(s for s, _ in spec.equations))]
    for name, label in (names or {}).items():
        if name not in known:
            raise ValueError(
                f"names: expected names of {spec.name} ({' '.join(known)}), got {name!r}"
            )
        text: object = label
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"names: expected a label for {name!r}, got {label!r}")
    return {name: (names or {}).get(name) or _default_label(spec, name) for name in known}


def _default_label(spec: Spec, name: str) -> str:
    """c_prev is c_{t−1}; in a Spec with a carry, states and outputs are at time t."""
    if name.endswith("_prev"):
        base, _, below = name.removesuffix("_prev").partition("_")
        return f"{base}_{{{below + ',' if below else ''}t−1}}"
    timed = {str(s) for s in (*spec.carries.values(), *(spec.outputs if spec.carries else ()))}
    return f"{name}_{{t}}" if name in timed and "_" not in name else name


# ------------------------------------------------------------------ equations → graph


class _Graph:
    """The nodes of a Spec in an order where sources precede sinks, and its rails."""

    def __init__(self, spec: Spec) -> None:
        self.nodes: list[_Node] = []
        self.known: dict[sp.Basic, int] = {}
        self.before: list[tuple[int, int]] = []  # (a, b): a's column is left of b's
        self.vectors = _learned_vectors(spec)
        for symbol in spec.inputs:
            if symbol not in self.vectors:
                self.known[symbol] = self.add("pin", str(symbol), name=str(symbol))
        for symbol, expression in spec.equations:
            self.known[symbol] = self.named(str(symbol), expression)
        self.rails = self._rails(spec)
        self._colour(spec)
        ends = dict.fromkeys((*spec.outputs, *spec.carries.values()))
        outs = [self.add("out", str(s), [(self.known[s], "")], name=str(s)) for s in ends]
        for out, symbol in zip(outs, ends, strict=True):
            if symbol in spec.carries.values():
                self.nodes[out].role = "state"
        self._keep_rails_free(outs)

    def add(
        self, kind: str, label: str, edges: Iterable[tuple[int, str]] = (), name: str = ""
    ) -> int:
        self.nodes.append(_Node(kind, label, list(dict(edges).items()), name))
        return len(self.nodes) - 1

    def named(self, name: str, expression: sp.Expr) -> int:
        """A new node that carries the name of an equation."""
        start = len(self.nodes)
        index = self._build(sp.sympify(expression))
        if index < start:
            index = self.add("box", "id", [(index, "")])
        self.nodes[index].name = name
        return index

    def value(self, expression: sp.Expr) -> int:
        """The node of a subexpression; equal subexpressions share one."""
        if expression not in self.known:
            self.known[expression] = self._build(expression)
        return self.known[expression]

    def _build(self, e: sp.Expr) -> int:
        if e.is_Symbol:
            return self.known[e]
        if not e.free_symbols:
            return self.add("const", _number(e))
        if e.is_Add:
            return self._sum(e)
        if e.is_Mul:
            return self._product(e)
        if e.is_Pow:
            return self._power(e.base, e.exp)
        return self._function(e)

    def _sum(self, e: sp.Expr) -> int:
        constant, counts = sp.Integer(0), dict[int, int]()
        for term in e.args:
            if not term.free_symbols:
                constant += term
            if not term.free_symbols or term in self.vectors:
                continue
            sign, rest = _signed(term)
            index = self.value(rest)
            counts[index] = counts.get(index, 0) + sign
        edges = [(self._scaled(i, abs(n)), "−" if n < 0 else "") for i, n in counts.items() if n]
        if not edges:
            return self.add("const", _number(constant))
        vectors = [a for a in e.args if a in self.vectors]
        if constant == 0:
            return self._with_vectors("+", self._joined("+", edges), vectors)
        if len(edges) == 1 and edges[0][1] == "−" and not vectors:
            kind = "circle" if constant == 1 else "box"
            return self.add(kind, f"{_number(constant)}−", [(edges[0][0], "")])
        plus = "+" if constant > 0 else "−"
        total = self._with_vectors("+", self._joined("+", edges), vectors)
        return self.add("box", f"{plus}{_number(abs(constant))}", [(total, "")])

    def _product(self, e: sp.Expr) -> int:
        constant, counts = sp.Integer(1), dict[int, int]()
        for factor in e.args:
            if not factor.free_symbols:
                constant *= factor
            if not factor.free_symbols or factor in self.vectors:
                continue
            index = self.value(factor)
            counts[index] = counts.get(index, 0) + 1
        core = self._joined(
            "⊙",
            [(self.add("box", f"x^{n}", [(i, "")]) if n > 1 else i, "") for i, n in counts.items()],
        )
        core = self._with_vectors("×", core, [a for a in e.args if a in self.vectors])
        return self._scaled(core, sp.sympify(constant).doit())

    def _with_vectors(self, sign: str, index: int, vectors: list[sp.Expr]) -> int:
        """A box for every learned vector that a value is multiplied by or added to."""
        for vector in vectors:
            index = self.add("box", sign + str(vector), [(index, "")])
            self.nodes[index].vector = str(vector)
        return index

    def _scaled(self, index: int, constant: sp.Expr) -> int:
        if constant == 1:
            return index
        if constant == -1:
            return self.add("circle", "−", [(index, "")])
        return self.add("box", f"×{_number(sp.sympify(constant))}", [(index, "")])

    def _joined(self, label: str, edges: list[tuple[int, str]]) -> int:
        """A ⊙ or + of two or three values; more are joined in the author's order."""
        if len(edges) == 1:
            return self.add("circle", "−", [(edges[0][0], "")]) if edges[0][1] else edges[0][0]
        while len(edges) > 3:
            edges = [(self.add("circle", label, edges[:2]), ""), *edges[2:]]
        return self.add("circle", label, edges)

    def _power(self, base: sp.Expr, exponent: sp.Expr) -> int:
        if exponent.free_symbols:
            if not base.free_symbols:
                return self.add("box", f"{_number(base)}^x", [(self.value(exponent), "")])
            return self.add("box", "x^y", [(self.value(base), "x"), (self.value(exponent), "y")])
        special = {sp.Integer(-1): "1/x", sp.Rational(1, 2): "√"}
        label = special.get(sp.nsimplify(exponent.doit()), f"x^{_number(exponent)}")
        return self.add("box", label, [(self.value(base), "")])

    def _function(self, e: sp.Expr) -> int:
        name = e.func.__name__
        label = LABELS.get(name, name)
        varying = [a for a in e.args if a.free_symbols]
        if len(varying) < len(e.args):
            shown = ", ".join("x" if a.free_symbols else _number(a) for a in e.args)
            label = f"{label}({shown})"
        return self.add("box", label, [(self.value(a), "") for a in varying])

    # rails and colours

    def sinks(self) -> list[list[int]]:
        """For every node, the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source, _ in node.edges:
                found[source].append(index)
        return found

    def _rails(self, spec: Spec) -> list[list[int]]:
        """For every carry, the plainest path from its previous value to its new one."""
        rails: list[list[int]] = []
        taken: set[int] = set()
        for previous, current in spec.carries.items():
            path = self._path(self.known[previous], self.known[current], taken)
            if path:
                taken.update(path)
                for index in path:
                    self.nodes[index].rail = len(rails)
                rails.append(path)
        return rails

    def _path(self, start: int, end: int, taken: set[int]) -> list[int]:
        best: dict[int, tuple[int, list[int]]] = {start: (0, [start])}
        if start in taken:
            return []
        for index in range(start + 1, end + 1):
            node = self.nodes[index]
            found = [best[s] for s, _ in node.edges if s in best]
            if found and index not in taken:
                cost, path = min(found)
                best[index] = (cost + (1 if node.kind == "circle" else 3), [*path, index])
        return best[end][1] if end in best else []

    def _keep_rails_free(self, outs: list[int]) -> None:
        """Who else reads a rail reads it before the rail's next node, or else from a tap."""
        for path in self.rails:
            out = next(o for o in outs if self.nodes[o].edges[0][0] == path[-1])
            for source, follower in pairwise(path):
                late = []
                for sink in self.sinks()[source]:
                    if sink == follower:
                        continue
                    if self.nodes[sink].kind == "out" or self._reaches(follower, sink):
                        late.append(sink)
                    else:
                        self.before.append((sink, follower))
                if late:
                    self._tap(source, follower, late)
            self.nodes[out].rail = self.nodes[path[-1]].rail
            self.nodes[out].role = "state"

    def _tap(self, source: int, follower: int, late: list[int]) -> None:
        tap = self.add("tap", "", [(source, "")])
        self.nodes[tap].role = self.nodes[source].role
        for sink in late:
            edges = self.nodes[sink].edges
            self.nodes[sink].edges = [(tap if s == source else s, mark) for s, mark in edges]
        self.before.append((tap, follower))

    def _reaches(self, start: int, end: int) -> bool:
        after: dict[int, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for source, _ in node.edges:
                after.setdefault(source, []).append(index)
        for left, right in self.before:
            after.setdefault(left, []).append(right)
        seen, todo = {start}, [start]
        while todo:
            for index in after.get(todo.pop(), []):
                if index not in seen:
                    seen.add(index)
                    todo.append(index)
        return end in seen

    def _colour(self, spec: Spec) -> None:
        """Blue: carried states. Orange: values of a gate function that multiply something."""
        strength = [0] * len(self.nodes)
        function = {LABELS.get(f, f): 2 if f in BOUNDED else 1 for f in BOUNDED | ONE_SIDED}
        for index, node in enumerate(self.nodes):
            inner = min((strength[s] for s, _ in node.edges), default=0)
            passed = inner if node.label in THROUGH_GATES else 0
            strength[index] = function.get(node.label, passed)
        for node in self.nodes:
            best = max((strength[s] for s, _ in node.edges), default=0)
            for source, _ in node.edges if node.label == "⊙" and best else ():
                if strength[source] == best:
                    self.nodes[source].role = "gate"
        for index in reversed(range(len(self.nodes))):
            for source, _ in self.nodes[index].edges:
                passes = self.nodes[index].label in THROUGH_GATES
                if passes and self.nodes[index].role == "gate":
                    self.nodes[source].role = "gate"
        states = {str(s) for pair in spec.carries.items() for s in pair}
        for node in self.nodes:
            if node.name in states or node.rail >= 0:
                node.role = "state"


def _learned_vectors(spec: Spec) -> set[sp.Expr]:
    """Weights, gains and biases of a cell (w_i, s_i, b_i) that stand in one product or sum.

    They are written inside a box on the wire, as a constant is, and need no pin.
    """
    if not spec.carries:
        return set()
    named = {s for s in spec.inputs if str(s)[:2] in ("w_", "s_", "b_") and s not in spec.carries}
    places: dict[sp.Expr, list[bool]] = {s: [] for s in named}
    for _, expression in spec.equations:
        for part in sp.preorder_traversal(expression):
            open_to = part.is_Add or part.is_Mul
            company = any(a.free_symbols and a not in named for a in part.args)
            for argument in part.args:
                if argument in named:
                    places[argument].append(bool(open_to and company))
        if expression in named:
            places[expression].append(False)
    return {s for s, found in places.items() if found == [True]}


def _signed(term: sp.Expr) -> tuple[int, sp.Expr]:
    """Split a leading minus off a product: −x → (−1, x)."""
    if not term.is_Mul:
        return 1, term
    constant = sp.Mul(*(a for a in term.args if not a.free_symbols)).doit()
    if not constant.is_negative:
        return 1, term
    rest = [a for a in term.args if a.free_symbols]
    factors = rest if constant == -1 else [-constant, *rest]
    return -1, factors[0] if len(factors) == 1 else sp.Mul(*factors, evaluate=False)


def _number(value: sp.Expr) -> str:
    value = sp.sympify(value).doit()
    text = str(value) if value.is_Rational or not value.is_Float else f"{float(value):g}"
    return text.replace("-", "−").replace("*", "·")


# ------------------------------------------------------------------ graph → rows and columns

CLASH, CROSSING, DOUBLE, COLUMN, ROW, TURN, LENGTH, DROP, DELAY = 10_000, 30, 45, 40, 22, 3, 3, 9, 2
STEPS, RESTARTS, EFFORT = 2_500, 6, 3_000  # large circuits get fewer restarts


class _Layout:
    """What an arrangement costs. A state is a row and a delay (in columns) for every node."""

    def __init__(self, graph: _Graph) -> None:
        self.nodes = graph.nodes
        self.rails = len(graph.rails)
        self.sinks = graph.sinks()
        self.left: list[list[int]] = [[s for s, _ in n.edges] for n in self.nodes]
        for left, right in graph.before:
            self.left[right].append(left)
        self.order = self._topological()
        self.outs = [i for i, n in enumerate(self.nodes) if n.kind == "out"]
        self.free = [i for i, n in enumerate(self.nodes) if n.rail < 0 and n.kind != "out"]
        self.pins = [i for i in self.free if self.nodes[i].kind == "pin"]
        self.late = [i for i, n in enumerate(self.nodes) if n.kind not in ("pin", "out")]

    def _topological(self) -> list[int]:
        order: list[int] = []
        todo, done = list(range(len(self.nodes))), set[int]()
        while todo:
            ready = next(i for i in todo if all(p in done for p in self.left[i]))
            order.append(ready)
            done.add(ready)
            todo.remove(ready)
        return order

    def columns(self, delay: list[int]) -> list[int]:
        """Longest-path layers, plus delays; outputs stand in the last."""
        column = [0] * len(self.nodes)
        for index in self.order:
            left = self.left[index]
            column[index] = delay[index] + (1 + max(column[p] for p in left) if left else 0)
        last = max([0, *(column[i] for i in self.order if self.nodes[i].kind != "out")])
        for index in self.outs:
            column[index] = last + 1
        return column

    def settle(self, rows: list[int]) -> list[int]:
        """Number the used rows from the first below the rails; outputs follow their source."""
        used = {r: self.rails + n for n, r in enumerate(sorted({rows[i] for i in self.free}))}
        settled = [used[r] if i in self._free else self.nodes[i].rail for i, r in enumerate(rows)]
        for index in self.outs:
            settled[index] = settled[self.left[index][0]]
        return settled

    @property
    def _free(self) -> set[int]:
        if not hasattr(self, "_free_set"):
            self._free_set = set(self.free)
        return self._free_set

    def cost(self, rows: list[int], delay: list[int]) -> int:
        column = self.columns(delay)
        reach, total = self._along_rows(rows, column)
        total += self._along_columns(rows, column, reach)
        total += ROW * max(rows, default=0) + COLUMN * max(column, default=0)
        order = [rows[i] for i in self.pins]
        total += DELAY * sum(delay)
        return total + sum(a > b for n, a in enumerate(order) for b in order[n + 1 :])

    def _along_rows(self, rows: list[int], column: list[int]) -> tuple[list[int], int]:
        """How far every value runs to the right, and the cost of what stands in its way."""
        by_row: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            by_row.setdefault(row, []).append(index)
        reach, total = list(column), 0
        for index, row in enumerate(rows):
            turn = straight = here = column[index]
            for sink in self.sinks[index]:
                if rows[sink] == row:
                    straight = max(straight, column[sink])
                else:
                    turn = max(turn, column[sink])
            reach[index] = max(turn, straight)
            total += reach[index] - here
            for other in by_row[row]:
                there = column[other]
                if other != index and there >= here:
                    total += CLASH * (there == here or there <= turn or there < straight)
        return reach, total

    def _along_columns(self, rows: list[int], column: list[int], reach: list[int]) -> int:
        drops: dict[int, list[tuple[int, int, int, int]]] = {}
        for sink in self.late + self.outs:
            for source, _ in self.nodes[sink].edges:
                a, b = rows[source], rows[sink]
                if a != b:
                    span = (min(a, b), max(a, b), source, sink)
                    drops.setdefault(column[sink], []).append(span)
        total = 0
        for place, spans in drops.items():
            for number, span in enumerate(spans):
                low, high, source, sink = span
                total += TURN + LENGTH * (high - low)
                total += DROP * (self.nodes[sink].kind == "box")
                for other, row in enumerate(rows):
                    if low < row < high and column[other] <= place:
                        if column[other] == place:
                            total += CLASH
                        elif reach[other] >= place:
                            total += CROSSING
                total += sum(self._meet(span, other) for other in spans[number + 1 :])
        return total

    @staticmethod
    def _meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
        """Two vertical runs in one column: apart, side by side into one node, or a clash."""
        if a[2] == b[2] or a[0] >= b[1] or b[0] >= a[1]:
            return 0
        return DOUBLE if a[3] == b[3] else CLASH


class _Chance:
    """A linear congruential generator: the same integers on every machine."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, bound: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % bound


def _arrange(graph: _Graph) -> tuple[list[int], list[int]]:
    """Rows and columns of all nodes: barycentre start, threshold search, then descent."""
    layout = _Layout(graph)
    count = len(layout.nodes)
    seeds = range(max(1, min(RESTARTS, EFFORT // count**2)))
    starts = [_search(layout, _barycentres(layout), [0] * count, seed) for seed in seeds]
    best = min(starts)
    if best[0] >= CLASH:
        rows, delay = _spread(layout)
        best = min(best, _descend(layout, layout.cost(rows, delay), rows, delay))
    return best[1], layout.columns(best[2])


def _barycentres(layout: _Layout) -> list[int]:
    """Inputs in the author's order; every other node at the mean row of what it reads."""
    rows = [0] * len(layout.nodes)
    for number, index in enumerate(layout.pins):
        rows[index] = layout.rails + number
    for index in layout.order:
        sources = [rows[s] for s, _ in layout.nodes[index].edges]
        if layout.nodes[index].kind != "pin" and sources:
            rows[index] = sum(sources) // len(sources)
    return layout.settle(rows)


def _spread(layout: _Layout) -> tuple[list[int], list[int]]:
    """An arrangement without clashes: a row and a column for every node."""
    rows = list(range(len(layout.nodes)))
    delay = [0] * len(layout.nodes)
    place = 0
    for index in layout.order:
        if index in layout.late:
            place += 1
            delay[index] = place - layout.columns(delay)[index]
    return layout.settle(rows), delay


def _search(
    layout: _Layout, rows: list[int], delay: list[int], seed: int
) -> tuple[int, list[int], list[int]]:
    """Threshold accepting: a worse state is accepted while it is not much worse."""
    chance = _Chance(seed)
    now = layout.cost(rows, delay)
    best = (now, rows, delay)
    if not layout.free:
        return best
    for step in range(STEPS):
        new_rows, new_delay = _move(layout, chance, rows, delay)
        cost = layout.cost(new_rows, new_delay)
        if cost - now <= chance.below(1 + 90 * (STEPS - step) // STEPS):
            now, rows, delay = cost, new_rows, new_delay
            best = min(best, (now, rows, delay))
    return _descend(layout, *best)


def _move(
    layout: _Layout, chance: _Chance, rows: list[int], delay: list[int]
) -> tuple[list[int], list[int]]:
    """A random neighbour: one node or one block to another row, two rows swapped, a delay."""
    kind = chance.below(10)
    node = layout.free[chance.below(len(layout.free))]
    if kind == 0 and layout.late:
        node = layout.late[chance.below(len(layout.late))]
        delay = list(delay)
        delay[node] = max(0, delay[node] + 1 - 2 * chance.below(2))
        return rows, delay
    top = 2 * (max(rows) + 1) + 1
    target = 2 * layout.rails - 1 + chance.below(top - 2 * layout.rails + 2)
    return _shifted(layout, rows, node, target, kind), delay


def _shifted(layout: _Layout, rows: list[int], node: int, target: int, kind: int) -> list[int]:
    """Move to `target`, in half rows: odd numbers open a new row between two."""
    doubled = [2 * r for r in rows]
    if kind < 5:
        doubled[node] = target
    elif kind < 8:
        for index in _block(layout, rows, node):
            doubled[index] = target
    else:
        here = doubled[node]
        swap = {here: target, target: here}
        doubled = [swap.get(r, r) for r in doubled]
    return layout.settle(doubled)


def _block(layout: _Layout, rows: list[int], node: int) -> list[int]:
    """The nodes joined to `node` along its row."""
    found, todo = {node}, [node]
    while todo:
        index = todo.pop()
        for near in (*layout.left[index], *layout.sinks[index]):
            if near not in found and rows[near] == rows[node]:
                found.add(near)
                todo.append(near)
    return sorted(found)


def _descend(
    layout: _Layout, cost: int, rows: list[int], delay: list[int]
) -> tuple[int, list[int], list[int]]:
    """Take single moves that help until none does."""
    best = (cost, rows, delay)
    while True:
        before = best[0]
        for node in layout.free:
            for kind in (0, 5, 8):
                best = _best_row(layout, best, node, kind)
        for node in layout.late:
            for by in (-1, 1):
                later = list(best[2])
                later[node] = max(0, later[node] + by)
                best = min(best, (layout.cost(best[1], later), best[1], later))
        if best[0] >= before:
            return best


def _best_row(
    layout: _Layout, best: tuple[int, list[int], list[int]], node: int, kind: int
) -> tuple[int, list[int], list[int]]:
    """The best row for one node, one block or one swap of rows."""
    _, rows, delay = best
    for target in range(2 * layout.rails - 1, 2 * max(rows) + 2):
        moved = _shifted(layout, rows, node, target, kind)
        best = min(best, (layout.cost(moved, delay), moved, delay))
    return best


# ------------------------------------------------------------------ rows and columns → SVG


class _Drawing:
    """Places shapes, routes wires and writes the SVG."""

    def __init__(
        self,
        spec: Spec,
        graph: _Graph,
        rows: list[int],
        columns: list[int],
        labels: dict[str, str],
    ) -> None:
        self.spec, self.nodes, self.labels = spec, graph.nodes, labels
        self.rows, self.columns, self.sinks = rows, columns, graph.sinks()
        self.sizes = [self._size(node) for node in self.nodes]
        self.x = self._across()
        top = PITCH + 2 if graph.rails else PITCH // 2 + 10
        self.y = [top - 8 + PITCH * row for row in rows]
        right = max(x + w / 2 for x, (w, _) in zip(self.x, self.sizes, strict=True))
        self.width = round(right + EDGE, 2)
        self.height = max(self.y, default=0) + PITCH // 2 + 2

    def _text(self, node: _Node) -> str:
        if node.vector:
            return node.label[0] + self.labels[node.vector]
        return self.labels[node.name] if node.kind in ("pin", "out") else node.label

    def _size(self, node: _Node) -> tuple[float, float]:
        text = _text_width(self._text(node))
        if node.kind == "tap":
            return (0, 0)
        if node.kind in ("pin", "out"):
            return (text + (8 if node.kind == "out" and node.rail < 0 else 0), BOX)
        if node.kind == "circle":
            return (2 * RADIUS, 2 * RADIUS)
        return (max(BOX + 2, text + 12), BOX)

    def _across(self) -> list[float]:
        """Centres of columns; a gap is as wide as the widest signal name that stands in it."""
        last = max(self.columns)
        widths = [0.0] * (last + 1)
        gaps = [10.0] * (last + 1)
        for (width, _), column in zip(self.sizes, self.columns, strict=True):
            widths[column] = max(widths[column], width)
        for node, (width, _), column in zip(self.nodes, self.sizes, self.columns, strict=True):
            slack = (widths[column] - width) / 2 if column else 0
            gaps[column] = max(gaps[column], self._tag_width(node) + 9 - slack)
        centres, x = [], float(EDGE)
        for width, gap in zip(widths, gaps, strict=True):
            centres.append(x + width / 2)
            x += width + gap
        return [self._justified(i, centres[c], widths[c]) for i, c in enumerate(self.columns)]

    def _justified(self, index: int, centre: float, width: float) -> float:
        node, (own, _) = self.nodes[index], self.sizes[index]
        if node.kind == "pin" or (node.kind == "const" and self.columns[index] == 0):
            return round(centre + (width - own) / 2 * (1 if node.rail < 0 else -1), 2)
        if node.kind == "out":
            return round(centre - (width - own) / 2 * (1 if node.rail < 0 else -1), 2)
        return round(centre, 2)

    def _tag(self, index: int) -> str:
        """The name on a wire: of every equation whose value does not end in a pin of its own."""
        node = self.nodes[index]
        outs = [self.nodes[s] for s in self.sinks[index] if self.nodes[s].kind == "out"]
        return (
            "" if not node.name or node.kind in ("pin", "out") or outs else self.labels[node.name]
        )

    def _tag_width(self, node: _Node) -> float:
        tag = self._tag(next(i for i, n in enumerate(self.nodes) if n is node))
        return _text_width(tag) if tag else 0

    def circuit(self, width: float | None) -> Circuit:
        wires = [self._wire(i) for i in range(len(self.nodes))]
        shapes = tuple(
            Shape(n.kind, self._text(n), n.name, n.role, x, y, *size)
            for n, x, y, size in zip(self.nodes, self.x, self.y, self.sizes, strict=True)
        )
        alt = _describe(self.spec)
        drawn = [w for w in wires if w.segments]
        body = [*self._paths(wires), *(self._shape(i) for i in range(len(self.nodes)))]
        svg = self._document(alt, body, width)
        return Circuit(svg, alt, (self.width, self.height), shapes, tuple(drawn))

    def _document(self, alt: str, body: list[str], width: float | None) -> str:
        natural = 1.35 * self.width if width is None else width
        height = natural * self.height / self.width
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(self.width)} '
            f'{_n(self.height)}" width="{_n(natural)}" height="{_n(height)}" role="img" '
            f'aria-label="Circuit of {escape(self.spec.name)}" style="max-width:100%;height:auto">'
        )
        title = f"<title>Circuit of {escape(self.spec.name)}</title><desc>{escape(alt)}</desc>"
        style = f'<g font-family="{FONT}" font-size="{SIZE}" stroke-linecap="round">'
        return "\n".join((head, title, style, *filter(None, body), "</g>", "</svg>")) + "\n"

    # wires

    def _start(self, index: int) -> float:
        if self.nodes[index].kind == "pin" and self.nodes[index].rail >= 0:
            return 1.5
        pad = 4 if self.columns[index] == 0 else 0
        return self.x[index] + self.sizes[index][0] / 2 + pad

    def _wire(self, index: int) -> Wire:
        segments, y, start = [], self.y[index], self._start(index)
        end = start
        for sink in self.sinks[index]:
            if self.rows[sink] == self.rows[index]:
                end = max(end, self._entry(sink))
                continue
            x, foot = self._port(index, sink)
            end = max(end, x)
            segments.append((x, y, x, foot))
        if self.sinks[index]:
            segments.insert(0, (start, y, end, y))
        return Wire(index, tuple(self.sinks[index]), tuple(segments), self.nodes[index].rail >= 0)

    def _entry(self, sink: int) -> float:
        if self.nodes[sink].kind == "out":
            if self.nodes[sink].rail >= 0:
                return self.width - 8
            return self.x[sink] - self.sizes[sink][0] / 2
        return self.x[sink] - self.sizes[sink][0] / 2

    def _port(self, source: int, sink: int) -> tuple[float, float]:
        """Where a wire enters from above or below: (x, y). The nearer source is further left."""
        down = self.rows[source] < self.rows[sink]
        same = [
            abs(self.rows[s] - self.rows[sink])
            for s, _ in self.nodes[sink].edges
            if self.rows[s] != self.rows[sink] and (self.rows[s] < self.rows[sink]) == down
        ]
        distance = abs(self.rows[source] - self.rows[sink])
        shift = 12 * (sum(d < distance for d in same) - (len(same) - 1) / 2)
        half: float = self.sizes[sink][1] / 2
        if self.nodes[sink].kind == "circle":
            half = round((RADIUS**2 - shift**2) ** 0.5, 2)
        return round(self.x[sink] + shift, 2), self.y[sink] + (-half if down else half)

    def _paths(self, wires: list[Wire]) -> list[str]:
        """Plain wires first, gates over them, rails on top."""
        rank = {"plain": 0, "gate": 1, "state": 2}
        order = sorted(wires, key=lambda w: (rank[self.nodes[w.source].role], w.rail, w.source))
        return [self._path(wire, wires) for wire in order if wire.segments]

    def _path(self, wire: Wire, wires: list[Wire]) -> str:
        role = self.nodes[wire.source].role
        x1, y, x2, _ = wire.segments[0]
        drops = wire.segments[1:]
        last = [d for d in drops if d[0] == x2]
        corner = not wire.rail and len(last) == 1 and self._ends_at_corner(wire, x2)
        parts = [f"M{_n(x1)} {_n(y)}H{_n(x2 - CORNER if corner else x2)}"]
        for drop in sorted(drops, key=lambda d: not (corner and d is last[0])):
            parts.append(self._drop(drop, wires, corner and drop is last[0]))
        dots = self._dots(wire, x2, corner)
        look = f'fill="none" stroke="{STROKE[role]}" stroke-width="{{}}"'
        if not wire.rail:
            return f'<path d="{"".join(parts)}" {look.format(1.9)}/>{dots}'
        rail, branches = parts[0], "".join(parts[1:])
        line = f'<path d="{rail}" {look.format(3.4)}/>'
        return line + (f'<path d="{branches}" {look.format(1.9)}/>' if branches else "") + dots

    def _ends_at_corner(self, wire: Wire, x2: float) -> bool:
        straight = [s for s in wire.sinks if self.rows[s] == self.rows[wire.source]]
        return not straight and x2 - wire.segments[0][0] > CORNER

    def _drop(
        self, drop: tuple[float, float, float, float], wires: list[Wire], corner: bool
    ) -> str:
        """A vertical run; it jumps over the horizontal wires that it does not join."""
        x, y, _, foot = drop
        way = 1 if foot > y else -1
        text = f"Q{_n(x)} {_n(y)} {_n(x)} {_n(y + way * CORNER)}" if corner else f"M{_n(x)} {_n(y)}"
        crossed = sorted(
            (w.segments[0][1] for w in wires if w.segments and _crosses(w.segments[0], drop)),
            reverse=way < 0,
        )
        for height in crossed:
            text += f"V{_n(height - way * JUMP)}"
            text += f"A{JUMP} {JUMP} 0 0 {int(way > 0)} {_n(x)} {_n(height + way * JUMP)}"
        return text + f"V{_n(foot)}"

    def _dots(self, wire: Wire, x2: float, corner: bool) -> str:
        colour = STROKE[self.nodes[wire.source].role]
        places = sorted({d[0] for d in wire.segments[1:]} - ({x2} if corner else set()))
        y = wire.segments[0][1]
        return "".join(
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3.4" fill="{colour}"/>' for x in places
        )

    # shapes

    def _shape(self, index: int) -> str:
        node, x, y, (width, _) = self.nodes[index], self.x[index], self.y[index], self.sizes[index]
        if node.kind == "tap":
            return ""
        if node.kind in ("pin", "out"):
            return self._pin(index)
        stroke, fill = STROKE[node.role], FILL[node.role]
        look = f'fill="{fill}" stroke="{stroke}" stroke-width="1.7"'
        if node.kind == "circle":
            outline = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{RADIUS}" {look}/>'
        elif node.kind == "const":
            outline = ""
        else:
            outline = (
                f'<rect x="{_n(x - width / 2)}" y="{_n(y - BOX / 2)}" width="{_n(width)}" '
                f'height="{BOX}" rx="7" {look}/>'
            )
        inside = self._inside(node, x, y)
        return outline + inside + self._name_tag(index) + self._marks(index)

    def _inside(self, node: _Node, x: float, y: float) -> str:
        """Operators are drawn, so that no font is needed; functions are text."""
        if node.label == "⊙":
            return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3.6" fill="{STROKE[node.role]}"/>'
        if node.label in ("+", "−"):
            upright = f"M{_n(x)} {_n(y - 6.5)}v13" if node.label == "+" else ""
            return (
                f'<path d="M{_n(x - 6.5)} {_n(y)}h13{upright}" stroke="{STROKE[node.role]}" '
                'stroke-width="2" fill="none"/>'
            )
        return _label(self._text(node), x, y + 6, "middle", INK, italic=bool(node.vector))

    def _pin(self, index: int) -> str:
        node, x, y, (width, _) = self.nodes[index], self.x[index], self.y[index], self.sizes[index]
        colour, text = STROKE[node.role], self._text(self.nodes[index])
        rail = node.rail >= 0
        label = _label(
            text,
            x - width / 2 + (0 if rail or node.kind == "pin" else 8),
            y + (-13 if rail else 6),
            "start",
            colour,
        )
        if node.kind == "pin":
            return label
        tip = self.width - 1 if rail else x - width / 2 + 5
        return label + f'<path d="M{_n(tip)} {_n(y)}l-9 -5v10z" fill="{colour}"/>'

    def _name_tag(self, index: int) -> str:
        tag, node = self._tag(index), self.nodes[index]
        x = self.x[index] + self.sizes[index][0] / 2 + 5
        return _label(tag, x, self.y[index] - 6, "start", STROKE[node.role]) if tag else ""

    def _marks(self, index: int) -> str:
        """The minus of a difference, beside the port of what is taken away."""
        found = ""
        for source, mark in self.nodes[index].edges:
            if not mark:
                continue
            x: float = self.x[index]
            y: float = self.y[index]
            if self.rows[source] == self.rows[index]:
                x, y = self.x[index] - self.sizes[index][0] / 2 - 8, self.y[index] - 4
            else:
                x, foot = self._port(source, index)
                x, y = x + 9, foot + (-2 if foot < self.y[index] else 13)
            found += _label(mark, x, y, "middle", INK, italic=False)
        return found


def _crosses(
    flat: tuple[float, float, float, float], drop: tuple[float, float, float, float]
) -> bool:
    low, high = sorted((drop[1], drop[3]))
    return flat[0] < drop[0] < flat[2] + 0.01 and low < flat[1] < high


def _n(value: float) -> str:
    """Two decimals at most, without a trailing zero."""
    return (
        f"{value:.2f}".rstrip("0").rstrip(".").replace("-0", "0")
        if abs(value) < 0.005
        else f"{value:.2f}".rstrip("0").rstrip(".")
    )


def _split(label: str) -> tuple[str, str, str]:
    """`a_f` → ("a", "f", ""), `x^2` → ("x", "", "2"); Greek names become letters."""
    label, _, above = label.partition("^")
    base, _, below = label.partition("_")
    below = below.removeprefix("{").removesuffix("}").replace("_", ",")
    base, below = (GREEK.get(part.lstrip("\\"), part) for part in (base, below))
    return base, below, above.removeprefix("{").removesuffix("}")


def _text_width(label: str) -> float:
    base, below, above = _split(label)
    wide = 0.6 * len(base) - 0.22 * sum(base.count(c) for c in "iljtf()1,. ")
    small = 0.56 * len(below + above) - 0.2 * sum((below + above).count(c) for c in "iljtf1,")
    return round(SIZE * wide + SMALL * small + 1, 2)


def _label(text: str, x: float, y: float, anchor: str, colour: str, *, italic: bool = True) -> str:
    base, below, above = _split(text)
    style = ' font-style="italic"' if italic else ""
    inner = escape(base)
    if below:
        inner += f'<tspan dy="5" font-size="{SMALL}">{escape(below)}</tspan>'
    if above:
        inner += f'<tspan dy="{-12 if below else -7}" font-size="{SMALL}">{escape(above)}</tspan>'
    place = f'x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}"{style}>{inner}</text>'


def _describe(spec: Spec) -> str:
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
