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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from gatelib.spec import Spec, SpecError
from tests.judge import JUDGES, Measured, real

EPSILON = float(np.finfo(np.float64).eps)
ELEMENTWISE = (
    "step sigmoid tanh identity relu exp log sqrt softplus silu normal_pdf normal_cdf gelu "
    "hardsigmoid maximum minimum"
).split()
OVER_FEATURES = "mean total softmax normalize rstd".split()
OF_TWO = ("maximum", "minimum")
SMOOTH = [f for f in ELEMENTWISE if f not in {"step", "relu", "hardsigmoid", *OF_TWO}]
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
        return {n: v if isinstance(v, Measured) else Measured(real(v)) for n, v in scope.items()}

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
    if function in OF_TWO:
        other = draw(st.one_of(inner, st.sampled_from(NUMBERS)))
        pair = draw(st.permutations([draw(inner), other]))
        return f"{function}({pair[0]}, {pair[1]})"
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
    return closed(draw, name, inputs, [], values, functions, depth, ())


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
    return closed(draw, "cell", (), inputs, values, functions, depth, outputs)


def _is_free(name: str) -> bool:
    """Whether a name says nothing about itself by the convention of cells."""
    return not name.startswith(("a_", "u_")) and not name.endswith("_prev") and name != "h"


def closed(
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
