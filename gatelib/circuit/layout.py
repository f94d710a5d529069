"""What an arrangement of a graph in rows and columns costs: clashes, crossings, turns, length.

Imports gatelib.circuit.graph.
Must not import printers, equations, references, torch or anything that draws.

Columns are longest-path layers, and a node may stand some columns later: its delay. A value runs
straight to the right in its own row, and turns once, at the column of the node that reads it.
Rails are the first rows. Costs are integers, so every machine finds the same arrangement.
"""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

from gatelib.circuit.graph import Graph

CLASH = 10_000  # two things in one place: never drawn
CROSSING, DOUBLE, DROP, TURN, LENGTH = 30, 45, 9, 3, 3  # of a vertical run
COLUMN, ROW, DELAY = 40, 22, 2  # of room


class Run(NamedTuple):
    """A vertical run from a source's row to a sink's; `low` is the smaller row number."""

    low: int
    high: int
    source: int
    sink: int

    def meets(self, other: Run) -> int:
        """The cost of two runs in one column: apart, side by side into one node, or a clash."""
        if self.source == other.source or self.low >= other.high or other.low >= self.high:
            return 0
        return DOUBLE if self.sink == other.sink else CLASH


class Layout:
    """The fixed part of the search. A state is a row and a delay (in columns) for every node."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.rails = len(graph.rails)
        self.sinks = graph.sinks()
        self.left: list[list[int]] = [[s for s, _ in n.edges] for n in self.nodes]
        for left, right in graph.before:
            self.left[right].append(left)
        kinds = [n.kind for n in self.nodes]
        self.outs = [i for i, kind in enumerate(kinds) if kind == "out"]
        self.late = [i for i, kind in enumerate(kinds) if kind not in ("pin", "out")]
        self.free = [i for i, n in enumerate(self.nodes) if n.rail < 0 and n.kind != "out"]
        self.pins = [i for i in self.free if kinds[i] == "pin"]
        self.order = self._topological()
        self._costs: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

    def _topological(self) -> list[int]:
        """All nodes but the outputs, each after what stands left of it."""
        order: list[int] = []
        waiting = [i for i in range(len(self.nodes)) if i not in self.outs]
        while waiting:
            order.append(next(i for i in waiting if set(self.left[i]) <= set(order)))
            waiting.remove(order[-1])
        return order

    def columns(self, delay: list[int]) -> list[int]:
        """Longest-path layers, plus delays; outputs stand in the last."""
        column = [0] * len(self.nodes)
        for index in self.order:
            column[index] = delay[index] + max([column[p] + 1 for p in self.left[index]], default=0)
        last = max(column) + 1
        for index in self.outs:
            column[index] = last
        return column

    def settle(self, rows: list[int]) -> list[int]:
        """Number the used rows from the first below the rails; outputs follow their source."""
        used = {r: self.rails + n for n, r in enumerate(sorted({rows[i] for i in self.free}))}
        settled = [node.rail for node in self.nodes]
        for index in self.free:
            settled[index] = used[rows[index]]
        for index in self.outs:
            settled[index] = settled[self.left[index][0]]
        return settled

    def cost(self, rows: list[int], delay: list[int]) -> int:
        """The cost of a state; the search asks for many states twice."""
        state = tuple(rows), tuple(delay)
        if state not in self._costs:
            self._costs[state] = self._cost(rows, delay)
        return self._costs[state]

    def _cost(self, rows: list[int], delay: list[int]) -> int:
        column = self.columns(delay)
        by_row: list[list[int]] = [[] for _ in range(max(rows) + 1)]
        for index, row in enumerate(rows):
            by_row[row].append(index)
        reach, total = self._along_rows(rows, column, by_row)
        total += self._along_columns(rows, column, by_row, reach)
        total += ROW * max(rows) + COLUMN * max(column) + DELAY * sum(delay)
        pins = [rows[i] for i in self.pins]  # as few as may be out of the author's order
        return total + sum(a > b for n, a in enumerate(pins) for b in pins[n + 1 :])

    def _along_rows(
        self, rows: list[int], column: list[int], by_row: list[list[int]]
    ) -> tuple[list[int], int]:
        """How far every value runs to the right, and the cost of what stands in its way."""
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

    def _along_columns(
        self, rows: list[int], column: list[int], by_row: list[list[int]], reach: list[int]
    ) -> int:
        """The cost of all vertical runs: their own, of what they cross, and of each other."""
        total = 0
        for place, runs in self._runs(rows, column).items():
            for number, run in enumerate(runs):
                total += TURN + LENGTH * (run.high - run.low)
                total += DROP * (self.nodes[run.sink].kind == "box")
                for other in chain.from_iterable(by_row[run.low + 1 : run.high]):
                    if column[other] == place:
                        total += CLASH
                    elif column[other] < place <= reach[other]:
                        total += CROSSING
                total += sum(run.meets(other) for other in runs[number + 1 :])
        return total

    def _runs(self, rows: list[int], column: list[int]) -> dict[int, list[Run]]:
        """The vertical runs in every column."""
        runs: dict[int, list[Run]] = {}
        for sink in self.late + self.outs:
            for source, _ in self.nodes[sink].edges:
                a, b = rows[source], rows[sink]
                if a != b:
                    runs.setdefault(column[sink], []).append(
                        Run(min(a, b), max(a, b), source, sink)
                    )
        return runs
