"""Writes a gate's equations as torch calls that fill buffers made beforehand (`out=`).

Imports SymPy, gatelib.functions, gatelib.printers, gatelib.spec and gatelib.load; torch
when a program is compiled.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

`gatelib.printers` writes code to read. This module writes the same equations for a loop over time,
where every temporary would be allocated at each step. Three fused calls are found by their form:
y(1 - y)·d is torch's sigmoid_backward, (1 - y²)·d its tanh_backward, and the adjoint of a
normalisation its layer-norm backward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from gatelib.functions import FUNCTIONS, Expr
from gatelib.kernels.patterns import backward_of, factors, match_norm, slopes, terms, times
from gatelib.load import load
from gatelib.printers import TORCH
from gatelib.spec import Equation

__all__ = ["FULL", "Program", "lower", "shape_of"]

FULL, COLUMN, VECTOR, SCALAR = "full", "column", "vector", "scalar"
"""Shapes of a value in one step: (B, H), (B, 1), (1, H), (1, 1)."""

OUT_CALLS = {
    "sigmoid": "torch.sigmoid({0}, out={out})",
    "tanh": "torch.tanh({0}, out={out})",
    "exp": "torch.exp({0}, out={out})",
    "log": "torch.log({0}, out={out})",
    "sqrt": "torch.sqrt({0}, out={out})",
    "relu": "torch.clamp_min({0}, 0.0, out={out})",
    "maximum": "torch.maximum({0}, {1}, out={out})",
    "minimum": "torch.minimum({0}, {1}, out={out})",
    "mean": "torch.mean({0}, -1, keepdim=True, out={out})",
    "total": "torch.sum({0}, -1, keepdim=True, out={out})",
    "lerp": "torch.lerp({0}, {1}, {2}, out={out})",
    "relu_backward": "threshold_backward_({0}, {1}, 0, grad_input={out})",
    "silu": "silu_({0}, out={out})",
    "silu_backward": "silu_backward_({0}, {1}, grad_input={out})",
    "gelu_erf": "gelu_({0}, out={out})",
    "gelu_erf_backward": "gelu_backward_({0}, {1}, grad_input={out})",
    "gelu_tanh": "gelu_({0}, approximate='tanh', out={out})",
    "gelu_tanh_backward": "gelu_backward_({0}, {1}, approximate='tanh', grad_input={out})",
}
TO_COLUMN = ("mean", "total", "rstd")
BACKWARDS = {
    "sigmoid": "sigmoid_backward_({0}, {1}, grad_input={out})",
    "tanh": "tanh_backward_({0}, {1}, grad_input={out})",
}

MASKED = "torch.ops.aten.threshold_backward.grad_input({0}, {1}, 0, grad_input={2})"
"""d·step(x), which is 0 where x is not above 0, whatever d is there."""


@dataclass(frozen=True)
class Program:
    """A function that runs one step; `arguments` are the names of its parameters in order.

    `scratch` and `constants` are parameters too: the shapes of buffers, and (number, shape).
    """

    name: str
    source: str
    arguments: tuple[str, ...]
    scratch: dict[str, str]
    constants: dict[str, tuple[float, str]]

    def compile(self) -> Callable[..., None]:
        """The step as a function; tracebacks show its lines."""
        return _compile(self.name, self.source)


@functools.lru_cache(maxsize=256)
def _compile(name: str, source: str) -> Callable[..., None]:
    import torch
    from torch.nn import functional

    known: dict[str, Any] = {"torch": torch, "F": functional}
    for call in ("sigmoid", "tanh", "threshold", "silu", "gelu"):  # looked up once, not per step
        known[f"{call}_backward_"] = getattr(torch.ops.aten, f"{call}_backward").grad_input
    known |= {f"{call}_": getattr(torch.ops.aten, call).out for call in ("silu", "gelu")}
    function: Callable[..., None] = load(source, f"in place {name}", known)[name]
    return function


def shape_of(e: Expr, shapes: Mapping[str, str]) -> str:
    """The shape of an expression's value, by broadcasting the shapes of its names."""
    if e.is_Symbol:
        return shapes[str(e)]
    if e.is_Number:
        return SCALAR
    shape = broadcast(shape_of(argument, shapes) for argument in e.args)
    if e.func.__name__ in TO_COLUMN:
        return COLUMN if shape in (FULL, COLUMN) else SCALAR
    return shape


