"""Spec → readable Triton source: elementwise, and over time with the state in registers.

Imports SymPy, gatelib.spec, gatelib.functions and gatelib.printers.
Must not import Triton or torch: what is made here is text, and `gatelib.kernels.triton` runs it.

Names in a kernel are the names of the equations. Names of the harness end in `_`, which a Spec
refuses, so the two can't collide: `x_ptr_` points at x, `c_end_` at the final state c, `at_` is
where a lane reads, `live_` masks the tail, `t_` counts time. Offsets are 64-bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import sympy as sp

from gatelib.functions import Elementwise, Expr, exact
from gatelib.printers import ATOM, CodePrinter, UnprintableError
from gatelib.spec import Spec, SpecError, symbol

__all__ = ["ScanSource", "elementwise", "seeds", "time_scan"]

HEADER = "import triton\nimport triton.language as tl\n"

PRELUDE = {
    # In float32 a GPU takes 2**(x*1.4427), and at x = 50 the product has lost 20 ulp: so halve the
    # work, a whole power of two that is exact and a rest below 0.35.
    "exp": """
        if x.dtype == tl.float32:
            x = tl.where(x > 200.0, 200.0, tl.where(x < -200.0, -200.0, x))
            whole = tl.floor(x * 1.4426950408889634 + 0.5)
            rest = (x - whole * 0.693359375) + whole * 0.00021219444005469057
            value = tl.exp(rest) * tl.exp2(whole)
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
    # The adjoint of an output, or zeros where no loss depends on it.
    "upstream_": """
        if pointer is None:
            value = tl.zeros([BLOCK], DTYPE)
        else:
            value = tl.load(pointer + at, live, 0).to(DTYPE)
        return value
    """,
}
ARGUMENTS = {
    "maximum": "x, y",
    "upstream_": "pointer, at, live, BLOCK: tl.constexpr, DTYPE: tl.constexpr",
}
NEEDS = {"softplus": ("log1p",), "gelu": ("normal_cdf",)}
FORMS = {name: f"{name}({{0}})" for name in PRELUDE} | {
    "log": "tl.log({0})",
    "sigmoid": "tl.sigmoid({0})",
    "sqrt": "tl.sqrt({0})",
    "maximum": "maximum({0}, {1})",
    "identity": "{0}",
}
RESERVED = ("tl",)
"""Names that a kernel itself must be able to use."""


@dataclass(frozen=True)
class ScanSource:
    """The two kernels that run a cell over time, and the names of what they read and write.

    Streams are (B, T, D), parameters (D,), states (B, D). `forward` reads `streams`, `params` and
    the initial states `carries`, writes `stored` (B, T, D) and the final states. `reverse` reads
    `reverse_reads`, the adjoints of the outputs in `seeds` and of the final states, and writes
    `adjoints`, one per input; those of a parameter come per lane, (B, D), to be summed over B.
    """

    spec: Spec
    text: str
    forward: str
    reverse: str
    streams: tuple[str, ...]
    params: tuple[str, ...]
    carries: dict[str, str]
    stored: tuple[str, ...]
    reads: tuple[str, ...]
    states_read: tuple[str, ...]
    params_read: tuple[str, ...]
    seeds: dict[str, str]
    adjoints: dict[str, str]

    @property
    def reverse_reads(self) -> tuple[str, ...]:
        """The first arguments of `reverse`: values of a step, parameters, old states."""
        states = [self.carries[p] for p in self.states_read]
        return tuple(dict.fromkeys([*self.reads, *self.params_read, *self.states_read, *states]))


# ---- expressions ---------------------------------------------------------------------------


