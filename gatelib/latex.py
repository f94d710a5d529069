"""Sets a gate's equations in LaTeX as a textbook would, in the author's order.

Imports gatelib.functions, gatelib.constants, gatelib.algebra and gatelib.pieces.
Must not import any other floor of gatelib: it knows no Spec.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gatelib.algebra import is_quotient, power, split_sign
from gatelib.constants import is_decimal
from gatelib.functions import Expr
from gatelib.pieces import ATOM, PRODUCT, SUM, UNARY, Piece, decimal

GREEK = frozenset(
    "alpha beta gamma delta epsilon eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi "
    "omega Delta Gamma Lambda Omega Phi Psi Sigma Theta".split()
)
ACCENTS = {"d": r"\bar{%s}", "t": r"\dot{%s}"}
"""What derivation made: adjoints (`d_c`) carry a bar, tangents (`t_c`) a dot; a seed is a nabla."""


class Names:
    """LaTeX for each symbol of a Spec: subscripts for steps, superscripts for parts.

    In a Spec with carries every value belongs to a step: `c` is c_t and `c_prev` is c_{t−1}. Its
    learned vectors (`w_f`) belong to none. Bars, dots and nablas stand on the names that a
    derivation made, `spec.roles`. `overrides` maps a name to its own LaTeX.
    """

    def __init__(self, spec: Any, overrides: dict[str, str]) -> None:
        self.overrides = overrides
        self.made = {str(v): str(of) for v, of in spec.roles}
        names = [str(v) for v in (*spec.inputs, *dict(spec.equations))]
        self.has_steps = any(name.endswith("_prev") for name in names)

    def __call__(self, symbol: Expr) -> str:
        return self.tex(str(symbol))

    def tex(self, name: str, accent: str = "%s") -> str:
        if name in self.overrides:
            return accent % self.overrides[name]
        if name in self.made:
            of = self.made[name]
            letters = name.removesuffix(f"_{of}")
            if letters[0] == "g":
                return accent % rf"\nabla_{{\!{self.tex(of)}}}"
            return self.tex(of, accent % _nested(ACCENTS[letters[0]], len(letters)))
        first, _, rest = name.partition("_")
        step = self._step(name)
        part = _subscript(rest.removesuffix("prev").rstrip("_"))
        letter = accent % self._letter(first)
        if part and step:
            return f"{letter}^{{{part}}}_{{{step}}}"
        index = step or part
        return f"{letter}_{{{index}}}" if index else letter

    @staticmethod
    def _letter(name: str) -> str:
        if name in GREEK:
            return f"\\{name}"
        return name if len(name) == 1 else rf"\mathrm{{{name}}}"

    def _step(self, name: str) -> str:
        if not self.has_steps or is_learned(name):
            return ""
        return "t-1" if name.endswith("_prev") else "t"


def _nested(accent: str, depth: int) -> str:
    return accent if depth == 1 else accent % _nested(accent, depth - 1)


def _subscript(part: str) -> str:
    """b_c_d under each other: b with an index that is c with the index d."""
    first, _, rest = part.partition("_")
    if "_" not in rest:
        return part
    return f"{first}_{{{_subscript(rest)}}}"


def is_learned(name: str) -> bool:
    """Whether a name is that of a learned vector by the house's convention: w_, s_ or b_."""
    return name.partition("_")[0] in {"w", "s", "b"} and "_" in name and not name.endswith("_prev")


def aligned(equations: Iterable[tuple[Expr, Expr]], names: Names) -> str:
    """The equations as one `aligned` block."""
    lines = [f"{names(v)} &= {expression(e, names)}" for v, e in equations]
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def expression(e: Expr, names: Names) -> str:
    """One expression."""
    return _piece(e, names).text


def _piece(e: Expr, names: Names) -> Piece:
    """The LaTeX of an expression, and how tightly it binds."""
    if e.is_Symbol:
        return Piece(names(e), ATOM)
    if e.is_Number:
        return _number(e)
    if e.is_Add:
        return Piece(_sum(e, names), SUM)
    if e.is_Mul:
        return _product(e, names)
    if e.is_Pow:
        return _power(e, names)
    arguments = ", ".join(expression(argument, names) for argument in e.args)
    if e.func.__name__ == "sqrt":
        return Piece(rf"\sqrt{{{arguments}}}", ATOM)
    if all(argument.is_Symbol for argument in e.args):  # brackets of one size, line after line
        return Piece(rf"{e.func.tex}({arguments})", ATOM)
    return Piece(rf"{e.func.tex}\!\left({arguments}\right)", ATOM)


def _wrapped(piece: Piece, at_least: int, brackets: str = r"\left(%s\right)") -> str:
    """The one place that puts brackets round a piece."""
    return piece.text if piece.binds >= at_least else brackets % piece.text


def _number(number: Expr) -> Piece:
    if not is_decimal(number):
        return Piece(rf"\tfrac{{{number.p}}}{{{number.q}}}", UNARY if number < 0 else ATOM)
    digits, _, exponent = decimal(number).partition("e")
    if not exponent:
        return Piece(digits, UNARY if number < 0 else ATOM)
    ten = rf"10^{{{int(exponent)}}}"
    if digits in ("1", "-1"):
        return Piece(digits.removesuffix("1") + ten, UNARY)
    return Piece(rf"{digits} \cdot {ten}", PRODUCT)


def _sum(e: Expr, names: Names) -> str:
    text = ""
    for term in e.args:
        negative, size = split_sign(term)
        join = " - " if negative else " + "
        text += join if text else "-" if negative else ""
        text += _wrapped(_piece(size, names), PRODUCT)
    return text


def _product(e: Expr, names: Names) -> Piece:
    negative, size = split_sign(e)
    if negative:
        return Piece("-" + _wrapped(_piece(size, names), PRODUCT), UNARY)
    over = [f for f in size.args if not is_quotient(f)]
    under = [power(f.base, -f.exp) for f in size.args if is_quotient(f)]
    if not under:
        return _factors(over, names)
    top = _factors(over, names).text if over else "1"
    return Piece(rf"\frac{{{top}}}{{{_factors(under, names).text}}}", PRODUCT)


def _factors(factors: list[Expr], names: Names) -> Piece:
    """Factors joined by ⊙, a number in front by a thin space; alone, a sum needs no brackets."""
    if len(factors) == 1:
        return _piece(factors[0], names)
    numbers = [_wrapped(_piece(f, names), PRODUCT) for f in factors if f.is_Number]
    others = [_wrapped(_piece(f, names), PRODUCT) for f in factors if not f.is_Number]
    text = r" \odot ".join(others)
    join = r" \cdot " if text[:1].isdigit() else r"\,"
    return Piece(join.join([*numbers, text]), PRODUCT)


def _power(e: Expr, names: Names) -> Piece:
    if is_quotient(e):
        return Piece(rf"\frac{{1}}{{{expression(power(e.base, -e.exp), names)}}}", PRODUCT)
    if e.exp.q == 2 and e.exp.p == 1:
        return Piece(rf"\sqrt{{{expression(e.base, names)}}}", ATOM)
    base = expression(e.base, names)
    bare = e.base.is_Symbol and "^" not in base
    return Piece(f"{base if bare else rf'({base})'}^{{{expression(e.exp, names)}}}", UNARY)
