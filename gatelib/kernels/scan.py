"""A cell over time in one Triton kernel, and back in another, on torch tensors.

Imports torch, gatelib.spec, and gatelib.kernels' launch, operator and scan_source.
Must not import gatelib.nn, gatelib.lab or gatelib.reference.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gatelib.kernels import launch, scan_source
from gatelib.kernels.launch import State
from gatelib.kernels.operator import Operator
from gatelib.kernels.scan_source import ScanSource
from gatelib.spec import Spec

__all__ = ["TimeScan", "options", "scan"]

Like = tuple[Sequence[int], torch.dtype, torch.device]
"""What an empty tensor is made from: shape, dtype, device."""

WARP = 32
REGISTERS = 32
"""Registers of a thread that hold what is read ahead. As many hold the block that is computed, and
the arithmetic needs about as many again, so that a kernel stays below 160."""
MOST_AHEAD = 16


class TimeScan:
    """A cell run over time in one kernel, and back in another.

    Call it with the cell's inputs in their order, without the carries: streams are (B, T, D),
    parameters (D,). `initial_state` is one (B, D) tensor per carry (a tensor alone for one carry),
    zeros if left out. Returns `(outputs, final_state)`: outputs (B, T, D) in the streams' dtype,
    states (B, D) in the dtype of the computation, each alone or as a tuple. One operator,
    `gatelib::scan`: compile and vmap know it; second derivatives run the torch source. Raises
    TypeError or ValueError, naming the input, for a wrong count, dtype, device, shape or layout.
    """

    def __init__(self, spec: Spec, params: Iterable[str] = (), keep: str = "") -> None:
        self.spec = spec
        self.key = repr(spec), " ".join(params), keep
        self.plan: ScanSource = _plan(*self.key)
        self.names = [str(v) for v in spec.inputs if str(v) not in self.plan.carries]

    def __call__(self, *inputs: Tensor, initial_state: State | None = None) -> tuple[State, State]:
        launch.check_count(self.spec, self.names, inputs)
        named = dict(zip(self.names, inputs, strict=True))
        stream = self._check_inputs(named)
        named |= self._states(initial_state, stream)
        ordered = [named[str(v)] for v in self.spec.inputs]
        results = OPERATOR(*self.key, ordered)
        count = len(self.spec.outputs)
        ends = results[count : count + len(self.plan.carries)]
        return launch.one_or_all(results[:count]), launch.one_or_all(ends)

    def _check_inputs(self, named: Mapping[str, Tensor]) -> Tensor:
        """Every input as it should be; returns the first stream."""
        if not self.plan.streams:
            raise ValueError(f"{self.spec.name}: expected at least one input that is no parameter")
        first = self.plan.streams[0]
        stream = launch.check_tensor(first, named[first])
        if stream.dim() != 3:
            raise ValueError(f"{first}: expected (B, T, D), got shape {tuple(stream.shape)}")
        for name, value in named.items():
            launch.check_tensor(name, value)
            is_stream = name in self.plan.streams
            shape = stream.shape if is_stream else stream.shape[2:]
            launch.check_like(name, value, shape, first, stream)
            allowed = [stream.dtype] if is_stream else _state_dtypes(stream)
            launch.check_dtype(name, value, allowed, first)
        return stream

    def _states(self, given: State | None, stream: Tensor) -> dict[str, Tensor]:
        shape = (stream.shape[0], stream.shape[2])
        if given is None:
            dtype = launch.compute_dtype(stream.dtype)
            return {p: stream.new_zeros(shape, dtype=dtype) for p in self.plan.carries}
        states = (given,) if isinstance(given, Tensor) else tuple(given)
        if len(states) != len(self.plan.carries):
            names = ", ".join(self.plan.carries)
            raise ValueError(
                f"initial_state: expected {len(self.plan.carries)} tensor(s) ({names}), "
                f"got {len(states)}"
            )
        for name, value in zip(self.plan.carries, states, strict=True):
            where = f"initial_state {name}"
            launch.check_tensor(where, value)
            launch.check_like(where, value, shape, self.plan.streams[0], stream)
            launch.check_dtype(where, value, _state_dtypes(stream), self.plan.streams[0])
        return dict(zip(self.plan.carries, states, strict=True))


def _state_dtypes(stream: Tensor) -> list[torch.dtype]:
    return [stream.dtype, launch.compute_dtype(stream.dtype)]


def options(arrays: int, like: Like, processors: int) -> dict[str, Any]:
    """How a kernel that reads `arrays` values a step is cut into programs and blocks of steps.

    One warp a program, so that few lanes spread over many processors; a thread has one lane, two of
    half-width values, so that it loads four bytes or more. `AHEAD_` is the largest power of two, at
    most 16, whose reads fit into REGISTERS. Memory wants 16 to 24 KB in flight for each processor;
    where the programs are fewer than twice the processors, threads may use all 255 registers, and
    blocks are twice as long.
    """
    (batch, _, width), dtype, _ = like
    block = WARP * max(1, 4 // dtype.itemsize)
    programs = batch * -(-width // block)
    words = max(1, arrays) * (block // WARP) * dtype.itemsize / 4
    fits = max(2, min(MOST_AHEAD, int(REGISTERS / words)))
    ahead = 1 << (fits.bit_length() - 1) << (programs < 2 * processors)
    fixed = {"width_": width, "AHEAD_": ahead, "BLOCK_": block, "DTYPE_": launch.in_triton(dtype)}
    return {"programs": programs, "num_warps": 1, **fixed}


def _launch(kernel: Any, arrays: int, like: Like, arguments: Sequence[Tensor | None]) -> None:
    (_, steps, _), _, device = like
    chosen = options(arrays, like, _processors(device))
    launch.run(kernel, chosen.pop("programs"), [*arguments, steps], **chosen)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _per_lane(like: Like) -> Like:
    """What a state of these streams is like: (B, D) in the dtype of the computation."""
    (batch, _, width), dtype, device = like
    return (batch, width), launch.compute_dtype(dtype), device


# ---- the operator --------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _plan(gate: str, params: str, keep: str) -> ScanSource:
    return scan_source.time_scan(Spec.read(gate), params.split(), keep)


def _buffers(plan: ScanSource, stream: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What the forward kernel writes: values of all steps by name, and the final states."""
    kinds = {v: launch.compute_dtype(stream.dtype) for v in plan.stored}
    # What nobody asked to see is kept in the dtype of the computation.
    kinds |= {str(v): stream.dtype for v in plan.spec.outputs}
    stored = {v: launch.empty(stream.shape, k, stream.device) for v, k in kinds.items()}
    like = _per_lane((stream.shape, stream.dtype, stream.device))
    return stored, [launch.empty(*like) for _ in plan.carries]


