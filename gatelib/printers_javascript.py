"""Writes a gate as JavaScript: numbers where it is elementwise, arrays where it isn't.

Imports gatelib.functions and gatelib.pieces.
Must not import any other floor of gatelib: it knows no Spec.

A gate that looks across the features takes an array a name, one number a feature; a number stands
for an array of equal numbers. Helpers end in `_`, which no gate's name does.
"""

from __future__ import annotations

import re

from gatelib.functions import Expr, OverFeatures
from gatelib.pieces import ATOM, CodePrinter, Forms, Gate, Piece

FORMS: Forms = {
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
    "gelu": "{0} * normal_cdf_({0})",
    "normal_cdf": "normal_cdf_({0})",
    "normal_pdf": "Math.exp(-0.5 * {0} ** 2) / Math.sqrt(2 * Math.PI)",
    "hardsigmoid": "Math.min(1, Math.max(0, {0} / 6 + 0.5))",
    "maximum": "Math.max({0}, {1})",
    "minimum": "Math.min({0}, {1})",
}

KEYWORDS = frozenset(
    "arguments await break case catch class const continue debugger default delete do else enum "
    "eval export extends false finally for function if implements import in instanceof interface "
    "let new null package private protected public return static super switch this throw true try "
    "typeof undefined var void while with yield Infinity Math NaN Array RangeError".split()
)
"""Names that are free in Python, so in a Spec, and not in JavaScript: `new` becomes `new_`."""

HELPERS = {
    # Below 2 a series of positive terms; above, a continued fraction, so that the tail keeps its
    # digits: both of Laplace.
    "normal_cdf_": """
function normal_cdf_(x) {
  const size = Math.abs(x);
  const density = Math.exp(-0.5 * size * size) / Math.sqrt(2 * Math.PI);
  if (size < 2) {
    let term = size, sum = size;
    for (let k = 3; term > 1e-17 * sum; k += 2) sum += term *= size * size / k;
    return 0.5 + Math.sign(x) * density * sum;
  }
  let below = size;
  for (let k = Math.ceil(20 + 600 / (size * size)); k > 0; k--) below = size + k / below;
  return x < 0 ? density / below : 1 - density / below;
}
""",
    "each_": """
function each_(f, ...given) {
  const arrays = given.filter(Array.isArray);
  if (arrays.length === 0) return f(...given);
  if (arrays.some((a) => a.length !== arrays[0].length)) throw new RangeError("unequal lengths");
  return arrays[0].map((_, k) => f(...given.map((v) => (Array.isArray(v) ? v[k] : v))));
}
""",
    "total_": """
function total_(x) {
  if (!Array.isArray(x)) throw new RangeError("a sum over features needs an array");
  return x.reduce((sum, v) => sum + v, 0);
}
""",
    "mean_": """
function mean_(x) {
  return Array.isArray(x) ? total_(x) / x.length : x;
}
""",
    "softmax_": """
function softmax_(x) {
  const top = x.reduce((a, b) => Math.max(a, b));
  const sizes = x.map((v) => Math.exp(v - top));
  const sum = total_(sizes);
  return sizes.map((v) => v / sum);
}
""",
    "rstd_": """
function rstd_(x) {
  const middle = mean_(x);
  return 1 / Math.sqrt(mean_(each_((v) => (v - middle) ** 2, x)) + 1e-5);
}
""",
    "normalize_": """
function normalize_(x) {
  const middle = mean_(x), scale = rstd_(x);
  return each_((v) => (v - middle) * scale, x);
}
""",
}


class JavaScriptPrinter(CodePrinter):
    """Expressions of numbers; a function over the features becomes a line of its own before."""

    def __init__(self) -> None:
        super().__init__("javascript", FORMS, KEYWORDS)
        self.before: list[str] = []
        self.found: dict[Expr, str] = {}

    def _raised(self, base: str, exponent: str) -> Piece:
        return Piece(f"Math.pow({base}, {exponent})", ATOM)

    def _call(self, e: Expr) -> Piece:
        return Piece(self._over(e), ATOM) if isinstance(e, OverFeatures) else super()._call(e)

    def _over(self, e: Expr) -> str:
        """The name of the line that holds a function over the features."""
        if e not in self.found:
            function = f"{e.func.__name__}_"
            argument = self.value(e.args[0])
            name = f"{function}{len(self.found) + 1}_"
            self.before.append(f"  const {name} = {function}({argument});\n")
            self.found[e] = name
        return self.found[e]

    def value(self, e: Expr) -> str:
        """Code for the array, or the number, that an expression of arrays is."""
        code = self(e)
        if e.is_Symbol or e.is_Number or isinstance(e, OverFeatures):
            return code
        known = {self.name(v): None for v in sorted(e.free_symbols, key=str)}
        known |= dict.fromkeys(self.found.values())
        used = [name for name in known if re.search(rf"\b{name}\b", code)]
        return f"each_(({', '.join(used)}) => {code}, {', '.join(used)})" if used else code


def source(gate: Gate) -> str:
    """The gate as one function, behind the helpers that it calls."""
    wide = any(e.atoms(OverFeatures) for _, e in gate.equations)
    printer, lines = JavaScriptPrinter(), ""
    for v, e in gate.equations:
        code = printer.value(e) if wide else printer(e)
        lines += "".join(printer.before) + f"  const {printer(v)} = {code};\n"
        printer.before.clear()
    inputs, outputs = (", ".join(map(printer, side)) for side in (gate.inputs, gate.outputs))
    head = f"function {printer.name(gate.name)}({inputs}) {{\n"
    return _helpers(lines) + f"{head}{lines}  return [{outputs}];\n}}\n"


def _helpers(code: str) -> str:
    """The helpers that code calls, and those that these call."""
    wanted: list[str] = []
    waiting = code
    while found := [n for n in HELPERS if n not in wanted and re.search(rf"\b{n}\(", waiting)]:
        wanted += found
        waiting = "".join(HELPERS[name] for name in found)
    return "".join(HELPERS[name].lstrip("\n") for name in HELPERS if name in wanted)
