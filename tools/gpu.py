"""Tests and benchmarks on a GPU, in one call of less than nine minutes.

Imports the standard library; torch where it asks what the machine has.
Must not import gatelib: every part runs in a process of its own, so none takes others down.

    PYTHONPATH=. python tools/gpu.py [--out DIR] [--commit HASH] [--seconds 520] [--only PART ...]

Run it in the root of the repository. The machine needs torch, Triton, NumPy, SymPy, pytest and the
small lazy_loader; what is missing is said first, and may lie in a folder on PYTHONPATH. Nothing is
installed, git may be absent (`--commit`, or GATES_COMMIT, says what is measured).

The parts are `ceilings` (a copy and matrix products, by CUDA events), `tests` (all that are marked
`gpu`, in several processes at once), and the benchmarks `scan`, `recurrent`, `lstm`, `gru`,
`highway`, `glu`, `moe` and `attention`. Each has a limit. After each part `DIR/<device>.json` is
written anew with what is known, so a call that is cut off leaves its figures; what the parts
printed is in `DIR/gpu.log`.

Without a CUDA device it says what it would do, and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "numpy", "sympy", "pytest", "lazy_loader")
FOLDERS = ("tests/gpu", "tests/kernels", "tests/nn")
"""Where tests may be marked `gpu`; a file that needs an absent package is named in the record."""
PYTEST = """[pytest]
markers =
    gpu: needs a CUDA device
    slow: takes more than ten seconds
filterwarnings =
    ignore
"""


@dataclass(frozen=True)
class Part:
    """One process: what it runs, the seconds it may take at most, and what for."""

    name: str
    command: tuple[str, ...]
    limit: int
    what: str


PARTS = (
    Part("ceilings", ("tools/gpu.py", "--measure-ceilings"), 45, "a copy and matrix products"),
    Part("tests", (), 198, "all tests marked gpu, several processes at once"),
    Part("scan", ("benchmarks/triton_scan.py",), 60, "time scans beside a copy of the same bytes"),
    Part(
        "recurrent",
        ("benchmarks/recurrent.py", "--device", "cuda", "--rounds", "5"),
        60,
        "Recurrent beside the eager loop and cuDNN's LSTM",
    ),
    Part("lstm", ("benchmarks/lstm.py", "--device", "cuda"), 25, "nn.LSTM beside torch's"),
    Part("gru", ("benchmarks/gru.py", "--device", "cuda"), 25, "nn.GRU beside torch's"),
    Part("highway", ("benchmarks/highway.py", "--device", "cuda"), 25, "Highway beside eager"),
    Part(
        "glu",
        ("benchmarks/glu.py", "--device", "cuda", "--rounds", "9", "--no-compile"),
        40,
        "gates over features beside eager, a copy, and Liger where it is installed",
    ),
    Part("moe", ("benchmarks/moe.py", "--device", "cuda"), 30, "experts beside a dense gated MLP"),
    Part(
        "attention",
        ("benchmarks/attention.py", "--device", "cuda", "--rounds", "5"),
        22,
        "gated attention beside a plain layer of scaled_dot_product_attention",
    ),
)


# ---- what is measured, and on what ---------------------------------------------------------


def commit(given: str = "", root: Path = ROOT) -> str:
    """The commit of the tree: as given, from git, or from git's files where git is absent."""
    if given or os.environ.get("GATES_COMMIT"):
        return given or os.environ["GATES_COMMIT"]
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        run = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if run.returncode == 0:
            return run.stdout.strip()
    except FileNotFoundError:
        pass
    return _from_files(root / ".git")


def _from_files(folder: Path) -> str:
    """The commit that HEAD names, read from the files of a repository; "unknown" without one."""
    head = folder / "HEAD"
    if not head.is_file():
        return "unknown"
    text = head.read_text().strip()
    if not text.startswith("ref: "):
        return text[:7]
    name, packed = text.removeprefix("ref: "), folder / "packed-refs"
    if (folder / name).is_file():
        return (folder / name).read_text().strip()[:7]
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line[:7] for line in lines if line.endswith(f" {name}")), "unknown")