def _in_order(plan: ScanSource, stored: dict[str, Tensor], ends: list[Tensor]) -> list[Tensor]:
    """Outputs, final states, and then what the backward pass needs beside them."""
    outputs = [str(v) for v in plan.spec.outputs]
    rest = [value for name, value in stored.items() if name not in outputs]
    return [*(stored[v] for v in outputs), *ends, *rest]


def _stream(plan: ScanSource, values: Sequence[Tensor]) -> Tensor:
    return values[[str(v) for v in plan.spec.inputs].index(plan.streams[0])]


def _forward(gate: str, params: str, keep: str, values: list[Tensor]) -> list[Tensor]:
    """Run the kernel from the first step to the last; `values` are the inputs in their order."""
    plan = _plan(gate, params, keep)
    stream = _stream(plan, values)
    stored, ends = _buffers(plan, stream)
    arguments = [*(v.contiguous() for v in values), *(stored[v] for v in plan.stored), *ends]
    like = stream.shape, stream.dtype, stream.device
    _launch(launch.load(plan.text)[plan.forward], plan.forward_reads, like, arguments)
    return _in_order(plan, stored, ends)


def _shapes(gate: str, params: str, keep: str, values: list[Tensor]) -> list[Tensor]:
    plan = _plan(gate, params, keep)
    return _in_order(plan, *_buffers(plan, _stream(plan, values)))


