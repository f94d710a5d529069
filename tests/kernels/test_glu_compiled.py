"""The Triton kernels of gates over features: under the interpreter, and what a compiler makes.

Imports gatelib.kernels, torch, Triton and tests.kernels.
Must not run under TRITON_INTERPRET: the interpreter compiles nothing.
"""

import functools
import re

import pytest
import torch

from gatelib.kernels import triton_source
from gatelib.kernels.gated import gated_of
from gatelib.kernels.glu import LANES, width
from gatelib.kernels.launch import in_triton, interpreted, load
from gatelib.kernels.report import compiled, gate_report
from tests.kernels.disassembled import cases, read_at_once
from tests.kernels.glu_specs import ALL, FAMILY, ODD, SWIGLU, named
from tests.kernels.test_scan import run_cases

compiles = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")
PER_THREAD = LANES // 128
"""Elements of a thread: four warps a program."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kernels_agree_with_autograd_under_the_interpreter():
    passed, report = run_cases("glu_cases.py")
    print(report)
    assert passed > 100


@named(ALL)
def test_each_value_is_read_or_written_once(spec):
    """3 values an element forward, 5 back, and 6 with the product: counted in the text."""
    known = gated_of(spec)
    count = len(spec.inputs)
    for name, reads, writes in (("ahead", count, 1), ("back_again", count + 1, count + 1)):
        text = known.texts[name][0]
        assert (text.count("tl.load("), text.count("tl.store(")) == (reads, writes)
    text = known.texts["back"][0]
    assert text.count("tl.load(") <= count + 1 and text.count("tl.store(") == count


@pytest.fixture(scope="module")
def code_at_once(request):
    """What the cases of a test compile is read at once."""
    kinds = [(case["spec"], case["arch"], case["dtype"]) for case in cases(request)]
    with read_at_once([functools.partial(gate_report, *kind) for kind in kinds]):
        yield


@compiles
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("code_at_once")
@pytest.mark.parametrize(
    ("spec", "dtype", "arch"),
    [(spec, torch.bfloat16, 90) for spec in FAMILY]
    + [(SWIGLU, torch.float32, 90), (SWIGLU, torch.bfloat16, 80), (SWIGLU, torch.float32, 80)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_kernels_load_vectors_and_spill_nothing(spec, dtype, arch):
    """Each access has 128 bits, and all of a thread together move each value once."""
    count, bits = len(spec.inputs), 8 * dtype.itemsize * PER_THREAD
    reports = gate_report(spec, arch, dtype)
    for name, reads, writes in (
        ("ahead", count, 1),
        ("back", count + 1, count),
        ("back_again", count + 1, count + 1),
    ):
        found = reports[name]
        print(found, found.loads, found.stores)
        assert set(found.loads) == set(found.stores) == {128}
        assert sum(found.loads) == reads * bits and sum(found.stores) == writes * bits
        assert found.spill_bytes == found.barriers == found.shared_bytes == 0
        assert found.registers <= 64


@compiles
@pytest.mark.parametrize("lanes", [128, 256, 512])
def test_narrow_tiles_load_vectors_too(lanes):
    for found in gate_report(SWIGLU, 90, torch.bfloat16, lanes).values():
        assert set(found.loads) == set(found.stores) == {128}
        assert found.spill_bytes == found.barriers == 0


@compiles
def test_the_text_for_the_gpu_holds_vector_loads():
    text, spec = gated_of(SWIGLU).texts["ahead"]
    fixed = {"BLOCK_": LANES, "WIDTH_": LANES, "DTYPE_": in_triton(torch.bfloat16)}
    ptx = compiled(load(text)[f"{spec.name}_rows"], 90, torch.bfloat16, fixed).asm["ptx"]
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == 2
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == 1


@compiles
@named(ODD[:3])
def test_odd_gates_compile_without_spills(spec):
    for found in gate_report(spec, 90, torch.float64).values():
        assert found.spill_bytes == found.barriers == 0, str(found)


@compiles
def test_offsets_are_64_bit():
    """A row times its distance would wrap around at 2**31."""
    text, spec = gated_of(SWIGLU).texts["back"]
    fixed = {"BLOCK_": LANES, "WIDTH_": LANES, "DTYPE_": in_triton(torch.float32)}
    code = compiled(load(text)[f"{spec.name}_rows"], 90, torch.float32, fixed).asm["ttir"]
    moves = re.findall(r"tt\.addptr .*", code)
    assert moves and all("i64" in move for move in moves)
    assert not re.search(r"arith\.muli .* : (tensor<\d+x)?i32", code)


@pytest.mark.parametrize("columns", [1, 2, 5, 64, 100, 129, 384, 1000, 1024, 1100, 11008])
def test_few_lanes_of_a_tile_lie_behind_the_end_of_a_row(columns):
    lanes = width(columns)
    assert lanes & (lanes - 1) == 0 and lanes <= LANES
    covered = -(-columns // lanes) * lanes
    assert covered < 2 * columns if columns <= 128 else covered - columns < 128


def test_a_gate_across_the_features_has_no_kernel():
    from gatelib.spec import Spec, SpecError

    with pytest.raises(SpecError, match="elementwise"):
        triton_source.rows(Spec.parse("odd", "a v -> y", "y = mean(a)*v"))