class TritonPrinter(CodePrinter):
    """Expressions as Triton source; numbers stand as blocks where a block is needed."""

    def __init__(self) -> None:
        super().__init__("triton", FORMS)

    def equation(self, e: Expr) -> str:
        """The right-hand side of an equation: always a block of lanes, also for a number."""
        return self(e) if e.free_symbols else self._block(e)

    def _block(self, e: Expr) -> str:
        value = float(exact(e))
        return f"tl.full([BLOCK_], {value!r}, DTYPE_)"

    def _powers(self, base: Expr, exponent: Expr, at_least: int) -> list[str]:
        """Whole powers as repeated factors and half powers as roots; Triton has no other power."""
        whole, half = int(exponent), exponent - int(exponent)
        if half not in (0, sp.Rational(1, 2)):
            raise UnprintableError(
                f"{base}**{exponent} has no form in triton: write exp({exponent}*log({base}))"
            )
        roots = [f"tl.sqrt({self(base)})"] if half else []
        return [self._wrapped(base, at_least)] * whole + roots

    def _call(self, e: Expr) -> tuple[str, int]:
        return super()._call(e) if e.free_symbols else (self._block(e), ATOM)


def _equations(spec: Spec, indent: str) -> str:
    printer = TritonPrinter()
    return "".join(f"{indent}{v} = {printer.equation(e)}\n" for v, e in spec.equations)


# ---- the prelude ---------------------------------------------------------------------------


def prelude(*specs: Spec, also: Iterable[str] = ()) -> str:
    """The imports and the functions that the equations of `specs` call."""
    called = {type(f).__name__ for spec in specs for _, e in spec.equations for f in _calls(e)}
    wanted = (called | set(also)) & PRELUDE.keys()
    wanted |= {need for name in wanted for need in NEEDS.get(name, ())}
    return HEADER + "".join(_helper(name) for name in PRELUDE if name in wanted)


def _calls(e: Expr) -> set[Elementwise]:
    return set(e.atoms(Elementwise))


def _helper(name: str) -> str:
    lines = [line[4:] for line in PRELUDE[name].strip("\n").splitlines() if line.strip()]
    body = "\n".join(lines)
    return f"\n\n@triton.jit\ndef {name}({ARGUMENTS.get(name, 'x')}):\n{body}\n"


# ---- elementwise ---------------------------------------------------------------------------


def elementwise(spec: Spec) -> str:
    """Triton source of one kernel that evaluates `spec` on every element of flat arrays.

    The kernel is called `NAME_elementwise`; it takes a pointer per input, then per output, then
    `count_` (elements), `BLOCK_` (lanes per program) and `DTYPE_` (the type to compute in).
    Raises SpecError for a Spec that looks across the features.
    """
    _check(spec)
    pointers = [f"{v}_ptr_" for v in (*spec.inputs, *spec.outputs)]
    text = _signature(f"{spec.name}_elementwise", pointers, ["count_"])
    text += "    at_ = tl.program_id(0).to(tl.int64) * BLOCK_ + tl.arange(0, BLOCK_)\n"
    text += "    live_ = at_ < count_\n"
    text += "".join(_load(str(v), "at_") for v in spec.inputs)
    text += _equations(spec, "    ")
    text += "".join(_store(str(v), "at_") for v in spec.outputs)
    return prelude(spec) + text


def _check(spec: Spec) -> None:
    if not spec.is_elementwise:
        raise SpecError(
            f"{spec.name}: a Triton kernel needs an elementwise gate, and this one looks across "
            "the features (mean, normalize, softmax); use the torch source"
        )
    for v in (*spec.inputs, *dict(spec.equations)):
        if str(v) in RESERVED:
            raise SpecError(f"{spec.name}: `{v}` is a name that Triton's own language needs")


def _signature(name: str, pointers: Iterable[str], sizes: Iterable[str]) -> str:
    arguments = [*pointers, *sizes, "BLOCK_: tl.constexpr", "DTYPE_: tl.constexpr"]
    lines, line = [], "   "
    for argument in arguments:
        if len(line) + len(argument) + 2 > 96:
            lines.append(line)
            line = "   "
        line += f" {argument},"
    body = "\n".join([*lines, line])
    return f"\n\n@triton.jit\ndef {name}(\n{body}\n):\n"


def _load(name: str, at: str, indent: str = "    ") -> str:
    return f"{indent}{name} = tl.load({name}_ptr_ + {at}, live_, 0).to(DTYPE_)\n"


