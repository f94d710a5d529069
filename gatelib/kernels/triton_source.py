"""A Spec as Triton source that a person can read: its expressions, and the elementwise kernel.

Imports SymPy, gatelib.constants, gatelib.functions, gatelib.pieces, gatelib.printers, gatelib.spec.
Must not import Triton or torch: what is made here is text, and `gatelib.kernels.launch` runs it.

Names in a kernel are the names of the equations. Names of the harness end in `_`, which a Spec
refuses, so the two can't collide: `x_ptr_` points at x, `c_end_` at the final state c, `at_` is
where a lane reads, `live_` masks the tail, `t_` counts time. Offsets are 64-bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import sympy as sp

from gatelib.constants import evaluated
from gatelib.functions import Expr
from gatelib.pieces import ATOM, UNARY, CodePrinter, Piece
from gatelib.printers import body
from gatelib.spec import Spec, SpecError

__all__ = ["check", "elementwise", "equations", "function", "prelude", "rows", "seeds"]

HEADER = "import triton\nimport triton.language as tl\n"

PRELUDE = {
    # In float32 a GPU takes 2**(x*1.4427), and at x = 50 the product has lost 20 ulp: so halve the
    # work, a whole power of two that is exact and a rest below 0.35. The power of two goes in two
    # halves, since 2**128 is infinite where exp(88.5) is not.
    "exp": """
        if x.dtype == tl.float32:
            x = tl.where(x > 200.0, 200.0, tl.where(x < -200.0, -200.0, x))
            whole = tl.floor(x * 1.4426950408889634 + 0.5)
            rest = (x - whole * 0.693359375) + whole * 0.00021219444005469057
            half = tl.floor(whole * 0.5)
            value = tl.exp(rest) * tl.exp2(half) * tl.exp2(whole - half)
        else:
            value = tl.exp(x)
        return value
    """,
    "step": """
        return tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    """,
    "relu": """
        return tl.where(x < 0, 0.0, x).to(x.dtype)
    """,
    "hardsigmoid": """
        ramp = tl.where(x < -3, 0.0, x / 6 + 0.5).to(x.dtype)
        return tl.where(x > 3, 1.0, ramp).to(x.dtype)
    """,
    # Padé [7/6] below 1/2, where 1 - exp(-2x) would cancel; no exponent is positive, so no inf/inf.
    "tanh": """
        size = tl.abs(x)
        decay = tl.exp(-2 * size)
        far = (1 - decay) / (1 + decay)
        y = tl.where(size < 0.5, x, 0.0).to(x.dtype)
        s = y * y
        above = y * (135135 + s * (17325 + s * (378 + s)))
        below = 135135 + s * (62370 + s * (3150 + s * 28))
        return tl.where(size < 0.5, above / below, tl.where(x < 0, -far, far)).to(x.dtype)
    """,
    # log(1 + x) loses the digits of a small x; the quotient gives back what 1 + x rounded away.
    "log1p": """
        total = 1 + x
        kept = total - 1
        ratio = x / tl.where(kept == 0, 1.0, kept)
        return tl.where(kept == 0, x, tl.log(total) * ratio).to(x.dtype)
    """,
    "softplus": """
        return tl.where(x < 0, 0.0, x).to(x.dtype) + log1p(tl.exp(-tl.abs(x)))
    """,
    "silu": """
        return x * tl.sigmoid(x)
    """,
    "normal_pdf": """
        return tl.exp(-0.5 * x * x) * 0.3989422804014327
    """,
    "normal_cdf": """
        return 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    """,
    "gelu": """
        return x * normal_cdf(x)
    """,
    "maximum": """
        return tl.where((x > y) | (x != x), x, y)
    """,
    "minimum": """
        return tl.where((x < y) | (x != x), x, y)
    """,
    # x**exponent where no few products give it: NaN for x < 0, as in NumPy. In float64, since an
    # error of the logarithm is multiplied by the exponent.
    "power_": """
        return tl.exp(exponent * tl.log(x.to(tl.float64))).to(x.dtype)
    """,
    "whole_power_": """
        size = tl.exp(exponent * tl.log(tl.abs(x).to(tl.float64))).to(x.dtype)
        return tl.where(x < 0, sign * size, size)
    """,
}
ARGUMENTS = {
    "maximum": "x, y",
    "minimum": "x, y",
    "power_": "x, exponent: tl.constexpr",
    "whole_power_": "x, exponent: tl.constexpr, sign: tl.constexpr",
}
NEEDS = {"softplus": ("log1p",), "gelu": ("normal_cdf",)}
FORMS = {name: f"{name}({{0}})" for name in PRELUDE} | {
    "log": "tl.log({0})",
    "sigmoid": "tl.sigmoid({0})",
    "sqrt": "tl.sqrt({0})",
    "maximum": "maximum({0}, {1})",
    "minimum": "minimum({0}, {1})",
    "identity": "{0}",
}
RESERVED = ("tl",)
"""Names that a kernel itself must be able to use."""
MOST_FACTORS = 8
"""A whole power up to this one is written as a product."""


# ---- expressions ---------------------------------------------------------------------------


class TritonPrinter(CodePrinter):
    """Expressions as Triton source; numbers stand as blocks where a block is needed."""

    def __init__(self) -> None:
        super().__init__("triton", FORMS)

    def line(self, v: Expr, e: Expr) -> tuple[str, str]:
        """The two sides of an equation; the right one is always a block of lanes."""
        left, right = super().line(v, e)
        return left, right if e.free_symbols else self._block(e)

    def _block(self, e: Expr) -> str:
        return f"tl.full([BLOCK_], {evaluated(e)!r}, DTYPE_)"

    def _print(self, e: Expr) -> Piece:
        return super()._print(e) if e.free_symbols or e.is_Number else self._constant(e)

    def _constant(self, e: Expr) -> Piece:
        """An expression of numbers alone, as one number."""
        value = evaluated(e)
        return Piece(repr(value), UNARY if value < 0 else ATOM)

    def _number(self, number: Expr) -> Piece:
        """Triton's whole numbers end at 64 bits, so large ones are written as floats."""
        return super()._number(number if abs(number) < 2**31 else sp.Float(number, 17))

    def _powers(self, base: Expr, exponent: Expr) -> list[Piece]:
        """Small whole powers as factors, half powers as roots; others by a logarithm."""
        whole, part = int(exponent), exponent - int(exponent)
        if not base.free_symbols:
            return [self._constant(sp.Pow(base, exponent, evaluate=False))]
        if part == 0 and whole > MOST_FACTORS:
            sign = -1.0 if whole % 2 else 1.0
            return [Piece(f"whole_power_({self(base)}, {float(exponent)!r}, {sign})", ATOM)]
        if part not in (0, sp.Rational(1, 2)) or whole > MOST_FACTORS:
            return [Piece(f"power_({self(base)}, {float(exponent)!r})", ATOM)]
        roots = [Piece(f"tl.sqrt({self(base)})", ATOM)] if part else []
        return [self._print(base)] * whole + roots

    def _call(self, e: Expr) -> Piece:
        """A function of blocks: a number among its arguments becomes one."""
        if len(e.args) == 1:
            return super()._call(e)
        arguments = [self(a) if a.free_symbols else self._block(a) for a in e.args]
        return Piece(self.forms[e.func.__name__].format(*arguments), ATOM)