def _backward(
    d_results: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    gate: str,
    params: str,
    keep: str,
    values: list[Tensor],
) -> list[Tensor]:
    """Run the kernel from the last step to the first: the adjoint of each input."""
    plan = _plan(gate, params, keep)
    names, outputs = ([str(v) for v in side] for side in (plan.spec.inputs, plan.spec.outputs))
    rest = [v for v in plan.stored if v not in outputs]
    known = dict(zip([*outputs, *plan.carries.values(), *rest], kept, strict=True))
    known |= dict(zip(outputs, kept, strict=False)) | dict(zip(names, values, strict=True))
    known = {name: value.contiguous() for name, value in known.items()}
    arrived = [None if d is None else d.contiguous() for d in d_results]
    seeds = dict(zip(outputs, arrived, strict=False))
    stream = known[plan.streams[0]]
    like = stream.shape, stream.dtype, stream.device
    adjoints = {n: launch.empty(*_like(plan, n, like, known[n])) for n in names}
    arguments = [*(known[v] for v in plan.reverse_reads), *(seeds.get(v) for v in plan.seeds)]
    arguments += [*arrived[len(outputs) :], *adjoints.values()]
    _launch(launch.load(plan.text)[plan.reverse], plan.backward_reads, like, arguments)
    for name in plan.params:
        adjoints[name] = adjoints[name].sum(0).to(known[name].dtype)
    return list(adjoints.values())


def _like(plan: ScanSource, name: str, like: Like, value: Tensor) -> Like:
    """The buffer of an adjoint. Lanes of a parameter that added to one sum together would make it
    depend on their order, so each has its own."""
    return _per_lane(like) if name in plan.params else (value.shape, value.dtype, value.device)


def _plain(gate: str, params: str, keep: str, values: list[Tensor]) -> list[Tensor]:
    """The same by torch's operations, step by step: for second derivatives."""
    plan = _plan(gate, params, keep)
    spec, stream = plan.spec, _stream(plan, values)
    wide = launch.compute_dtype(stream.dtype)
    named = {str(v): x.to(wide) for v, x in zip(spec.inputs, values, strict=True)}
    state, steps = {p: named[p] for p in plan.carries}, list[dict[str, Tensor]]()
    for t in range(stream.shape[1]):
        now = {v: named[v][:, t] for v in plan.streams}
        steps.append(spec.exposed.evaluate(named | now | state, "torch"))
        state = {p: steps[-1][v] for p, v in plan.carries.items()}
    outputs = [str(v) for v in spec.outputs]
    stacked = [torch.stack([step[v] for step in steps], 1) if steps else stream for v in outputs]
    return [*(value.to(stream.dtype) for value in stacked), *state.values()]


OPERATOR = Operator(
    "scan",
    forward=_forward,
    shapes=_shapes,
    results=lambda *given: len(_plan(*given[:3]).spec.outputs) + len(_plan(*given[:3]).carries),
    backward=_backward,
    kept=lambda outputs, count: outputs,
    plain=_plain,
)


@functools.lru_cache(maxsize=256)
def _scan(spec: Spec, params: tuple[str, ...], keep: str) -> TimeScan:
    return TimeScan(spec, params, keep)


def scan(spec: Spec, params: Iterable[str] = (), keep: str = "") -> TimeScan:
    """The cell `spec` over time, differentiable: `scan(MINGRU)(a_z, n, initial_state=h0)`.

    `params` names the inputs that are vectors (D,); `keep` the intermediate values that the forward
    pass saves instead of computing them again. Raises SpecError for a Spec that is not elementwise
    or has no carry.
    """
    return _scan(spec, tuple(params), keep)
