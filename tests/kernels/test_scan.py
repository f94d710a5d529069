"""The generated kernels run: agreement in processes of their own, and what they refuse here.

Imports gatelib, torch and Triton.
Must not run the interpreter in this process: Triton reads TRITON_INTERPRET once, when imported.

Agreement with autograd is tested by `elementwise_cases.py`, `scan_cases.py` and `random_cases.py`,
run as a whole under the interpreter; `tests/gpu` runs the first two compiled, where there is a GPU.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gatelib.kernels.elementwise import elementwise
from gatelib.kernels.launch import interpreted
from tests.kernels.triton_cells import parse

ROOT = Path(__file__).parents[2]
compiles = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")


def run_cases(name, *options):
    """Run all cases of a file under the interpreter; returns (passed count, the report)."""
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", f"tests/kernels/{name}", "-q", "--tb=short"]
    command += ["-p", "no:cacheprovider", "-p", "no:nbval", "--timeout=900", "-s", *options]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return int(re.search(r"(\d+) passed", run.stdout)[1]), run.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "least"), [("elementwise_cases.py", 150), ("scan_cases.py", 180)], ids=str
)
def test_kernels_agree_with_autograd_under_the_interpreter(name, least):
    passed, report = run_cases(name)
    print(report)
    assert passed > least


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_random_gates_compute_what_their_authors_wrote(pytestconfig):
    """RANDOM_GATES says how many (2,000 new ones each week); ten thousand were run once."""
    profile = pytestconfig.getoption("--hypothesis-profile") or "ci"
    passed, report = run_cases("random_cases.py", f"--hypothesis-profile={profile}")
    print(report)
    assert passed == 3


@compiles
def test_cpu_tensors_need_the_interpreter():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="expected a CUDA tensor, got one on cpu; Triton runs"):
        elementwise(parse("only_tanh", "x -> y", "y = tanh(x)"))(x)


def test_triton_is_not_imported_before_a_kernel_is_needed():
    code = "import sys, gatelib.kernels.report; print('triton' in sys.modules)"
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
