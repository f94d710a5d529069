"""The generated Triton kernels: what they say, what the compiler makes of them, that they agree.

Imports gatelib, torch and Triton.
Must not run the interpreter in this process: Triton reads TRITON_INTERPRET once, when imported.

Agreement with autograd is tested by `triton_cases.py`, run as a whole in a process of its own:
under the interpreter, and compiled where there is a GPU.
"""

import inspect
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sympy as sp
import torch

from gatelib import printers_triton
from gatelib.equations.lstm import LAYERNORM
from gatelib.kernels.triton import compile_report, compiled, elementwise, interpreted, load, scan
from gatelib.printers import UnprintableError
from gatelib.spec import SpecError
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

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "kernels" / "triton_cases.py"
compiles = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")


# ---- agreement, in a process of its own ----------------------------------------------------


def run_cases(**environment):
    """Run all cases; returns (passed count, the report)."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(CASES),
        "-q",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return int(re.search(r"(\d+) passed", run.stdout)[1]), run.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kernels_agree_with_autograd_under_the_interpreter():
    passed, report = run_cases(TRITON_INTERPRET="1")
    print(report)
    assert passed > 150


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_agree_with_autograd_on_a_gpu():
    passed, report = run_cases()
    print(report)
    assert passed > 150


# ---- the compiler --------------------------------------------------------------------------


@compiles
@pytest.mark.timeout(600)
@pytest.mark.parametrize("arch", [80, 90])
@named(all_specs())
def test_every_kernel_compiles_without_a_gpu_and_without_spills(spec, arch):
    for report in compile_report(spec, arch, params_of(spec)):
        print(report)
        assert report.arch == arch
        assert 8 <= report.registers <= 128
        assert report.spill_bytes == 0, str(report)


@compiles
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@named([LSTM, MINGRU])
def test_scans_of_other_dtypes_compile_without_spills(spec, dtype):
    for report in compile_report(spec, 90, dtype=dtype):
        print(dtype, report)
        assert report.spill_bytes == 0, str(report)


@compiles
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scans_fetch_the_next_steps_while_they_compute(dtype):
    """Loads in flight live in shared memory; a scan without them waits for every step."""
    reports = {r.kernel: r for r in compile_report(MINGRU, 90, dtype=dtype)}
    assert reports["mingru_forward"].shared_bytes > 0
    assert reports["mingru_reverse"].shared_bytes > reports["mingru_forward"].shared_bytes
    assert reports["mingru_elementwise"].shared_bytes == 0


@compiles
@pytest.mark.parametrize(
    "fixed",
    [
        {"steps_": 1},
        {"width_": 1},
        {"lanes_": 1, "steps_": 1, "width_": 1},
        {"g_h_ptr_": None, "d_c_prev_end_": None},
        {"g_h_ptr_": None, "g_c_ptr_": None},
    ],
    ids=str,
)
def test_scans_compile_as_a_launch_specialises_them(fixed):
    """A launch bakes in sizes of 1 and adjoints that nobody sends; the interpreter never does."""
    plan = printers_triton.time_scan(PEEPHOLE, params_of(PEEPHOLE))
    for name in (plan.forward, plan.reverse):
        kernel = load(plan.text)[name]
        own = {k: v for k, v in fixed.items() if k in kernel.arg_names}
        assert compiled(kernel, 90, torch.float32, own).asm["cubin"]


@compiles
def test_an_exponential_gate_is_reduced_before_the_gpu_takes_two_to_the_power():
    text = printers_triton.elementwise(parse("exp_gate", "a x -> y", "g = exp(a)", "y = g*x"))
    codes = {
        dtype: compiled(load(text)["exp_gate_elementwise"], 90, dtype).asm["ttir"]
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
    }
    assert "math.floor" in codes[torch.float32] and "math.floor" in codes[torch.bfloat16]
    assert "math.floor" not in codes[torch.float64]


@compiles
def test_an_unknown_architecture_is_an_error():
    with pytest.raises(ValueError, match="arch: expected 80 or more, got 1"):
        compile_report(MINGRU, arch=1)


# ---- the text ------------------------------------------------------------------------------


def test_kernels_speak_the_names_of_the_equations():
    text = printers_triton.time_scan(LSTM).text
    for line in ("i = tl.sigmoid(a_i)", "c = f * c_prev + i * g", "m = tanh(c)", "h = o * m"):
        assert f"        {line}\n" in text
    assert not re.search(r"\bx\d+\b", text)


@named(all_specs())
def test_harness_names_and_gate_names_are_apart(spec):
    """Names of the harness end in _, which no name of a Spec may do."""
    texts = [printers_triton.elementwise(spec)]
    if spec.carries:
        texts.append(printers_triton.time_scan(spec, params_of(spec)).text)
    names = {str(v) for s in (spec, spec.vjp("")) for v in (*s.inputs, *dict(s.equations))}
    for text in texts:
        kernels = text[re.search(rf"def {spec.name}_", text).start() :]
        assigned = set(re.findall(r"^ +(\w+) [-+]?= ", kernels, re.M))
        assert all(name in names or name.endswith("_") for name in assigned)


@named([LSTM, PEEPHOLE, SLSTM])
def test_a_lane_is_64_bit_before_it_is_multiplied(spec):
    plan = printers_triton.time_scan(spec, params_of(spec))
    for text in (plan.text, printers_triton.elementwise(spec)):
        assert text.count("tl.program_id(0)") == text.count("tl.program_id(0).to(tl.int64) *")
    assert "at_ = row_ * width_ + feature_\n" in plan.text
    assert "at_ = (row_ + steps_ - 1) * width_ + feature_\n" in plan.text


@compiles
def test_compiled_offsets_are_64_bit():
    """No product in 32 bits, and no pointer moved by 32: 2**31 elements would wrap around."""
    plan = printers_triton.time_scan(PEEPHOLE, params_of(PEEPHOLE))
    texts = {"peephole_elementwise": printers_triton.elementwise(PEEPHOLE)}
    texts |= dict.fromkeys([plan.forward, plan.reverse], plan.text)
    for name, text in texts.items():
        code = compiled(load(text)[name], 90, torch.float32).asm["ttir"]
        moves = re.findall(r"tt\.addptr .*", code)
        assert moves and all("xi64>" in move for move in moves)
        assert not re.search(r"arith\.muli .* : (tensor<\d+x)?i32", code)


def test_only_what_the_backward_pass_needs_is_saved():
    plan = printers_triton.time_scan(LSTM)
    assert plan.stored == ("h", "c")
    assert plan.reverse_reads == ("a_i", "a_f", "a_g", "a_o", "c_prev", "c")
    kept = printers_triton.time_scan(LSTM, keep="i f g o m")
    assert kept.stored == ("h", "c", "i", "f", "g", "o", "m")
    assert "a_i" not in kept.reverse_reads


def test_no_kernel_uses_atomics():
    assert "atomic" not in printers_triton.time_scan(PEEPHOLE, params_of(PEEPHOLE)).text


def test_the_prelude_holds_only_what_is_called():
    text = printers_triton.elementwise(MINGRU)
    assert "def tanh" not in text
    assert "def log1p" in printers_triton.elementwise(RGLRU)


def test_python_can_show_the_source_of_a_kernel():
    kernel = load(printers_triton.elementwise(LSTM))["lstm_elementwise"]
    assert "c = f * c_prev + i * g" in inspect.getsource(kernel.fn)


def test_tanh_near_zero_is_the_pade_approximant():
    """[7/6]: its series agrees with tanh's through x**13; at 1/2 the rest is below 2**-52."""
    x = sp.Symbol("x")
    s = x * x
    above = x * (135135 + s * (17325 + s * (378 + s)))
    below = 135135 + s * (62370 + s * (3150 + s * 28))
    assert sp.series(above / below - sp.tanh(x), x, 0, 15).removeO() == 0
    half = sp.Rational(1, 2)
    assert abs(sp.N((above / below).subs(x, half) / sp.tanh(half) - 1, 30)) < 2**-52
    body = printers_triton.PRELUDE["tanh"]
    assert str(below.as_poly(x).coeff_monomial(1)) in body


