"""`tools/gpu.py` without a GPU: what it says, and what it writes when its parts are stand-ins.

Imports tools.gpu and the benchmarks' harness.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import gpu

ROOT = Path(__file__).resolve().parents[2]
FOUND = {"device": "Stand-In 9000", "memory_GB": 1.0, "processors": 2, "capability": "9.0"}
BENCHMARK = """
import json, os, pathlib
out = pathlib.Path(os.environ["BENCHMARK_RESULTS"])
out.mkdir()
row = {"case": {"commit": os.environ["GATES_COMMIT"]}, "results": {}}
(out / "x.json").write_text(json.dumps({"rows": [row]}))
print("said something")
"""
TESTS = """
import pytest
pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("k", range(5))
def test_a_number(k):
    assert k != 3, "three is wrong"

def test_a_skip():
    pytest.skip("not today")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run all of it")
def test_without_a_gpu_it_says_what_it_would_do(tmp_path):
    command = [sys.executable, "tools/gpu.py", "--out", str(tmp_path / "new")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "no CUDA device here" in run.stdout
    assert all(f"  {part.name} " in run.stdout for part in gpu.PARTS)
    assert not (tmp_path / "new").exists()


def test_all_parts_end_within_nine_minutes():
    assert sum(part.limit for part in gpu.PARTS) <= 530
    for part in gpu.PARTS:
        assert not part.command or (ROOT / part.command[0]).is_file()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Stand-ins: a benchmark, tests of which one fails and one file can't be imported, a sleep."""
    for name, text in (("bench", BENCHMARK), ("sleep", "import time; time.sleep(60)")):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "test_some.py").write_text(TESTS)
    (tmp_path / "cases" / "test_absent.py").write_text("import no_such_package\n")
    monkeypatch.setattr(gpu, "FOLDERS", (str(tmp_path / "cases"),))
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    return [
        gpu.Part("scan", ("bench.py",), 60, "a benchmark"),
        gpu.Part("tests", (), 60, "tests"),
        gpu.Part("slow", ("sleep.py",), 1, "a part that doesn't end"),
    ]


def test_each_part_is_in_the_record(small, tmp_path):
    code = gpu.measure(small, tmp_path / "out", "abc1234", 100, dict(FOUND))
    record = json.loads((tmp_path / "out" / "stand-in-9000.json").read_text())
    assert code == 1
    assert (record["device"], record["commit"]) == ("Stand-In 9000", "abc1234")
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert record["benchmarks"]["scan"][0]["case"] == {"commit": "abc1234"}
    tests = record["tests"]
    counts = tests["collected"], tests["passed"], tests["failed"], tests["skipped"]
    assert counts == (6, 4, 1, 1)
    (message,) = tests["failures"].values()
    assert "three is wrong" in message
    assert len(tests["not_importable"]) == 1 and "test_absent" in tests["not_importable"][0]
    assert record["parts"]["slow"]["exit"] == "out of time"
    log = (tmp_path / "out" / "gpu.log").read_text()
    assert "said something" in log and "==== slow" in log


def test_a_missing_package_is_said_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PACKAGES", ("torch", "no-such-package"))
    gpu.measure([], tmp_path, "abc1234", 1, dict(FOUND))
    assert "missing, so that parts will fail: no-such-package" in capsys.readouterr().out


def test_what_is_known_is_written_after_each_part(small, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "run_tests", stopped)
    with pytest.raises(KeyboardInterrupt):
        gpu.measure(small, tmp_path / "out", "abc1234", 100, dict(FOUND))
    record = json.loads((tmp_path / "out" / "stand-in-9000.json").read_text())
    assert list(record["parts"]) == ["scan"] and record["benchmarks"]["scan"]


def test_the_commit_is_known_without_git(tmp_path, monkeypatch):
    monkeypatch.delenv("GATES_COMMIT", raising=False)
    assert gpu.commit("given", tmp_path) == "given"
    assert gpu._from_files(tmp_path) == "unknown"
    (tmp_path / "refs").mkdir()
    (tmp_path / "HEAD").write_text("ref: refs/main\n")
    (tmp_path / "packed-refs").write_text("# pack\n1234567890 refs/main\n")
    assert gpu._from_files(tmp_path) == "1234567"
    (tmp_path / "refs" / "main").write_text("abcdef0123\n")
    assert gpu._from_files(tmp_path) == "abcdef0"
    (tmp_path / "HEAD").write_text("fedcba9876\n")
    assert gpu._from_files(tmp_path) == "fedcba9"
    monkeypatch.setenv("GATES_COMMIT", "said")
    assert gpu.commit("", tmp_path) == "said"


HIDE = """
import sys
class Hidden:
    names = "hypothesis scipy matplotlib sklearn tqdm IPython pandas PIL yaml".split()
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self.names else PATH.find_spec(name, path, target)
PATH = sys.meta_path.pop()
sys.meta_path.append(Hidden())
"""
COLLECT = """
import pytest
arguments = "--co -q tests/gpu -c /dev/null --rootdir=. -p no:cacheprovider"
sys.exit(pytest.main(arguments.split()))
"""


def test_what_runs_on_a_gpu_imports_no_more_than_a_bare_machine_has():
    """Neither Hypothesis nor SciPy, in a process where importing them fails."""
    run = python(HIDE + COLLECT, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert int(re.search(r"(\d+) tests collected", run.stdout)[1]) > 150, run.stdout + run.stderr
    modules = "triton_scan recurrent drop_in highway glu _harness".split()
    modules += ["tests.kernels.scan_cases", "tests.kernels.elementwise_cases"]
    modules += ["tests.kernels.glu_cases"]
    imports = "\n".join(f"import {name}" for name in modules)
    run = python(f"{HIDE}sys.path.insert(0, 'benchmarks')\n{imports}", TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stderr[-2000:]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_every_test_of_a_gpu_stands_where_the_tool_looks():
    for path in (ROOT / "tests").rglob("*.py"):
        if "pytest.mark.gpu" in path.read_text() and path != Path(__file__):
            assert str(path.relative_to(ROOT)).startswith(gpu.FOLDERS), path
