"""The kernel that sums a token's slots: under the interpreter, and what a compiler makes of it.

Imports gatelib.kernels, torch, Triton and tests.kernels.
Must not run under TRITON_INTERPRET: the interpreter compiles nothing.
"""

import pytest
import torch

from gatelib.kernels.launch import in_triton, interpreted, load
from gatelib.kernels.segment_grouped import COMBINED, LANES
from tests.kernels.test_scan import run_cases


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_experts_agree_under_the_interpreter():
    passed, report = run_cases("segment_cases.py")
    print(report)
    assert passed > 50


@pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_sum_over_slots_compiles_and_loads_vectors(arch, weighted):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = load(COMBINED)["combined"]
    fixed = {"SLOTS": 4, "WEIGHTED": weighted, "BLOCK": LANES, "DTYPE": in_triton(torch.float32)}
    kinds = {"rows_ptr": "*bf16", "place_ptr": "*i64", "weight_ptr": "*fp32", "live_ptr": "*i32"}
    kinds |= {"y_ptr": "*fp32", "columns": "i32"} | dict.fromkeys(fixed, "constexpr")
    signature = {name: kinds[name] for name in kernel.arg_names}
    whole = [k for k, v in enumerate(signature) if v in ("rows_ptr", "y_ptr", "columns")]
    attributes = {(k,): [["tt.divisibility", 16]] for k in whole}
    source = ASTSource(kernel, signature, fixed, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
    text = made.asm["ptx"]
    assert "atom" not in text and ".local" not in text
    assert text.count("ld.global.v2.b32") >= 4 and "st.global.v4" in text
    assert "muli" not in "".join(
        line for line in made.asm["ttir"].splitlines() if "tensor<512xi32>" in line
    )