def equations(spec: Spec) -> str:
    """The lines of a gate as they stand in a kernel."""
    return body(spec, TritonPrinter())


# ---- the prelude ---------------------------------------------------------------------------


def prelude(body: str) -> str:
    """The imports, and the functions that `body` calls."""
    wanted = {name for name in PRELUDE if re.search(rf"(?<!\.)\b{name}\(", body)}
    wanted |= {need for name in wanted for need in NEEDS.get(name, ())}
    return HEADER + "".join(_helper(name) for name in PRELUDE if name in wanted)


def _helper(name: str) -> str:
    lines = [line[4:] for line in PRELUDE[name].strip("\n").splitlines() if line.strip()]
    body = "\n".join(lines)
    return f"\n\n@triton.jit\ndef {name}({ARGUMENTS.get(name, 'x')}):\n{body}\n"


# ---- what both kinds of kernel need ---------------------------------------------------------


def check(spec: Spec) -> None:
    """Raise SpecError for a Spec that can be no kernel: across features, or with Triton's name."""
    if not spec.is_elementwise:
        raise SpecError(
            f"{spec.name}: a Triton kernel needs an elementwise gate, and this one looks across "
            "the features (mean, normalize, softmax); use the torch source"
        )
    for v in (*spec.inputs, *dict(spec.equations)):
        if str(v) in RESERVED:
            raise SpecError(f"{spec.name}: `{v}` is a name that Triton's own language needs")