def _is_step(e: Expr) -> bool:
    return isinstance(e, FUNCTIONS["step"])


def as_float(number: Expr) -> float:
    """The number in float64, infinite where it is larger."""
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, 1 if number > 0 else -1)


def broadcast(shapes: Iterable[str]) -> str:
    """The shape of what is computed from values of these shapes."""
    found = set(shapes)
    if found >= {COLUMN, VECTOR}:
        return FULL
    return next((shape for shape in (FULL, COLUMN, VECTOR) if shape in found), SCALAR)


def lower(
    name: str,
    equations: Sequence[Equation],
    shapes: Mapping[str, str],
    results: Mapping[str, str],
    sums: Iterable[str] = (),
    backward: bool = False,
) -> Program:
    """A program that computes `equations` from names whose `shapes` are given.

    `results` are the names, with shapes, whose buffers the caller passes; a name in `sums` is
    added to its buffer instead of replacing it. All others become scratch. In a `backward` program
    a step is the slope of a kink, and masks what it multiplies, as autograd does.
    """
    writer = _Writer(dict(equations), dict(shapes), dict(results), set(sums), backward)
    writer.write()
    inputs = [v for v in shapes if v in writer.read]
    known = {*inputs, *results}
    extra = [v for v in (*writer.scratch, *writer.constants) if v not in known]
    arguments = (*inputs, *(v for v in results if v not in inputs), *extra)
    body = "".join(f"    {line}\n" for line in writer.lines) or "    pass\n"
    source = f"def {name}({', '.join(arguments)}):\n{body}"
    return Program(name, source, arguments, writer.scratch, writer.constants)


