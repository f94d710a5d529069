"""What the names in a cell's equations mean: stages, gates, carries, states, learned vectors.

Imports SymPy, gatelib.spec.
Must not import any floor above: kernels, layers, circuits and instruments read names through here.

A cell is one Spec, or several stages where a matrix product stands between the equations. Its
names say what its inputs are, once for all of the house:

- `a_k` is the preactivation W_k x + U_k h_{t−1} + b_k of gate k. Where the cell also has `u_k`,
  `a_k` is W_k x + b_k alone and `u_k` is U_k h_{t−1} + b'_k.
- `NAME_prev` is a carry, the value that `NAME` had one step before.
- A value that an earlier stage computes is used by its name; U of a later stage multiplies the
  output `q` of the stage before it in the place of h_{t−1}.
- Every other input is a vector of length H, learned or given.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp
from sympy import Expr

from gatelib.spec import Spec, symbol

__all__ = ["Cell", "cell", "named"]


@dataclass(frozen=True)
class Cell:
    """One or more Specs, read by the convention of names above. Make it with `cell`.

    name: the name of the only stage, or the one given.
    stages: the Specs, in order.
    """

    name: str
    stages: tuple[Spec, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is read from its stages again."""
        return cell, (self.stages, self.name)

    @property
    def spec(self) -> Spec:
        """The only stage. Raises ValueError where there are several; `joined` has all lines."""
        if len(self.stages) > 1:
            raise ValueError(f"cell: {self.name} has {len(self.stages)} stages, not one Spec")
        return self.stages[0]

    @functools.cached_property
    def _inputs(self) -> tuple[str, ...]:
        """The inputs of all stages that no stage before them computes, in order, once each."""
        made: set[str] = set()
        found: dict[str, None] = {}
        for stage in self.stages:
            found |= dict.fromkeys(n for n in map(str, stage.inputs) if n not in made)
            made |= {str(v) for v in stage.outputs}
        return tuple(found)

    @functools.cached_property
    def made(self) -> frozenset[str]:
        """The names of all values that the equations compute."""
        return frozenset(str(v) for stage in self.stages for v, _ in stage.equations)

    @functools.cached_property
    def outputs(self) -> tuple[str, ...]:
        """The outputs of all stages, in order."""
        return tuple(dict.fromkeys(str(v) for stage in self.stages for v in stage.outputs))

    @functools.cached_property
    def gates(self) -> tuple[str, ...]:
        """k of each preactivation `a_k`, in the order of their rows in a packed weight."""
        return _behind("a_", self._inputs)

    @functools.cached_property
    def split(self) -> tuple[str, ...]:
        """k of each `u_k`: gates that see W x and U h apart."""
        return _behind("u_", self._inputs)

    @functools.cached_property
    def carries(self) -> tuple[str, ...]:
        """NAME of each input `NAME_prev` whose NAME the cell computes."""
        names = (v.removesuffix("_prev") for v in self._inputs if v.endswith("_prev"))
        return tuple(name for name in names if name in self.made)

    @functools.cached_property
    def states(self) -> tuple[str, ...]:
        """What passes from one step to the next: `h` first where the cell makes it, the carries."""
        first = ("h",) if "h" in self.outputs else ()
        return tuple(dict.fromkeys((*first, *self.carries)))

    @functools.cached_property
    def vectors(self) -> tuple[str, ...]:
        """The inputs that are neither preactivations nor carries."""
        special = {*(f"a_{k}" for k in self.gates), *(f"u_{k}" for k in self.split)}
        special |= {f"{name}_prev" for name in self.carries}
        return tuple(v for v in self._inputs if v not in special)

    @functools.cached_property
    def learned(self) -> tuple[str, ...]:
        """The vectors that are weights `w_k`, gains `s_k` or biases `b_k` of one feature each."""
        return tuple(v for v in self.vectors if v.startswith(("w_", "s_", "b_")))

    @functools.cached_property
    def keeps(self) -> dict[str, Expr]:
        """What multiplies each carry from one step to the next: f of an LSTM's c, z of a GRU's h.

        A factor that is no gate, such as the number of a leaky unit, is left out.
        """
        found = {name: self.factor(name, f"{name}_prev") for name in self.carries}
        made = set(map(symbol, self.made))
        return {name: factor for name, factor in found.items() if factor.free_symbols & made}

    def factor(self, value: str, old: str) -> Expr:
        """What multiplies `old` in `value` where it is carried straight: 0 where it isn't.

        This is ∂value/∂old along sums and products, with every gate held at its value though it
        may see `old`, as a peephole does: for `y = t*h + (1 - t)*x` the factor of x is `1 - t`.
        """
        slopes: dict[Expr, Expr] = {symbol(old): sp.S.One}
        for stage in self.stages:
            for v, expression in stage.equations:
                parts = (expression.diff(w) * slope for w, slope in slopes.items())
                slope = sp.Add(*parts)
                if slope != 0 and not slope.free_symbols & set(slopes):
                    slopes[v] = slope
        return slopes.get(symbol(value), sp.S.Zero)

    def gates_of(self, stage: Spec) -> tuple[str, ...]:
        """The gates of one stage; their rows follow those of the stages before it."""
        return tuple(k for k in _behind("a_", map(str, stage.inputs)) if k in self.gates)

    def joined(self, name: str = "") -> Spec:
        """All lines of the stages as one Spec, for proofs and drawings.

        The product between the stages is not among the lines: `q` is an output, and the `a_k`
        behind it an input. No layer can be made of it.
        """
        if len(self.stages) == 1:
            return self.stages[0]
        equations = tuple(line for stage in self.stages for line in stage.equations)
        last = self.stages[-1].outputs
        outputs = tuple(v for v in map(symbol, self.outputs) if v in last or str(v) == "q")
        return Spec(name or self.name, equations, tuple(map(symbol, self._inputs)), outputs)

    def checked(self) -> Cell:
        """The cell itself, where a recurrent layer can be made of it.

        Raises ValueError, naming the cell and the input, where it makes no `h`, never sees x, has a
        `u_k` without `a_k`, a `NAME_prev` without the output NAME, a later stage without `q`, or
        one name for two things.
        """
        for problem in self._problems():
            raise ValueError(f"spec: {self.name} {problem}")
        return self

    def _problems(self) -> Iterable[str]:
        if "h" not in self.outputs:
            yield "has no output `h`, the state that U multiplies"
        for v in self._inputs:
            name = v.removesuffix("_prev")
            if v != name and name not in self.outputs:
                yield f"has `{v}` but no output `{name}`"
        for state in self.states:
            if state not in self.made:
                yield f"gives its input `{state}` as an output, and doesn't compute it"
        if not self.gates:
            yield "has no preactivation `a_k`, so it never sees x"
        for stage in self.stages:
            for k in _behind("u_", map(str, stage.inputs)):
                if k in self.split and k not in self.gates_of(stage):
                    yield f"has `u_{k}` but no `a_{k}`"
        yield from self._crossed()
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            if self.gates_of(stage) and symbol("q") not in before.outputs:
                yield f"has a stage {stage.name} behind {before.name}, which has no output `q`"

    def _crossed(self) -> Iterable[str]:
        """What would be another thing in one stage than in another."""
        gates = [k for stage in self.stages for k in self.gates_of(stage)]
        for k in self.gates:
            if gates.count(k) > 1:
                yield f"reads `a_{k}` in more than one stage, and a gate has one block of rows"
        for v in self._inputs:
            if v in self.made:
                yield f"has `{v}` as an input of one stage, and computes it in another"


