"""A cell over time as Triton source: two kernels, with the state in registers.

Imports gatelib.spec and gatelib.kernels.triton_source.
Must not import Triton or torch: what is made here is text, and `gatelib.kernels.scan` runs it.

A step is a function of its own that holds the equations and nothing else. The loop around it reads
`AHEAD_` steps at once, into registers, while it computes the `AHEAD_` steps before: each lane uses
what it reads itself, so shared memory and barriers would be pure cost. The compiler unrolls what
`tl.static_range` says; steps that make no whole block are run one at a time by the same loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from gatelib.kernels.triton_source import check, equations, function, prelude, seeds
from gatelib.spec import Spec, SpecError, symbol

__all__ = ["ScanSource", "time_scan"]

READ = '''

@triton.jit
def read_(
    pointer, at, live, stride: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """AHEAD values, one a step; zeros where there is nothing to read."""
    values = ()
    for k in tl.static_range(AHEAD):
        if pointer is None:
            values = values + (tl.zeros([BLOCK], DTYPE),)
        else:
            values = values + (tl.load(pointer + at + k * stride, live, 0),)
    return values
'''
BEFORE = '''

@triton.jit
def before_(
    pointer, at, live, inside, start, stride: tl.constexpr, AHEAD: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The states before AHEAD steps, back in time; the last is `start` if that is no step."""
    values = ()
    for k in tl.static_range(1, AHEAD):
        values = values + (tl.load(pointer + at + k * stride, live, 0).to(DTYPE),)
    last = tl.load(pointer + at + AHEAD * stride, live & inside, 0).to(DTYPE)
    return values + (tl.where(inside, last, start),)
