"""The equations of a Spec as a graph: pins, boxes (functions), circles (⊙, +, 1−) and their wires.

Imports SymPy, gatelib.cell, gatelib.spec.
Must not import printers, equations, references, torch or anything that draws.

`graph_of` reads the equations, lays a straight rail for every carry, and says which nodes have the
colour of a gate or of a state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import sympy as sp

from gatelib.cell import cell
from gatelib.spec import Spec, symbol

Expr = Any  # a SymPy expression; SymPy has no types

FUNCTION_LABELS = {
    "sigmoid": "σ",
    "sqrt": "√",
    "maximum": "max",
    "minimum": "min",
    "silu": "SiLU",
    "gelu": "GELU",
    "relu": "ReLU",
    "hardsigmoid": "hard σ",
    "identity": "id",
    "normalize": "norm",
    "rstd": "1/std",
}
POWER_LABELS = {sp.Integer(-1): "1/x", sp.Rational(1, 2): "√"}


@dataclass
class Node:
    """A pin, const, box, circle, tap or out; edges are (source index, mark beside the port).

    A tap is a bare point of a wire: where a branch leaves a rail, or where a value gets a name.
    """

    kind: str
    label: str
    edges: list[tuple[int, str]] = field(default_factory=list)
    name: str = ""
    role: str = "plain"  # "gate" and "state" have colours of their own
    rail: int = -1  # the number of the rail that the node stands on
    vector: str = ""  # the learned vector that a box holds


class Graph:
    """The nodes of a Spec, sources before sinks and outputs last; rails and taps come later.

    `rails`: node indices from a carry's previous value to its new one.
    `before`: pairs (a, b) of nodes where a's column must be left of b's, wire or not.
    """

    def __init__(self, spec: Spec) -> None:
        self.nodes: list[Node] = []
        self.rails: list[list[int]] = []
        self.before: list[tuple[int, int]] = []
        self.vectors = _learned_vectors(spec)
        self.known: dict[Expr, int] = {}
        for given in spec.inputs:
            if given not in self.vectors:
                self.known[given] = self.add("pin", str(given), name=str(given))
        for made, expression in spec.equations:
            self.known[made] = self._equation(str(made), expression)
        for made in dict.fromkeys((*spec.outputs, *spec.carries.values())):
            self.add("out", str(made), [(self.known[made], "")], name=str(made))

    def add(
        self, kind: str, label: str, edges: Iterable[tuple[int, str]] = (), name: str = ""
    ) -> int:
        """Append a node, one wire from each source; return its index."""
        self.nodes.append(Node(kind, label, list(dict(edges).items()), name))
        return len(self.nodes) - 1

    def sinks(self) -> list[list[int]]:
        """For every node, the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source, _ in node.edges:
                found[source].append(index)
        return found

    # ---- one method for each form of an expression; all return the index of a node -----------

    def _equation(self, name: str, expression: Expr) -> int:
        """A new node that carries the name of an equation; for `h = m`, a point on m's wire."""
        start = len(self.nodes)
        index = self._build(expression)
        if index < start:
            index = self.add("tap", "", [(index, "")])
        self.nodes[index].name = name
        return index

    def _value(self, expression: Expr) -> int:
        """The node of a subexpression; equal subexpressions share one."""
        if expression not in self.known:
            self.known[expression] = self._build(expression)
        return self.known[expression]

    def _build(self, e: Expr) -> int:
        if e.is_Symbol:
            return self.known[e]
        if not e.free_symbols:
            return self.add("const", _number(e))
        if e.is_Add:
            return self._sum(e)
        if e.is_Mul:
            return self._product(e)
        if e.is_Pow and not e.exp.free_symbols:
            return self._power(e)
        return self._function(e)

    def _sum(self, e: Expr) -> int:
        numbers, vectors, terms = self._sorted_arguments(e)
        constant = sp.Add(*numbers).doit()
        signed = [_signed(term) for term in terms]
        edges = [(self._value(rest), "−" if minus else "") for minus, rest in signed]
        if constant and not vectors and [mark for _, mark in edges] == ["−"]:
            kind = "circle" if constant == 1 else "box"
            return self.add(kind, f"{_number(constant)}−", [(edges[0][0], "")])
        total = self._with_vectors("+", self._joined("+", edges), vectors)
        if not constant:
            return total
        plus = "+" if constant > 0 else "−"
        return self.add("box", f"{plus}{_number(abs(constant))}", [(total, "")])

    def _product(self, e: Expr) -> int:
        numbers, vectors, factors = self._sorted_arguments(e)
        core = self._joined("⊙", [(self._value(factor), "") for factor in factors])
        return self._scaled(self._with_vectors("×", core, vectors), sp.Mul(*numbers).doit())

    def _sorted_arguments(self, e: Expr) -> tuple[list[Expr], list[Expr], list[Expr]]:
        """Numbers, learned vectors and the rest."""
        numbers = [a for a in e.args if not a.free_symbols]
        vectors = [a for a in e.args if a in self.vectors]
        return numbers, vectors, [a for a in e.args if a not in numbers and a not in vectors]

    def _with_vectors(self, sign: str, index: int, vectors: list[Expr]) -> int:
        """A box for every learned vector that a value is multiplied by or added to."""
        for vector in vectors:
            index = self.add("box", sign + str(vector), [(index, "")])
            self.nodes[index].vector = str(vector)
        return index

    def _scaled(self, index: int, constant: Expr) -> int:
        if constant == 1:
            return index
        if constant == -1:
            return self.add("circle", "−", [(index, "")])
        return self.add("box", f"×{_number(constant)}", [(index, "")])

    def _joined(self, label: str, edges: list[tuple[int, str]]) -> int:
        """A ⊙ or + of two or three values; more are joined in the author's order."""
        if len(edges) == 1:
            return self.add("circle", "−", [(edges[0][0], "")]) if edges[0][1] else edges[0][0]
        while len(edges) > 3:
            edges = [(self.add("circle", label, edges[:2]), ""), *edges[2:]]
        return self.add("circle", label, edges)

    def _power(self, e: Expr) -> int:
        exponent = e.exp.doit()
        label = POWER_LABELS.get(exponent, f"x^{_number(exponent)}")
        return self.add("box", label, [(self._value(e.base), "")])

    def _function(self, e: Expr) -> int:
        name = e.func.__name__
        label = FUNCTION_LABELS.get(name, name)
        varying = [a for a in e.args if a.free_symbols]
        if len(varying) < len(e.args):
            shown = ", ".join("x" if a.free_symbols else _number(a) for a in e.args)
            label = f"{label}({shown})"
        return self.add("box", label, [(self._value(a), "") for a in varying])


