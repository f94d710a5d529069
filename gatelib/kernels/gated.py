"""What a gate over features means as a kernel: its programs on a CPU, its texts for a GPU.

Imports SymPy, gatelib.algebra, gatelib.functions, gatelib.spec, and of gatelib.kernels inplace,
patterns, reuse and triton_source.
Must not import gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

torch computes some functions of one value, and their slopes, by one call each: SiLU, GELU, GELU's
tanh form. A value of the Spec that is such a function of an input is found by its numbers, not by
its form, so that one may write it as one likes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from gatelib.algebra import plus
from gatelib.functions import Expr, exact
from gatelib.kernels import triton_source
from gatelib.kernels.inplace import FULL, Program, lower
from gatelib.kernels.patterns import tightened
from gatelib.kernels.reuse import reusing
from gatelib.spec import Equation, Spec, symbol

__all__ = ["Gated", "gated_of"]

X = sp.Symbol("x", real=True)
TORCH_CALLS = {
    "silu": X / (1 + sp.exp(-X)),
    "gelu_erf": X * (1 + sp.erf(X / sp.sqrt(2))) / 2,
    "gelu_tanh": X * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (X + 0.044715 * X**3))) / 2,
}
"""What torch computes by one call, and its slope by another."""
PROBES = (-90.1, -25.3, -3.1, -0.7, 0.4, 1.9, 4.3, 17.2, 90.1)
"""Where a value is compared with these functions: far out too, where a limit would show."""


@dataclass(frozen=True)
class Gated:
    """A Spec of one or two inputs and one output, elementwise, as a kernel."""

    spec: Spec

    def __post_init__(self) -> None:
        _check(self.spec)
        _ = self.text, self.inputs, self.in_torch  # now: torch.compile can't trace what makes them

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is read from its Spec again."""
        return gated_of, (self.spec,)

    @functools.cached_property
    def text(self) -> str:
        """The Spec as text, from which `gated_of_text` makes this again."""
        return repr(self.spec)

    @functools.cached_property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(map(str, self.spec.inputs))

    @functools.cached_property
    def output(self) -> str:
        """The name of the output."""
        return str(self.spec.outputs[0])

    @functools.cached_property
    def in_torch(self) -> Callable[..., Any]:
        """The gate as a torch function."""
        return self.spec.compile("torch")

    # ---- backwards ----------------------------------------------------------------------------

    @functools.cached_property
    def vjp(self) -> Spec:
        """The backward pass from the inputs and the output's adjoint."""
        return self.spec.vjp("")

    @functools.cached_property
    def both(self) -> Spec:
        """The output again and the adjoints of all inputs."""
        made = dict(self.spec.equations)
        new = [(v, e) for v, e in self.vjp.equations if v not in made]
        known = (*self.spec.inputs, *(v for v in self.vjp.inputs if v not in self.spec.inputs))
        outputs = (*self.spec.outputs, *self.vjp.outputs)
        equations = (*self.spec.equations, *new)
        return replace(
            self.vjp,
            name=f"{self.vjp.name}_both",
            equations=equations,
            inputs=known,
            outputs=outputs,
        )

    @functools.cached_property
    def seed(self) -> str:
        """The name of the output's adjoint; a free one where no derivative needs it."""
        return triton_source.seeds(self.spec, self.vjp).get(self.output, "no_seed_")

    @functools.cached_property
    def adjoints(self) -> tuple[str, ...]:
        """The names of the inputs' adjoints, in their order."""
        return tuple(map(str, self.vjp.outputs))

    # ---- programs on a CPU --------------------------------------------------------------------

    @functools.cached_property
    def _ahead(self) -> list[Equation]:
        units, rest = _parted(self.spec)
        calls = [(v, sp.Function(kind)(a)) for v, (kind, a) in units.items()]
        return [*calls, *(() if rest is None else tightened(rest.equations))]

    @functools.cached_property
    def _back(self) -> list[Equation]:
        """The adjoints, with torch's own calls for the slopes of units."""
        units, rest = _parted(self.spec)
        back, slopes = ({}, {}) if rest is None else self._back_of_rest(rest)
        for v, (kind, a) in units.items():
            d = symbol(self.adjoints[self.inputs.index(str(a))])
            slope = sp.Function(f"{kind}_backward")(slopes.get(v, symbol(self.seed)), a)
            so_far = back.pop(d, sp.S.Zero)
            back[d] = slope if so_far == 0 else plus(so_far, slope)
        calls = [] if rest is None else [(v, e) for v, e in self._ahead if v in units]
        return [*calls, *((v, e) for v, e in back.items() if v not in units)]

    def _back_of_rest(self, rest: Spec) -> tuple[dict[Expr, Expr], dict[Expr, Expr]]:
        """(adjoints behind the units, {unit: its value's adjoint}), by the whole gate's names."""
        vjp = rest.vjp("")
        own = {str(v): symbol(vjp.adjoint_of[str(v)]) for v in rest.inputs}
        names = {own[v]: symbol(d) for v, d in zip(self.inputs, self.adjoints, strict=True)}
        names |= {symbol(s): symbol(self.seed) for s in vjp.seed_of.values()}
        renamed = [(names.get(v, v), e.xreplace(names)) for v, e in vjp.equations]
        made = {v for v, _ in renamed}
        tight = tightened(renamed, {e: v for v, e in rest.equations if v in made})
        return dict(tight), {symbol(v): d for v, d in own.items()}

    def _program(self, name: str, equations: Sequence[Equation], results: Sequence[str]) -> Program:
        shapes = dict.fromkeys((*self.inputs, self.seed), FULL)
        filled = dict.fromkeys(results, FULL)
        made = lower(
            f"{self.spec.name}_{name}", equations, shapes, filled, backward=name != "ahead"
        )
        return reusing(made, filled)

    @functools.cached_property
    def ahead(self) -> Program:
        """Fills the output."""
        return self._program("ahead", self._ahead, [self.output])

    @functools.cached_property
    def back(self) -> Program:
        """Fills the adjoints of the inputs."""
        return self._program("back", self._back, self.adjoints)

    @functools.cached_property
    def back_again(self) -> Program:
        """Fills the adjoints of the inputs, and the output again."""
        equations = dict(self._ahead) | dict(self._back)
        return self._program("back_again", list(equations.items()), [self.output, *self.adjoints])

    # ---- texts for a GPU ----------------------------------------------------------------------

    @functools.cached_property
    def texts(self) -> Mapping[str, tuple[str, Spec]]:
        """{"ahead", "back", "back_again": (Triton source, the Spec that it computes)}."""
        specs = {"ahead": self.spec, "back": self.vjp, "back_again": self.both}
        return {name: (triton_source.rows(spec), spec) for name, spec in specs.items()}


