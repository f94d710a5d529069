"""What every function of a gate computes, apart from gatelib: with a bound on rounding; in torch.

Imports NumPy; torch once it is asked for.
Must not import gatelib: it judges what gatelib computes.

A `Measured` number carries a bound on its error in units of one rounding through every operation.
`JUDGES` are the functions of a gate on such numbers, `in_torch` the same functions in torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np


class Measured:
    """A value, and a bound on its error in units of one rounding, carried through operations."""

    __array_priority__ = 100

    def __init__(self, value: Any, error: Any = 0.0) -> None:
        self.value, self.error = np.asarray(value, dtype=np.float64), np.asarray(error) + 0.0

    def _with(self, other: Any, make: Callable[..., Measured], back: bool = False) -> Measured:
        other = other if isinstance(other, Measured) else Measured(real(other))
        return make(other, self) if back else make(self, other)

    def __add__(self, other: Any) -> Measured:
        return self._with(other, _sum)

    def __radd__(self, other: Any) -> Measured:
        return self._with(other, _sum, back=True)

    def __sub__(self, other: Any) -> Measured:
        return self._with(other, lambda a, b: _sum(a, -b))

    def __rsub__(self, other: Any) -> Measured:
        return self._with(other, lambda a, b: _sum(a, -b), back=True)

    def __mul__(self, other: Any) -> Measured:
        return self._with(other, _product)

    def __rmul__(self, other: Any) -> Measured:
        return self._with(other, _product, back=True)

    def __truediv__(self, other: Any) -> Measured:
        return self._with(other, _quotient)

    def __rtruediv__(self, other: Any) -> Measured:
        return self._with(other, _quotient, back=True)

    def __neg__(self) -> Measured:
        return Measured(-self.value, self.error)

    def __pow__(self, exponent: float) -> Measured:
        value = self.value**exponent
        slope = exponent * self.value ** (exponent - 1) if exponent else 0 * value
        return Measured(value, np.abs(slope) * self.error + (abs(exponent) + 1) * np.abs(value))

    def through(self, value: Any, slope: Any, own: Any = None) -> Measured:
        """A function of this: its value, its slope, and the size that its own error is of."""
        own = np.abs(value) if own is None else own
        return Measured(value, np.abs(slope) * self.error + 4 * own)


def real(number: Any) -> float:
    """A plain number; what Python makes complex is no value of a gate."""
    return math.nan if isinstance(number, complex) else float(number)


def _sum(a: Measured, b: Measured) -> Measured:
    return Measured(a.value + b.value, a.error + b.error + np.abs(a.value) + np.abs(b.value))


def _product(a: Measured, b: Measured) -> Measured:
    value = a.value * b.value
    error = np.abs(a.value) * b.error + np.abs(b.value) * a.error
    return Measured(value, error + np.abs(value))


def _quotient(a: Measured, b: Measured) -> Measured:
    value = a.value / b.value
    return Measured(value, (a.error + np.abs(value) * b.error) / np.abs(b.value) + np.abs(value))


def _lifted(function: Callable[..., Measured]) -> Callable[..., Measured]:
    """The function, of plain numbers too."""

    def lifted(*given: Any) -> Measured:
        return function(*(g if isinstance(g, Measured) else Measured(real(g)) for g in given))

    return lifted


def _sigmoid_of(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _cdf(x: Any) -> Any:
    return _erfc(-x / math.sqrt(2)) / 2


def _pdf(x: Any) -> Any:
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _at_a_jump(x: Measured) -> Any:
    """Infinite where rounding could put x on the other side of 0."""
    close = np.abs(x.value) <= 1e-11 * (x.error + 1e-3)
    return np.where(close | ~np.isfinite(x.value) | ~np.isfinite(x.error), np.inf, 0.0)


def _step(x: Measured) -> Measured:
    return Measured(np.where(x.value > 0, 1.0, 0.0), _at_a_jump(x))


def _sigmoid(x: Measured) -> Measured:
    y = _sigmoid_of(x.value)
    return x.through(y, y * _sigmoid_of(-x.value))


def _exp(x: Measured) -> Measured:
    y = np.exp(x.value)
    return x.through(y, y)


def _log(x: Measured) -> Measured:
    return x.through(np.log(x.value), 1 / x.value)


def _sqrt(x: Measured) -> Measured:
    y = np.sqrt(x.value)
    return x.through(y, 0.5 / y)


def _gelu(x: Measured) -> Measured:  # x·(1 + erf)/2 cancels in the tail: its error is of the size x
    y = x.value * _cdf(x.value)
    return x.through(y, _cdf(x.value) + x.value * _pdf(x.value), np.abs(x.value))


def _clipped(x: Measured) -> Measured:
    y = np.clip(x.value / 6 + 0.5, 0.0, 1.0)
    return x.through(y, 1 / 6, y + 0.5 * (y > 0))


def _greater(a: Measured, b: Measured) -> Measured:
    return Measured(np.maximum(a.value, b.value), np.maximum(a.error, b.error))


def _smaller(a: Measured, b: Measured) -> Measured:
    return Measured(np.minimum(a.value, b.value), np.maximum(a.error, b.error))


def _over(x: Measured, reduce: Callable[..., Any]) -> Measured:
    x = Measured(np.atleast_1d(x.value), np.atleast_1d(x.error))  # a number is as wide as may be
    error = reduce(x.error + np.zeros_like(x.value), axis=-1, keepdims=True)
    own = x.value.shape[-1] * reduce(np.abs(x.value), axis=-1, keepdims=True)
    return Measured(reduce(x.value, axis=-1, keepdims=True), error + own)


def _mean(x: Measured) -> Measured:
    return _over(x, np.mean)


def _total(x: Measured) -> Measured:
    return _over(x, np.sum)


def _softmax(x: Measured) -> Measured:
    top = np.max(np.atleast_1d(x.value), axis=-1, keepdims=True)
    size = _exp(Measured(x.value - top, x.error + np.abs(x.value) + np.abs(top)))
    return size / _total(size)


def _rstd(x: Measured) -> Measured:
    centred = x - _mean(x)
    return (_mean(centred * centred) + 1e-5) ** -0.5


def _normalize(x: Measured) -> Measured:
    return (x - _mean(x)) * _rstd(x)


JUDGES: dict[str, Callable[..., Measured]] = {
    "step": _step,
    "sigmoid": _sigmoid,
    "tanh": lambda x: x.through(np.tanh(x.value), 1 / np.cosh(np.clip(x.value, -300, 300)) ** 2),
    "identity": lambda x: x,
    "relu": lambda x: Measured(np.maximum(x.value, 0.0), x.error),
    "exp": _exp,
    "log": _log,
    "sqrt": _sqrt,
    "softplus": lambda x: x.through(np.logaddexp(0.0, x.value), _sigmoid_of(x.value)),
    "silu": lambda x: x * _sigmoid(x),
    "normal_pdf": lambda x: x.through(_pdf(x.value), x.value * _pdf(x.value),
                                      (1 + x.value**2) * _pdf(x.value)),
    "normal_cdf": lambda x: x.through(_cdf(x.value), _pdf(x.value), 1 + 0 * x.value),
    "gelu": _gelu,
    "hardsigmoid": _clipped,
    "maximum": _greater,
    "minimum": _smaller,
    "mean": _mean,
    "total": _total,
    "softmax": _softmax,
    "normalize": _normalize,
    "rstd": _rstd,
}  # fmt: skip
JUDGES = {name: _lifted(function) for name, function in JUDGES.items()}


def _rstd_in_torch(x: Any) -> Any:
    return (((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 1e-5) ** -0.5


def _cdf_in_torch(torch: Any, x: Any) -> Any:
    return torch.erfc(-x / math.sqrt(2)) / 2


def _on_tensors(torch: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of plain numbers too."""
    lift = functools.partial(torch.as_tensor, dtype=torch.float64)
    return lambda *given: function(*(g if torch.is_tensor(g) else lift(g) for g in given))


