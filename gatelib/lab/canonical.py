"""A cell's canonical form: one text for all ways to write the same cell.

Imports gatelib.cell, gatelib.constants, gatelib.functions and gatelib.spec.
Must not import torch.

Two cells have the same text where they differ in names, in the order of sums and products, in how
polynomials are multiplied out, or in the sign of a preactivation: its weights are free, so
σ(−a) = 1 − σ(a) is as good a gate as σ(a). What the text doesn't see, such as tanh(x) =
2σ(2x) − 1, `Spec.same_as` may prove.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

from gatelib.cell import Cell, cell
from gatelib.constants import as_number
from gatelib.functions import FUNCTIONS, Expr
from gatelib.spec import Spec

__all__ = ["canonical", "distinct"]

Polynomial = dict[tuple[str, ...], Fraction]
"""{the atoms of a monomial, sorted: its coefficient}; an atom is a name or a function's text."""

TURNING = ("sigmoid", "hardsigmoid")
"""Functions f with f(−x) = 1 − f(x)."""
ODD = ("tanh",)
"""Functions f with f(−x) = −f(x)."""
NEVER_NEGATIVE = ("sigmoid", "hardsigmoid", "relu", "exp", "softplus", "step")


# ---- polynomials -----------------------------------------------------------------------------


def _number(value: Fraction | int) -> Polynomial:
    return {(): Fraction(value)} if value else {}


