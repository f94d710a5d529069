"""Lists of equations: their order, what is needed, what has no value, what a derivation made.

Imports SymPy, gatelib.algebra, gatelib.constants, gatelib.functions, gatelib.parse.
Must not import any other floor of gatelib: it knows no Spec.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sympy as sp

from gatelib import algebra
from gatelib.algebra import Equation, folded, rebuild, sorted_names, symbol
from gatelib.constants import NoNumber, constant
from gatelib.functions import FUNCTIONS, Elementwise, Expr, OverFeatures, exact, house
from gatelib.parse import SpecError

Roles = tuple[tuple[Expr, Expr], ...]
"""Names that a derivation made, each with the name that it belongs to: (`d_c`, `c`)."""

MADE = "(d+|g+|t+)_(.+)"
"""An adjoint, a seed or a tangent, and what it belongs to."""

DERIVED = "    # made by derivation: "
"""Begins the line of a text that says which names were made, where their letters don't."""


def pruned(equations: list[Equation], outputs: Iterable[Expr]) -> tuple[Equation, ...]:
    """The equations without those that no output needs."""
    needed = set(outputs)
    kept: list[Equation] = []
    for v, expression in reversed(equations):
        if v in needed:
            kept.insert(0, (v, expression))
            needed |= expression.free_symbols
    return tuple(kept)


@contextlib.contextmanager
def finite(where: str, about: str = "") -> Iterator[None]:
    """Inside, an expression without a finite real value is a SpecError."""
    try:
        yield
    except NoNumber as error:
        raise SpecError(f"{where}: {error}", about=about) from None


def checked(equations: Iterable[Equation], where: str) -> Iterator[Equation]:
    """The equations as the parser would have made them, where each has a finite real value.

    What no input reaches is known, and so is whether something is divided by it.
    """
    constants: dict[Expr, Expr] = {}
    for v, expression in equations:
        with finite(f"{where}: `{v}` has no finite real value", str(v)):
            try:
                found = algebra.house_form(expression)
            except TypeError as error:
                raise SpecError(f"{where}: `{v}`: {error}", about=str(v)) from None
            for part in sp.preorder_traversal(found) if constants else ():
                constant(rebuild(part, constants))  # a factor 0 beside it would hide it
            known = rebuild(found, constants) if constants else found
            if constant(known) is not None:
                constants[symbol(v)] = known
        yield symbol(v), found


def limit_of(v: Expr, expression: Expr, towards: Expr, value: Any, where: str) -> Expr:
    """The expression as a name tends to a value. Raises SpecError where it has no finite limit."""
    still = [n for n in expression.atoms(Elementwise, OverFeatures) if not n.has(towards)]
    hidden = {node: sp.Dummy(real=True) for node in still}
    value = sp.nsimplify(sp.sympify(value), rational=True)
    sides = "+-" if value.is_finite else "+"
    steps = [n for n in expression.atoms(FUNCTIONS["step"]) if n.has(towards)]
    try:
        found = sp.limit(exact(expression.xreplace(hidden)), towards, value, sides)
        if any(sp.limit(exact(n.args[0]), towards, value, sides) == 0 for n in steps):
            found = sp.nan  # a jump, which SymPy goes over
    except (NotImplementedError, ValueError):  # none that SymPy finds; two, one from each side
        found = sp.nan
    if not found.is_finite or found.has(sp.Limit):
        raise SpecError(
            f"{where}: `{v}` has no finite limit that SymPy finds as {towards} → {value}"
        )
    try:
        if value.is_Rational:
            there = folded(rebuild(expression, {towards: value}))
            if sp.simplify(exact(there.xreplace(hidden)) - found) == 0:
                return there
        return rebuild(house(found, {dummy: node for node, dummy in hidden.items()}))
    except (ValueError, NoNumber) as error:
        raise SpecError(f"{where}: the limit of `{v}` is {found}, and {error}") from None


# ---- which names a derivation made ---------------------------------------------------------------


def needed_roles(made: Mapping[Expr, Expr], names: Iterable[Expr]) -> Roles:
    """The roles of these names, and of those that they belong to: t_d_x is the tangent of d_x."""
    found: dict[Expr, Expr] = {}
    waiting = [v for v in names if v in made]
    while waiting:
        found |= {v: made[v] for v in waiting}
        waiting = [of for v in waiting if (of := made[v]) in made and of not in found]
    return tuple(found.items())