def _check(spec: object) -> None:
    if not isinstance(spec, Spec):
        raise TypeError(f"spec: expected a Spec, got {type(spec).__name__}")
    if len(spec.inputs) not in (1, 2) or len(spec.outputs) != 1:
        raise ValueError(
            f"spec: expected one or two inputs and one output, got {spec.name}: "
            f"{len(spec.inputs)} and {len(spec.outputs)}"
        )
    if spec.outputs[0] in spec.inputs:
        raise ValueError(f"spec: expected an output that is computed, got {spec.name}")
    if not spec.is_elementwise:
        raise ValueError(f"spec: expected an elementwise gate, got {spec.name}")


# ---- what torch computes by one call -----------------------------------------------------------


def _units(spec: Spec) -> dict[Expr, tuple[str, Expr]]:
    """{value: (name of torch's call, the input that it is a function of)}."""
    full, found = dict[Expr, Expr](), dict[Expr, tuple[str, Expr]]()
    for v, e in spec.equations:
        full[v] = e.xreplace(full)
        symbols = full[v].free_symbols
        kind = _kind(full[v], *symbols) if len(symbols) == 1 else ""
        if kind:
            found[v] = kind, next(iter(symbols))
    return found


def _kind(e: Expr, a: Expr) -> str:
    """Which of torch's calls gives the values of e; empty if none."""
    plain = exact(e)
    if plain.has(sp.Min, sp.Max, sp.Piecewise):
        return ""  # a limit beyond the probes would be lost
    got = [plain.evalf(20, subs={a: at}) for at in PROBES]
    for kind, known in TORCH_CALLS.items():
        expected = [known.evalf(20, subs={X: at}) for at in PROBES]
        triples = zip(PROBES, got, expected, strict=True)
        near = (
            g.is_Number and abs(g - k) <= 1e-14 * (1 if at < -9 else abs(k)) for at, g, k in triples
        )
        if all(near):
            return kind
    return ""


@functools.lru_cache(maxsize=256)
def _parted(spec: Spec) -> tuple[dict[Expr, tuple[str, Expr]], Spec | None]:
    """(units that are needed, the rest of the gate with units as inputs or None)."""
    units = _units(spec)
    needed, kept = set(spec.outputs), list[Equation]()
    for v, e in reversed(spec.equations):
        if v in needed and v not in units:
            kept.insert(0, (v, e))
            needed |= e.free_symbols
    units = {v: unit for v, unit in units.items() if v in needed}
    if not kept:
        return units, None
    inputs = (*spec.inputs, *units)
    return units, Spec(spec.name, tuple(kept), inputs, spec.outputs)


@functools.lru_cache(maxsize=256)
def gated_of(spec: Spec) -> Gated:
    """Read a Spec as a gate over features; TypeError or ValueError where it is none."""
    return Gated(spec)


@functools.lru_cache(maxsize=256)
def gated_of_text(text: str) -> Gated:
    """The gate whose `text` this is."""
    return gated_of(Spec.read(text))
