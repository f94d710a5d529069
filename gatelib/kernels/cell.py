"""What a Spec means as a recurrent cell: its gates, its carries, its learned vectors.

Imports gatelib.spec, gatelib.kernels.inplace.
Must not import torch, gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy as sp

from gatelib.algebra import rebuild
from gatelib.functions import FUNCTIONS, Expr
from gatelib.kernels.inplace import COLUMN, FULL, VECTOR, Program, lower, shape_of
from gatelib.spec import Equation, Spec, symbol

__all__ = ["Cell", "cell"]


@dataclass(frozen=True)
class Cell:
    """A Spec read by the convention of names.

    `a_k` is the preactivation W_k x + U_k h + b_k. Where the Spec also has `u_k`, `a_k` is
    W_k x + b_k alone and `u_k` is U_k h + b'_k. `NAME_prev` is a carry. Every other input is a
    learned vector of length H. The state that U multiplies is `h`. Other outputs are not used.
    """

    spec: Spec
    gates: tuple[str, ...]
    split: tuple[str, ...]
    states: tuple[str, ...]
    carries: tuple[str, ...]
    vectors: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is read from its Spec again: SymPy would reorder what is cached here."""
        return cell, (self.spec,)

    @functools.cached_property
    def text(self) -> str:
        """The Spec as text, from which `cell` makes this cell again."""
        return repr(self.spec)

    @functools.cached_property
    def in_torch(self) -> Callable[..., Any]:
        """The Spec as a torch function of one step."""
        return self.spec.compile("torch")

    @functools.cached_property
    def shapes(self) -> dict[str, str]:
        """The shape in one step of each input."""
        return {str(v): VECTOR if str(v) in self.vectors else FULL for v in self.spec.inputs}

    @functools.cached_property
    def _forward_equations(self) -> tuple[Equation, ...]:
        """The equations, with each normalised value and its 1/std named, so that both are saved."""
        named: list[Equation] = []
        values: dict[Expr, Expr] = {}
        for v, e in self.spec.equations:
            nodes = sorted(e.atoms(FUNCTIONS["normalize"]), key=lambda n: (sp.count_ops(n), str(n)))
            for index, node in enumerate(n for n in nodes if n not in values):
                whole = rebuild(node, values)
                name = v if node == e else symbol(f"normalized_{v}_{index}")
                named += [(name, whole), (symbol(f"rstd_{v}_{index}"), _rstd(whole))]
                values[node] = name
            if values.get(e) != v:
                named.append((v, rebuild(e, values)))
        return tuple(named)

    @functools.cached_property
    def _value_shapes(self) -> dict[str, str]:
        """The shape of every input and every value; states and carries are always full."""
        shapes = dict(self.shapes)
        for v, e in self._forward_equations:
            shapes[str(v)] = FULL if str(v) in self.states else shape_of(e, shapes)
        return shapes

    @functools.cached_property
    def _vjp(self) -> Spec:
        states = tuple(symbol(s) for s in self.states)
        spec = Spec(self.spec.name, self._forward_equations, self.spec.inputs, states)
        shapes = self._value_shapes
        useful = [str(v) for v, _ in spec.equations if shapes[str(v)] in (FULL, COLUMN)]
        return spec.vjp(keep=" ".join(useful))

    @functools.cached_property
    def saved(self) -> dict[str, str]:
        """{name: shape} of what each step saves for the backward pass, states apart."""
        need = [str(v) for v in self._vjp.inputs]
        shapes = self._value_shapes
        seeds = {f"g_{s}" for s in self.states}
        skip = {*self.states, *self.vectors, *(f"{s}_prev" for s in self.carries), *seeds}
        return {v: shapes[v] for v in need if v not in skip}

    @functools.cached_property
    def step(self) -> Program:
        """One step forward; fills the states and the values that the backward pass needs."""
        copies = {v: f"{v}_saved" for v in self.saved if v in self.shapes}
        equations = [*self._forward_equations]
        equations += [(symbol(to), symbol(v)) for v, to in copies.items()]
        results = dict.fromkeys(self.states, FULL)
        results |= {copies.get(v, v): shape for v, shape in self.saved.items()}
        return lower(f"{self.spec.name}_step", equations, self.shapes, results)

    @functools.cached_property
    def step_back(self) -> Program:
        """One step backward; fills the adjoints of preactivations and carries, adds up vectors'."""
        shapes = {str(v): self._value_shapes.get(str(v), FULL) for v in self._vjp.inputs}
        results = {f"d_{v}": FULL for v in self.spec.inputs}
        sums = [f"d_{v}" for v in self.vectors]
        return lower(f"{self.spec.name}_step_back", self._vjp.equations, shapes, results, sums)


def _rstd(normalized: Expr) -> Expr:
    """1/std of what a normalisation normalises."""
    return FUNCTIONS["rstd"](normalized.args[0])


@functools.lru_cache(maxsize=256)
def cell(spec: Spec) -> Cell:
    """Read a Spec as a cell.

    Raises ValueError, naming the Spec and the input, where the convention isn't met.
    """
    inputs = [str(v) for v in spec.inputs]
    outputs = [str(v) for v in spec.outputs]
    if "h" not in outputs:
        raise ValueError(f"spec: {spec.name} has no output `h`, the state that U multiplies")
    carries = [v.removesuffix("_prev") for v in inputs if v.endswith("_prev")]
    for carry in carries:
        if carry not in outputs:
            raise ValueError(f"spec: {spec.name} has `{carry}_prev` but no output `{carry}`")
    defined = {str(v) for v, _ in spec.equations}
    for state in ("h", *carries):
        if state not in defined:
            raise ValueError(f"spec: {spec.name}'s output `{state}` is an input, not computed")
    gates = [v.removeprefix("a_") for v in inputs if v.startswith("a_")]
    if not gates:
        raise ValueError(f"spec: {spec.name} has no preactivation `a_k`, so it never sees x")
    split = [v.removeprefix("u_") for v in inputs if v.startswith("u_")]
    for k in split:
        if k not in gates:
            raise ValueError(f"spec: {spec.name} has `u_{k}` but no `a_{k}`")
    special = {*(f"a_{k}" for k in gates), *(f"u_{k}" for k in split)}
    vectors = [v for v in inputs if v not in special and not v.endswith("_prev")]
    states = ["h", *(v for v in carries if v != "h")]
    groups = (tuple(group) for group in (gates, split, states, carries, vectors))
    made = Cell(spec, *groups)
    _ = made.text, made.in_torch  # now, since torch.compile can't trace what makes them
    return made


@functools.lru_cache(maxsize=256)
def cell_of_text(text: str) -> Cell:
    """The cell whose `text` this is."""
    return cell(Spec.read(text))
