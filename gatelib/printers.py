"""Writes a gate as source code that a person can read: NumPy, torch, JavaScript.

Imports gatelib.algebra, gatelib.constants, gatelib.functions, gatelib.load, gatelib.pieces and
gatelib.printers_javascript; NumPy, SciPy or torch once a function compiles.
Must not import any other floor of gatelib: it knows no Spec.

The names are those of the equations, one line an equation. Triton kernels, which need loads,
stores and loops around the same lines, are written by gatelib.kernels.triton_source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gatelib.algebra import rebuild
from gatelib.constants import evaluated
from gatelib.functions import Expr, OverFeatures
from gatelib.load import load
from gatelib.pieces import ATOM, UNARY, CodePrinter, Forms, Gate, Piece, UnprintableError

__all__ = ["CodePrinter", "UnprintableError", "compile", "filled", "source"]


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
    "minimum": "np.minimum({0}, {1})",
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
    "gelu": "{0} * torch.erfc(-0.7071067811865476 * {0}) / 2",  # F.gelu is 0 far out
    "normal_cdf": "torch.erfc(-0.7071067811865476 * {0}) / 2",  # ndtr is 0 far out
    "normal_pdf": "torch.exp(-0.5 * torch.square({0})) / (2 * torch.pi) ** 0.5",
    # F.hardsigmoid holds 1/6 in float32: its float64 gradient is wrong in the eighth digit.
    "hardsigmoid": "torch.clamp({0} / 6 + 0.5, 0.0, 1.0)",
    "maximum": "torch.maximum({0}, {1})",
    "minimum": "torch.minimum({0}, {1})",
    "mean": "torch.mean({0}, -1, keepdim=True)",
    "total": "torch.sum({0}, -1, keepdim=True)",
    "softmax": "torch.softmax({0}, -1)",
    "normalize": "F.layer_norm({0}, {0}.shape[-1:], eps=1e-5)",
    "rstd": "torch.rsqrt(torch.var({0}, -1, correction=0, keepdim=True) + 1e-5)",
}
LANGUAGES: dict[str, Forms] = {"numpy": NUMPY, "torch": TORCH}


class TorchPrinter(CodePrinter):
    """torch's functions take tensors, so those of numbers are numbers."""

    def _call(self, e: Expr) -> Piece:
        numbers = [argument for argument in e.args if self._is_constant(argument)]
        if not numbers or isinstance(e, OverFeatures):
            return super()._call(e)
        if len(numbers) == len(e.args):
            value = evaluated(rebuild(e, self.constants))
            return Piece(repr(value), UNARY if value < 0 else ATOM)
        other = next(argument for argument in e.args if argument not in numbers)
        bound = evaluated(rebuild(numbers[0], self.constants))
        side = "max" if e.func.__name__ == "minimum" else "min"
        return Piece(f"torch.clamp({self(other)}, {side}={bound!r})", ATOM)


def body(gate: Gate, printer: CodePrinter, pad: str = "    ", form: str = "{0} = {1}") -> str:
    """The gate's equations, one line each."""
    return "".join(pad + form.format(*printer.line(v, e)) + "\n" for v, e in gate.equations)


def _joined(symbols: Iterable[Expr]) -> str:
    return ", ".join(map(str, symbols))


def source(gate: Gate, language: str) -> str:
    """The gate as one function; its arguments and results are the gate's inputs and outputs.

    `language` is `"numpy"`, `"torch"` or `"javascript"`. Raises ValueError for another, and
    UnprintableError where the language lacks a function.
    """
    if language == "javascript":
        from gatelib import printers_javascript

        return printers_javascript.source(gate)
    if language not in LANGUAGES:
        known = sorted([*LANGUAGES, "javascript"])
        raise ValueError(f"language: expected one of {known}, got {language!r}")
    printer = (TorchPrinter if language == "torch" else CodePrinter)(language, LANGUAGES[language])
    head = f"def {gate.name}({_joined(gate.inputs)}):\n"
    return f"{head}{body(gate, printer)}    return {_joined(gate.outputs)}\n"


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
def compile(gate: Gate, language: str) -> Callable[..., Any]:
    """The function of `source(gate, language)`; tracebacks and `inspect` show its lines."""
    text, known = source(gate, language), _namespace(language)
    namespace = load(text, f"{language} {gate.name}", known)
    function: Callable[..., Any] = namespace[gate.name]
    return function


def filled(value: Any, given: Sequence[Any], language: str) -> Any:
    """A plain number in the shape and type that the inputs have together; else the value itself."""
    if not isinstance(value, int | float):
        return value
    if language == "torch":
        import torch

        tensors = [g for g in given if torch.is_tensor(g)]
        together: Sequence[Any] = torch.broadcast_tensors(*tensors)  # type: ignore[no-untyped-call]
        kinds = (t.dtype for t in tensors)
        dtype = functools.reduce(torch.promote_types, kinds, torch.get_default_dtype())
        return torch.full_like(together[0], value, dtype=dtype) if tensors else value
    import numpy as np

    arrays = [np.asarray(g) for g in given]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    return np.full(shape, value, np.result_type(*arrays, np.float32)) if shape else value
