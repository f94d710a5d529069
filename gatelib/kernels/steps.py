"""What a cell runs at each step: for each of its stages a program forward and one backward.

Imports SymPy, gatelib.cell, gatelib.spec, gatelib.algebra, gatelib.functions and gatelib.kernels.
Must not import torch, gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

The backward program of a stage is the vector-Jacobian product of its Spec. What passes between
stages by its name, and `q`, which the product of the next stage takes, has an adjoint that the
later stages fill and the earlier one reads.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sympy as sp

from gatelib.algebra import rebuild
from gatelib.cell import Cell, cell
from gatelib.functions import FUNCTIONS, Expr
from gatelib.kernels.inplace import COLUMN, FULL, VECTOR, Program, lower, shape_of
from gatelib.spec import Equation, Spec, symbol

__all__ = ["Part", "Stage", "Steps", "steps", "steps_of_text"]


@dataclass(frozen=True)
class Part:
    """One stage of a cell, and its place among the others.

    spec: its equations.
    gates, split: its gates, and those that see W x and U h apart.
    rows: (first, behind the last) of its gates among those of the cell.
    source: what its rows of U multiply: `h`, for a later stage `q`; empty where it has no gate.
    """

    spec: Spec
    gates: tuple[str, ...]
    split: tuple[str, ...]
    rows: tuple[int, int]
    source: str


@dataclass(frozen=True)
class Stage(Part):
    """One stage, lowered.

    step: one step forward; `copies` are {input: the parameter that keeps a copy of it}.
    step_back: one step backward; `seeds` are {value: the parameter with its adjoint}, and
        `adjoints` {input: the parameter that its adjoint is written to, or added to}.
    """

    step: Program
    copies: dict[str, str]
    step_back: Program
    seeds: dict[str, str]
    adjoints: dict[str, str]


@dataclass(frozen=True)
class Steps:
    """A cell as the kernels take it; make it with `steps`."""

    cell: Cell

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is lowered again, from what the cell's author wrote."""
        return steps, (self.cell,)

    @functools.cached_property
    def text(self) -> str:
        """The cell as text, the same in every process, from which `steps_of_text` makes it again.

        Raises ValueError for a number that isn't rational, the only ones that a Spec's text has.
        """
        stages = [_stage_as_lists(stage) for stage in self.cell.stages]
        return json.dumps([self.cell.name, *stages], separators=(",", ":"))

    @functools.cached_property
    def in_torch(self) -> tuple[Callable[..., Any], ...]:
        """Each stage as a torch function of one step."""
        return tuple(stage.compile("torch") for stage in self.cell.stages)

    @functools.cached_property
    def passed(self) -> frozenset[str]:
        """The values that a later stage takes, by their name or as `q`, states apart."""
        made: set[str] = set()
        taken: set[str] = set()
        for stage in self.cell.stages:
            taken |= made & {str(v) for v in stage.inputs}
            taken |= {"q"} & made if self.cell.gates_of(stage) else set()
            made |= {str(v) for v, _ in stage.equations}
        return frozenset(taken - set(self.cell.states))

    @functools.cached_property
    def _named(self) -> tuple[tuple[Equation, ...], ...]:
        """Each stage's equations, with normalised values and their 1/std named: both are saved."""
        taken = {v for stage in self.cell.stages for v in _all_names(stage.inputs, stage.equations)}
        return tuple(_with_norms(stage, taken) for stage in self.cell.stages)

    @functools.cached_property
    def shapes(self) -> dict[str, str]:
        """The shape in one step of every input and value; states and `q` are always full."""
        known = self.cell
        shapes = {str(v): FULL for stage in known.stages for v in stage.inputs}
        shapes |= dict.fromkeys(known.vectors, VECTOR)
        full = {*known.states, "q"}
        for equations in self._named:
            for v, e in equations:
                shapes[str(v)] = FULL if str(v) in full else shape_of(e, shapes)
        return shapes

    @functools.cached_property
    def _back(self) -> tuple[Spec, ...]:
        """The backward pass of each stage, from what it gives to states and later stages."""
        wanted = {*self.cell.states, *self.passed}
        found = []
        for stage, equations in zip(self.cell.stages, self._named, strict=True):
            outputs = tuple(v for v, _ in stage.equations if str(v) in wanted)
            useful = [v for v, _ in equations if self.shapes[str(v)] in (FULL, COLUMN)]
            spec = Spec(stage.name, equations, stage.inputs, outputs)
            found.append(spec.vjp(keep=" ".join(_names(useful))))
        return tuple(found)

    def _own(self, index: int) -> set[str]:
        """The names of one stage: every other input of its backward pass is a seed."""
        return set(_all_names(self.cell.stages[index].inputs, self._named[index]))

    @functools.cached_property
    def saved(self) -> dict[str, str]:
        """{name: shape} of what each step saves for the backward pass, states apart."""
        known = self.cell
        skip = {*known.states, *known.vectors, *(f"{s}_prev" for s in known.carries)}
        need = [v for i, spec in enumerate(self._back) for v in self._read(i, spec)]
        return {v: self.shapes[v] for v in (*need, *sorted(self.passed)) if v not in skip}

    def _read(self, index: int, spec: Spec) -> list[str]:
        return [v for v in _names(spec.inputs) if v in self._own(index)]

    @functools.cached_property
    def parts(self) -> tuple[Part, ...]:
        """The stages in order; all that the plain loop needs to know."""
        found, first = list[Part](), 0
        for index, stage in enumerate(self.cell.stages):
            gates = self.cell.gates_of(stage)
            split = tuple(k for k in gates if symbol(f"u_{k}") in stage.inputs)
            source = ("q" if index else "h") if gates else ""
            found.append(Part(stage, gates, split, (first, first + len(gates)), source))
            first += len(gates)
        return tuple(found)

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, lowered; in the backward pass the last runs first."""
        written, lowered = set[str](), list[Stage]()
        for index, part in reversed(list(enumerate(self.parts))):
            own = (part.spec, part.gates, part.split, part.rows, part.source)
            programs = (*self._forward(index), *self._backward(index, written))
            lowered.insert(0, Stage(*own, *programs))
            written |= set(_names(part.spec.inputs))
        return tuple(lowered)

    def _forward(self, index: int) -> tuple[Program, dict[str, str]]:
        """One step forward; fills states, what is passed on, and what the backward pass needs."""
        stage, equations = self.cell.stages[index], [*self._named[index]]
        own = {str(v): self.shapes[str(v)] for v, _ in equations}
        kept = {v: s for v, s in own.items() if v in self.saved or v in self.cell.states}
        given = {str(v): self.shapes[str(v)] for v in stage.inputs}
        preactivations = [v for v in given if v in self.saved and v not in self.cell.made]
        copies = {v: f"{v}_saved_" for v in preactivations}
        equations += [(symbol(to), symbol(v)) for v, to in copies.items()]
        kept |= {to: given[v] for v, to in copies.items()}
        return lower(f"{stage.name}_step", equations, given, kept), copies

    def _backward(
        self, index: int, written: set[str]
    ) -> tuple[Program, dict[str, str], dict[str, str]]:
        """One step backward. What later stages have `written`, and a state's adjoint, is added to.

        So are the adjoints of learned vectors, over all steps.
        """
        stage, spec = self.cell.stages[index], self._back[index]
        adjoints = dict(zip(_names(stage.inputs), _names(spec.outputs), strict=True))
        own, inputs = self._own(index), _names(spec.inputs)
        seeds = {v: seed for v, seed in spec.seed_of.items() if seed in inputs}
        shapes = {v: self.shapes[v] if v in own else FULL for v in inputs}
        added = {*written, *self.cell.vectors, *self.cell.states}
        sums = [adjoint for v, adjoint in adjoints.items() if v in added]
        results = dict.fromkeys(adjoints.values(), FULL)
        name = f"{stage.name}_step_back"
        return lower(name, spec.equations, shapes, results, sums, True), seeds, adjoints


@functools.lru_cache(maxsize=256)
def steps(known: Cell) -> Steps:
    """The cell lowered.

    Raises ValueError, naming the cell and the input, where no recurrent layer can be made of it.
    """
    made = Steps(known.checked())
    if _cell_of_text(made.text) != known:
        raise ValueError(f"spec: {known.name} isn't read back from its own text {made.text}")
    _ = made.in_torch, made.parts  # now, since torch.compile can't trace what makes them
    return made


@functools.lru_cache(maxsize=256)
def steps_of_text(text: str) -> Steps:
    """The cell whose `text` this is, lowered."""
    return steps(_cell_of_text(text))


def _with_norms(stage: Spec, taken: set[str]) -> tuple[Equation, ...]:
    """The equations of a stage, and a name for each normalised value and its 1/std."""
    named: list[Equation] = []
    values: dict[Expr, Expr] = {}
    for v, e in stage.equations:
        nodes = sorted(e.atoms(FUNCTIONS["normalize"]), key=lambda n: (sp.count_ops(n), str(n)))
        for index, node in enumerate(n for n in nodes if n not in values):
            whole = rebuild(node, values)
            name = v if node == e else _free(f"normalized_{v}_{index}", taken)
            rstd = FUNCTIONS["rstd"](whole.args[0])
            named += [(name, whole), (_free(f"rstd_{v}_{index}", taken), rstd)]
            values[node] = name
        if values.get(e) != v:
            named.append((v, rebuild(e, values)))
    return tuple(named)


def _free(name: str, taken: set[str]) -> Expr:
    """A symbol whose name nobody has taken: `name`, or that and a number."""
    tries = itertools.chain([name], (f"{name}_{n}" for n in itertools.count()))
    found = next(n for n in tries if n not in taken)
    taken.add(found)
    return symbol(found)


def _names(symbols: Iterable[Expr]) -> list[str]:
    return [str(v) for v in symbols]


def _all_names(inputs: Iterable[Expr], equations: Iterable[Equation]) -> list[str]:
    return _names((*inputs, *(v for v, _ in equations)))


# ---- the cell as text -----------------------------------------------------------------------


def _stage_as_lists(spec: Spec) -> list[Any]:
    lines = [[str(v), _packed(e, spec)] for v, e in spec.equations]
    roles = [_names(pair) for pair in spec.roles]
    return [spec.name, _names(spec.inputs), _names(spec.outputs), lines, roles]


def _packed(e: Expr, spec: Spec) -> Any:
    """An expression as nested lists: ["Add", …]; names and numbers as text."""
    if e.args:
        return [e.func.__name__, *(_packed(argument, spec) for argument in e.args)]
    if not (e.is_Symbol or e.is_Rational):
        raise ValueError(f"spec: expected rational numbers in {spec.name}, got {e}")
    return str(e)


def _unpacked(data: Any) -> Expr:
    """The expression that was `_packed`, in the same order."""
    if isinstance(data, str):
        return symbol(data) if data.isidentifier() else sp.Rational(data)
    makers = FUNCTIONS | {"Add": sp.Add, "Mul": sp.Mul, "Pow": sp.Pow}
    make, arguments = makers[data[0]], map(_unpacked, data[1:])
    return make(*arguments) if data[0] in FUNCTIONS else make(*arguments, evaluate=False)


def _cell_of_text(text: str) -> Cell:
    name, *stages = json.loads(text)
    return cell([_stage_of_lists(*parts) for parts in stages], name)


def _stage_of_lists(
    name: str, inputs: list[str], outputs: list[str], lines: list[list[Any]], roles: list[list[str]]
) -> Spec:
    equations = tuple((symbol(v), _unpacked(e)) for v, e in lines)
    named = tuple((symbol(v), symbol(of)) for v, of in roles)
    return Spec(name, equations, tuple(map(symbol, inputs)), tuple(map(symbol, outputs)), named)