class _Writer:
    """Turns equations into lines; every value lands in one buffer that is written once a step."""

    def __init__(
        self,
        equations: dict[Expr, Expr],
        shapes: dict[str, str],
        results: dict[str, str],
        sums: set[str],
        backward: bool,
    ) -> None:
        self.backward = backward
        self.equations, self.results, self.sums = equations, results, sums
        self.shapes = shapes | results
        self.lines: list[str] = []
        self.scratch: dict[str, str] = {}
        self.constants: dict[str, tuple[float, str]] = {}
        self.read: set[str] = set()
        self.done: set[Expr] = set()
        self.known: dict[Any, str] = {}
        self.given = set(shapes)
        self.early = {backward_of(e): v for v, e in equations.items() if str(v) not in sums}
        self.early.pop(None, None)

    def write(self) -> None:
        for v in self.equations:
            self._equation(v)

    def _equation(self, v: Expr) -> None:
        if v in self.done:
            return
        self.done.add(v)
        name, e = str(v), self.equations[v]
        if name in self.sums:
            self._sum_of([sp.Symbol(name, real=True), *terms(e)], name)
            return
        if name not in self.results:
            self.shapes[name] = shape_of(e, self.shapes)
            self.scratch[name] = self.shapes[name]
        if self.shapes[name] != shape_of(e, self.shapes):
            self.lines.append(f"{name}.copy_({self._value(e)})")
        else:
            self._value(e, name)
        if self.shapes[name] == shape_of(e, self.shapes):
            self.known[e] = name

    def _use(self, name: str) -> str:
        if name in self.given:
            self.read.add(name)
        return name

    def _buffer(self, e: Expr, out: str | None) -> str:
        return self._scratch(shape_of(e, self.shapes)) if out is None else out

    def _scratch(self, shape: str) -> str:
        name = f"tmp_{sum(v.startswith('tmp_') for v in self.scratch)}_"
        self.scratch[name] = shape
        return name

    def _constant(self, number: Expr) -> str:
        value = (as_float(number), SCALAR)
        name = next((n for n, known in self.constants.items() if known == value), "")
        name = name or f"n_{len(self.constants)}_"
        self.constants[name] = value
        return name

    def _value(self, e: Expr, out: str | None = None) -> str:
        """Write the calls that compute `e`; the name that holds it (`out`, where given)."""
        simple = self._simple(e)
        if simple is not None:
            if out is not None:
                self.lines.append(f"{out}.copy_({simple})")
            return out or simple
        if e.is_Add:
            return self._norm_backward(e, out) or self._sum_of(terms(e), out, e)
        if e.is_Mul or e.is_Pow:
            return self._product(e, out)
        return self._call(e, out)

    def _simple(self, e: Expr) -> str | None:
        """The name of a value that needs no call."""
        if e.is_Symbol:
            return self._use(str(e))
        if e.is_Number:
            return self._constant(e)
        return self.known.get(e)

    def _keep(self, e: Expr, name: str, out: str | None) -> str:
        if out is None:
            self.known[e] = name
        return name

    # ---- sums -------------------------------------------------------------------------------

    def _sum_of(self, parts: list[Expr], out: str | None, e: Expr | None = None) -> str:
        whole = sp.Add(*parts, evaluate=False) if e is None else e
        to = self._buffer(whole, out)
        parts = [*(t for t in parts if not t.is_Number), *(t for t in parts if t.is_Number)]
        parts = self._first_term_first(parts)
        first, rest = parts[0], parts[1:]
        same = shape_of(first, self.shapes) == self.shapes.get(to, self.scratch.get(to))
        acc = self._value(first, to if same and self._simple(first) is None else None)
        for index, term in enumerate(rest, 2):
            acc = self._add(acc, term, self._part(parts[:index], whole, to))
        return self._keep(whole, to, out)

    def _part(self, parts: list[Expr], whole: Expr, to: str) -> str:
        """The buffer of a partial sum: `to`, unless the sum so far is smaller than the whole."""
        part = sp.Add(*parts, evaluate=False)
        same = shape_of(part, self.shapes) == shape_of(whole, self.shapes)
        return to if same else self._buffer(part, None)

    def _first_term_first(self, parts: list[Expr]) -> list[Expr]:
        """Start with a term that has a name, as products are added to it by one call each."""
        named = [t for t in parts if not t.is_Number and self._simple(t) is not None]
        if not named and parts[-1].is_Number and factors(parts[0])[0] == -1:
            named = [parts[-1]]
        return [*named[:1], *(t for t in parts if t not in named[:1])]

    def _add(self, acc: str, term: Expr, to: str) -> str:
        """acc + term into `to`; a product of two is added by one call."""
        number, over, under = factors(term)
        if not (over or under):
            self.lines.append(f"torch.add({acc}, {as_float(number)}, out={to})")
            return to
        direct = backward_of(times(over, under))
        if direct is not None and self._is_full(direct):
            over = [times(over, under)]
        over = self._fused(over)
        if under or len(over) == 1 or (self.backward and any(map(_is_step, over))):
            rest = times(over, under)
            alpha = "" if number == 1 else f", alpha={as_float(number)}"
            self.lines.append(f"torch.add({acc}, {self._value(rest)}{alpha}, out={to})")
            return to
        left, right = self._value(times(over[:-1], [])), self._value(over[-1])
        value = "" if number == 1 else f", value={as_float(number)}"
        self.lines.append(f"torch.addcmul({acc}, {left}, {right}{value}, out={to})")
        return to

    def _norm_backward(self, e: Expr, out: str | None) -> str | None:
        """d - mean(d) - y·mean(d·y): the layer-norm backward of a normalised y."""
        matched = match_norm(terms(e))
        if matched is None:
            return None
        bar, y = matched
        if shape_of(bar, self.shapes) != FULL or shape_of(y, self.shapes) != FULL:
            return None
        d, value, to = self._value(bar), self._value(y), self._buffer(e, out)
        self.constants |= {"zeros_": (0.0, COLUMN), "ones_": (1.0, COLUMN)}
        call = f"torch.ops.aten.native_layer_norm_backward({d}, {value}, {value}.shape[-1:], "
        call += "zeros_, ones_, None, None, (True, False, False))[0]"
        self.lines.append(f"{to}.copy_({call})")
        return self._keep(e, to, out)

    # ---- products ---------------------------------------------------------------------------

    def _product(self, e: Expr, out: str | None) -> str:
        number, over, under = factors(e)
        if over == [e]:
            return self._power(e, out)
        direct = backward_of(e)
        if direct is not None and direct in self.early and str(self.early[direct]) != out:
            self._equation(self.early[direct])
            return self._value(self.early[direct], out)
        if direct is not None and self._is_full(direct):
            kind, d, y = direct
            to = self._buffer(e, out)
            call = BACKWARDS[kind].format(self._value(d), self._value(y), out=to)
            self.lines.append(call)
            return self._keep(e, to, out)
        return self._chain(e, number, self._fused(over), under, out)

    def _is_full(self, backward: tuple[str, Expr, Expr]) -> bool:
        return all(shape_of(part, self.shapes) == FULL for part in backward[1:])

    def _fused(self, over: list[Expr]) -> list[Expr]:
        """The factors of a product with d·y(1 - y) or d·(1 - y²) taken together as one."""
        for d in over:
            for kind, used, y in slopes(over):
                rest = list(over)
                if d in used:
                    continue
                for factor in (d, *used):
                    rest.remove(factor)
                if rest and self._is_full((kind, d, y)):
                    return self._fused([times([d, *used], []), *rest])
        return over

    def _chain(
        self, e: Expr, number: Expr, over: list[Expr], under: list[Expr], out: str | None
    ) -> str:
        """A product from the left, one call a factor, each into a buffer of its own shape."""
        over = sorted(over, key=lambda f: shape_of(f, self.shapes) != FULL)
        masks = [f.args[0] for f in over if self.backward and _is_step(f)]
        over = [f for f in over if not (self.backward and _is_step(f))]
        first, number = (over[0], number) if over else (number, sp.S.One)
        calls = [("torch.mul({0}, {1}, out={2})", f) for f in over[1:]]
        calls += [("torch.div({0}, {1}, out={2})", f) for f in under]
        calls += [(MASKED, f) for f in masks]
        if not calls and number == 1:
            return self._value(first, out)
        to, acc, shape = self._buffer(e, out), self._value(first), shape_of(first, self.shapes)
        for call, factor in calls:
            shape = broadcast((shape, shape_of(factor, self.shapes)))
            part = to if shape == shape_of(e, self.shapes) else self._scratch(shape)
            self.lines.append(call.format(acc, self._value(factor), part))
            acc = part
        if number != 1:
            self.lines.append(f"torch.mul({acc}, {as_float(number)}, out={to})")
        return self._keep(e, to, out)

    def _power(self, e: Expr, out: str | None) -> str:
        to = self._buffer(e, out)
        base, exponent = self._value(e.base), as_float(e.exp) if e.exp.is_Number else None
        power = self._value(e.exp) if exponent is None else str(exponent)
        self.lines.append(f"torch.pow({base}, {power}, out={to})")
        return self._keep(e, to, out)

    # ---- functions --------------------------------------------------------------------------

    def _call(self, e: Expr, out: str | None) -> str:
        name = e.func.__name__
        arguments = [self._value(argument) for argument in e.args]
        if name == "normalize" and self._with_rstd(e, arguments[0], out):
            return str(out)
        to = self._buffer(e, out)
        if name in OUT_CALLS:
            self.lines.append(OUT_CALLS[name].format(*arguments, out=to))
        else:
            self.lines.append(f"{to}.copy_({TORCH[name].format(*arguments)})")
        return self._keep(e, to, out)

    def _with_rstd(self, e: Expr, argument: str, out: str | None) -> bool:
        """normalize and rstd of the same value by one call, where both are wanted."""
        rstd = FUNCTIONS["rstd"](e.args[0])
        wanted = next((v for v, r in self.equations.items() if r == rstd), None)
        if wanted is None or wanted in self.done or out is None:
            return False
        self.done.add(wanted)
        name = str(wanted)
        if name not in self.results:
            self.shapes[name] = self.scratch[name] = COLUMN
        call = f"torch.native_layer_norm({argument}, {argument}.shape[-1:], None, None, 1e-5)"
        self.lines.append(f"value_, _, rstd_ = {call}")
        self.lines += [f"{out}.copy_(value_)", f"{name}.copy_(rstd_)"]
        self.known[rstd] = name
        return True