def _sum(*parts: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for part in parts:
        for atoms, number in part.items():
            found[atoms] = found.get(atoms, Fraction(0)) + number
    return {atoms: number for atoms, number in found.items() if number}


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    pairs = itertools.product(left.items(), right.items())
    return _sum(*({tuple(sorted(a + b)): m * n} for (a, m), (b, n) in pairs))


def _scaled(part: Polynomial, number: int) -> Polynomial:
    return {atoms: number * coefficient for atoms, coefficient in part.items()}


def _text(part: Polynomial) -> str:
    return "+".join(f"{number}*{'*'.join(atoms)}" for atoms, number in sorted(part.items()))


def _never_negative(part: Polynomial) -> bool:
    atoms = {atom for monomial in part for atom in monomial}
    known = all(atom.split("(")[0] in NEVER_NEGATIVE for atom in atoms)
    return known and all(number > 0 for number in part.values())


def _applied(name: str, arguments: Sequence[Polynomial]) -> Polynomial:
    """A function's value; the sign of its argument stands outside where it can."""
    first = arguments[0]
    if name == "identity" or (name == "relu" and _never_negative(first)):
        return first
    if name == "silu":
        return _product(first, _applied("sigmoid", arguments))
    turned = bool(first) and min(first.items())[1] < 0 and name in (*TURNING, *ODD)
    texts = [_text(_scaled(first, -1) if turned else first), *map(_text, arguments[1:])]
    atom = f"{name}({','.join(sorted(texts))})"
    if not turned:
        return {(atom,): Fraction(1)}
    return _sum(_number(1 if name in TURNING else 0), {(atom,): Fraction(-1)})


Rule = Callable[[Mapping[str, Polynomial]], Polynomial]
"""What an expression comes to, from what its names are known to be."""


def _rule(e: Expr) -> Rule:
    """How an expression is multiplied out, read once."""
    number = as_number(e)
    if number is not None and number.is_Rational:
        constant = _number(Fraction(int(number.p), int(number.q)))
        return lambda known: constant
    if e.is_Symbol:
        name = str(e)
        return lambda known: known[name]
    parts = [_rule(argument) for argument in e.args]
    if e.is_Add:
        return lambda known: _sum(*(part(known) for part in parts))
    if e.is_Mul or (e.is_Pow and e.exp.is_Integer and e.exp > 0):
        factors = parts if e.is_Mul else parts[:1] * int(e.exp)
        return lambda known: functools.reduce(_product, (part(known) for part in factors))
    called = type(e).__name__
    named, taken = (called, parts) if called in FUNCTIONS else (f"{called}:{e.args[1]}", parts[:1])
    return lambda known: _applied(named, [part(known) for part in taken])


# ---- a cell and its names --------------------------------------------------------------------


class _Names:
    """The inputs of a cell that may be called otherwise, each with what it is."""

    def __init__(self, read: Cell) -> None:
        lines = [line for stage in read.stages for line in stage.equations]
        self.lines = [(str(v), _rule(e)) for v, e in lines]
        self.outputs = [name for name in read.outputs if name in read.states or name == "q"]
        used = {str(u) for _, e in lines for u in e.free_symbols}
        self.kinds = {name: kind for name, kind in _kinds(read) if name in used}

    def values(self, labels: Mapping[str, str], turned: Iterable[str] = ()) -> str:
        """The cell's outputs as text, where inputs are called by their labels."""
        signs = dict.fromkeys(turned, -1)
        known: dict[str, Polynomial] = {
            name: {(label,): Fraction(signs.get(name, 1))} for name, label in labels.items()
        }
        for v, rule in self.lines:
            known[v] = rule(known)
        places = {name: labels.get(f"{name}_prev", name) for name in self.outputs}
        made = sorted((places[name], _text(known[name])) for name in self.outputs if name != "h")
        return "; ".join(f"{place} {text}" for place, text in [("h", _text(known["h"])), *made])

    def turnable(self) -> list[tuple[str, ...]]:
        """Inputs whose sign is free, those of one gate together: a_k, u_k, w_k and b_k."""
        groups: dict[str, list[str]] = {}
        for name, kind in self.kinds.items():
            if kind[0] in "axuwb":
                groups.setdefault(name.partition("_")[2], []).append(name)
        return [tuple(group) for group in groups.values()]


def _kinds(read: Cell) -> Iterator[tuple[str, str]]:
    """(input, its kind): preactivations by stage, those that are split, vectors, carries."""
    for index, stage in enumerate(read.stages):
        for k in read.gates_of(stage):
            yield f"a_{k}", f"{'x' if k in read.split else 'a'}{index}"
            yield f"u_{k}", f"u{index}"
    for name in read.vectors:
        yield name, "w" if name.startswith("w_") else "s" if name.startswith("s_") else "b"
    for name in read.carries:
        yield f"{name}_prev", "h" if name == "h" else "carry"


def _refined(names: _Names, labels: dict[str, str], turned: Sequence[str]) -> dict[str, str]:
    """Labels that tell apart all inputs which stand at different places of the cell."""
    while len({*labels.values()}) < len(labels):
        seen = {
            name: (label, names.values(labels | {name: "?"}, turned))
            for name, label in labels.items()
        }
        ranked = enumerate(sorted({*seen.values()}))
        ranks = {key: f"{key[0].split('.')[0]}.{rank}" for rank, key in ranked}
        found = {name: ranks[key] for name, key in seen.items()}
        if len({*found.values()}) == len({*labels.values()}):
            return found
        labels = found
    return labels


def _named(names: _Names, labels: dict[str, str], turned: Sequence[str]) -> str:
    """The least text over all ways to tell apart inputs that stand at like places."""
    labels = _refined(names, labels, turned)
    counts = list(labels.values())
    like = [name for name, label in labels.items() if counts.count(label) > 1]
    if not like:
        return names.values(labels, turned)
    chosen = [name for name in like if labels[name] == labels[like[0]]]
    return min(_named(names, labels | {name: f"{labels[name]}.!"}, turned) for name in chosen)


def _turns(names: _Names) -> list[tuple[str, ...]]:
    """The inputs to turn: all choices for which the cell without names has its least text."""
    groups = names.turnable()
    found: dict[str, list[tuple[str, ...]]] = {}
    for choice in itertools.product((False, True), repeat=len(groups)):
        turned = tuple(itertools.chain(*itertools.compress(groups, choice)))
        found.setdefault(names.values(names.kinds, turned), []).append(turned)
    return found[min(found)]


@functools.lru_cache(maxsize=4096)
def _canonical(read: Cell) -> str:
    names = _Names(read)
    return min(_named(names, dict(names.kinds), turned) for turned in _turns(names))


def canonical(spec: Spec | Cell | Sequence[Spec]) -> str:
    """The cell's canonical form as text: equal for cells that differ in writing alone.

    Args:
        spec: a cell: a Spec, its stages in order, or a `gatelib.cell.Cell`.

    Raises: TypeError for anything else; ValueError where no recurrent layer can be made of it.
    """
    return _canonical(cell(spec).checked())


Found = TypeVar("Found", Spec, Cell)


def distinct(cells: Iterable[Found]) -> list[Found]:
    """The cells in their order, each canonical form once."""
    found: dict[str, Found] = {}
    for one in cells:
        found.setdefault(canonical(one), one)
    return list(found.values())
