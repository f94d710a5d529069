"""Rows and columns of a graph: what an arrangement costs, and the search for a cheap one.

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
        self.evaluations = 0
        self._costs: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}

    def _topological(self) -> list[int]:
        """All nodes but the outputs, each after what stands left of it."""
        order: dict[int, None] = {}
        waiting = [i for i in range(len(self.nodes)) if self.nodes[i].kind != "out"]
        while waiting:
            ready = next(i for i in waiting if all(left in order for left in self.left[i]))
            order[ready] = None
            waiting.remove(ready)
        return list(order)

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
            self.evaluations += 1
            self._costs[state] = self._cost(rows, delay)
        return self._costs[state]

    @property
    def exhausted(self) -> bool:
        """Whether the search has used up its budget; a count, so all machines stop alike."""
        return self.evaluations * len(self.nodes) ** 2 > WORK

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


# ---- one node after the other ------------------------------------------------------------------


class Placement:
    """Nodes put down from left to right, each in the cheapest place where it clashes with nothing.

    A row belongs to the value that stands last in it until all its readers are placed; then it is
    free again, to the right of what the value has reached. So every graph has an arrangement.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rows = [float(node.rail) for node in layout.nodes]
        self.column = [0] * len(layout.nodes)
        self.waiting = [len(sinks) for sinks in layout.sinks]
        self.holder = [-1] * layout.rails  # of every row, the node that stands last in it
        self.end = [-1] * layout.rails  # of every row, the last column that is taken
        self.standing: dict[int, list[int]] = {}  # of every column, its nodes
        self.runs: dict[int, list[tuple[int, int]]] = {}  # of every column, sources and sinks
        for index in layout.order:
            self._place(index)

    def state(self) -> State:
        """What the search goes on from."""
        delay = [0] * len(self.rows)
        for index in self.layout.order:
            delay[index] = self.column[index] - self._first(index)
        rows = self.layout.settle([int(row) for row in self.rows])
        return self.layout.cost(rows, delay), rows, delay

    def _first(self, index: int) -> int:
        """The column behind all that stands left of a node."""
        return max([self.column[left] + 1 for left in self.layout.left[index]], default=0)

    def _place(self, index: int) -> None:
        """Put a node into the cheapest of the rows that may be right for it."""
        node = self.layout.nodes[index]
        if node.rail >= 0:
            row = float(node.rail)
        elif not node.edges:
            row = len(self.end) - 0.5
        else:
            row = min((self._price(index, row), row) for row in self._rows(index))[1]
        column = self._column(index, row)
        if row not in range(len(self.end)):
            row = self._open(row)
        self._stand(index, int(row), column)

    def _rows(self, index: int) -> list[float]:
        """New rows beside those of the sources (halves), and the nearest that are free."""
        sources = [s for s, _ in self.layout.nodes[index].edges]
        lowest = self.layout.rails - 0.5
        new = {max(lowest, self.rows[s] + by) for s in sources for by in (-0.5, 0.5)}
        own = {self.rows[s] for s in sources if self.waiting[s] == 1}
        free = [r for r, holder in enumerate(self.holder) if not self.waiting[holder]]
        near = sorted(free, key=lambda r: sum(abs(r - self.rows[s]) for s in sources))[:NEAREST]
        return [r for r in (*own, *near) if r >= self.layout.rails] + sorted(new)

    def _price(self, index: int, row: float) -> float:
        """What standing in a row costs: the way there, a new column, a new row."""
        column = self._column(index, row)
        way = sum(abs(self.rows[s] - row) for s, _ in self.layout.nodes[index].edges)
        late = column - self._first(index)
        return LENGTH * way + COLUMN * late + ROW * (row not in range(len(self.end)))

    def _column(self, index: int, row: float) -> int:
        """The first column where a node clashes with nothing in a row."""
        column = self._first(index)
        if row in range(len(self.end)):
            column = max(column, self.end[int(row)] + 1)
        while not self._fits(index, row, column):
            column += 1
        return column

    def _fits(self, index: int, row: float, column: int) -> bool:
        """Whether a node and the runs into it miss all that stands and runs in a column."""
        runs, standing = self.runs.get(column, ()), self.standing.get(column, ())
        if any(self.rows[other] == row for other in standing):
            return False
        if any(self._covers(a, self.rows[b], row) for a, b in runs):
            return False
        for source, _ in self.layout.nodes[index].edges:
            if any(self._covers(source, row, self.rows[other]) for other in standing):
                return False
            low, high = sorted((self.rows[source], row))
            for other, sink in runs:
                ends = self.rows[other], self.rows[sink]
                if other != source and min(ends) < high and low < max(ends):
                    return False
        return True

    def _covers(self, source: int, end: float, row: float) -> bool:
        """Whether a run from a source's row to another goes through a third."""
        return min(self.rows[source], end) < row < max(self.rows[source], end)

    def _open(self, row: float) -> float:
        """Make room for a new row; it is numbered between its neighbours."""
        new = int(row + 0.5)
        self.rows = [r + 1 if r >= new else r for r in self.rows]
        self.end.insert(new, -1)
        self.holder.insert(new, -1)
        return new

    def _stand(self, index: int, row: int, column: int) -> None:
        """Take a place, and the way of every source to it."""
        self.rows[index], self.column[index] = row, column
        self.end[row], self.holder[row] = column, index
        self.standing.setdefault(column, []).append(index)
        for source, _ in self.layout.nodes[index].edges:
            self.waiting[source] -= 1
            self.end[int(self.rows[source])] = max(self.end[int(self.rows[source])], column)
            if self.rows[source] != row:
                self.runs.setdefault(column, []).append((source, index))


# ---- the search --------------------------------------------------------------------------------


NEAREST = 4  # free rows that a placement looks at
STEPS, RESTARTS, EFFORT = 2_500, 6, 3_000  # large circuits get fewer restarts
LARGE = 45  # nodes: from here on a random search finds nothing within its budget
WORK = 10_000_000  # the budget: evaluations of the cost, times the square of the count of nodes
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
    """The rows and the columns of all nodes; nothing clashes."""
    layout = Layout(graph)
    best: State | None = None
    if len(graph.nodes) < LARGE:
        restarts = max(1, min(RESTARTS, EFFORT // len(graph.nodes) ** 2))
        best = min(_search(layout, seed) for seed in range(restarts))
    if best is None or best[0] >= CLASH:
        layout.evaluations = 0
        best = _descend(layout, Placement(layout).state())
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


def _search(layout: Layout, seed: int) -> State:
    """Threshold accepting: a worse state is accepted while it is not much worse."""
    chance = _Chance(seed)
    rows, delay = _barycentres(layout), [0] * len(layout.nodes)
    now = layout.cost(rows, delay)
    best = (now, rows, delay)
    for step in range(STEPS if layout.free else 0):
        if layout.exhausted:
            break
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
            for by in (-1, 1) if not layout.exhausted else ():
                later = _delayed(best[2], node, by)
                best = min(best, (layout.cost(best[1], later), best[1], later))
    return best


def _best_row(layout: Layout, best: State, node: int, move: str) -> State:
    """The best row for one node, one block or one swap of rows."""
    _, rows, delay = best
    for target in range(2 * layout.rails - 1, 2 * max(rows) + 2):
        if layout.exhausted:
            break
        moved = _shifted(layout, rows, node, target, move)
        best = min(best, (layout.cost(moved, delay), moved, delay))
    return best
