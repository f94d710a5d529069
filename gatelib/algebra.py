"""Sums and products that keep the author's order, and derivatives built from them.

Imports SymPy, gatelib.functions and gatelib.constants.
Must not import any other floor of gatelib.

SymPy sorts every sum and product. A reader wants `f*c_prev + i*g` to stay as written, so the
expressions here are unevaluated, flat, and built by two functions, `plus` and `times`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sympy as sp

from gatelib.constants import (
    NoNumber,
    as_number,
    checked,
    fraction,
    is_decimal,
    is_number_below,
    number_to,
)
from gatelib.functions import HALF, Elementwise, Expr, OverFeatures, exact

Values = Mapping[Expr, Expr]
"""Known values: the right-hand side of an equation → the symbol that holds it."""

Equation = tuple[Expr, Expr]
"""A name and the expression that it stands for."""

LARGEST_EXPONENT = 10_000
"""Of a power; x**10000 is 0 or infinite in float64 unless |x| is within 0.1 of 1."""


def symbol(name: object) -> Expr:
    """The real symbol of that name."""
    return sp.Symbol(str(name), real=True)


VALUE, MOVED, *ARGUMENTS = (symbol(f"{letter}__") for letter in "ydxz")
"""What a rule of derivation is written in: names that no gate has."""


# ---- sums, products, powers ------------------------------------------------------------------


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
        return True, _scaled(-expression.args[0], expression.args[1:])
    return False, expression


def _scaled(number: Expr, factors: tuple[Expr, ...]) -> Expr:
    """The product of another number in front and the factors behind the first."""
    kept = factors if number == 1 else (number, *factors)
    return kept[0] if len(kept) == 1 else sp.Mul(*kept, evaluate=False)


def is_quotient(expression: Expr) -> bool:
    """Whether a factor stands below the line: a power with a negative exponent."""
    return bool(expression.is_Pow and expression.exp.is_negative)


def plus(*terms: Expr) -> Expr:
    """The sum in the order given: like terms merged, zeros dropped, negative terms last."""
    counts: dict[Expr, Expr] = {}
    written: dict[Expr, Expr] = {}  # the only term of its kind stays as it is: 1/4 or 0.25
    for term in _pieces(sp.Add, terms):
        number, rest = _coefficient(term)
        if number != 0:
            merged = rest in counts
            counts[rest] = counts.get(rest, sp.S.Zero) + number
            written[rest] = times(counts[rest], rest) if merged else term
    kept = [written[rest] for rest, number in counts.items() if number != 0]
    if any(term.is_Add for term in kept):  # 2(a + b) - (a + b)
        return plus(*kept)
    kept.sort(key=lambda term: split_sign(term)[0])
    if len(kept) < 2:
        return kept[0] if kept else sp.S.Zero
    return sp.Add(*kept, evaluate=False)


def _coefficient(term: Expr) -> tuple[Expr, Expr]:
    """A term as (number, the rest)."""
    number = as_number(term)
    if number is not None:
        return number, sp.S.One
    if term.is_Mul and term.args[0].is_Number:
        return term.args[0], _scaled(sp.S.One, term.args[1:])
    return sp.S.One, term


def times(*factors: Expr) -> Expr:
    """The product in the order given: one number first, ones dropped, quotients last.

    A number below the line stays there: x/4 isn't 0.25·x, and 3/4·x is 3·x/4.
    """
    pieces = _pieces(sp.Mul, factors)
    number = sp.Mul(*(piece for piece in pieces if piece.is_Number))
    below = sp.Mul(*(piece.base for piece in pieces if is_number_below(piece)))
    rest = [piece for piece in pieces if not (piece.is_Number or is_number_below(piece))]
    rest = _merge_powers(rest)
    if any(as_number(piece) is not None or piece.is_Mul for piece in rest):  # 2**0.5 * 2**0.5
        return times(number, sp.Pow(below, -1, evaluate=False), *rest)
    if number == 0:
        return sp.S.Zero
    number, below = _over(number, below)
    kept = [] if number == 1 else [checked(number)]
    kept += [piece for piece in rest if not is_quotient(piece)]
    kept += [] if below == 1 else [sp.Pow(checked(below), -1, evaluate=False)]
    kept += [piece for piece in rest if is_quotient(piece)]
    if len(kept) < 2:
        return kept[0] if kept else sp.S.One
    return sp.Mul(*kept, evaluate=False)


def _over(number: Expr, below: Expr) -> tuple[Expr, Expr]:
    """A decimal number, and a positive decimal below the line."""
    if not is_decimal(number):
        number, below = sp.Integer(number.p), below * number.q
    return (number, below) if below > 0 else (-number, -below)


def _merge_powers(factors: list[Expr]) -> list[Expr]:
    """a·b·a becomes a²·b; the place of the first factor is kept."""
    exponents: dict[Expr, Expr] = {}
    for factor in factors:
        base, exponent = (factor.base, factor.exp) if factor.is_Pow else (factor, sp.S.One)
        exponents[base] = exponents.get(base, sp.S.Zero) + exponent
    return [power(base, exponent) for base, exponent in exponents.items() if exponent != 0]


def power(base: Expr, exponent: Expr) -> Expr:
    """base**exponent, unevaluated unless it is trivial.

    1/b**2 is b**-2, (-b)**2 is b**2, and a whole power of a number is a number. Raises NoNumber for
    a division by 0, a root of a negative number, a huge exponent.
    """
    if exponent == 0 or base == 1:
        return sp.S.One
    if exponent == 1:
        return base
    if abs(exponent) > LARGEST_EXPONENT:
        raise NoNumber(f"the exponent is too large: expected at most {LARGEST_EXPONENT}")
    number = as_number(base)
    if number is not None:
        return _power_of_number(base, number, exponent)
    if exponent == -1 and base.is_Pow and base.exp.is_positive:
        return power(base.base, -base.exp)
    negative, size = split_sign(base)
    if negative and exponent.is_Integer:
        return times(sp.S.NegativeOne**exponent, power(size, exponent))
    return sp.Pow(base, checked(exponent), evaluate=False)


def _power_of_number(base: Expr, number: Expr, exponent: Expr) -> Expr:
    if exponent == -1 and number > 0 and is_decimal(number):
        return sp.Pow(number, -1, evaluate=False)
    if exponent.is_Integer or number == 0:
        return number_to(number, exponent)
    if number < 0:
        raise NoNumber(f"`({number})**{exponent}` is not real")
    return sp.Pow(base, checked(exponent), evaluate=False)


def apply(function: Any, *arguments: Expr) -> Expr:
    """A function of a gate; a mean of a number, which is the same for every feature, is folded."""
    if issubclass(function, OverFeatures) and arguments[0].is_number:
        same = {"mean": arguments[0], "normalize": sp.S.Zero}
        same["rstd"] = power(sp.Rational(1, 100000), -HALF)
        return same.get(function.__name__, function(*arguments))
    return function(*arguments)


def rebuild(expression: Expr, values: Values | None = None) -> Expr:
    """The expression in house order, known values replaced by the symbols that hold them."""
    if values and expression in values:
        return values[expression]
    if expression.is_Rational:
        return fraction(expression)
    if not expression.args:
        return expression
    if expression.is_Pow:
        return power(rebuild(expression.base, values), expression.exp)
    return _made(expression, [rebuild(argument, values) for argument in expression.args])


def _made(like: Expr, arguments: list[Expr]) -> Expr:
    """A sum, a product or a function of other arguments."""
    if like.is_Add or like.is_Mul:
        return (plus if like.is_Add else times)(*arguments)
    return apply(like.func, *arguments)


def folded(expression: Expr) -> Expr:
    """The expression with nonlinearities of numbers evaluated where they are rational: tanh(0)."""
    if not expression.args:
        return expression
    if expression.is_Pow:
        return power(folded(expression.base), expression.exp)
    arguments = [folded(argument) for argument in expression.args]
    if isinstance(expression, Elementwise) and all(as_number(a) is not None for a in arguments):
        value = exact(expression.func(*arguments))
        if value.is_Rational:
            return fraction(value)
    return _made(expression, arguments)


def house_form(expression: Expr) -> Expr:
    """An expression made by hand as the parser would have made it.

    Raises TypeError for what no gate holds: SymPy's own functions, a power with a name above.
    """
    if expression.is_Symbol:
        return symbol(expression)
    if expression.is_Float:
        return fraction(sp.Rational(repr(float(expression))))
    if expression.is_Rational:
        return fraction(expression)
    if expression.is_Pow and expression.exp.is_Rational:
        return power(house_form(expression.base), expression.exp)
    if expression.is_Add or expression.is_Mul or isinstance(expression, Elementwise | OverFeatures):
        return _made(expression, [house_form(argument) for argument in expression.args])
    raise TypeError(f"`{expression}` is not an expression that a gate may use")


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
    given = dict(zip(ARGUMENTS, function.args, strict=False))
    rule = function.func(*given).derivative(position, VALUE)
    return _by_rule(rule, given | {VALUE: values.get(function, function)}, values)


def _by_rule(rule: Expr, given: dict[Expr, Expr], values: Values) -> Expr:
    """A rule of derivation with a gate's expressions in its places.

    SymPy may put them in, and sort; but it turns (x²)^½ into |x|, which no function here computes.
    """
    roots = (p for e in given.values() for p in e.atoms(sp.Pow) if not p.exp.is_Integer)
    filled = rule.xreplace(given) if next(roots, None) is None else rebuild(rule, given)
    return rebuild(filled, values)


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
        inner = _through(expression, adjoint, values, "pull")
        return pull(expression.args[0], symbol, inner, values)
    return plus(
        *(
            pull(argument, symbol, times(adjoint, local), values)
            for argument, local in _local_derivatives(expression, values)
        )
    )


def _through(function: OverFeatures, moved: Expr, values: Values, way: str) -> Expr:
    """An adjoint pulled back, or a tangent pushed forward, by the function's own rule.

    The rules are linear: 0 stays 0, and no line says total(0).
    """
    if moved == 0:
        return sp.S.Zero
    rule = getattr(function.func(ARGUMENTS[0]), way)(MOVED, VALUE)
    given = {ARGUMENTS[0]: function.args[0], MOVED: moved, VALUE: values.get(function, function)}
    return _by_rule(rule, given, values)


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
        return _through(expression, inner, values, "push")
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