@functools.cache
def in_torch() -> dict[str, Callable[..., Any]]:
    """The functions in torch, for gradients by autograd that never saw a Spec."""
    import torch

    plain = {name: getattr(torch, name) for name in "sigmoid tanh relu exp log sqrt".split()}
    plain |= {
        "step": lambda x: (x > 0).to(x.dtype),
        "identity": lambda x: x,
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "silu": lambda x: x * torch.sigmoid(x),
        "normal_pdf": lambda x: torch.exp(-x * x / 2) / math.sqrt(2 * math.pi),
        "normal_cdf": lambda x: _cdf_in_torch(torch, x),
        "gelu": lambda x: x * _cdf_in_torch(torch, x),
        "hardsigmoid": lambda x: torch.clamp(x / 6 + 0.5, 0.0, 1.0),
        "maximum": torch.maximum,
        "minimum": torch.minimum,
        "mean": lambda x: x.mean(-1, keepdim=True),
        "total": lambda x: x.sum(-1, keepdim=True),
        "softmax": lambda x: torch.softmax(x, -1),
        "normalize": lambda x: (x - x.mean(-1, keepdim=True)) * _rstd_in_torch(x),
        "rstd": _rstd_in_torch,
    }
    return {name: _on_tensors(torch, function) for name, function in plain.items()}
