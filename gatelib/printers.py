"""Writes a gate as source code that a person can read: NumPy, torch, JavaScript.

Imports gatelib.spec, gatelib.algebra, gatelib.functions; NumPy or torch once a function compiles.
Must not import gatelib.reference or gatelib.nn.

The names are those of the equations, one line an equation. Triton kernels, which need loads,
stores and loops around the same lines, are written by gatelib.kernels.triton_source.
"""

from __future__ import annotations

import builtins
import functools
import linecache
import re
from collections.abc import Callable, Mapping
from typing import Any

from gatelib.algebra import split_sign
from gatelib.functions import Elementwise, Expr
from gatelib.spec import Spec

Forms = Mapping[str, str]
"""Function name → its form in a language, `{0}` for the first argument."""

NUMPY: Forms = {
    "identity": "{0}",
    "step": "np.heaviside({0}, 0.0)",
    "sigmoid": "special.expit({0})",
    "tanh": "np.tanh({0})",
    "relu": "np.maximum({0}, 0.0)",
    "exp": "np.exp({0})",
    "log": "np.log({0})",
    "sqrt": "np.sqrt({0})",
    "softplus": "np.logaddexp(0.0, {0})",
    "silu": "{0} * special.expit({0})",
    "gelu": "{0} * special.ndtr({0})",
    "normal_cdf": "special.ndtr({0})",
    "normal_pdf": "np.exp(-0.5 * np.square({0})) / np.sqrt(2 * np.pi)",
    "hardsigmoid": "np.clip({0} / 6 + 0.5, 0.0, 1.0)",
    "maximum": "np.maximum({0}, {1})",
    "mean": "np.mean({0}, axis=-1, keepdims=True)",
    "total": "np.sum({0}, axis=-1, keepdims=True)",
    "softmax": "special.softmax({0}, axis=-1)",
    "normalize": (
        "({0} - np.mean({0}, axis=-1, keepdims=True))"
        " / np.sqrt(np.var({0}, axis=-1, keepdims=True) + 1e-5)"
    ),
    "rstd": "1 / np.sqrt(np.var({0}, axis=-1, keepdims=True) + 1e-5)",
}
TORCH: Forms = {
    "identity": "{0}",
    "step": "torch.gt({0}, 0).to({0}.dtype)",
    "sigmoid": "torch.sigmoid({0})",
    "tanh": "torch.tanh({0})",
    "relu": "torch.relu({0})",
    "exp": "torch.exp({0})",
    "log": "torch.log({0})",
    "sqrt": "torch.sqrt({0})",
    "softplus": "F.softplus({0}, threshold=50.0)",
    "silu": "F.silu({0})",
    "gelu": "F.gelu({0})",
    "normal_cdf": "torch.special.ndtr({0})",
    "normal_pdf": "torch.exp(-0.5 * torch.square({0})) / (2 * torch.pi) ** 0.5",
    # F.hardsigmoid holds 1/6 in float32: its float64 gradient is wrong in the eighth digit.
    "hardsigmoid": "torch.clamp({0} / 6 + 0.5, 0.0, 1.0)",
    "maximum": "torch.maximum({0}, {1})",
    "mean": "torch.mean({0}, -1, keepdim=True)",
    "total": "torch.sum({0}, -1, keepdim=True)",
    "softmax": "torch.softmax({0}, -1)",
    "normalize": "F.layer_norm({0}, {0}.shape[-1:], eps=1e-5)",
    "rstd": "torch.rsqrt(torch.var({0}, -1, correction=0, keepdim=True) + 1e-5)",
}
JAVASCRIPT: Forms = {
    "identity": "{0}",
    "step": "({0} > 0 ? 1 : 0)",
    "sigmoid": "1 / (1 + Math.exp(-{0}))",
    "tanh": "Math.tanh({0})",
    "relu": "Math.max({0}, 0)",
    "exp": "Math.exp({0})",
    "log": "Math.log({0})",
    "sqrt": "Math.sqrt({0})",
    "softplus": "(Math.max({0}, 0) + Math.log1p(Math.exp(-Math.abs({0}))))",
    "silu": "{0} / (1 + Math.exp(-{0}))",
    "normal_pdf": "Math.exp(-0.5 * {0} ** 2) / Math.sqrt(2 * Math.PI)",
    "hardsigmoid": "Math.min(1, Math.max(0, {0} / 6 + 0.5))",
    "maximum": "Math.max({0}, {1})",
}
LANGUAGES: dict[str, Forms] = {"numpy": NUMPY, "torch": TORCH, "javascript": JAVASCRIPT}

STANDS_ALONE = re.compile(r"[\w.]+\(\{0\}(, [^{}]*)?(, \{1\})?\)")
"""A form whose arguments stand between brackets and commas, so that they need none of their own."""

KEYWORDS = {
    "javascript": frozenset(
        "case catch const debugger default delete do enum export extends function instanceof let "
        "new null super switch this throw true false typeof var void Math".split()
    )
}
"""Names that are free in Python, so in a Spec, and not in the language: `new` becomes `new_`."""

SUM, PRODUCT, UNARY, ATOM = range(4)
"""How tightly a piece of code binds."""


class UnprintableError(ValueError):
    """A language has no form for a function that the gate uses."""


