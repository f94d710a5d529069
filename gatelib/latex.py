"""Sets a gate's equations in LaTeX as a textbook would, in the author's order.

Imports SymPy, gatelib.functions and gatelib.algebra.
Must not import any other floor of gatelib.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gatelib.algebra import split_sign
from gatelib.functions import Expr

if TYPE_CHECKING:
    from gatelib.spec import Spec

GREEK = frozenset(
    "alpha beta gamma delta epsilon eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi "
    "omega Delta Gamma Lambda Omega Phi Psi Sigma Theta".split()
)
ACCENTS = {"d": r"\bar{%s}", "t": r"\dot{%s}"}
"""Adjoints (`d_c`) carry a bar, tangents (`t_c`) a dot; a seed (`g_c`) is a nabla."""


class Names:
    """LaTeX for each symbol of a Spec: subscripts for steps, superscripts for parts.

    In a Spec with carries every value belongs to a step: `c` is c_t and `c_prev` is c_{t−1}. Its
    learned vectors (`w_f`) belong to none. `overrides` maps a name to its own LaTeX.
    """

    def __init__(self, spec: Spec, overrides: dict[str, str]) -> None:
        self.overrides = overrides
        names = [str(v) for v in (*spec.inputs, *dict(spec.equations))]
        self.has_steps = any(name.endswith("_prev") for name in names)

    def __call__(self, symbol: Expr) -> str:
        return self.tex(str(symbol))

    def tex(self, name: str, accent: str = "%s") -> str:
        if name in self.overrides:
            return accent % self.overrides[name]
        first, _, rest = name.partition("_")
        if first[:1] in ACCENTS and set(first) <= set(first[:1]) and rest:
            return self.tex(rest, accent % _nested(ACCENTS[first[0]], len(first)))
        if set(first) == {"g"} and rest:
            return accent % rf"\nabla_{{\!{self.tex(rest)}}}"
        step = self._step(name)
        part = rest.removesuffix("prev").rstrip("_")
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


def is_learned(name: str) -> bool:
    """Whether a name is that of a learned vector by the house's convention: w_, s_ or b_."""
    return name.partition("_")[0] in {"w", "s", "b"} and "_" in name and not name.endswith("_prev")


def aligned(equations: Iterable[tuple[Expr, Expr]], names: Names) -> str:
    """The equations as one `aligned` block."""
    lines = [f"{names(v)} &= {expression(e, names)}" for v, e in equations]
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def expression(e: Expr, names: Names) -> str:
    """One expression."""
    if e.is_Symbol:
        return names(e)
    if e.is_Number:
        return _number(e)
    if e.is_Add:
        return _sum(e, names)
    if e.is_Mul:
        return _product(e, names)
    if e.is_Pow:
        return _power(e, names)
    arguments = ", ".join(expression(argument, names) for argument in e.args)
    if e.func.__name__ == "sqrt":
        return rf"\sqrt{{{arguments}}}"
    if all(argument.is_Symbol for argument in e.args):  # brackets of one size, line after line
        return rf"{e.func.tex}({arguments})"
    return rf"{e.func.tex}\!\left({arguments}\right)"


def _number(number: Expr) -> str:
    if number.is_Integer:
        return str(number)
    if number.is_Rational and set(_prime_factors(number.q)) <= {2, 5}:
        return repr(float(number))
    return rf"\tfrac{{{number.p}}}{{{number.q}}}"


def _prime_factors(number: int) -> list[int]:
    import sympy

    return list(sympy.factorint(int(number)))


def _sum(e: Expr, names: Names) -> str:
    text = ""
    for term in e.args:
        negative, size = split_sign(term)
        join = " - " if negative else " + "
        text += (join if text else "-" if negative else "") + expression(size, names)
    return text


def _product(e: Expr, names: Names) -> str:
    negative, size = split_sign(e)
    if negative:
        return "-" + _factor(size, names)
    over = [f for f in size.args if not _is_quotient(f)]
    under = [1 / f for f in size.args if _is_quotient(f)]
    top = _factors(over, names) or "1"
    return rf"\frac{{{top}}}{{{_factors(under, names)}}}" if under else top


def _is_quotient(e: Expr) -> bool:
    return bool(e.is_Pow and split_sign(e.exp)[0])


def _factors(factors: list[Expr], names: Names) -> str:
    """Factors joined by ⊙, a number in front by a thin space; alone, a sum needs no brackets."""
    if len(factors) == 1:
        return expression(factors[0], names)
    numbers = [_factor(f, names) for f in factors if f.is_Number]
    others = [_factor(f, names) for f in factors if not f.is_Number]
    return r"\,".join([*numbers, r" \odot ".join(others)])


def _factor(e: Expr, names: Names) -> str:
    text = expression(e, names)
    return rf"\left({text}\right)" if e.is_Add else text


def _power(e: Expr, names: Names) -> str:
    if _is_quotient(e):
        return rf"\frac{{1}}{{{expression(1 / e, names)}}}"
    if e.exp.is_Rational and e.exp.q == 2 and e.exp.p == 1:
        return rf"\sqrt{{{expression(e.base, names)}}}"
    base = expression(e.base, names)
    bare = e.base.is_Symbol and "^" not in base
    return f"{base if bare else rf'({base})'}^{{{expression(e.exp, names)}}}"