def _learned_vectors(spec: Spec) -> set[Expr]:
    """Weights, gains and biases of a cell (w_i, s_i, b_i) that stand in one product or sum.

    They are written inside a box on the wire, as a constant is, and need no pin.
    """
    if not spec.carries:
        return set()
    named = set(map(symbol, cell(spec).learned))
    uses: Counter[Expr] = Counter()
    boxed: Counter[Expr] = Counter()
    for _, expression in spec.equations:
        uses[expression] += 1
        for part in sp.preorder_traversal(expression):
            company = any(a.free_symbols and a not in named for a in part.args)
            uses.update(part.args)
            boxed.update(part.args if company and (part.is_Add or part.is_Mul) else ())
    return {s for s in named if uses[s] == boxed[s] == 1}


def _signed(term: Expr) -> tuple[bool, Expr]:
    """Split a leading minus off a product: −x → (True, x)."""
    if not term.is_Mul:
        return False, term
    constant = sp.Mul(*(a for a in term.args if not a.free_symbols)).doit()
    if not constant.is_negative:
        return False, term
    rest = [a for a in term.args if a.free_symbols]
    factors = rest if constant == -1 else [-constant, *rest]
    return True, factors[0] if len(factors) == 1 else sp.Mul(*factors, evaluate=False)


def _number(value: Expr) -> str:
    value = value.doit()
    text = f"{float(value):g}" if value.is_Float else str(value)
    return text.replace("-", "−").replace("*", "·")


# ---- rails and colours -------------------------------------------------------------------------


