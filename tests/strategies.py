"""Specs for Hypothesis over the whole grammar, as their authors would write them.

A `Written` gate is text. `Written.spec` is what gatelib reads from it; `Written.judge` is what
Python's own parser and NumPy make of the same text, which never saw SymPy, with a bound on its
rounding: code that computes the same value in another order stays within the tolerance, and an
element where the text itself is ill conditioned (a pole, a jump, a root of a negative) is not
counted. `Written.run` evaluates the text with any other functions, those of torch for example.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from gatelib.spec import Spec, SpecError

EPSILON = float(np.finfo(np.float64).eps)
ELEMENTWISE = (
    "step sigmoid tanh identity relu exp log sqrt softplus silu normal_pdf normal_cdf gelu "
    "hardsigmoid maximum"
).split()
OVER_FEATURES = "mean total softmax normalize rstd".split()
SMOOTH = [f for f in ELEMENTWISE if f not in {"step", "relu", "hardsigmoid", "maximum"}]
"""Functions without a kink, for tests of derivatives."""

NAMES = "x y z a b c r s t h q beta omega".split()
ADVERSARIAL = (
    "d_x d_f d_c dd_c d_d_c g_h g_c gg_c g_in t_x t_c t_max tt_c d_k d_g_c g_d_c d_t_x f f_saved "
    "a_f a_f_saved c_saved tmp tmp_0 tmp_1 n_1 n_2 n_minus_1 rstd_c_0 rstd_f rstd_x normalized_c_0 "
    "normalized_x_0 f_next c_next c_end c_ptr f_sum lane row at live out grad grad_out weight "
    "weight_ih bias weight_hh h0 hx x w_f s_f b_f u_f e_1 pi E I N S O Q beta zeta inf nan new "
    "this let arguments eval static double float values self spec dtype a_b_c_d"
).split()
"""Names that look like what the generators make for themselves."""

LEGITIMATE = re.compile(
    "nothing uses it|same for every feature|divides by 0|by zero|logarithm of|not finite|infinite|"
    "not real|complex|too large|too small|too long|out of range|out of float64|is no finite|"
    "a number of float64|keyword|means something else"
)
"""Reasons for which a text of this grammar may be refused: a value cancelled, or is no number."""


# ---- numbers that know their rounding --------------------------------------------------------


class Measured:
    """A value, and a bound on its error in units of one rounding, carried through operations."""

    __array_priority__ = 100

    def __init__(self, value: Any, error: Any = 0.0) -> None:
        self.value, self.error = np.asarray(value, dtype=np.float64), np.asarray(error) + 0.0

    def _with(self, other: Any, make: Callable[..., Measured], back: bool = False) -> Measured:
        other = other if isinstance(other, Measured) else Measured(_real(other))
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


def _real(number: Any) -> float:
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
        return function(*(g if isinstance(g, Measured) else Measured(_real(g)) for g in given))

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
    "mean": _mean,
    "total": _total,
    "softmax": _softmax,
    "normalize": _normalize,
    "rstd": _rstd,
}  # fmt: skip
JUDGES = {name: _lifted(function) for name, function in JUDGES.items()}


@functools.cache
def in_torch() -> dict[str, Callable[..., Any]]:
    """The functions in torch, for gradients by autograd that never saw a Spec."""
    import torch

    def tensor(function: Callable[..., Any]) -> Callable[..., Any]:
        lift = functools.partial(torch.as_tensor, dtype=torch.float64)
        return lambda *given: function(*(g if torch.is_tensor(g) else lift(g) for g in given))

    def rstd(x: Any) -> Any:
        return (((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 1e-5) ** -0.5

    def normal_pdf(x: Any) -> Any:
        return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    plain = {name: getattr(torch, name) for name in "sigmoid tanh relu exp log sqrt".split()}
    plain |= {
        "step": lambda x: (x > 0).to(x.dtype),
        "identity": lambda x: x,
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "silu": lambda x: x * torch.sigmoid(x),
        "normal_pdf": normal_pdf,
        "normal_cdf": lambda x: torch.erfc(-x / math.sqrt(2)) / 2,
        "gelu": lambda x: x * torch.erfc(-x / math.sqrt(2)) / 2,
        "hardsigmoid": lambda x: torch.clamp(x / 6 + 0.5, 0.0, 1.0),
        "maximum": torch.maximum,
        "mean": lambda x: x.mean(-1, keepdim=True),
        "total": lambda x: x.sum(-1, keepdim=True),
        "softmax": lambda x: torch.softmax(x, -1),
        "normalize": lambda x: (x - x.mean(-1, keepdim=True)) * rstd(x),
        "rstd": rstd,
    }
    return {name: tensor(function) for name, function in plain.items()}


# ---- a gate as text --------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """What the text computes: `value`, how far right code may be from it, which elements count."""

    value: np.ndarray
    tolerance: np.ndarray
    counts: np.ndarray

    def wrong(self, found: Any) -> np.ndarray:
        """The elements that count and are not what the text says."""
        found = np.asarray(found, dtype=np.float64) + np.zeros_like(self.value)
        with np.errstate(all="ignore"):
            close = np.abs(found - self.value) <= self.tolerance
        return self.counts & ~close


@dataclass(frozen=True)
class Written:
    """A gate as its author writes it: a name, names of inputs and outputs, (name, text) lines."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lines: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        """What makes it again, so that a failing example can be copied into a test."""
        return f"Written({self.name!r}, {self.inputs!r}, {self.outputs!r}, {self.lines!r})"

    @property
    def signature(self) -> str:
        return f"{' '.join(self.inputs)} -> {' '.join(self.outputs)}"

    @property
    def text(self) -> str:
        return "\n".join(f"{name} = {line}" for name, line in self.lines)

    @functools.cached_property
    def spec(self) -> Spec:
        """The Spec; raises SpecError where gatelib refuses the text."""
        return Spec.parse(self.name, self.signature, self.text)

    @property
    def is_elementwise(self) -> bool:
        return not re.search(rf"\b({'|'.join(OVER_FEATURES)})\(", self.text)

    def values(self, seed: int = 0, shape: tuple[int, ...] = (6, 4)) -> dict[str, np.ndarray]:
        """Inputs by name: in the first half of the rows all positive, then of either sign."""
        rng = np.random.default_rng(seed)
        size = {name: rng.uniform(0.2, 1.6, size=shape) for name in self.inputs}
        for value in size.values():
            half = value[(shape[0] + 1) // 2 :]
            half *= rng.choice([-1.0, 1.0], size=half.shape)
        return size

    def run(self, functions: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Every value by name, as Python itself reads the text."""
        scope = {name: values[name] for name in self.inputs}
        for name, line in self.lines:
            code = compile(line.strip(), "<author>", "eval")
            scope[name] = eval(code, {"__builtins__": {}, **functions}, scope)
        return scope

    def _measured(self, values: dict[str, Measured]) -> dict[str, Measured]:
        try:
            scope = self.run(JUDGES, values)
        except (ZeroDivisionError, OverflowError):  # of plain numbers, which Python computes itself
            return {name: Measured(math.nan) for name in self.outputs}
        return {n: v if isinstance(v, Measured) else Measured(_real(v)) for n, v in scope.items()}

    def judge(self, values: Mapping[str, np.ndarray]) -> dict[str, Judgement]:
        """The outputs by name, from NumPy, with a bound on rounding."""
        shape = np.broadcast_shapes(*(np.shape(v) for v in values.values()))
        with np.errstate(all="ignore"):
            found = self._measured({name: Measured(v) for name, v in values.items()})
            good = np.ones(shape, dtype=bool)
            for measured in found.values():
                good &= _conditioned(measured)
        if not self.is_elementwise:
            good &= good.all(axis=-1, keepdims=True)
        zero = np.zeros(shape)
        return {n: _judgement(found[n], zero, good) for n in self.outputs}


