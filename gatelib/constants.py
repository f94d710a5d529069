"""The numbers of a gate: exact, as an author writes them, finite and real.

Imports SymPy and gatelib.functions.
Must not import any other floor of gatelib.
"""

from __future__ import annotations

import math

import sympy as sp

from gatelib.functions import Expr, OverFeatures, exact

MOST_BITS = 4096
"""Numbers stay exact, and so they may grow; longer ones are refused."""


class NoNumber(ArithmeticError):
    """An expression has no finite real value: a division by 0, a root of a negative number, …"""


def checked(number: Expr) -> Expr:
    """The number itself, where float64 can hold it and it isn't too long to be exact."""
    try:
        size = abs(float(number))
    except OverflowError:
        size = math.inf
    if math.isinf(size) or (size == 0 and number != 0):
        raise NoNumber(f"a number is out of float64's range: it is too {_extreme(number)}")
    if max(int(number.p).bit_length(), int(number.q).bit_length()) > MOST_BITS:
        raise NoNumber(f"a number is too long to be exact: more than {MOST_BITS} bits")
    return number


def _extreme(number: Expr) -> str:
    return "large" if abs(number.p) > number.q else "small"


def is_decimal(number: Expr) -> bool:
    """Whether digits after a point can write the number, so that it needs no fraction."""
    rest = int(number.q)
    rest >>= (rest & -rest).bit_length() - 1
    while rest % 5 == 0:
        rest //= 5
    return rest == 1


def fraction(number: Expr) -> Expr:
    """A number in house form: decimal, or one number over another as an author writes it (2/3)."""
    if is_decimal(number):
        return checked(number)
    below = sp.Pow(checked(sp.Integer(number.q)), -1, evaluate=False)
    if number.p == 1:
        return below
    return sp.Mul(checked(sp.Integer(number.p)), below, evaluate=False)


def as_number(expression: Expr) -> Expr | None:
    """The number that an expression writes, 2/3 included; None if it is none."""
    if expression.is_Number:
        return expression
    if is_number_below(expression):
        return 1 / expression.base
    if expression.is_Mul and len(expression.args) == 2:
        above, below = expression.args
        if above.is_Number and is_number_below(below):
            return above / below.base
    return None


def is_number_below(factor: Expr) -> bool:
    return bool(factor.is_Pow and factor.exp == -1 and factor.base.is_Number)


def number_to(base: Expr, exponent: Expr) -> Expr:
    """A number to a whole power, exactly."""
    if base == 0 and exponent < 0:
        raise NoNumber("it divides by 0")
    longer = max(int(base.p).bit_length(), int(base.q).bit_length())
    if base not in (0, 1, -1) and longer * abs(exponent) > 16 * MOST_BITS:
        raise NoNumber("a power of a number is out of float64's range: it is too large or small")
    return fraction(base**exponent)


def constant(expression: Expr) -> float | None:
    """The value of an expression without names; None where it has names.

    Raises NoNumber where the value is infinite or complex, here or inside of the expression.
    """
    if expression.is_Symbol:
        return None
    if expression.is_Number:
        return float(expression)
    values = [constant(argument) for argument in expression.args]
    if expression.is_Pow and values[0] == 0 and expression.exp < 0:
        raise NoNumber("it divides by 0")
    if None in values or isinstance(expression, OverFeatures):
        return None
    return evaluated(expression)


def evaluated(expression: Expr) -> float:
    """The float of an expression without names. Raises NoNumber if it is infinite or complex."""
    value = exact(expression).evalf(17)
    if value.is_finite and not value.is_real:
        raise NoNumber(f"`{_shown(expression)}` is not real")
    try:
        found = float(value)
    except (TypeError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise NoNumber(f"`{_shown(expression)}` is not finite: {_reason(expression)}")
    return found


def _shown(expression: Expr) -> str:
    text = str(expression)
    return text if len(text) < 60 else f"{text[:57]}..."


def _reason(expression: Expr) -> str:
    if expression.func.__name__ == "log":
        return "it takes the logarithm of 0"
    return "it is infinite, or too large for float64"
