"""Expressions as text: every piece carries how tightly it binds, and so gets its brackets.

Imports SymPy, gatelib.functions, gatelib.constants and gatelib.algebra.
Must not import any other floor of gatelib: it knows no Spec.

Here is the printer of code that all languages share, and the house's own text, which a gate reads
again without loss. `_wrapped` alone puts brackets round a piece.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import sympy as sp

from gatelib.algebra import is_quotient, rebuild, split_sign
from gatelib.constants import is_decimal
from gatelib.functions import Expr, OverFeatures

Forms = Mapping[str, str]
"""Function name → its form in a language, `{0}` for the first argument."""

STANDS_ALONE = re.compile(r"[\w.]+\(\{0\}(, [^{}]*)?(, \{1\})?\)")
"""A form whose arguments stand between brackets and commas, so that they need none of their own."""

SUM, PRODUCT, UNARY, POWER, ATOM = range(5)
"""How tightly a piece of code binds, as Python has it."""

LARGEST_INTEGER = 2**53
"""From here on a whole number is written as a float: torch's integers end, JavaScript's round."""


class Gate(Protocol):
    """What is written: a Spec, of which only this is asked."""

    @property
    def name(self) -> str: ...
    @property
    def equations(self) -> tuple[tuple[Expr, Expr], ...]: ...
    @property
    def inputs(self) -> tuple[Expr, ...]: ...
    @property
    def outputs(self) -> tuple[Expr, ...]: ...


class Piece(NamedTuple):
    """Code, and how tightly it binds."""

    text: str
    binds: int


class UnprintableError(ValueError):
    """A language has no form for a function that the gate uses."""


class CodePrinter:
    """Expressions as code, with the author's order and no needless brackets.

    `forms` are the functions of the language; a form that stands for a sum or a product is wrapped
    like one. Names in `renamed`, which the language keeps for itself, get a `_`, which no gate's
    name ends with. `constants` are the values that no input reaches, as far as they were printed:
    functions of arrays don't take them.
    """

    times, over = " * ", " / "

    def __init__(self, language: str, forms: Forms, renamed: frozenset[str] = frozenset()) -> None:
        self.language, self.forms, self.renamed = language, forms, renamed
        self.constants: dict[Expr, Expr] = {}

    def line(self, v: Expr, e: Expr) -> tuple[str, str]:
        """The two sides of one equation; those of a gate must come in their order."""
        sides = self(v), self(e)
        if self._is_constant(e):
            self.constants[v] = rebuild(e, self.constants)
        return sides

    def _is_constant(self, e: Expr) -> bool:
        return bool(e.free_symbols <= self.constants.keys())

    def __call__(self, e: Expr) -> str:
        return self._print(e).text

    def name(self, v: object) -> str:
        """A gate's name as the language takes it."""
        return f"{v}_" if str(v) in self.renamed else str(v)

    def _print(self, e: Expr) -> Piece:
        if e.is_Symbol:
            return Piece(self.name(e), ATOM)
        if e.is_Number:
            return self._number(e)
        if e.is_Add:
            return Piece(self._sum(e), SUM)
        if e.is_Mul or e.is_Pow:
            return self._product(e)
        return self._call(e)

    def _wrapped(self, e: Expr, at_least: int) -> str:
        """The one place that puts brackets round a piece."""
        return self._around(self._print(e), at_least)

    def _around(self, piece: Piece, at_least: int) -> str:
        return piece.text if piece.binds >= at_least else f"({piece.text})"

    def _number(self, number: Expr) -> Piece:
        whole = number.is_Integer and abs(number) <= LARGEST_INTEGER
        text = str(number) if whole else repr(float(number))
        return Piece(text, UNARY if number < 0 else ATOM)

    def _sum(self, e: Expr) -> str:
        text = ""
        for term in e.args:
            negative, size = split_sign(term)
            join = " - " if negative else " + "
            text += (join if text else "-" if negative else "") + self._wrapped(size, PRODUCT)
        return text

    def _product(self, e: Expr) -> Piece:
        negative, size = split_sign(e)
        factors = size.args if size.is_Mul else (size,)
        over = [p for f in factors if not is_quotient(f) for p in self._factors(f)]
        under = [p for f in factors if is_quotient(f) for p in self._factors(f)]
        found = over[0] if len(over) == 1 else Piece("1", ATOM)
        if len(over) > 1 or under:
            code = self.times.join(self._around(p, UNARY) for p in over) or "1"
            code += "".join(self.over + self._around(p, POWER) for p in under)
            found = Piece(code, PRODUCT)
        if not negative:
            return found
        return Piece(
            "-" + self._around(found, PRODUCT), PRODUCT if found.binds == PRODUCT else UNARY
        )

    def _factors(self, factor: Expr) -> list[Piece]:
        """A factor, or what stands below the line for it."""
        if factor.is_Pow and abs(factor.exp) != 1:
            return self._powers(factor.base, abs(factor.exp))
        return [self._print(factor.base if factor.is_Pow else factor)]

    def _powers(self, base: Expr, exponent: Expr) -> list[Piece]:
        """Small whole powers as repeated factors, which every language multiplies exactly."""
        if exponent.is_Integer and exponent <= 4:
            return [self._print(base)] * int(exponent)
        return [self._raised(self._wrapped(base, ATOM), self(exponent))]

    def _raised(self, base: str, exponent: str) -> Piece:
        return Piece(f"{base}**{exponent}", POWER)

    def _call(self, e: Expr) -> Piece:
        form = self.forms.get(e.func.__name__)
        if form is None:
            raise UnprintableError(f"{e.func.__name__} has no form in {self.language}")
        if isinstance(e, OverFeatures) and self._is_constant(e):
            return self._print(rebuild(e, self.constants))
        arguments = [self(argument) for argument in e.args]
        if not STANDS_ALONE.fullmatch(form):
            arguments = [a if a.isidentifier() else f"({a})" for a in arguments]
        return Piece(form.format(*arguments), binds(form))


