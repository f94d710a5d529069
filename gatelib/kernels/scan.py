"""A cell over time in one Triton kernel, and back in another, on torch tensors.

Imports torch, gatelib.spec, gatelib.kernels.launch and gatelib.kernels.scan_source.
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
    states (B, D) in the dtype of the computation, each alone or as a tuple. Raises TypeError or
    ValueError, naming the input, for a wrong count, dtype, device, shape or layout.
    """

    def __init__(self, spec: Spec, params: Iterable[str] = (), keep: str = "") -> None:
        self.spec = spec
        self.plan: ScanSource = scan_source.time_scan(spec, params, keep)
        self.names = [str(v) for v in spec.inputs if str(v) not in self.plan.carries]

    def __call__(self, *inputs: Tensor, initial_state: State | None = None) -> tuple[State, State]:
        launch.check_count(self.spec, self.names, inputs)
        named = dict(zip(self.names, inputs, strict=True))
        stream = self._check_inputs(named)
        named |= self._states(initial_state, stream)
        ordered = [named[str(v)] for v in self.spec.inputs]
        results = _ScanFunction.apply(self.plan, *ordered)  # type: ignore[no-untyped-call]
        count = len(self.spec.outputs)
        return launch.one_or_all(results[:count]), launch.one_or_all(results[count:])

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


class _ScanFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: ScanSource, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = {str(v): x for v, x in zip(plan.spec.inputs, inputs, strict=True)}
        ctx.plan = plan
        ctx.likes = {n: (x.shape, x.dtype, x.device) for n, x in named.items()}
        shape, dtype, device = stream = ctx.likes[plan.streams[0]]
        outputs = [str(v) for v in plan.spec.outputs]
        # What nobody asked to see is kept in the dtype of the computation.
        dtypes = {v: dtype if v in outputs else launch.compute_dtype(dtype) for v in plan.stored}
        stored = {v: launch.empty(shape, kind, device) for v, kind in dtypes.items()}
        ends = [launch.empty(*_per_lane(stream)) for _ in plan.carries]
        kernel = launch.load(plan.text)[plan.forward]
        _launch(kernel, plan.forward_reads, stream, [*inputs, *stored.values(), *ends])
        known = stored | named
        ctx.save_for_backward(*(known[v] for v in plan.reverse_reads))
        ctx.set_materialize_grads(False)
        return *(stored[v] for v in outputs), *ends

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, stream = ctx.plan, ctx.likes[ctx.plan.streams[0]]
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{plan.reverse}: a scan can be differentiated once, and create_graph=True asks "
                "for more; run the cell step by step for second derivatives"
            )
        arrived = [None if g is None else g.contiguous() for g in upstream]
        outputs = [str(v) for v in plan.spec.outputs]
        seeds = dict(zip(outputs, arrived, strict=False))
        # Lanes that added to one sum together would make it depend on their order.
        likes = ctx.likes | dict.fromkeys(plan.params, _per_lane(stream))
        adjoints = {name: launch.empty(*like) for name, like in likes.items()}
        arguments = [*ctx.saved_tensors, *(seeds.get(v) for v in plan.seeds)]
        arguments += [*arrived[len(outputs) :], *adjoints.values()]
        _launch(launch.load(plan.text)[plan.reverse], plan.backward_reads, stream, arguments)
        for name in plan.params:
            adjoints[name] = adjoints[name].sum(0).to(ctx.likes[name][1])
        return None, *adjoints.values()


@functools.lru_cache(maxsize=256)
def _scan(spec: Spec, params: tuple[str, ...], keep: str) -> TimeScan:
    return TimeScan(spec, params, keep)


def scan(spec: Spec, params: Iterable[str] = (), keep: str = "") -> TimeScan:
    """The cell `spec` over time, differentiable once: `scan(MINGRU)(a_z, n, initial_state=h0)`.

    `params` names the inputs that are vectors (D,); `keep` the intermediate values that the forward
    pass saves instead of computing them again. Raises SpecError for a Spec that is not elementwise
    or has no carry.
    """
    return _scan(spec, tuple(params), keep)