# What makes a factor a gate: a bounded function, or, where a product has none, a one-sided one.
BOUNDED = "sigmoid hardsigmoid softmax step".split()
ONE_SIDED = "exp relu softplus silu gelu".split()
STRENGTH = {FUNCTION_LABELS.get(f, f): 1 for f in ONE_SIDED} | {
    FUNCTION_LABELS.get(f, f): 2 for f in BOUNDED
}
THROUGH_GATES = frozenset(("", "1−", "⊙", "√", "x^2"))  # of gates only, these (a tap: "") are again


def graph_of(spec: Spec) -> Graph:
    """The graph of a Spec, its rails laid, its nodes coloured; only a rail's nodes stand on it."""
    graph = Graph(spec)
    _find_rails(graph, spec)
    _colour_gates(graph)
    _colour_states(graph, spec)
    _free_rails(graph)
    return graph


def _find_rails(graph: Graph, spec: Spec) -> None:
    """For every carry, the plainest path from its previous value to its new one."""
    for previous, current in spec.carries.items():
        path = _path(graph, graph.known[previous], graph.known[current])
        for index in path:
            graph.nodes[index].rail = len(graph.rails)
        if path:
            graph.rails.append(path)


def _path(graph: Graph, start: int, end: int) -> list[int]:
    """The path with the fewest boxes; it shares no node with another rail. [] if there is none."""
    best: dict[int, tuple[int, list[int]]] = {start: (0, [start])}
    for index in range(start + 1, end + 1):
        node = graph.nodes[index]
        found = [best[s] for s, _ in node.edges if s in best]
        if found and node.rail < 0:
            cost, path = min(found)
            best[index] = (cost + (1 if node.kind == "circle" else 3), [*path, index])
    return best[end][1] if end in best else []


def _colour_gates(graph: Graph) -> None:
    """Orange: values of a gate function that multiply something."""
    strength: list[int] = []
    for node in graph.nodes:
        inner = min((strength[s] for s, _ in node.edges), default=0)
        strength.append(STRENGTH.get(node.label, inner if node.label in THROUGH_GATES else 0))
    for node in graph.nodes:
        best = max((strength[s] for s, _ in node.edges), default=0)
        for source, _ in node.edges if node.label == "⊙" and best else ():
            if strength[source] == best:
                graph.nodes[source].role = "gate"
    for node in reversed(graph.nodes):
        if node.role == "gate" and node.label in THROUGH_GATES:
            for source, _ in node.edges:
                graph.nodes[source].role = "gate"


def _colour_states(graph: Graph, spec: Spec) -> None:
    """Blue: carried states and what stands on their rails."""
    states = {str(s) for pair in spec.carries.items() for s in pair}
    for node in graph.nodes:
        if node.name in states or node.rail >= 0:
            node.role = "state"


def _free_rails(graph: Graph) -> None:
    """Who else reads a rail reads it before the rail's next node, or else from a tap."""
    for path in graph.rails:
        end = graph.nodes[path[-1]]
        out = next(n for n in graph.nodes if n.kind == "out" and n.edges[0][0] == path[-1])
        for source, follower in pairwise(path):
            others = [sink for sink in graph.sinks()[source] if sink != follower]
            late = [s for s in others if graph.nodes[s].kind == "out" or _leads(graph, follower, s)]
            graph.before += [(sink, follower) for sink in others if sink not in late]
            if late:
                _tap(graph, source, follower, late)
        out.rail = end.rail


def _tap(graph: Graph, source: int, follower: int, late: list[int]) -> None:
    tap = graph.add("tap", "", [(source, "")])
    graph.nodes[tap].role = "state"
    for sink in late:
        edges = graph.nodes[sink].edges
        graph.nodes[sink].edges = [(tap if s == source else s, mark) for s, mark in edges]
    graph.before.append((tap, follower))


def _leads(graph: Graph, start: int, end: int) -> bool:
    """Whether `end` must stand to the right of `start`."""
    after = graph.sinks()
    for left, right in graph.before:
        after[left].append(right)
    seen, todo = {start}, [start]
    while todo:
        new = set(after[todo.pop()]) - seen
        seen |= new
        todo += new
    return end in seen