'''
LANES = """\
    blocks_: tl.constexpr = (width_ + BLOCK_ - 1) // BLOCK_
    row_ = (tl.program_id(0) // blocks_).to(tl.int64)
    feature_ = tl.program_id(0) % blocks_ * BLOCK_ + tl.arange(0, BLOCK_)
    live_ = feature_ < width_
    lane_ = row_ * width_ + feature_
    whole_ = steps_ // AHEAD_ * AHEAD_
"""
"""A program is 32 or more neighbouring features of one row, so a row's base is one 64-bit number
and everything inside a block of steps lies at a distance that the compiler knows. The programs
stand in one line: a second axis of the grid would end at 65,535."""
FIXED = ("width_", "AHEAD_", "BLOCK_", "DTYPE_")
NOT_SPECIAL = '(do_not_specialize=["steps_"])'
INSIDE = ("stride_", "AHEAD_", "BLOCK_", "DTYPE_")
IN, LOOP, STEP = " " * 4, " " * 8, " " * 12


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

    @property
    def forward_reads(self) -> int:
        """How many values a step of `forward` reads."""
        return len(self.streams)

    @property
    def backward_reads(self) -> int:
        """How many values a step of `reverse` reads, all adjoints of the outputs among them."""
        return len(self.reads) + len(self.states_read) + len(self.seeds)


def time_scan(spec: Spec, params: Iterable[str] = (), keep: str = "") -> ScanSource:
    """Triton source of a cell over time: one lane per (batch, feature), state in registers.

    `params` names the inputs that are vectors (D,), the same at every step; every other input that
    is not a carry is a stream (B, T, D). `keep` names intermediate values for the forward kernel to
    save, as in `Spec.vjp`; by default the reverse kernel computes them again from its inputs, which
    moves the fewest bytes. Raises SpecError for a Spec that is not elementwise or has no carry.
    """
    check(spec)
    carries = {str(p): str(v) for p, v in spec.carries.items()}
    if not carries:
        raise SpecError(f"{spec.name}: a scan needs a carry, an input NAME_prev of a value NAME")
    chosen = _chosen_params(spec, tuple(params), carries)
    # Every new state needs an adjoint, also one that is no output.
    hidden = [symbol(v) for v in carries.values() if symbol(v) not in spec.outputs]
    cell = replace(spec, outputs=(*spec.outputs, *hidden))
    vjp = cell.vjp(keep)
    plan = _plan(spec, vjp, cell, chosen, carries)
    text = _forward(plan) + _reverse(plan, vjp)
    return replace(plan, text=prelude(text) + READ + BEFORE * bool(plan.states_read) + text)


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


# ---- one step, and the loop around it ------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """What a loop over time reads, computes and writes.

    step: the equations of one step; `given` says how the loop names each of its inputs.
    reads: what is read at every step, a block ahead. `before`: {state: pointer} of the values that
    states had one step earlier in time. `still`: what stays the same in all steps.
    carried: what passes from step to step; `after` are the lines that end a step.
    """

    name: str
    step: Spec
    given: dict[str, str]
    results: list[str]
    reads: list[str]
    before: dict[str, str]
    still: list[str]
    carried: list[str]
    writes: list[str]
    after: list[str]

    @property
    def arguments(self) -> list[str]:
        """What the kernel hands to the loop, apart from the place and the number of steps."""
        pointers = [f"{v}_ptr_" for v in dict.fromkeys([*self.reads, *self.before.values()])]
        return [*pointers, *self.still, *self.carried, *(f"{v}_ptr_" for v in self.writes)]


def _step(spec: Spec, results: Iterable[str]) -> str:
    """The equations as a function: one step of one lane."""
    text = function(f"{spec.name}_step_", map(str, spec.inputs), ["BLOCK_", "DTYPE_"])
    return text + equations(spec) + f"    return {', '.join(results)}\n"


def _loop(loop: Loop) -> str:
    """The step, and the function that runs it from `begin_` to `end_`, `AHEAD_` steps at a time."""
    values = [loop.given.get(v, v) for v in map(str, loop.step.inputs)]
    place = ["at_", "live_", "begin_", "end_", "steps_"]
    text = _step(loop.step, loop.results) + function(loop.name, [*loop.arguments, *place], INSIDE)
    text += "    ready_ = live_ & (begin_ < end_)\n" + _block(loop, "now", "at_", "begin_", IN)
    text += "    for t_ in tl.range(begin_, end_, AHEAD_):\n"
    text += f"{LOOP}next_ = at_ + AHEAD_ * stride_\n{LOOP}later_ = t_ + AHEAD_\n"
    text += f"{LOOP}ready_ = live_ & (later_ < end_)\n"
    text += _block(loop, "next", "next_", "later_", LOOP)
    text += f"{LOOP}for k_ in tl.static_range(AHEAD_):\n"
    text += _call(loop.results, f"{loop.step.name}_step_", [*values, "BLOCK_", "DTYPE_"], STEP)
    for v in loop.writes:
        text += f"{STEP}tl.store({v}_ptr_ + at_ + k_ * stride_, {v}, live_)\n"
    text += "".join(f"{STEP}{line}\n" for line in loop.after)
    text += "".join(f"{LOOP}{v}_now_ = {v}_next_\n" for v in (*loop.reads, *loop.before))
    return text + f"{LOOP}at_ = next_\n    return {', '.join(loop.carried)}\n"


def _block(loop: Loop, what: str, at: str, step: str, indent: str) -> str:
    """The reads of one block of steps, called NAME_now_ or NAME_next_."""
    text = ""
    for v in loop.reads:
        read = [f"{v}_ptr_", at, "ready_", "stride_", "AHEAD_", "BLOCK_", "DTYPE_"]
        text += _call([f"{v}_{what}_"], "read_", read, indent)
    for p, v in loop.before.items():
        inside = f"{step} + AHEAD_ < steps_"
        read = [f"{v}_ptr_", at, "ready_", inside, f"{p}_start_", "stride_", "AHEAD_", "DTYPE_"]
        text += _call([f"{p}_{what}_"], "before_", read, indent)
    return text


def _call(targets: Sequence[str], name: str, arguments: Sequence[str], indent: str) -> str:
    """A call that gives `targets`, over as many lines as it needs."""
    head = f"{indent}{', '.join(targets)} = {name}("
    line = f"{head}{', '.join(arguments)})"
    if len(line) <= 100:
        return line + "\n"
    inner = indent + IN
    lines = [inner]
    for argument in arguments:
        if len(lines[-1]) + len(argument) > 96:
            lines.append(inner)
        lines[-1] += f"{argument}, "
    return "\n".join([head, *(line.rstrip() for line in lines), f"{indent})"]) + "\n"


def _run(loop: Loop, stride: str) -> str:
    """The calls of the loop: whole blocks, and then what is left, step by step."""
    text, rest = "", f"at_ + whole_.to(tl.int64) * {stride}"
    ends = (("at_", "0", "whole_", "AHEAD_"), (rest, "whole_", "steps_", "1"))
    for at, begin, end, ahead in ends:
        place = [at, "live_", begin, end, "steps_", stride, ahead, "BLOCK_", "DTYPE_"]
        text += _call(loop.carried, loop.name, [*loop.arguments, *place], IN)
    return text


def _load(name: str, at: str, value: str = "") -> str:
    return f"    {value or name} = tl.load({name}_ptr_ + {at}, live_, 0).to(DTYPE_)\n"


# ---- the two kernels -----------------------------------------------------------------------


def _forward(plan: ScanSource) -> str:
    """From the first step to the last; the states never leave the registers."""
    loop = Loop(
        name=f"{plan.spec.name}_onward_",
        step=plan.spec,
        given={v: f"{v}_now_[k_].to(DTYPE_)" for v in plan.streams},
        results=list(dict.fromkeys([*plan.stored, *plan.carries.values()])),
        reads=list(plan.streams),
        before={},
        still=list(plan.params),
        carried=list(plan.carries),
        writes=list(plan.stored),
        after=[f"{p} = {v}" for p, v in plan.carries.items()],
    )
    pointers = [f"{v}_ptr_" for v in (*map(str, plan.spec.inputs), *plan.stored)]
    ends = [f"{v}_end_" for v in plan.carries.values()]
    text = _loop(loop) + function(plan.forward, [*pointers, *ends, "steps_"], FIXED, NOT_SPECIAL)
    text += LANES + "".join(_load(v, "feature_") for v in plan.params)
    text += "".join(_load(v, "lane_") for v in plan.carries)
    text += "    at_ = row_ * steps_ * width_ + feature_\n" + _run(loop, "width_")
    pairs = plan.carries.items()
    return text + "".join(f"    tl.store({v}_end_ + lane_, {p}, live_)\n" for p, v in pairs)


def _reverse(plan: ScanSource, vjp: Spec) -> str:
    """From the last step to the first; the adjoints of the states stay in registers."""
    loop = _backward(plan, vjp)
    pointers = [f"{v}_ptr_" for v in (*plan.reverse_reads, *plan.seeds.values())]
    pointers += [f"{plan.adjoints[p]}_end_" for p in plan.carries]
    pointers += [f"{d}_ptr_" for d in plan.adjoints.values()]
    text = _loop(loop) + function(plan.reverse, [*pointers, "steps_"], FIXED, NOT_SPECIAL) + LANES
    text += "".join(_load(v, "feature_") for v in plan.params_read)
    text += "".join(_load(p, "lane_", f"{p}_start_") for p in plan.states_read)
    states = [plan.adjoints[p] for p in plan.carries]
    for d in states:
        text += f"    ({d},) = read_({d}_end_, lane_, live_, 0, 1, BLOCK_, DTYPE_)\n"
        text += f"    {d} = {d}.to(DTYPE_)\n"
    sums = {d: f"{d}_sum_" for d in (plan.adjoints[v] for v in plan.params)}
    text += "".join(f"    {total} = tl.zeros([BLOCK_], DTYPE_)\n" for total in sums.values())
    text += "    at_ = ((row_ + 1) * steps_ - 1) * width_ + feature_\n" + _run(loop, "-width_")
    written = {d: d for d in states} | sums
    pairs = written.items()
    return text + "".join(f"    tl.store({d}_ptr_ + lane_, {v}, live_)\n" for d, v in pairs)


def _backward(plan: ScanSource, vjp: Spec) -> Loop:
    """The loop of the reverse kernel."""
    adjoint, carried = plan.adjoints, {v: plan.adjoints[p] for p, v in plan.carries.items()}
    given = {v: f"{v}_now_[k_].to(DTYPE_)" for v in (*plan.reads, *plan.seeds.values())}
    for v, g in plan.seeds.items():
        given[g] += f" + {carried[v]}" if v in carried else ""
    sums = [adjoint[v] for v in plan.params]
    return Loop(
        name=f"{plan.spec.name}_back_",
        step=vjp,
        given=given | {p: f"{p}_now_[k_]" for p in plan.states_read},
        results=list(adjoint.values()),
        reads=[*plan.reads, *plan.seeds.values()],
        before={p: plan.carries[p] for p in plan.states_read},
        still=[*plan.params_read, *(f"{p}_start_" for p in plan.states_read)],
        carried=[*(adjoint[p] for p in plan.carries), *(f"{d}_sum_" for d in sums)],
        writes=[adjoint[v] for v in plan.streams],
        after=[f"{d}_sum_ += {d}" for d in sums],
    )