def _store(name: str, at: str, indent: str = "    ", value: str = "") -> str:
    return f"{indent}tl.store({name}_ptr_ + {at}, {value or name}, live_)\n"


# ---- over time -----------------------------------------------------------------------------


def time_scan(spec: Spec, params: Iterable[str] = (), keep: str = "") -> ScanSource:
    """Triton source of a cell over time: one lane per (batch, feature), state in registers.

    `params` names the inputs that are vectors (D,), the same at every step; every other input that
    is not a carry is a stream (B, T, D). `keep` names intermediate values for the forward kernel to
    save, as in `Spec.vjp`; by default the reverse kernel computes them again from its inputs, which
    moves the fewest bytes. Raises SpecError for a Spec that is not elementwise or has no carry.
    """
    _check(spec)
    carries = {str(p): str(v) for p, v in spec.carries.items()}
    if not carries:
        raise SpecError(f"{spec.name}: a scan needs a carry, an input NAME_prev of a value NAME")
    chosen = _chosen_params(spec, tuple(params), carries)
    # Every new state needs an adjoint, also one that is no output.
    hidden = [symbol(v) for v in carries.values() if symbol(v) not in spec.outputs]
    cell = replace(spec, outputs=(*spec.outputs, *hidden))
    vjp = cell.vjp(keep)
    plan = _plan(spec, vjp, cell, chosen, carries)
    text = prelude(cell, vjp, also=["upstream_"])
    return replace(plan, text=text + _forward(plan) + _reverse(plan, vjp))


def _chosen_params(spec: Spec, params: tuple[str, ...], carries: dict[str, str]) -> tuple[str, ...]:
    inputs = [str(v) for v in spec.inputs]
    for name in params:
        if name not in inputs or name in carries:
            raise SpecError(f"params: `{name}` is not an input of {spec.name} besides its carries")
    return tuple(name for name in inputs if name in params)


def _plan(
    spec: Spec, vjp: Spec, cell: Spec, params: tuple[str, ...], carries: dict[str, str]
) -> ScanSource:
    """Which names the two kernels read and write; the text is still to come."""
    streams = [str(v) for v in spec.inputs if str(v) not in (*carries, *params)]
    needed = [str(v) for v in vjp.inputs]
    kept = [v for v in needed if symbol(v) in dict(spec.equations)]
    states = [p for p in carries if p in needed]
    stored = dict.fromkeys([*map(str, spec.outputs), *kept, *(carries[p] for p in states)])
    return ScanSource(
        spec=spec,
        text="",
        forward=f"{spec.name}_forward",
        reverse=f"{spec.name}_reverse",
        streams=tuple(streams),
        params=params,
        carries=carries,
        stored=tuple(stored),
        reads=tuple(v for v in needed if v in (*streams, *kept)),
        states_read=tuple(states),
        params_read=tuple(p for p in params if p in needed),
        seeds=seeds(cell, vjp),
        adjoints={str(v): str(d) for v, d in zip(spec.inputs, vjp.outputs, strict=True)},
    )


def seeds(spec: Spec, vjp: Spec) -> dict[str, str]:
    """{output: the input of `vjp` that brings its adjoint}, for those that the VJP needs."""
    mine = {str(v) for v in (*spec.inputs, *dict(spec.equations))}
    brought = [str(v) for v in vjp.inputs if str(v) not in mine]
    pairs = ((str(o), b) for o in spec.outputs for b in brought)
    return {o: b for o, b in pairs if re.fullmatch(f"g+_{o}", b)}


LANES = """\
    lane_ = tl.program_id(0).to(tl.int64) * BLOCK_ + tl.arange(0, BLOCK_)
    live_ = lane_ < lanes_
    feature_ = lane_ % width_
    row_ = lane_ // width_ * steps_
"""
SIZES = ("lanes_", "steps_", "width_", "STAGES_: tl.constexpr")
STEP = " " * 8