def test_a_vjp_takes_less_than_fifty_milliseconds():
    for spec in (LSTM, PEEPHOLE, SLSTM):
        times = []
        for _ in range(5):
            start = time.process_time()
            spec.vjp("")
            times.append(time.process_time() - start)
        assert min(times) < 0.05, f"{spec.name}: {1e3 * min(times):.0f} ms"


# ---- what can't be printed or run ----------------------------------------------------------


def test_a_gate_across_features_is_refused():
    with pytest.raises(SpecError, match="layernorm: a Triton kernel needs an elementwise gate"):
        printers_triton.elementwise(LAYERNORM)
    with pytest.raises(SpecError, match="looks across the features"):
        printers_triton.time_scan(LAYERNORM)
    with pytest.raises(SpecError, match="looks across the features"):
        scan(LAYERNORM)


def test_a_scan_needs_a_carry():
    swiglu = parse("swiglu", "a b -> y", "y = silu(a)*b")
    with pytest.raises(SpecError, match="swiglu: a scan needs a carry"):
        printers_triton.time_scan(swiglu)


def test_unknown_parameters_and_kept_values_are_refused():
    with pytest.raises(SpecError, match="params: `nope` is not an input of lstm"):
        printers_triton.time_scan(LSTM, ["nope"])
    with pytest.raises(SpecError, match="params: `c_prev` is not an input"):
        printers_triton.time_scan(LSTM, ["c_prev"])
    with pytest.raises(SpecError, match="keep: `nope` is not a value"):
        printers_triton.time_scan(LSTM, keep="nope")


def test_a_name_that_triton_needs_is_refused():
    with pytest.raises(SpecError, match="`tl` is a name that Triton's own language needs"):
        printers_triton.elementwise(parse("odd", "tl -> y", "y = 2*tl"))


def test_a_power_that_triton_lacks_is_refused():
    with pytest.raises(UnprintableError, match=r"write exp\(3/10\*log\(x\)\)"):
        printers_triton.elementwise(parse("odd", "x -> y", "y = x**0.3"))
    assert "x * tl.sqrt(x)" in printers_triton.elementwise(parse("odd", "x -> y", "y = x**1.5"))


@compiles
def test_cpu_tensors_need_the_interpreter():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="expected a CUDA tensor, got one on cpu; Triton runs"):
        elementwise(parse("only_tanh", "x -> y", "y = tanh(x)"))(x)


def test_triton_is_not_imported_before_a_kernel_is_needed():
    code = "import sys, gatelib.kernels.triton; print('triton' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run the benchmark")
def test_the_benchmark_says_where_there_is_no_gpu():
    command = [sys.executable, str(ROOT / "benchmarks" / "triton_scan.py")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "no CUDA device here" in run.stdout
