"""What the compiler makes of the generated kernels for GPUs that are not here.

Imports gatelib, torch and Triton.
Must not run under TRITON_INTERPRET: the interpreter compiles nothing.
"""

import functools
import re

import pytest
import torch

from gatelib.kernels import scan_source, triton_source
from gatelib.kernels.launch import interpreted, load
from gatelib.kernels.report import compile_report, compiled, cut, first_loop, machine_code
from tests.kernels.disassembled import cases, disassembled, read_at_once
from tests.kernels.triton_cells import (
    LSTM,
    MINGRU,
    PEEPHOLE,
    RGLRU,
    SLSTM,
    all_specs,
    named,
    params_of,
    parse,
)

compiles = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")


def over_time(spec, arch=90, **given):
    """The reports of the two kernels over time."""
    return [r for r in compile_report(spec, arch, params_of(spec), **given) if r.ahead]


@pytest.fixture(scope="module")
def code_at_once(request):
    """What the cases of a test compile is read at once."""
    kinds = [(case["spec"], case["arch"]) for case in cases(request)]
    reports = [functools.partial(compile_report, s, arch, params_of(s)) for s, arch in kinds]
    with read_at_once(reports):
        yield


@compiles
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("code_at_once")
@pytest.mark.parametrize(
    ("spec", "arch"),
    [(s, 90) for s in all_specs()] + [(s, 80) for s in (LSTM, MINGRU, PEEPHOLE, RGLRU, SLSTM)],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_kernel_compiles_without_a_gpu_and_without_spills(spec, arch):
    for report in compile_report(spec, arch, params_of(spec)):
        print(report)
        assert report.arch == arch
        assert 8 <= report.registers <= 160
        assert report.spill_bytes == 0, str(report)
        assert report.barriers == report.shared_bytes == 0, str(report)


def from_its_start(code):
    """Addresses, where jumps go too, as they are where a kernel is read alone."""
    start = code[0][0]

    def moved(address):
        return hex(int(address[0], 16) - start)

    jumps = ("BRA", "BSSY", "CALL", "RET")
    texts = (re.sub("0x[0-9a-f]+", moved, t) if t.startswith(jumps) else t for _, t in code)
    return list(zip((address - start for address, _ in code), texts, strict=True))


@compiles
@pytest.mark.parametrize("arch", [80, 90])
def test_code_that_is_read_at_once_is_that_of_each_kernel(arch):
    plan = scan_source.time_scan(MINGRU)
    cubins = []
    for name, reads in ((plan.forward, plan.forward_reads), (plan.reverse, plan.backward_reads)):
        fixed = cut(reads, torch.float32)
        cubins.append(compiled(load(plan.text)[name], arch, torch.float32, fixed).asm["cubin"])
    for cubin, found in disassembled(cubins, arch).items():
        alone = machine_code(cubin)
        assert from_its_start(found) == alone
        assert len(first_loop(found)) == len(first_loop(alone)) > 10


@compiles
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("spec", "forward", "reverse"), [(MINGRU, 25, 40), (LSTM, 130, 170)], ids=["mingru", "lstm"]
)
def test_a_step_takes_few_instructions(spec, arch, forward, reverse):
    """Before the loads went to registers, two barriers a step: 60 and 87, and 172 and 215."""
    there, back = over_time(spec, arch)
    assert 5 < there.instructions <= forward, str(there)
    assert there.instructions < back.instructions <= reverse, str(back)


@compiles
@named([MINGRU, LSTM])
def test_few_lanes_read_further_ahead(spec):
    """Fewer programs than processors: each thread may use all 255 registers."""
    for many, few in zip(over_time(spec), over_time(spec, shape=(4, 8192, 1024)), strict=True):
        assert few.ahead == 2 * many.ahead
        assert few.registers <= 255 and few.spill_bytes == few.barriers == 0, str(few)
        assert few.instructions <= many.instructions