def machine() -> dict[str, Any] | None:
    """The GPU: name, memory, processors, driver; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "device": found.name,
        "memory_GB": round(found.total_memory / 1e9, 1),
        "processors": found.multi_processor_count,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that matter here."""
    known = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "missing"
    return known


def ceilings() -> dict[str, float]:
    """What the machine can do at best: GB/s of a copy, TFLOP/s of a matrix product, by type."""
    import torch

    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    found = {"copy_GB_per_s": moved / _seconds(lambda: target.copy_(source)) / 1e9}
    for name, dtype, size in (("bfloat16", torch.bfloat16, 8192), ("float32", torch.float32, 4096)):
        a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        took = _seconds(lambda a=a, b=b: a @ b)
        found[f"matmul_{name}_TFLOP_per_s"] = 2 * size**3 / took / 1e12
    return {name: round(value, 1) for name, value in found.items()}


def _seconds(job: Any, rounds: int = 30) -> float:
    """The median of `rounds` runs, each between two CUDA events."""
    import torch

    spent = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        job()
        end.record()
        end.synchronize()
        spent.append(start.elapsed_time(end) / 1e3)
    return sorted(spent[3:])[(rounds - 3) // 2]


# ---- running the parts ---------------------------------------------------------------------


@dataclass
class Record:
    """What is known so far, written anew after each part."""

    path: Path
    log: Path
    data: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, took: float, code: int | None, text: str) -> None:
        """Note how a part ended; `code` is None where its time ran out."""
        ended = "out of time" if code is None else code
        self.data["parts"][name] = {"seconds": round(took, 1), "exit": ended}
        with self.log.open("a") as file:
            file.write(f"\n==== {name}: {took:.0f} s, exit {ended}\n{text}\n")
        self.write()
        print(f"{name}: {took:.0f} s, exit {ended}", flush=True)

    def write(self) -> None:
        """Write all of it; never half a file."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.data, indent=2) + "\n")
        part.replace(self.path)


def start(command: Sequence[str], out: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process of its own group, with what it prints in a file."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | environment
    with out.open("w") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=file, text=True, start_new_session=True
        )


def finish(process: subprocess.Popen[str], until: float) -> int | None:
    """Its exit status; None where it had to be ended at `until`."""
    try:
        return process.wait(max(0.1, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def run_part(part: Part, record: Record, work: Path, until: float) -> None:
    """Run one part other than the tests, and take over what it found."""
    began, out = time.monotonic(), work / f"{part.name}.txt"
    folder = work / part.name
    environment = {"GATES_COMMIT": record.data["commit"], "BENCHMARK_RESULTS": str(folder)}
    process = start([sys.executable, *part.command], out, environment)
    code = finish(process, min(until, began + part.limit))
    text = out.read_text()
    if part.name == "ceilings" and code == 0:
        record.data["ceilings"] = json.loads(text.strip().splitlines()[-1])
    for path in sorted(folder.glob("*.json")):
        record.data["benchmarks"][part.name] = json.loads(path.read_text())["rows"]
    record.add(part.name, time.monotonic() - began, code, text[-20_000:])


# ---- the tests -----------------------------------------------------------------------------


def run_tests(part: Part, record: Record, work: Path, until: float, shares: int) -> None:
    """Deal the tests to several processes, which mostly wait for compilers, and count."""
    began, ini = time.monotonic(), work / "pytest.ini"
    until = min(until, began + part.limit)
    ini.write_text(PYTEST)
    base = [sys.executable, "-m", "pytest", "-c", str(ini), f"--rootdir={ROOT}", "-q"]
    base += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    names, missing, code = collected(base, work, until)
    processes = []
    for index in range(shares):
        mine, report = work / f"share{index}", work / f"share{index}.xml"
        mine.with_suffix(".args").write_text("\n".join(names[index::shares]) + "\n")
        command = [*base, "--tb=short", f"--junitxml={report}", f"@{mine.with_suffix('.args')}"]
        if names[index::shares]:
            processes.append(start(command, mine.with_suffix(".txt"), {}))
    codes = [code, *(finish(process, until) for process in processes)]
    texts = [path.read_text()[-6000:] for path in sorted(work.glob("share*.txt"))]
    found = counted(sorted(work.glob("share*.xml")))
    record.data["tests"] = {"collected": len(names), "not_importable": missing, **found}
    ended = None if None in codes else max(codes, default=0)
    record.add(part.name, time.monotonic() - began, ended, "\n".join(texts))


def collected(base: list[str], work: Path, until: float) -> tuple[list[str], list[str], int | None]:
    """(the tests marked gpu, the files that could not be imported, 0 or None for out of time)."""
    out = work / "collected.txt"
    command = [*base, "--collect-only", "-m", "gpu", "--continue-on-collection-errors", *FOLDERS]
    code = finish(start(command, out, {}), until)
    lines = out.read_text().splitlines()
    names = [line for line in lines if "::" in line and not line.startswith(("ERROR", " "))]
    missing = [line.split()[1] for line in lines if line.startswith("ERROR ")]
    return names, missing, None if code is None else 0


def counted(reports: Sequence[Path]) -> dict[str, Any]:
    """Passed, failed and skipped tests of JUnit reports, and what each failure said."""
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": {}}
    for case in (c for path in reports for c in ElementTree.parse(path).iter("testcase")):
        wrong = [*case.iter("failure"), *case.iter("error")]
        kind = "failed" if wrong else "skipped" if case.find("skipped") is not None else "passed"
        found[kind] += 1
        if wrong:
            name = f"{case.get('classname')}::{case.get('name')}"
            found["failures"][name] = (wrong[0].get("message") or "")[:400]
    return found


# ---- all of it -----------------------------------------------------------------------------


def plan(parts: Sequence[Part]) -> str:
    """What would run, for a machine that has no GPU."""
    lines = [f"  {p.name:10} at most {p.limit:3} s: {p.what}" for p in parts]
    return "\n".join(["no CUDA device here. With one, tools/gpu.py would run:", *lines])


def measure(
    parts: Sequence[Part], out: Path, given: str, seconds: float, found: dict[str, Any]
) -> int:
    """Run the parts in their order; returns 1 where a test failed or a part didn't end."""
    out.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
    head = {**found, "commit": commit(given), "date": datetime.now(UTC).date().isoformat()}
    empty: dict[str, Any] = {"ceilings": {}, "tests": {}, "benchmarks": {}, "parts": {}}
    record = Record(out / f"{slug}.json", out / "gpu.log", head | {"versions": versions()} | empty)
    record.log.write_text(f"{head}\n")
    absent = [name for name, known in record.data["versions"].items() if known == "missing"]
    if absent:
        print("missing, so that parts will fail:", ", ".join(absent), flush=True)
    until, shares = time.monotonic() + seconds, max(1, min(8, (os.cpu_count() or 2) // 2))
    with tempfile.TemporaryDirectory() as work:
        for part in parts:
            if part.name == "tests":
                run_tests(part, record, Path(work), until, shares)
            else:
                run_part(part, record, Path(work), until)
    print("wrote", record.path.name)
    ended = [part["exit"] for part in record.data["parts"].values()]
    return int("out of time" in ended or bool(record.data["tests"].get("failed")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--commit", default="", help="what is measured, where git can't say")
    parser.add_argument("--seconds", type=float, default=520, help="the limit for all parts")
    parser.add_argument("--only", nargs="+", choices=[p.name for p in PARTS], help="parts to run")
    parser.add_argument("--measure-ceilings", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure_ceilings:
        print(json.dumps(ceilings()))
        return 0
    parts = [part for part in PARTS if not given.only or part.name in given.only]
    found = machine()
    if found is None:
        print(plan(parts))
        return 0
    return measure(parts, given.out, given.commit, given.seconds, found)


if __name__ == "__main__":
    sys.exit(main())
