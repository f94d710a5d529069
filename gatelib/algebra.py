"""Sums and products that keep the author's order, and derivatives built from them.

Imports SymPy and gatelib.functions.
Must not import any other floor of gatelib.

SymPy sorts every sum and product. A reader wants `f*c_prev + i*g` to stay as written, so the
expressions here are unevaluated, flat, and built by two functions, `plus` and `times`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sympy as sp

from gatelib.functions import Elementwise, Expr, OverFeatures

Values = Mapping[Expr, Expr]
"""Known values: the right-hand side of an equation → the symbol that holds it."""


def _pieces(kind: Any, expressions: tuple[Expr, ...]) -> list[Expr]:
    """The arguments of nested sums (or products) as one flat list."""
    flat: list[Expr] = []
    for expression in map(sp.sympify, expressions):
        flat += _pieces(kind, expression.args) if isinstance(expression, kind) else [expression]
    return flat


def split_sign(expression: Expr) -> tuple[bool, Expr]:
    """(is negative, the expression without its sign)."""
    if expression.is_Number:
        return bool(expression < 0), abs(expression)
    if expression.is_Mul and expression.args[0].is_Number and expression.args[0] < 0:
        return True, times(-expression.args[0], *expression.args[1:])
    return False, expression


def plus(*terms: Expr) -> Expr:
    """The sum in the order given: like terms merged, zeros dropped, negative terms last."""
    counts: dict[Expr, Expr] = {}
    for term in _pieces(sp.Add, terms):
        number, rest = _coefficient(term)
        counts[rest] = counts.get(rest, sp.S.Zero) + number
    kept = [times(number, rest) for rest, number in counts.items() if number != 0]
    kept.sort(key=lambda term: split_sign(term)[0])
    if len(kept) < 2:
        return kept[0] if kept else sp.S.Zero
    return sp.Add(*kept, evaluate=False)


def _coefficient(term: Expr) -> tuple[Expr, Expr]:
    """A term as (number, the rest)."""
    if term.is_Number:
        return term, sp.S.One
    if term.is_Mul and term.args[0].is_Number:
        return term.args[0], times(*term.args[1:])
    return sp.S.One, term


def times(*factors: Expr) -> Expr:
    """The product in the order given: one number first, ones dropped, quotients last."""
    pieces = _pieces(sp.Mul, factors)
    number = sp.Mul(*[piece for piece in pieces if piece.is_Number])
    rest = [piece for piece in pieces if not piece.is_Number]
    rest.sort(key=lambda piece: bool(piece.is_Pow and split_sign(piece.exp)[0]))
    if number == 0:
        return sp.S.Zero
    kept = ([] if number == 1 else [number]) + _merge_powers(rest)
    if len(kept) < 2:
        return kept[0] if kept else sp.S.One
    return sp.Mul(*kept, evaluate=False)


def _merge_powers(factors: list[Expr]) -> list[Expr]:
    """a·b·a becomes a²·b; the place of the first factor is kept."""
    exponents: dict[Expr, Expr] = {}
    for factor in factors:
        base, exponent = (factor.base, factor.exp) if factor.is_Pow else (factor, sp.S.One)
        exponents[base] = exponents.get(base, sp.S.Zero) + exponent
    return [power(base, exponent) for base, exponent in exponents.items() if exponent != 0]


def power(base: Expr, exponent: Expr) -> Expr:
    """base**exponent, unevaluated unless it is trivial."""
    if exponent == 0 or base == 1:
        return sp.S.One
    return base if exponent == 1 else sp.Pow(base, exponent, evaluate=False)


def rebuild(expression: Expr, values: Values | None = None) -> Expr:
    """The expression in house order, known values replaced by the symbols that hold them."""
    if values and expression in values:
        return values[expression]
    if not expression.args:
        return expression
    arguments = [rebuild(argument, values) for argument in expression.args]
    makers = {sp.Add: plus, sp.Mul: times, sp.Pow: power}
    make = makers.get(expression.func, expression.func)
    return make(*arguments)


def differentiate(expression: Expr, symbol: Expr, values: Values) -> Expr:
    """∂expression/∂symbol with every other symbol held, in terms of known values."""
    if not expression.has(symbol):
        return sp.S.Zero
    if expression == symbol:
        return sp.S.One
    args = expression.args
    if expression.is_Add:
        return plus(*(differentiate(term, symbol, values) for term in args))
    if expression.is_Mul:
        return plus(
            *(
                times(differentiate(factor, symbol, values), *args[:k], *args[k + 1 :])
                for k, factor in enumerate(args)
            )
        )
    if expression.is_Pow:
        outer = times(args[1], power(args[0], args[1] - 1))
        return times(outer, differentiate(args[0], symbol, values))
    return plus(
        *(
            times(_outer(expression, k, values), differentiate(argument, symbol, values))
            for k, argument in enumerate(args)
        )
    )


def _outer(function: Elementwise, position: int, values: Values) -> Expr:
    """The derivative of a nonlinearity by value, its value named where an equation holds it."""
    return rebuild(function.derivative(position, values.get(function, function)), values)


def looks_over_features(expression: Expr, symbol: Expr | None = None) -> bool:
    """Whether `expression` (where it depends on `symbol`) holds a function over the features."""
    nodes = expression.atoms(OverFeatures)
    return any(symbol is None or node.has(symbol) for node in nodes)


def pull(expression: Expr, symbol: Expr, adjoint: Expr, values: Values) -> Expr:
    """What `expression` adds to the adjoint of `symbol`, given its own adjoint (reverse mode)."""
    if not expression.has(symbol):
        return sp.S.Zero
    if not looks_over_features(expression, symbol):
        return times(adjoint, differentiate(expression, symbol, values))
    if isinstance(expression, OverFeatures):
        value = values.get(expression, expression)
        inner = rebuild(expression.pull(adjoint, value), values)
        return pull(expression.args[0], symbol, inner, values)
    return plus(
        *(
            pull(argument, symbol, times(adjoint, local), values)
            for argument, local in _local_derivatives(expression, values)
        )
    )


def push(expression: Expr, tangents: Mapping[Expr, Expr], values: Values) -> Expr:
    """The tangent of `expression`, given the tangents of its symbols (forward mode)."""
    moving = [symbol for symbol in tangents if expression.has(symbol)]
    if not moving:
        return sp.S.Zero
    if not looks_over_features(expression):
        return plus(
            *(
                times(differentiate(expression, s, values), tangents[s])
                for s in sorted_names(moving)
            )
        )
    if isinstance(expression, OverFeatures):
        inner = push(expression.args[0], tangents, values)
        return rebuild(expression.push(inner, values.get(expression, expression)), values)
    return plus(
        *(
            times(local, push(argument, tangents, values))
            for argument, local in _local_derivatives(expression, values)
        )
    )


def _local_derivatives(expression: Expr, values: Values) -> list[tuple[Expr, Expr]]:
    """Each argument of a sum, product, power or nonlinearity with the derivative by it."""
    args = expression.args
    if expression.is_Add:
        return [(term, sp.S.One) for term in args]
    if expression.is_Mul:
        return [(factor, times(*args[:k], *args[k + 1 :])) for k, factor in enumerate(args)]
    if expression.is_Pow:
        return [(args[0], times(args[1], power(args[0], args[1] - 1)))]
    return [(argument, _outer(expression, k, values)) for k, argument in enumerate(args)]


def is_even(expression: Expr, even: Collection[Expr]) -> bool:
    """Whether a value is the same for every feature, where the symbols `even` are."""
    if not expression.args:
        return bool(expression.is_Number or expression in even)
    if isinstance(expression, OverFeatures):
        return expression.func.__name__ in ("mean", "total", "rstd")
    return all(is_even(argument, even) for argument in expression.args)


def packed(expression: Expr) -> Any:
    """The expression as nested tuples, for pickle: SymPy's own way sorts the terms again."""
    if not expression.args:
        return expression
    return (expression.func, *map(packed, expression.args))


def unpacked(data: Any) -> Expr:
    """The expression that was `packed`, in the same order."""
    if not isinstance(data, tuple):
        return data
    make, *arguments = data
    unevaluated = {"evaluate": False} if make in (sp.Add, sp.Mul, sp.Pow) else {}
    return make(*map(unpacked, arguments), **unevaluated)


def sorted_names(symbols: object) -> list[Expr]:
    """Symbols in the order of their names, so that nothing depends on hash order."""
    return sorted(symbols, key=str)  # type: ignore[call-overload, no-any-return]
