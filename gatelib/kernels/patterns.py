"""Forms of expressions that one call of torch computes: factors, slopes, adjoints of a norm.

Imports SymPy, gatelib.algebra, gatelib.functions and gatelib.spec.
Must not import torch or any floor above.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import sympy as sp

from gatelib.algebra import plus
from gatelib.functions import FUNCTIONS, Expr
from gatelib.spec import Equation

__all__ = [
    "backward_of",
    "factors",
    "match_norm",
    "slopes",
    "terms",
    "tightened",
    "times",
]


def terms(e: Expr) -> list[Expr]:
    """The terms of a sum; anything else is its own only term."""
    return list(e.args) if e.is_Add else [e]


def factors(e: Expr) -> tuple[Expr, list[Expr], list[Expr]]:
    """(number, factors above, factors below); whole powers up to 4 are repeated factors."""
    number, over, under = sp.S.One, list[Expr](), list[Expr]()
    for factor in e.args if e.is_Mul else (e,):
        if factor.is_Number:
            number *= factor
        elif factor.is_Pow and factor.base.is_Number and factor.exp.is_Integer:
            number *= sp.Pow(factor.base, factor.exp)
        elif factor.is_Pow and factor.exp.is_Integer and abs(factor.exp) <= 4:
            (over if factor.exp > 0 else under).extend([factor.base] * abs(int(factor.exp)))
        else:
            over.append(factor)
    return number, over, under


def times(over: Sequence[Expr], under: Sequence[Expr]) -> Expr:
    """The product of `over` divided by `under`, in that order."""
    parts = [*over, *(sp.Pow(f, -1, evaluate=False) for f in under)]
    return parts[0] if len(parts) == 1 else sp.Mul(*parts, evaluate=False)


def slopes(over: Sequence[Expr]) -> Iterable[tuple[str, list[Expr], Expr]]:
    """(kind, the factors, y) for each y(1 - y) or 1 - y² among the factors."""
    for factor in over:
        y = one_minus(factor)
        if y is None:
            continue
        if y.is_Symbol and y in over:
            yield "sigmoid", [y, factor], y
        elif y.is_Pow and y.exp == 2 and y.base.is_Symbol:
            yield "tanh", [factor], y.base


def one_minus(e: Expr) -> Expr | None:
    """y where e is 1 - y."""
    if not (e.is_Add and len(e.args) == 2 and e.args[0] == 1):
        return None
    number, over, under = factors(e.args[1])
    if number != -1 or under:
        return None
    if len(over) == 2 and over[0] == over[1]:
        return sp.Pow(over[0], 2, evaluate=False)
    return over[0] if len(over) == 1 else None


def backward_of(e: Expr) -> tuple[str, Expr, Expr] | None:
    """(kind, d, y) where the whole of e is d·y(1 - y) or d·(1 - y²)."""
    if not e.is_Mul:
        return None
    number, over, under = factors(e)
    if number != 1 or under:
        return None
    for kind, used, y in slopes(over):
        rest = list(over)
        for factor in used:
            rest.remove(factor)
        if len(rest) == 1:
            return kind, rest[0], y
    return None


def match_norm(parts: list[Expr]) -> tuple[Expr, Expr] | None:
    """(d, y) where the parts are d, -mean(d) and -y·mean(d·y)."""
    mean = FUNCTIONS["mean"]
    if len(parts) != 3:
        return None
    for d in parts:
        others = [t for t in parts if t is not d]
        plain = [t for t in others if factors(t)[:2] == (-1, [mean(d)])]
        for term in (t for t in others if plain and t not in plain):
            number, over, under = factors(term)
            if number != -1 or under or len(over) != 2:
                continue
            for y, m in (over, over[::-1]):
                inner = m.args[0] if isinstance(m, mean) else None
                if inner is not None and factors(inner)[:2] in ((1, [d, y]), (1, [y, d])):
                    return d, y
    return None


def tightened(
    equations: Sequence[Equation], values: Mapping[Expr, Expr] | None = None
) -> tuple[Equation, ...]:
    """The equations with calls that read memory once where their text would read it thrice.

    `values` are the right-hand sides whose values are known by name.
    """
    known = values or {}
    return tuple((v, _lerp(e) or _relu_back(e, known) or _spared(e) or e) for v, e in equations)


def _lerp(e: Expr) -> Expr | None:
    """torch.lerp(x, h, t) for t*h + (1 - t)*x, in any order."""
    if not (e.is_Add and len(e.args) == 2 and all(a.is_Mul and len(a.args) == 2 for a in e.args)):
        return None
    for one, other in itertools.permutations(e.args):
        orders = map(itertools.permutations, (one.args, other.args))
        for (t, h), (rest, x) in itertools.product(*orders):
            if one_minus(rest) == t:
                return sp.Function("lerp")(x, h, t)
    return None


def _relu_back(e: Expr, values: Mapping[Expr, Expr]) -> Expr | None:
    """torch's threshold_backward for d*step(a), where relu(a) has a name."""
    for factor in e.args if e.is_Mul else ():
        if factor.func is FUNCTIONS["step"] and FUNCTIONS["relu"](*factor.args) in values:
            d = times([other for other in e.args if other is not factor], [])
            return sp.Function("relu_backward")(d, values[FUNCTIONS["relu"](*factor.args)])
    return None


def _spared(e: Expr) -> Expr | None:
    """d - d*t for d*(1 - t): one call."""
    for d, rest in itertools.permutations(e.args) if e.is_Mul and len(e.args) == 2 else ():
        t = one_minus(rest)
        if t is not None and d.is_Symbol and t.is_Symbol:
            return plus(d, times([sp.S.NegativeOne, d, t], []))
    return None
