"""The functions that a gate's equations may use, each with its derivative in terms of its value.

Imports SymPy.
Must not import any other floor of gatelib.

A nonlinearity such as σ has the derivative y(1 − y), where y is the value already computed.
SymPy's own functions do not know this, so each function here is a class of ours with four facts:
how it is set in LaTeX, its derivative by value, its exact form in SymPy's own functions (for proofs
and limits), and, for the few that look across the features, how an adjoint is pulled back.

Of each element alone:

- `step(x)`: 1 where x > 0, else 0; its derivative is 0
- `sigmoid(x)`: 1/(1 + e^−x)
- `tanh(x)`: the hyperbolic tangent
- `identity(x)`: x
- `relu(x)`: max(x, 0)
- `exp(x)`: e^x
- `log(x)`: the natural logarithm
- `sqrt(x)`: the square root
- `softplus(x)`: log(1 + e^x)
- `silu(x)`: x sigmoid(x)
- `normal_pdf(x)`: the standard normal density
- `normal_cdf(x)`: its integral up to x
- `gelu(x)`: x normal_cdf(x), exactly
- `hardsigmoid(x)`: x/6 + 1/2, clipped to 0 … 1
- `maximum(a, b)`: the larger of two
- `minimum(a, b)`: the smaller of two; at a tie the slope is a's, as of torch.clamp at its limit

Across the features, the last axis:

- `mean(x)`: the mean of all features
- `total(x)`: the sum of all features
- `softmax(x)`: e^x over the sum of all e^x
- `normalize(x)`: (x − mean(x)) rstd(x), as layer normalisation has it
- `rstd(x)`: 1/√(variance of x + 10⁻⁵)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy as sp

Expr = Any
"""A SymPy expression. SymPy is not typed, so this name is documentation."""

HALF = sp.Rational(1, 2)


class Elementwise(sp.Function):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """A function of scalars, applied to every element on its own."""

    tex = ""

    def derivative(self, position: int, value: Expr) -> Expr:
        """Partial derivative by argument `position`; `value` stands for the function's value."""
        raise NotImplementedError

    def exact(self) -> Expr:
        """The same function in SymPy's own functions."""
        raise NotImplementedError


class OverFeatures(sp.Function):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """A function of one vector, the last axis; its value is broadcast back to that axis."""

    tex = ""

    def pull(self, adjoint: Expr, value: Expr) -> Expr:
        """The adjoint of the argument, given the adjoint of the value."""
        raise NotImplementedError

    def push(self, tangent: Expr, value: Expr) -> Expr:
        """The tangent of the value, given the tangent of the argument."""
        raise NotImplementedError


FUNCTIONS: dict[str, type[Elementwise] | type[OverFeatures]] = {}


def _elementwise(
    name: str,
    tex: str,
    derivatives: Callable[..., tuple[Expr, ...]],
    exact: Callable[..., Expr],
    arguments: int = 1,
) -> Any:
    """Make and register an elementwise function; both rules take (value, *arguments)."""
    body = {
        "tex": tex,
        "nargs": (arguments,),
        "derivative": lambda self, position, value: derivatives(value, *self.args)[position],
        "exact": lambda self: exact(*self.args),
    }
    FUNCTIONS[name] = type(name, (Elementwise,), body)
    return FUNCTIONS[name]


def _largest(*arguments: Expr) -> Expr:
    """SymPy's Max, of floats where it can't tell exact numbers apart, such as 0 and gelu(-100)."""
    return _of_floats(sp.Max, arguments)


def _smallest(*arguments: Expr) -> Expr:
    """SymPy's Min likewise."""
    return _of_floats(sp.Min, arguments)


def _of_floats(choose: Callable[..., Expr], arguments: tuple[Expr, ...]) -> Expr:
    try:
        return choose(*arguments)
    except ValueError:
        known = map(sp.sympify, arguments)
        values = (v.evalf(17, maxn=10_000) if v.is_number else v for v in known)
        return choose(*(sp.Float(float(v)) if v.is_number else v for v in values))


def _over_features(
    name: str, tex: str, pull: Callable[..., Expr], push: Callable[..., Expr] | None = None
) -> Any:
    """Make and register a function over the features; rules take (value, argument, adjoint)."""
    body = {
        "tex": tex,
        "nargs": (1,),
        "pull": lambda self, adjoint, value: pull(value, self.args[0], adjoint),
        "push": lambda self, tangent, value: (push or pull)(value, self.args[0], tangent),
    }
    FUNCTIONS[name] = type(name, (OverFeatures,), body)
    return FUNCTIONS[name]


def _roman(name: str) -> str:
    return rf"\operatorname{{{name}}}"