def _conditioned(measured: Measured) -> Any:
    size, error = np.abs(measured.value), measured.error
    return np.isfinite(size) & (size < 1e100) & (error <= 1e6 * (size + 1e-3))


def _judgement(measured: Measured, zero: np.ndarray, good: np.ndarray) -> Judgement:
    tolerance = 1e-12 * np.abs(measured.value) + 32 * EPSILON * measured.error
    return Judgement(measured.value + zero, tolerance + zero, good)


def read_or_reject(written: Written) -> Spec:
    """The Spec; an example that may be refused for a good reason is dropped by Hypothesis."""
    try:
        return written.spec
    except SpecError as error:
        assume(not LEGITIMATE.search(str(error)))
        raise


# ---- the grammar -----------------------------------------------------------------------------

NUMBERS = "2 3 0.5 1 0.1 1.5 0.25 7 10 1e-5 2.0 .5 1e2 0.3 4 12 0.0625 1e-3 5 0.9 6 1.75".split()
EXPONENTS = (
    "2 3 0.5 1.5 -1 -2 -0.5 -1.5 (1/2) (-3) 4 5 6 7 (2/3) 1 0.3 -3 2.0 2.5 --2 (3/2) (1-3) -(2)"
).split()


@st.composite
def expressions(
    draw: Any, names: tuple[str, ...], functions: tuple[str, ...] = (), depth: int = 3
) -> str:
    """A sum of products of signed powers of atoms, with brackets where an author may put them."""
    parts = [draw(products(names, functions, depth))]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        parts += [draw(st.sampled_from([" + ", " - ", "-"]))]
        parts += [draw(products(names, functions, depth))]
    return "".join(parts)


@st.composite
def products(draw: Any, names: tuple[str, ...], functions: tuple[str, ...], depth: int) -> str:
    parts = [draw(powers(names, functions, depth))]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        parts += [draw(st.sampled_from(["*", "/", "*"])), draw(powers(names, functions, depth))]
    return "".join(parts)


