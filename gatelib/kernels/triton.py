"""Runs the generated Triton kernels on torch tensors, elementwise and over time, with gradients.

Imports torch, gatelib.spec and gatelib.printers_triton; Triton when a kernel is first needed.
Must not import gatelib.nn, gatelib.lab or gatelib.reference.

Kernels run on CUDA tensors, or on CPU tensors where `TRITON_INTERPRET=1` was set before Triton was
imported. They compute in float32 (float64 for float64 input), whatever is stored, use no atomics,
and give the same bits on every run.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatelib import printers_triton
from gatelib.printers_triton import ScanSource
from gatelib.spec import Spec

__all__ = ["Elementwise", "KernelReport", "TimeScan", "compile_report", "elementwise", "scan"]

BLOCK = 512
"""Elements per program of an elementwise kernel."""
STAGES = 8
"""Steps of a scan whose loads are in flight at once."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
State = Tensor | tuple[Tensor, ...]
Like = tuple[Sequence[int], torch.dtype, torch.device]
"""What an empty tensor is made from: shape, dtype, device."""


# ---- from text to kernels ------------------------------------------------------------------


def _triton() -> Any:
    try:
        import triton
    except ImportError as error:
        raise ImportError("Triton kernels need triton: pip install 'gatelib[triton]'") from error
    return triton


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU."""
    return bool(_triton().knobs.runtime.interpret)


@functools.lru_cache(maxsize=512)
def load(text: str) -> Mapping[str, Any]:
    """The functions of a generated source; `inspect` and tracebacks show its lines."""
    _triton()
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    filename = f"<gatelib triton {digest}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    namespace: dict[str, Any] = {"__name__": f"gatelib_triton_{digest}"}
    exec(compile(text, filename, "exec"), namespace)
    return namespace


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _in_triton(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _launch(kernel: Any, programs: int, arguments: Sequence[Any], **options: Any) -> None:
    """Run `programs` instances on the device of the arguments; nothing to do for none."""
    if programs:
        place = next(a for a in arguments if isinstance(a, Tensor))
        with torch.cuda.device_of(place):  # type: ignore[no-untyped-call]
            kernel[(programs,)](*arguments, **options)


# ---- checks --------------------------------------------------------------------------------


def _check_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    if value.device.type != "cuda" and not (interpreted() and value.device.type == "cpu"):
        raise ValueError(
            f"{name}: expected a CUDA tensor, got one on {value.device}; Triton runs on the CPU "
            "only where TRITON_INTERPRET=1 is set before it is imported"
        )
    if not value.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous tensor, got strides {tuple(value.stride())} for shape "
            f"{tuple(value.shape)}; call .contiguous()"
        )
    return value


def _check_like(name: str, value: Tensor, shape: Sequence[int], first: str, like: Tensor) -> None:
    """Shape and device must be those that `first` asks for."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"{name}: expected shape {tuple(shape)} to go with {first} {tuple(like.shape)}, "
            f"got {tuple(value.shape)}"
        )
    if value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as {first}, got {value.device}")


def _check_dtype(name: str, value: Tensor, allowed: Sequence[torch.dtype], first: str) -> None:
    if value.dtype not in allowed:
        expected = " or ".join(str(d) for d in dict.fromkeys(allowed))
        raise TypeError(f"{name}: expected {expected} to go with {first}, got {value.dtype}")


def _check_count(spec: Spec, names: Sequence[str], values: Sequence[object]) -> None:
    if len(values) != len(names):
        raise TypeError(
            f"{spec.name}: expected {len(names)} tensors ({', '.join(names)}), got {len(values)}"
        )


def _one_or_all(values: Sequence[Tensor]) -> State:
    return values[0] if len(values) == 1 else tuple(values)


# ---- elementwise ---------------------------------------------------------------------------