@functools.cache
def binds(form: str) -> int:
    """How tightly a form binds: as the loosest operator that stands outside of its brackets."""
    outside, before = re.sub(r"\{\d\}", "x", form), ""
    while outside != before:
        before, outside = outside, re.sub(r"\([^()]*\)", "", outside)
    for operator, level in ((" + ", SUM), (" - ", SUM), (" * ", PRODUCT), (" / ", PRODUCT)):
        if operator in outside:
            return level
    return POWER if "**" in outside else UNARY if outside.startswith("-") else ATOM


class TextPrinter(CodePrinter):
    """An expression as `Spec.read` reads it again, without loss."""

    times, over = "*", "/"

    def __init__(self) -> None:
        super().__init__("text", {})

    def _number(self, number: Expr) -> Piece:
        if not is_decimal(number):  # an exponent
            return Piece(f"{number.p}/{number.q}", PRODUCT)
        return Piece(decimal(number), UNARY if number < 0 else ATOM)

    def _powers(self, base: Expr, exponent: Expr) -> list[Piece]:
        return [self._raised(self._wrapped(base, ATOM), self._wrapped(exponent, ATOM))]

    def _call(self, e: Expr) -> Piece:
        return Piece(f"{e.func.__name__}({', '.join(map(self, e.args))})", ATOM)


def decimal(number: Expr) -> str:
    """A number's digits, all of them."""
    if number.is_Integer and abs(number) < LARGEST_INTEGER:
        return str(number)
    short = repr(float(number))
    if sp.Rational(short) == number:
        return short
    digits = 0
    while number.q != 1:
        number, digits = number * 10, digits + 1
    return f"{number}e-{digits}" if digits else str(number)


text = TextPrinter()
"""The house's printer: `text(expression)`."""
