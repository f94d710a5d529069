"""What the compiler makes of a Spec, without a GPU: registers, spills, instructions of a step.

Imports torch, gatelib.spec and gatelib.kernels; Triton and its tools when a kernel is compiled.
Must not import gatelib.nn, gatelib.lab or gatelib.reference.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gatelib.kernels import launch, scan, scan_source, triton_source
from gatelib.kernels.elementwise import BLOCK
from gatelib.kernels.gated import gated_of
from gatelib.kernels.glu import LANES
from gatelib.spec import Spec

__all__ = ["KernelReport", "compile_report", "compiled", "gate_report"]

SHAPE = (32, 1024, 1024)
"""(B, T, D) for which the kernels over time are compiled, if no other is given."""
PROCESSORS = 132
"""Streaming multiprocessors of an H100, which decide how a scan is cut."""


@dataclass(frozen=True)
class KernelReport:
    """What one compiled kernel needs of a GPU.

    registers, spill_bytes: of a thread. shared_bytes, barriers: of a program. instructions: what a
    warp executes for a step of the loop over time, all of it counted; 0 for a kernel without one.
    ahead: steps that are read at once. loads, stores: bits of each access to the GPU's memory.
    """

    kernel: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    barriers: int
    instructions: float
    ahead: int
    loads: tuple[int, ...] = ()
    stores: tuple[int, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.kernel} sm_{self.arch}: {self.registers} registers, {self.spill_bytes} B "
            f"spilled, {self.shared_bytes} B shared, {self.barriers} barriers, "
            f"{self.instructions:.1f} instructions a step, {self.ahead} steps at once"
        )


def compile_report(
    spec: Spec,
    arch: int = 90,
    params: Iterable[str] = (),
    keep: str = "",
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, int, int] = SHAPE,
) -> list[KernelReport]:
    """Compile every kernel of `spec` for `arch` (80 or 90); no GPU is needed.

    Reports the elementwise kernel, its backward, and, where the Spec has carries, both kernels over
    time, cut as a launch cuts streams of that `shape` (B, T, D). Raises RuntimeError under the
    interpreter, which compiles nothing, and ValueError for an `arch` below 80.
    """
    if launch.interpreted():
        raise RuntimeError("compile_report: unset TRITON_INTERPRET; the interpreter can't compile")
    texts = {f"{s.name}_elementwise": triton_source.elementwise(s) for s in (spec, spec.vjp(""))}
    reads = dict.fromkeys(texts, 0)
    if spec.carries:
        plan = scan_source.time_scan(spec, params, keep)
        texts |= {plan.forward: plan.text, plan.reverse: plan.text}
        reads |= {plan.forward: plan.forward_reads, plan.reverse: plan.backward_reads}
    return [
        _report(launch.load(text)[name], arch, dtype, cut(reads[name], dtype, shape))
        for name, text in texts.items()
    ]


def cut(reads: int, dtype: torch.dtype, shape: tuple[int, int, int] = SHAPE) -> dict[str, object]:
    """What a launch fixes when it compiles a kernel that reads so many values a step, or none."""
    if not reads:
        return {"BLOCK_": BLOCK, "DTYPE_": launch.in_triton(dtype), "num_warps": 4}
    chosen = scan.options(reads, (shape, dtype, torch.device("cuda")), PROCESSORS)
    return {name: value for name, value in chosen.items() if name != "programs"}


def _report(kernel: Any, arch: int, dtype: torch.dtype, fixed: dict[str, Any]) -> KernelReport:
    """Compile one kernel and read what its machine code says."""
    built = compiled(kernel, arch, dtype, fixed)
    registers, spilled = _ptxas(built.asm["ptx"], arch)
    code, ahead = machine_code(built.asm["cubin"]), int(fixed.get("AHEAD_", 0))
    return KernelReport(
        kernel=kernel.__name__,
        arch=arch,
        registers=registers,
        spill_bytes=spilled,
        shared_bytes=built.metadata.shared,
        barriers=sum(text.startswith("BAR") for _, text in code),
        instructions=len(first_loop(code)) / ahead if ahead else 0.0,
        ahead=ahead,
        loads=_accesses(code, "LDG"),
        stores=_accesses(code, "STG"),
    )


def gate_report(
    spec: Spec, arch: int = 90, dtype: torch.dtype = torch.float32, width: int = LANES
) -> dict[str, KernelReport]:
    """The kernels of a gate over features: forward, backward, and backward with the output again.

    They are compiled as for rows of `width` lanes in a program, whose length and distances are
    multiples of 16, and otherwise as in `compile_report`. Keys are "ahead", "back", "back_again".
    """
    if launch.interpreted():
        raise RuntimeError("gate_report: unset TRITON_INTERPRET; the interpreter can't compile")
    fixed = {"BLOCK_": LANES, "WIDTH_": width, "DTYPE_": launch.in_triton(dtype)}
    return {
        name: _report(launch.load(text)[f"{made.name}_rows"], arch, dtype, fixed)
        for name, (text, made) in gated_of(spec).texts.items()
    }


def compiled(kernel: Any, arch: int, dtype: torch.dtype, fixed: Mapping[str, Any]) -> Any:
    """Triton's compiled form of a loaded kernel; needs no GPU.

    `fixed` are the arguments and options of the launch, as `cut` gives them; a pointer of None
    among them is one that nobody sends.
    """
    if arch < 80:
        raise ValueError(f"arch: expected 80 or more, got {arch}")
    triton = launch.triton()
    target = triton.backends.compiler.GPUTarget("cuda", arch, 32)
    options = {"num_warps": fixed.get("num_warps", 4)}
    return triton.compile(_source(kernel, dtype, fixed), target=target, options=options)


def _source(kernel: Any, dtype: torch.dtype, fixed: Mapping[str, Any]) -> Any:
    """The kernel specialised as for aligned pointers."""
    from triton.compiler import ASTSource

    pointer = {2: "*bf16", 4: "*fp32", 8: "*fp64"}[dtype.itemsize]
    constants = {name: value for name, value in fixed.items() if name in kernel.arg_names}
    types = {"count_": "i64", "steps_": "i32", "rows_": "i32", "columns_": "i32"}
    distances = [name for name in kernel.arg_names if name.endswith("_row_")]
    types |= dict.fromkeys(distances, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, pointer) for name in kernel.arg_names}
    whole = [*distances, "columns_", *(v for v, kind in signature.items() if kind == pointer)]
    aligned = [i for i, name in enumerate(kernel.arg_names) if name in whole]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    return ASTSource(kernel, signature, constants, attributes)


# ---- machine code --------------------------------------------------------------------------


def machine_code(cubin: bytes) -> list[tuple[int, str]]:
    """(address, instruction) of a compiled kernel, by the disassembler that comes with Triton."""
    with tempfile.NamedTemporaryFile("wb", suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = launch.triton().knobs.nvidia.cuobjdump.path
        run = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"cuobjdump failed: {run.stderr.strip()}")
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(\S[^;]*);", run.stdout)
    return [(int(address, 16), text.strip()) for address, text in found]


def _accesses(code: list[tuple[int, str]], what: str) -> tuple[int, ...]:
    """Bits of each load (LDG) or store (STG) of a thread."""
    sizes = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128}
    parts = [text.split()[0].split(".") for _, text in code if text.startswith(what)]
    return tuple(next((sizes[p] for p in own if p in sizes), 32) for own in parts)


def first_loop(code: list[tuple[int, str]]) -> list[str]:
    """The instructions of the first loop that stores: that of whole blocks of steps."""
    for start, end in sorted(_loops(code)):
        body = [text for address, text in code if start <= address <= end]
        if any(text.startswith("STG") for text in body):
            return body
    raise ValueError("code: expected a loop that stores, found none")


def _loops(code: list[tuple[int, str]]) -> Iterable[tuple[int, int]]:
    """(first address, last address) between each jump back and where it goes."""
    for address, text in code:
        jump = re.match(r"BRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            yield int(jump[1], 16), address


def _ptxas(ptx: str, arch: int) -> tuple[int, int]:
    """(registers per thread, bytes spilled per thread) of a kernel in PTX."""
    from triton.backends.nvidia import compiler

    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        tool: Any = compiler.get_ptxas
        name = compiler.sm_arch_from_capability(arch)
        command = [tool(arch).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={name}", file.name]
        run = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True)
    registers = re.search(r"Used (\d+) registers", run.stderr)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", run.stderr)
    if run.returncode or registers is None:
        raise RuntimeError(f"ptxas failed: {run.stderr.strip()}")
    return int(registers[1]), sum(map(int, spills))