class Elementwise:
    """A Spec as one fused kernel: call it with one tensor per input, all of one shape.

    Returns the output, or a tuple of outputs, in the inputs' dtype. The backward kernel is the
    Spec's own VJP; it saves the inputs alone and computes the rest again. Raises TypeError or
    ValueError, naming the input, for a wrong count, dtype, device, shape or layout.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec, self.vjp = spec, spec.vjp("")
        self.names = [str(v) for v in spec.inputs]
        self.seeds = printers_triton.seeds(spec, self.vjp)
        self.text = printers_triton.elementwise(spec)

    def __call__(self, *inputs: Tensor) -> State:
        _check_count(self.spec, self.names, inputs)
        first = _check_tensor(self.names[0], inputs[0])
        for name, value in zip(self.names, inputs, strict=True):
            _check_tensor(name, value)
            _check_like(name, value, first.shape, self.names[0], first)
            _check_dtype(name, value, [first.dtype], self.names[0])
        return _one_or_all(_ElementwiseFunction.apply(self, *inputs))  # type: ignore[no-untyped-call]


def _run_elementwise(spec: Spec, text: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Launch the elementwise kernel of `spec`."""
    outputs = [torch.empty_like(inputs[0]) for _ in spec.outputs]
    kernel = load(text)[f"{spec.name}_elementwise"]
    count, dtype = inputs[0].numel(), _in_triton(inputs[0].dtype)
    arguments = [*inputs, *outputs, count]
    _launch(kernel, -(-count // BLOCK), arguments, BLOCK_=BLOCK, DTYPE_=dtype)
    return outputs


class _ElementwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Elementwise, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        needed = {str(v) for v in plan.vjp.inputs}
        ctx.kept = [n for n in plan.names if n in needed]
        named = dict(zip(plan.names, inputs, strict=True))
        ctx.save_for_backward(*(named[n] for n in ctx.kept))
        return tuple(_run_elementwise(plan.spec, plan.text, inputs))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The VJP is a Spec, so its kernel has a backward in turn: any order of derivative."""
        plan = ctx.plan
        named = dict(zip(ctx.kept, ctx.saved_tensors, strict=True))
        arrived = dict(zip(map(str, plan.spec.outputs), upstream, strict=True))
        for output, seed in plan.seeds.items():
            named[seed] = arrived[output].contiguous()
        if not named:
            return None, *(torch.zeros_like(upstream[0]) for _ in plan.names)
        inputs = [named[str(v)] for v in plan.vjp.inputs]
        return None, *_ElementwiseFunction.apply(elementwise(plan.vjp), *inputs)  # type: ignore[no-untyped-call]


@functools.lru_cache(maxsize=256)
def elementwise(spec: Spec) -> Elementwise:
    """The fused kernel of `spec`, differentiable to any order: `elementwise(SWIGLU)(a, b)`.

    Raises SpecError for a Spec that looks across the features.
    """
    return Elementwise(spec)


# ---- over time -----------------------------------------------------------------------------


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
        self.plan: ScanSource = printers_triton.time_scan(spec, params, keep)
        self.names = [str(v) for v in spec.inputs if str(v) not in self.plan.carries]

    def __call__(self, *inputs: Tensor, initial_state: State | None = None) -> tuple[State, State]:
        _check_count(self.spec, self.names, inputs)
        named = dict(zip(self.names, inputs, strict=True))
        stream = self._check_inputs(named)
        named |= self._states(initial_state, stream)
        ordered = [named[str(v)] for v in self.spec.inputs]
        results = _ScanFunction.apply(self.plan, *ordered)  # type: ignore[no-untyped-call]
        count = len(self.spec.outputs)
        return _one_or_all(results[:count]), _one_or_all(results[count:])

    def _check_inputs(self, named: Mapping[str, Tensor]) -> Tensor:
        """Every input as it should be; returns the first stream."""
        if not self.plan.streams:
            raise ValueError(f"{self.spec.name}: expected at least one input that is no parameter")
        first = self.plan.streams[0]
        stream = _check_tensor(first, named[first])
        if stream.dim() != 3:
            raise ValueError(f"{first}: expected (B, T, D), got shape {tuple(stream.shape)}")
        for name, value in named.items():
            _check_tensor(name, value)
            is_stream = name in self.plan.streams
            _check_like(name, value, stream.shape if is_stream else stream.shape[2:], first, stream)
            allowed = [stream.dtype] if is_stream else _state_dtypes(stream)
            _check_dtype(name, value, allowed, first)
        return stream

    def _states(self, given: State | None, stream: Tensor) -> dict[str, Tensor]:
        shape = (stream.shape[0], stream.shape[2])
        if given is None:
            dtype = _compute_dtype(stream.dtype)
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
            _check_tensor(where, value)
            _check_like(where, value, shape, self.plan.streams[0], stream)
            _check_dtype(where, value, _state_dtypes(stream), self.plan.streams[0])
        return dict(zip(self.plan.carries, states, strict=True))


def _state_dtypes(stream: Tensor) -> list[torch.dtype]:
    return [stream.dtype, _compute_dtype(stream.dtype)]


def _launch_scan(kernel: Any, like: Like, arguments: Sequence[Tensor | None]) -> None:
    """One lane per (batch, feature); small problems get small programs, to use every processor."""
    (batch, steps, width), dtype, _ = like
    lanes = batch * width
    warps = 1 if lanes < 2**15 else 4
    # Two half-width neighbours per thread, so that a load still moves the four bytes of a prefetch.
    block = 32 * warps * (2 if dtype.itemsize == 2 else 1)
    options = {"BLOCK_": block, "DTYPE_": _in_triton(dtype), "num_warps": warps}
    sizes = (lanes, steps, width, STAGES)
    _launch(kernel, -(-lanes // block), [*arguments, *sizes], **options)


def _empty(like: Like) -> Tensor:
    shape, dtype, device = like
    return torch.empty(shape, dtype=dtype, device=device)


def _per_lane(like: Like) -> Like:
    """What a state of these streams is like: (B, D) in the dtype of the computation."""
    (batch, _, width), dtype, device = like
    return (batch, width), _compute_dtype(dtype), device


class _ScanFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: ScanSource, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = {str(v): x for v, x in zip(plan.spec.inputs, inputs, strict=True)}
        ctx.plan = plan
        ctx.likes = {n: (x.shape, x.dtype, x.device) for n, x in named.items()}
        shape, dtype, device = stream = ctx.likes[plan.streams[0]]
        outputs = [str(v) for v in plan.spec.outputs]
        # What nobody asked to see is kept in the dtype of the computation.
        dtypes = {v: dtype if v in outputs else _compute_dtype(dtype) for v in plan.stored}
        stored = {v: _empty((shape, kind, device)) for v, kind in dtypes.items()}
        ends = [_empty(_per_lane(stream)) for _ in plan.carries]
        kernel = load(plan.text)[plan.forward]
        _launch_scan(kernel, stream, [*inputs, *stored.values(), *ends])
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
        adjoints = {name: _empty(like) for name, like in likes.items()}
        arguments = [*ctx.saved_tensors, *(seeds.get(v) for v in plan.seeds)]
        arguments += [*arrived[len(outputs) :], *adjoints.values()]
        _launch_scan(load(plan.text)[plan.reverse], stream, arguments)
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


# ---- what the compiler makes of a Spec, without a GPU --------------------------------------


@dataclass(frozen=True)
class KernelReport:
    """What one compiled kernel needs of a GPU, per thread (registers, spills) and per program."""

    kernel: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.kernel} sm_{self.arch}: {self.registers} registers, "
            f"{self.spill_bytes} B spilled, {self.shared_bytes} B shared"
        )


def compile_report(
    spec: Spec,
    arch: int = 90,
    params: Iterable[str] = (),
    keep: str = "",
    dtype: torch.dtype = torch.float32,
) -> list[KernelReport]:
    """Compile every kernel of `spec` for `arch` (80 or 90); no GPU is needed.

    Reports the elementwise kernel, its backward, and, where the Spec has carries, both kernels over
    time. Raises RuntimeError under the interpreter, which compiles nothing, and ValueError for an
    `arch` below 80.
    """
    if interpreted():
        raise RuntimeError("compile_report: unset TRITON_INTERPRET; the interpreter can't compile")
    texts = {f"{s.name}_elementwise": printers_triton.elementwise(s) for s in (spec, spec.vjp(""))}
    if spec.carries:
        plan = printers_triton.time_scan(spec, params, keep)
        texts |= {plan.forward: plan.text, plan.reverse: plan.text}
    return [_report(load(text)[name], arch, dtype) for name, text in texts.items()]


def _report(kernel: Any, arch: int, dtype: torch.dtype) -> KernelReport:
    """Compile one kernel and read what ptxas says of it."""
    built = compiled(kernel, arch, dtype)
    registers, spilled = _ptxas(built.asm["ptx"], arch)
    return KernelReport(kernel.__name__, arch, registers, spilled, built.metadata.shared)


def compiled(
    kernel: Any, arch: int, dtype: torch.dtype, fixed: Mapping[str, object] | None = None
) -> Any:
    """Triton's compiled form of a loaded kernel, with the options of a launch; needs no GPU.

    `fixed` names arguments to specialise on, as a launch does with a size of 1 or no pointer.
    """
    if arch < 80:
        raise ValueError(f"arch: expected 80 or more, got {arch}")
    triton = _triton()
    target = triton.backends.compiler.GPUTarget("cuda", arch, 32)
    source = _source(kernel, dtype, fixed or {})
    return triton.compile(source, target=target, options={"num_warps": 4})


def _source(kernel: Any, dtype: torch.dtype, fixed: Mapping[str, object]) -> Any:
    """The kernel specialised as for aligned pointers and sizes that 16 divides."""
    from triton.compiler import ASTSource

    pointer = {2: "*bf16", 4: "*fp32", 8: "*fp64"}[dtype.itemsize]
    per_thread = 2 if dtype.itemsize == 2 else 1
    block = 128 * per_thread if "STAGES_" in kernel.arg_names else BLOCK
    constants = {"BLOCK_": block, "DTYPE_": _in_triton(dtype), "STAGES_": STAGES, **fixed}
    types = {"count_": "i64", "lanes_": "i32", "steps_": "i32", "width_": "i32"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, pointer) for name in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kernel.arg_names) if name not in constants]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    return ASTSource(kernel, signature, constants, attributes)


def _ptxas(ptx: str, arch: int) -> tuple[int, int]:
    """(registers per thread, bytes spilled per thread) of a kernel in PTX."""
    from triton.backends.nvidia import compiler

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        tool: Callable[..., Any] = compiler.get_ptxas
        name = compiler.sm_arch_from_capability(arch)
        command = [tool(arch).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={name}", file.name]
        run = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True)
    registers = re.search(r"Used (\d+) registers", run.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", run.stderr)
    if run.returncode or registers is None:
        raise RuntimeError(f"ptxas failed: {run.stderr.strip()}")
    return int(registers[1]), sum(map(int, spills))