class CodePrinter:
    """Expressions as code, with the author's order and no needless brackets."""

    def __init__(self, language: str, forms: Forms) -> None:
        self.language, self.forms = language, forms
        self.keywords = KEYWORDS.get(language, frozenset())

    def __call__(self, e: Expr) -> str:
        return self._print(e)[0]

    def _print(self, e: Expr) -> tuple[str, int]:
        if e.is_Symbol:
            return f"{e}_" if str(e) in self.keywords else str(e), ATOM
        if e.is_Number:
            return self._number(e)
        if e.is_Add:
            return self._sum(e), SUM
        if e.is_Mul or e.is_Pow:
            return self._product(e)
        return self._call(e)

    def _wrapped(self, e: Expr, at_least: int) -> str:
        text, binds = self._print(e)
        return text if binds >= at_least else f"({text})"

    def _number(self, number: Expr) -> tuple[str, int]:
        text = str(number) if number.is_Integer else repr(float(number))
        return text, UNARY if number < 0 else ATOM

    def _sum(self, e: Expr) -> str:
        text = ""
        for term in e.args:
            negative, size = split_sign(term)
            join = " - " if negative else " + "
            text += (join if text else "-" if negative else "") + self._wrapped(size, PRODUCT)
        return text

    def _product(self, e: Expr) -> tuple[str, int]:
        negative, size = split_sign(e)
        over: list[str] = []
        under: list[str] = []
        for factor in size.args if size.is_Mul else (size,):
            base, exponent = (factor.base, factor.exp) if factor.is_Pow else (factor, 1)
            side = under if exponent < 0 else over
            side.extend(self._powers(base, abs(exponent), UNARY if side is over else ATOM))
        text = " * ".join(over) or "1"
        text += "".join(f" / {divisor}" for divisor in under)
        if negative:
            return f"-{text}", UNARY if len(over) + len(under) == 1 else PRODUCT
        return text, PRODUCT if len(over) + len(under) > 1 else ATOM

    def _powers(self, base: Expr, exponent: Expr, at_least: int) -> list[str]:
        """Small whole powers as repeated factors, which every language multiplies exactly."""
        text = self._wrapped(base, at_least)
        if exponent == int(exponent) and exponent <= 4:
            return [text] * int(exponent)
        return [f"{self._wrapped(base, ATOM)}**{self(exponent)}"]

    def _call(self, e: Expr) -> tuple[str, int]:
        form = self.forms.get(e.func.__name__)
        if form is None:
            raise UnprintableError(f"{e.func.__name__} has no form in {self.language}")
        if self.language == "torch" and any(a.is_Number for a in e.args):
            return self._of_numbers(e)
        arguments = [self(argument) for argument in e.args]
        if not STANDS_ALONE.fullmatch(form):
            arguments = [a if a.isidentifier() else f"({a})" for a in arguments]
        return form.format(*arguments), PRODUCT if " / " in form or " * " in form else ATOM

    def _of_numbers(self, e: Expr) -> tuple[str, int]:
        """A function of a number, which torch's functions of tensors don't take."""
        if isinstance(e, Elementwise) and all(a.is_Number for a in e.args):
            return self._number(e.exact().evalf(17))
        if e.func.__name__ == "maximum":
            number, other = sorted(e.args, key=lambda a: not a.is_Number)
            return f"torch.clamp({self(other)}, min={float(number)})", ATOM
        raise UnprintableError(f"{e.func.__name__} of a number has no form in {self.language}")


def body(spec: Spec, printer: CodePrinter, pad: str = "    ", form: str = "{0} = {1}") -> str:
    """The gate's equations, one line each."""
    return "".join(pad + form.format(printer(v), printer(e)) + "\n" for v, e in spec.equations)


def _joined(symbols: object) -> str:
    return ", ".join(map(str, symbols))  # type: ignore[call-overload]


def source(spec: Spec, language: str) -> str:
    """The gate as one function; its arguments and results are the Spec's inputs and outputs.

    `language` is `"numpy"`, `"torch"` or `"javascript"`. Raises ValueError for another, and
    UnprintableError where the language lacks a function.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language: expected one of {sorted(LANGUAGES)}, got {language!r}")
    printer = CodePrinter(language, LANGUAGES[language])
    if language == "javascript":
        lines = body(spec, printer, "  ", "const {0} = {1};")
        inputs, outputs = (", ".join(map(printer, side)) for side in (spec.inputs, spec.outputs))
        head = f"function {spec.name}({inputs}) {{\n"
        return f"{head}{lines}  return [{outputs}];\n}}\n"
    head = f"def {spec.name}({_joined(spec.inputs)}):\n"
    return f"{head}{body(spec, printer)}    return {_joined(spec.outputs)}\n"


def _namespace(language: str) -> dict[str, Any]:
    if language == "torch":
        import torch
        from torch.nn import functional

        return {"torch": torch, "F": functional}
    if language == "numpy":
        import numpy as np
        from scipy import special  # type: ignore[import-untyped, unused-ignore]

        return {"np": np, "special": special}
    raise ValueError(f"language: expected 'numpy' or 'torch', got {language!r}")


@functools.lru_cache(maxsize=256)
def compile(spec: Spec, language: str) -> Callable[..., Any]:
    """The function of `source(spec, language)`; tracebacks and `inspect` show its lines."""
    namespace = _namespace(language)
    text = source(spec, language)
    filename = f"<gatelib {language} {spec.name} {abs(hash(text)):x}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    exec(builtins.compile(text, filename, "exec"), namespace)
    function: Callable[..., Any] = namespace[spec.name]
    return function