def _behind(prefix: str, names: Iterable[str]) -> tuple[str, ...]:
    """What follows the prefix in the names that have it; a `NAME_prev` is a carry all the same."""
    found = (name for name in names if name.startswith(prefix) and not name.endswith("_prev"))
    return tuple(name.removeprefix(prefix) for name in found)


def cell(stages: Spec | Sequence[Spec] | Cell, name: str = "") -> Cell:
    """Read a Spec, or several stages in order, as a cell; a Cell is given back as it is.

    Raises TypeError for anything else, and ValueError where a value is computed by two stages.
    """
    if isinstance(stages, Cell):
        return stages
    given = (stages,) if isinstance(stages, Spec) else tuple(stages)
    if not given or not all(isinstance(stage, Spec) for stage in given):
        raise TypeError(f"spec: expected a Spec or a sequence of Specs, got {stages!r:.80}")
    return _read(given, name or given[-1].name)


@functools.lru_cache(maxsize=256)
def _read(stages: tuple[Spec, ...], name: str) -> Cell:
    names = [str(v) for stage in stages for v, _ in stage.equations]
    for twice in sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"spec: {name} computes `{twice}` in more than one stage")
    return Cell(name, stages)


def named(*cells: Spec | Sequence[Spec] | Cell) -> dict[str, Cell]:
    """The cells by their names, in the order given; ValueError where two have the same name."""
    found: dict[str, Cell] = {}
    for one in map(cell, cells):
        if one.name in found:
            raise ValueError(f"cells: two are called {one.name!r}")
        found[one.name] = one
    return found
