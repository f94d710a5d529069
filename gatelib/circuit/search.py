"""Rows and columns of a graph: a barycentre start, a seeded threshold search, then descent.

Imports gatelib.circuit.graph and gatelib.circuit.layout.
Must not import printers, equations, references, torch or anything that draws.
"""

from __future__ import annotations

from gatelib.circuit.graph import Graph
from gatelib.circuit.layout import CLASH, Layout

STEPS, RESTARTS, EFFORT = 2_500, 6, 3_000  # large circuits get fewer restarts
NODE, BLOCK, SWAP = "node", "block", "swap"  # what moves to another row
MOVES = (NODE,) * 5 + (BLOCK,) * 3 + (SWAP,) * 2  # how often, of ten

State = tuple[int, list[int], list[int]]  # cost, rows, delays


class _Chance:
    """A linear congruential generator: the same integers on every machine."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, bound: int) -> int:
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % bound


def arrange(graph: Graph) -> tuple[list[int], list[int]]:
    """The rows and the columns of all nodes."""
    layout = Layout(graph)
    restarts = max(1, min(RESTARTS, EFFORT // len(graph.nodes) ** 2))
    best = min(_search(layout, seed) for seed in range(restarts))
    if best[0] >= CLASH:
        rows, delay = _spread(layout)
        best = min(best, _descend(layout, (layout.cost(rows, delay), rows, delay)))
    return best[1], layout.columns(best[2])


def _barycentres(layout: Layout) -> list[int]:
    """Inputs in the author's order; every other node at the mean row of what it reads."""
    rows = [0] * len(layout.nodes)
    for number, index in enumerate(layout.pins):
        rows[index] = layout.rails + number
    for index in layout.order:
        sources = [rows[s] for s, _ in layout.nodes[index].edges]
        if sources:
            rows[index] = sum(sources) // len(sources)
    return layout.settle(rows)


def _spread(layout: Layout) -> tuple[list[int], list[int]]:
    """An arrangement without clashes: a row and a column for every node."""
    rows = list(range(len(layout.nodes)))
    delay = [0] * len(layout.nodes)
    inner = [index for index in layout.order if index in layout.late]
    for place, index in enumerate(inner, 1):
        delay[index] = place - layout.columns(delay)[index]
    return layout.settle(rows), delay


def _search(layout: Layout, seed: int) -> State:
    """Threshold accepting: a worse state is accepted while it is not much worse."""
    chance = _Chance(seed)
    rows, delay = _barycentres(layout), [0] * len(layout.nodes)
    now = layout.cost(rows, delay)
    best = (now, rows, delay)
    for step in range(STEPS if layout.free else 0):
        new_rows, new_delay = _move(layout, chance, rows, delay)
        cost = layout.cost(new_rows, new_delay)
        if cost - now <= chance.below(1 + 90 * (STEPS - step) // STEPS):
            now, rows, delay = cost, new_rows, new_delay
            best = min(best, (now, rows, delay))
    return _descend(layout, best)


def _move(
    layout: Layout, chance: _Chance, rows: list[int], delay: list[int]
) -> tuple[list[int], list[int]]:
    """A random neighbour: a node, a block or two rows moved, or another delay."""
    kind = chance.below(10)
    node = layout.free[chance.below(len(layout.free))]
    if kind == 0 and layout.late:
        node = layout.late[chance.below(len(layout.late))]
        return rows, _delayed(delay, node, 1 - 2 * chance.below(2))
    lowest = 2 * layout.rails - 1
    target = lowest + chance.below(2 * max(rows) + 4 - lowest)
    return _shifted(layout, rows, node, target, MOVES[kind]), delay


def _delayed(delay: list[int], node: int, by: int) -> list[int]:
    later = list(delay)
    later[node] = max(0, later[node] + by)
    return later


def _shifted(layout: Layout, rows: list[int], node: int, target: int, move: str) -> list[int]:
    """Move to `target`, in half rows: odd numbers open a new row between two."""
    doubled = [2 * r for r in rows]
    here = doubled[node]
    if move == SWAP:
        swap = {here: target, target: here}
        return layout.settle([swap.get(r, r) for r in doubled])
    for index in _block(layout, rows, node) if move == BLOCK else [node]:
        doubled[index] = target
    return layout.settle(doubled)


def _block(layout: Layout, rows: list[int], node: int) -> set[int]:
    """The nodes joined to `node` along its row."""
    found, todo = {node}, [node]
    while todo:
        index = todo.pop()
        for near in (*layout.left[index], *layout.sinks[index]):
            if near not in found and rows[near] == rows[node]:
                found.add(near)
                todo.append(near)
    return found


def _descend(layout: Layout, best: State) -> State:
    """Take single moves that help until none does."""
    before = best[0] + 1
    while best[0] < before:
        before = best[0]
        for node in layout.free:
            for move in (NODE, BLOCK, SWAP):
                best = _best_row(layout, best, node, move)
        for node in layout.late:
            for by in (-1, 1):
                later = _delayed(best[2], node, by)
                best = min(best, (layout.cost(best[1], later), best[1], later))
    return best


def _best_row(layout: Layout, best: State, node: int, move: str) -> State:
    """The best row for one node, one block or one swap of rows."""
    _, rows, delay = best
    for target in range(2 * layout.rails - 1, 2 * max(rows) + 2):
        moved = _shifted(layout, rows, node, target, move)
        best = min(best, (layout.cost(moved, delay), moved, delay))
    return best
