"""Carries and gates in a graph: a straight rail for every carry, and which nodes have a colour.

Imports gatelib.circuit.graph and gatelib.spec.
Must not import printers, equations, references, torch or anything that draws.
"""

from __future__ import annotations

from itertools import pairwise

from gatelib.circuit.graph import FUNCTION_LABELS, Graph
from gatelib.spec import Spec

# What makes a factor a gate: a bounded function, or, where a product has none, a one-sided one.
BOUNDED = "sigmoid hardsigmoid softmax step".split()
ONE_SIDED = "exp relu softplus silu gelu".split()
STRENGTH = {FUNCTION_LABELS.get(f, f): 1 for f in ONE_SIDED} | {
    FUNCTION_LABELS.get(f, f): 2 for f in BOUNDED
}
THROUGH_GATES = frozenset(("", "1−", "⊙", "√", "x^2"))  # of gates only, these (a tap: "") are again


def lay_rails(graph: Graph, spec: Spec) -> None:
    """Find the rails, colour the nodes, and let nothing but a rail's own nodes stand on it."""
    _find_rails(graph, spec)
    _colour_gates(graph)
    _colour_states(graph, spec)
    _free_rails(graph)


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