@compiles
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@named([LSTM, MINGRU])
def test_scans_of_other_dtypes_compile_without_spills(spec, dtype):
    for report in compile_report(spec, 90, dtype=dtype):
        print(dtype, report)
        assert report.spill_bytes == report.barriers == report.shared_bytes == 0, str(report)


@compiles
def test_reads_of_the_next_steps_stand_before_the_arithmetic_of_this_one():
    """A load that waits for its own step would hide no latency."""
    plan = scan_source.time_scan(MINGRU)
    kernel, fixed = load(plan.text)[plan.forward], cut(plan.forward_reads, torch.float32)
    code = first_loop(machine_code(compiled(kernel, 90, torch.float32, fixed).asm["cubin"]))
    loads = [at for at, text in enumerate(code) if text.startswith("LDG")]
    stores = [at for at, text in enumerate(code) if text.startswith("STG")]
    assert len(loads) == 2 * len(stores) == 2 * fixed["AHEAD_"]
    assert max(loads) < stores[len(stores) // 2], "a read stands behind the middle of the block"


@compiles
@pytest.mark.parametrize("width", [1, 7, 33, 1000])
def test_scans_compile_at_widths_that_fill_no_block(width):
    plan = scan_source.time_scan(PEEPHOLE, params_of(PEEPHOLE))
    for name, reads in ((plan.forward, plan.forward_reads), (plan.reverse, plan.backward_reads)):
        for dtype in (torch.float32, torch.bfloat16):
            fixed = cut(reads, dtype, (2, 9, width))
            assert compiled(load(plan.text)[name], 90, dtype, fixed).asm["cubin"]


@compiles
@pytest.mark.parametrize(
    "absent",
    [("g_h_ptr_", "d_c_prev_end_"), ("g_h_ptr_", "g_c_ptr_"), ("d_c_prev_end_",)],
    ids=", ".join,
)
def test_scans_compile_without_the_adjoints_that_nobody_sends(absent):
    plan = scan_source.time_scan(PEEPHOLE, params_of(PEEPHOLE))
    for dtype in (torch.float32, torch.bfloat16):
        fixed = cut(plan.backward_reads, dtype) | dict.fromkeys(absent)
        built = compiled(load(plan.text)[plan.reverse], 90, dtype, fixed)
        assert built.asm["cubin"]


@compiles
def test_an_exponential_gate_is_reduced_before_the_gpu_takes_two_to_the_power():
    text = triton_source.elementwise(parse("exp_gate", "a x -> y", "g = exp(a)", "y = g*x"))
    kernel = load(text)["exp_gate_elementwise"]
    codes = {
        dtype: compiled(kernel, 90, dtype, cut(0, dtype)).asm["ttir"]
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    }
    assert "math.floor" in codes[torch.float32] and "math.floor" in codes[torch.bfloat16]
    assert "math.floor" not in codes[torch.float64]


@compiles
def test_an_unknown_architecture_is_an_error():
    with pytest.raises(ValueError, match="arch: expected 80 or more, got 1"):
        compile_report(MINGRU, arch=1)


@compiles
def test_compiled_offsets_are_64_bit():
    """What depends on the batch or the time is multiplied in 64 bits: 2**31 would wrap around."""
    plan = scan_source.time_scan(PEEPHOLE, params_of(PEEPHOLE))
    reads = {plan.forward: plan.forward_reads, plan.reverse: plan.backward_reads}
    for name, count in reads.items():
        fixed = cut(count, torch.float32)
        code = compiled(load(plan.text)[name], 90, torch.float32, fixed).asm["ttir"]
        small = re.findall(r"%([a-z]+)\w* = arith\.muli .* : (?:tensor<\d+x)?i32", code)
        assert small == ["feature", "whole"], "a feature of a row, and the steps in whole blocks"
    text = triton_source.elementwise(PEEPHOLE)
    kernel = load(text)["peephole_elementwise"]
    code = compiled(kernel, 90, torch.float32, cut(0, torch.float32)).asm["ttir"]
    assert all("xi64>" in move for move in re.findall(r"tt\.addptr .*", code))
    assert not re.search(r"arith\.muli .* : (tensor<\d+x)?i32", code)