step: Any = _elementwise(
    "step",
    r"\mathbb{1}_{>0}",
    lambda y, x: (sp.S.Zero,),
    lambda x: sp.Piecewise((1, x > 0), (0, True)),
)
sigmoid: Any = _elementwise(
    "sigmoid", r"\sigma", lambda y, x: (y * (1 - y),), lambda x: 1 / (1 + sp.exp(-x))
)
tanh: Any = _elementwise(
    "tanh",
    r"\tanh",
    lambda y, x: (1 - y**2,),
    lambda x: (1 - sp.exp(-2 * x)) / (1 + sp.exp(-2 * x)),
)
identity: Any = _elementwise("identity", _roman("id"), lambda y, x: (sp.S.One,), lambda x: x)
relu: Any = _elementwise("relu", _roman("relu"), lambda y, x: (step(x),), lambda x: _largest(0, x))
exp: Any = _elementwise("exp", r"\exp", lambda y, x: (y,), sp.exp)
log: Any = _elementwise("log", r"\log", lambda y, x: (1 / x,), sp.log)
sqrt: Any = _elementwise("sqrt", _roman("sqrt"), lambda y, x: (1 / (2 * y),), sp.sqrt)
softplus: Any = _elementwise(
    "softplus", _roman("softplus"), lambda y, x: (sigmoid(x),), lambda x: sp.log(1 + sp.exp(x))
)
silu: Any = _elementwise(
    "silu",
    _roman("silu"),
    lambda y, x: (sigmoid(x) + y * (1 - sigmoid(x)),),
    lambda x: x / (1 + sp.exp(-x)),
)
normal_pdf: Any = _elementwise(
    "normal_pdf",
    r"\varphi",
    lambda y, x: (-x * y,),
    lambda x: sp.exp(-(x**2) / 2) / sp.sqrt(2 * sp.pi),
)
normal_cdf: Any = _elementwise(
    "normal_cdf",
    r"\Phi",
    lambda y, x: (normal_pdf(x),),
    lambda x: (1 + sp.erf(x / sp.sqrt(2))) / 2,
)
gelu: Any = _elementwise(
    "gelu",
    _roman("gelu"),
    lambda y, x: (normal_cdf(x) + x * normal_pdf(x),),
    lambda x: x * (1 + sp.erf(x / sp.sqrt(2))) / 2,
)
hardsigmoid: Any = _elementwise(
    "hardsigmoid",
    _roman("hardsigmoid"),
    lambda y, x: (step(x + 3) * step(3 - x) / 6,),
    lambda x: _smallest(1, _largest(0, x + 3) / 6),
)
maximum: Any = _elementwise(
    "maximum",
    r"\max",
    lambda y, a, b: (step(a - b), 1 - step(a - b)),
    _largest,
    arguments=2,
)
minimum: Any = _elementwise(
    "minimum",
    r"\min",
    lambda y, a, b: (1 - step(a - b), step(a - b)),
    _smallest,
    arguments=2,
)

mean: Any = _over_features("mean", _roman("mean"), lambda y, x, bar: mean(bar))
total: Any = _over_features("total", _roman("sum"), lambda y, x, bar: total(bar))
softmax: Any = _over_features(
    "softmax", _roman("softmax"), lambda y, x, bar: y * (bar - total(bar * y))
)
normalize: Any = _over_features(
    "normalize",
    _roman("norm"),
    lambda y, x, bar: rstd(x) * (bar - mean(bar) - y * mean(bar * y)),
)
rstd: Any = _over_features(
    "rstd",
    _roman("rstd"),
    pull=lambda y, x, bar: -(y**2) * normalize(x) * mean(bar),
    push=lambda y, x, dot: -(y**2) * mean(dot * normalize(x)),
)


def exact(expression: Expr) -> Expr:
    """Rewrite `expression` in SymPy's own functions, so that SymPy can simplify and take limits.

    Functions over the features stay as they are: SymPy treats them as unknown functions.
    """
    arguments = [exact(argument) for argument in expression.args]
    if isinstance(expression, Elementwise):
        return expression.func(*arguments).exact()
    return expression.func(*arguments) if arguments else expression


def house(expression: Expr, kept: Mapping[Expr, Expr] | None = None) -> Expr:
    """The way back from `exact`: SymPy's exp, log, Max and Min as ours; `kept` symbols stay.

    Raises ValueError for what no function here computes, such as a step's Piecewise.
    """
    if kept and expression in kept:
        return kept[expression]
    if expression.is_Symbol or expression.is_Rational:
        return expression
    arguments = [house(argument, kept) for argument in expression.args]
    if isinstance(expression, sp.Max) and len(arguments) == 2:
        rest = [argument for argument in arguments if argument != 0]
        return relu(*rest) if len(rest) == 1 else maximum(*arguments)
    if isinstance(expression, sp.Min) and len(arguments) == 2:
        return minimum(*arguments)
    makers = {sp.exp: exp, sp.log: log, sp.Add: sp.Add, sp.Mul: sp.Mul, sp.Pow: sp.Pow}
    make = makers.get(expression.func)
    if make is None or (make is sp.Pow and not arguments[1].is_Number):
        raise ValueError(f"no function of a gate computes {expression}")
    return make(*arguments)