def _forward(plan: ScanSource) -> str:
    """From the first step to the last; the states never leave the registers."""
    read = [f"{v}_ptr_" for v in map(str, plan.spec.inputs)]
    written = [f"{v}_ptr_" for v in plan.stored] + [f"{v}_end_" for v in plan.carries.values()]
    text = _signature(plan.forward, [*read, *written], SIZES) + LANES
    text += "".join(_load(v, "feature_") for v in plan.params)
    text += "".join(_load(v, "lane_") for v in plan.carries)
    text += "    at_ = row_ * width_ + feature_\n"
    text += "    for t_ in tl.range(steps_, num_stages=STAGES_):\n"
    text += "".join(_load(v, "at_", STEP) for v in plan.streams)
    text += _equations(plan.spec, STEP)
    text += "".join(_store(v, "at_", STEP) for v in plan.stored)
    text += "".join(f"{STEP}{p} = {v}\n" for p, v in plan.carries.items())
    text += f"{STEP}at_ += width_\n"
    return text + "".join(
        f"    tl.store({v}_end_ + lane_, {p}, live_)\n" for p, v in plan.carries.items()
    )


def _reverse(plan: ScanSource, vjp: Spec) -> str:
    """From the last step to the first; the adjoints of the states stay in registers."""
    pointers = [f"{v}_ptr_" for v in plan.reverse_reads]
    pointers += [f"{g}_ptr_" for g in plan.seeds.values()]
    pointers += [f"{plan.adjoints[p]}_end_" for p in plan.carries]
    pointers += [f"{d}_ptr_" for d in plan.adjoints.values()]
    text = _signature(plan.reverse, pointers, SIZES) + LANES
    text += _before_the_loop(plan)
    text += "    at_ = (row_ + steps_ - 1) * width_ + feature_\n"
    text += "    for t_ in tl.range(steps_ - 1, -1, -1, num_stages=STAGES_):\n"
    text += _reads_of_a_step(plan)
    text += _equations(vjp, STEP)
    text += "".join(_store(plan.adjoints[v], "at_", STEP) for v in plan.streams)
    sums = [plan.adjoints[v] for v in plan.params]
    text += "".join(f"{STEP}{d}_sum_ += {d}\n" for d in sums)
    text += f"{STEP}at_ -= width_\n"
    text += "".join(_store(d, "lane_", value=f"{d}_sum_") for d in sums)
    return text + "".join(_store(plan.adjoints[p], "lane_") for p in plan.carries)


def _before_the_loop(plan: ScanSource) -> str:
    """Parameters, initial states, the adjoints of the final states, and empty sums."""
    text = "".join(_load(v, "feature_") for v in plan.params_read)
    for p in plan.states_read:
        text += f"    {p}_start_ = tl.load({p}_ptr_ + lane_, live_, 0).to(DTYPE_)\n"
    for d in (plan.adjoints[p] for p in plan.carries):
        text += f"    {d} = upstream_({d}_end_, lane_, live_, BLOCK_, DTYPE_)\n"
    sums = [plan.adjoints[v] for v in plan.params]
    return text + "".join(f"    {d}_sum_ = tl.zeros([BLOCK_], DTYPE_)\n" for d in sums)


def _reads_of_a_step(plan: ScanSource) -> str:
    """Streams, saved values, the states before the step, and the adjoints that arrive."""
    text = "".join(_load(v, "at_", STEP) for v in plan.reads)
    before = plan.states_read
    if before:
        text += f"{STEP}inside_ = t_ > 0\n"
    for p in before:
        state = f"tl.load({plan.carries[p]}_ptr_ + (at_ - width_), live_ & inside_, 0).to(DTYPE_)"
        text += f"{STEP}{p} = {state}\n"
        text += f"{STEP}{p} = tl.where(inside_, {p}, {p}_start_)\n"
    carried = {v: plan.adjoints[p] for p, v in plan.carries.items()}
    for v, g in plan.seeds.items():
        text += f"{STEP}{g} = upstream_({g}_ptr_, at_, live_, BLOCK_, DTYPE_)"
        text += f" + {carried[v]}\n" if v in carried else "\n"
    return text