def seeds(spec: Spec, vjp: Spec) -> dict[str, str]:
    """{output: the input of `vjp` that brings its adjoint}, for those that the VJP needs."""
    made, needed = vjp.seed_of, set(map(str, vjp.inputs))
    pairs = ((str(o), made.get(str(o), "")) for o in spec.outputs)
    return {output: seed for output, seed in pairs if seed in needed}


def function(name: str, arguments: Iterable[str], fixed: Iterable[str], jit: str = "") -> str:
    """The head of a Triton function; `fixed` are the arguments known when it is compiled."""
    every = [*arguments, *(f"{name}: tl.constexpr" for name in fixed)]
    lines, line = [], "   "
    for argument in every:
        if len(line) + len(argument) + 2 > 96:
            lines.append(line)
            line = "   "
        line += f" {argument},"
    body = "\n".join([*lines, line])
    return f"\n\n@triton.jit{jit}\ndef {name}(\n{body}\n):\n"


# ---- elementwise ---------------------------------------------------------------------------


def elementwise(spec: Spec) -> str:
    """Triton source of one kernel that evaluates `spec` on every element of flat arrays.

    The kernel is called `NAME_elementwise`; it takes a pointer per input, then per output, then
    `count_` (elements), `BLOCK_` (lanes per program) and `DTYPE_` (the type to compute in).
    Raises SpecError for a Spec that looks across the features.
    """
    check(spec)
    pointers = [f"{v}_ptr_" for v in (*spec.inputs, *spec.outputs)]
    text = function(f"{spec.name}_elementwise", [*pointers, "count_"], ["BLOCK_", "DTYPE_"])
    text += "    at_ = tl.program_id(0).to(tl.int64) * BLOCK_ + tl.arange(0, BLOCK_)\n"
    text += "    live_ = at_ < count_\n"
    for v in spec.inputs:
        text += f"    {v} = tl.load({v}_ptr_ + at_, live_, 0).to(DTYPE_)\n"
    text += equations(spec)
    text += "".join(f"    tl.store({v}_ptr_ + at_, {v}, live_)\n" for v in spec.outputs)
    return prelude(text) + text


ROWS = """\
    lane_ = tl.arange(0, BLOCK_)
    tiles_ = tl.cdiv(columns_, WIDTH_)
    program_ = tl.program_id(0).to(tl.int64)
    row_ = program_ // tiles_ * (BLOCK_ // WIDTH_) + lane_ // WIDTH_
    column_ = program_ % tiles_ * WIDTH_ + lane_ % WIDTH_
    live_ = (row_ < rows_) & (column_ < columns_)
"""


def rows(spec: Spec) -> str:
    """The same for arrays of rows, each array with a distance of its own from row to row.

    The kernel is called `NAME_rows`. Behind the pointers stand, for each, the elements from one row
    to the next (`x_row_`; those of a row lie side by side), then `rows_` and `columns_`, `BLOCK_`
    lanes per program, `WIDTH_` of them in a row, both powers of two, and `DTYPE_`.
    Raises SpecError for a Spec that looks across the features.
    """
    check(spec)
    names = [str(v) for v in (*spec.inputs, *spec.outputs)]
    arguments = [*(f"{v}_ptr_" for v in names), *(f"{v}_row_" for v in names), "rows_", "columns_"]
    text = function(f"{spec.name}_rows", arguments, ["BLOCK_", "WIDTH_", "DTYPE_"]) + ROWS
    place = "{0}_ptr_ + row_ * {0}_row_ + column_"
    for v in map(str, spec.inputs):
        text += f"    {v} = tl.load({place.format(v)}, live_, 0).to(DTYPE_)\n"
    text += equations(spec)
    text += "".join(
        f"    tl.store({place.format(v)}, {v}, live_)\n" for v in names[len(spec.inputs) :]
    )
    return prelude(text) + text