@st.composite
def powers(draw: Any, names: tuple[str, ...], functions: tuple[str, ...], depth: int) -> str:
    signs = draw(st.sampled_from(["", "", "", "", "", "", "", "-", "-", "- ", "--", "---"]))
    atom = draw(atoms(names, functions, depth))
    if draw(st.integers(0, 4)) == 0:
        atom += "**" + draw(st.sampled_from(EXPONENTS))
    return signs + atom


@st.composite
def atoms(draw: Any, names: tuple[str, ...], functions: tuple[str, ...], depth: int) -> str:
    kind = draw(st.sampled_from("nnn1(f" if depth else "nnn1"))
    if kind == "n":
        return draw(st.sampled_from(names))
    if kind == "1":
        return draw(st.sampled_from(NUMBERS))
    inner = expressions(names, functions, depth - 1)
    if kind == "(" or not functions:
        return f"({draw(inner)})"
    function = draw(st.sampled_from(functions))
    if function == "maximum":
        other = draw(st.one_of(inner, st.sampled_from(NUMBERS)))
        pair = draw(st.permutations([draw(inner), other]))
        return f"maximum({pair[0]}, {pair[1]})"
    return f"{function}({draw(inner)})"


def _names(kind: str) -> list[str]:
    both = list(dict.fromkeys(NAMES + ADVERSARIAL))
    return {"plain": NAMES, "adversarial": ADVERSARIAL, "both": both}[kind]


@st.composite
def gates(
    draw: Any,
    functions: tuple[str, ...] = tuple(ELEMENTWISE),
    names: str = "plain",
    lines: int = 3,
    depth: int = 2,
    name: str = "gate",
) -> Written:
    """A gate of one to `lines` lines; `names` are "plain", "adversarial" or "both".

    Give `functions=tuple(ELEMENTWISE + OVER_FEATURES)` for gates that look across the features, and
    `tuple(SMOOTH)` for gates that can be differentiated everywhere.
    """
    pool = draw(st.permutations(_names(names)))
    count, made = draw(st.integers(1, 4)), draw(st.integers(1, lines))
    inputs, values = tuple(pool[:count]), pool[count : count + made]
    return _closed(draw, name, inputs, [], values, functions, depth, ())


@st.composite
def cells(
    draw: Any,
    functions: tuple[str, ...] = tuple(ELEMENTWISE),
    names: str = "both",
    lines: int = 3,
    depth: int = 2,
) -> Written:
    """A recurrent cell: preactivations `a_k`, some `u_k`, carries, vectors, and the output `h`."""
    pool = [n for n in draw(st.permutations(_names(names))) if _is_free(n)]
    letters = draw(st.permutations("f i g o c_1 k z r x in b_2".split()))
    keys = letters[: draw(st.integers(1, 3))]
    inputs = [f"a_{k}" for k in keys] + [f"u_{k}" for k in keys[: draw(st.integers(0, 1))]]
    pool = [n for n in pool if n not in inputs]
    carries = ["h", *pool[:1]][draw(st.integers(0, 1)) :][: draw(st.integers(0, 2))]
    vectors = pool[1 : 1 + draw(st.integers(0, 2))]
    inputs += [f"{c}_prev" for c in carries] + vectors
    between = [v for v in pool[3 : 3 + draw(st.integers(0, lines))] if v not in carries]
    outputs = tuple(dict.fromkeys(("h", *carries)))
    values = [*between, *(c for c in carries if c != "h"), "h"]
    return _closed(draw, "cell", (), inputs, values, functions, depth, outputs)


def _is_free(name: str) -> bool:
    """Whether a name says nothing about itself by the convention of cells."""
    return not name.startswith(("a_", "u_")) and not name.endswith("_prev") and name != "h"


def _closed(
    draw: Any,
    name: str,
    optional: tuple[str, ...],
    inputs: list[str],
    values: list[str],
    functions: tuple[str, ...],
    depth: int,
    outputs: tuple[str, ...],
) -> Written:
    """Lines for `values`; the last uses whatever no line used. Optional inputs may stay out."""
    known, lines = [*optional, *inputs], list[tuple[str, str]]()
    for value in values:
        lines.append((value, draw(expressions(tuple(known), functions, depth))))
        known.append(value)
    used = set(re.findall(r"[A-Za-z_]\w*", " ".join(text for _, text in lines)))
    idle = [v for v in (*inputs, *values[:-1]) if v not in used and v not in outputs]
    last, text = lines[-1]
    lines[-1] = (last, " + ".join([text, *idle]))
    given = tuple(v for v in (*optional, *inputs) if v in used or v in inputs)
    assume(given)
    also = [v for v in values[:-1] if outputs == () and draw(st.booleans())]
    return Written(name, given, outputs or (*also, values[-1]), tuple(lines))