def roles_by_letters(gate: str, names: Iterable[Expr]) -> Roles:
    """In a gate called NAME_vjp or NAME_jvp: `d_c` belongs to c, and so for `g_` and `t_`."""
    if not re.search("_vjp|_jvp", gate):
        return ()
    made: dict[Expr, Expr] = {}
    for v in names:
        name = v
        while match := re.fullmatch(MADE, str(name)):
            made[name] = symbol(match[2])
            name = made[name]
    return needed_roles(made, names)


def check_roles(roles: Roles, where: str) -> None:
    """Raise SpecError unless each name is d, g or t (or several) before the other name."""
    for v, of in roles:
        match = re.fullmatch(MADE, str(v))
        if match is None or match[2] != str(of):
            raise SpecError(f"{where}: roles: expected `d_{of}`, `g_{of}` or `t_{of}`, got `{v}`")


def roles_in_words(roles: Roles) -> str:
    """`d: c f; g: h`: the letters, and the names behind them."""
    words: dict[str, list[str]] = {}
    for v, of in roles:
        words.setdefault(str(v).removesuffix(f"_{of}"), []).append(str(of))
    return "; ".join(f"{letters}: {' '.join(names)}" for letters, names in words.items()) or "no"


def roles_said(words: str) -> Roles:
    groups = [group.partition(": ") for group in words.split("; ") if ": " in group]
    pairs = [(letters, of) for letters, _, names in groups for of in names.split()]
    return tuple((symbol(f"{letters}_{of}"), symbol(of)) for letters, of in pairs)


# ---- checks --------------------------------------------------------------------------------------


def check_order(equations: Iterable[Equation], inputs: Iterable[Expr], where: str) -> None:
    """Every name must be an input or defined above the equation that uses it."""
    known = set(inputs)
    for v, expression in equations:
        for name in sorted_names(expression.free_symbols - known):
            reason = f"`{v}` uses `{name}`, neither an input nor defined above"
            raise SpecError(f"{where}: {reason}", about=str(v))
        known.add(v)


def check_features(equations: Iterable[Equation], where: str) -> None:
    """A sum over features can't be told from its term where all features are alike."""
    even: set[Expr] = set()
    for v, expression in equations:
        for node in expression.atoms(FUNCTIONS["total"], FUNCTIONS["softmax"]):
            if algebra.is_even(node.args[0], even):
                raise SpecError(
                    f"{where}: `{v}` takes {node.func.__name__} of a value that is the same for "
                    "every feature (a mean, total or rstd)",
                    about=str(v),
                )
        if algebra.is_even(expression, even):
            even.add(v)


def settled(v: Expr, expression: Expr, settled: Mapping[Expr, Expr], where: str) -> Expr:
    """The expression with values put in. Refuses 1/0 and log(0), also beside a factor 0."""
    under = [p.base for p in expression.atoms(sp.Pow) if p.exp.is_negative]
    under += [node.args[0] for node in expression.atoms(FUNCTIONS["log"])]
    try:
        if any(folded(rebuild(part, settled)) == 0 for part in under):
            raise NoNumber("a factor 0 would hide it")
        return folded(rebuild(expression, settled))
    except NoNumber as error:
        reason = f"`{v}` divides by 0 or takes the logarithm of 0 there, or has no real value"
        raise SpecError(f"{where}: {reason}: {error}", about=str(v)) from None


def in_dependency_order(equations: dict[Expr, Expr], inputs: Iterable[Expr]) -> list[Equation]:
    """The equations so that each uses only what stands above it; otherwise the order is kept."""
    known, waiting, ordered = set(inputs), dict(equations), list[Equation]()
    while waiting:
        ready = next((v for v, e in waiting.items() if e.free_symbols <= known), None)
        if ready is None:
            names = ", ".join(f"`{v}`" for v in waiting)
            raise SpecError(f"the equations of {names} depend on each other in a circle")
        ordered.append((ready, waiting.pop(ready)))
        known.add(ready)
    return ordered
