"""Timing beside a peer in one process, and results as JSON by device.
Imports torch.
Must not import gatelib: what is timed is the script's affair.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.utils.benchmark import Timer

ROOT = Path(__file__).parent
RESULTS = Path(os.environ.get("BENCHMARK_RESULTS", ROOT / "results"))
sys.path.append(str(ROOT.parent / "chapters"))  # `support`: what a chapter shares with a benchmark


def asked(what: str, rounds: int, **flags: str) -> argparse.Namespace:
    """What the command line asks for; from here on one thread, and torch's seed is 0.

    what: what the benchmark measures. flags: by name, what each more switch is for.
    """
    parser = argparse.ArgumentParser(description=what.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for name, purpose in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=purpose)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return arguments


def compare(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 21,
    threads: int = 1,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, dict[str, float]]:
    """Time candidates in turn, round after round, so that a slow moment hits all of them.

    Args:
        candidates: what to time, by name; the first is the peer.
        rounds: how often each is timed. The order rotates from round to round.
        threads: torch's threads.
        clock: runs one candidate and returns its seconds; torch's Timer if None, which waits for a
            GPU where there is one.

    Returns:
        By name: `seconds`, the median; `ratio`, the median over rounds of the peer's time over
        the candidate's (above 1 is faster than the peer); `low` and `high`, its quartiles.
    """
    if rounds < 2:
        raise ValueError(f"rounds: expected at least 2, got {rounds}")
    once = clock or partial(_by_timer, threads=threads)
    names, seconds = list(candidates), {name: [] for name in candidates}
    for run in candidates.values():
        for _ in range(2):
            once(run)
    for turn in range(rounds):
        for shift in range(len(names)):
            name = names[(turn + shift) % len(names)]
            seconds[name].append(once(candidates[name]))
    return {name: _summary(own, seconds[names[0]]) for name, own in seconds.items()}


def _by_timer(run: Callable[[], object], threads: int) -> float:
    return Timer("run()", globals={"run": run}, num_threads=threads).timeit(1).mean


def by_events(run: Callable[[], object]) -> float:
    """Seconds between two CUDA events; the cache of the GPU holds nothing of the run before."""
    torch.empty(2**28, dtype=torch.int8, device="cuda").zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _summary(own: Sequence[float], peer: Sequence[float]) -> dict[str, float]:
    ratios = [theirs / ours for ours, theirs in zip(own, peer, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {"seconds": median(own), "ratio": median(ratios), "low": low, "high": high}


def device(kind: str = "cpu") -> str:
    """The name of the processor or of the GPU."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the working tree, marked where the library or the benchmarks differ from it.

    GATES_COMMIT says it where git can't.
    """
    if "GATES_COMMIT" in os.environ:
        return os.environ["GATES_COMMIT"]

    def git(*arguments: str) -> str:
        run = ["git", *arguments]
        return subprocess.run(run, cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "../gatelib", "*.py")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def write(
    name: str, rows: Sequence[Mapping[str, Any]], kind: str = "cpu", threads: int = 1
) -> Path:
    """Write rows with device, load, versions and commit to `results/<device>-<name>.json`."""
    slug = re.sub(r"[^a-z0-9]+", "-", device(kind).lower()).strip("-")
    path = RESULTS / f"{slug}-{name}.json"
    record = {
        "device": device(kind),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the form {"case": ..., "results": compare(...)} as text."""
    lines = []
    for row in rows:
        lines.append(str(row["case"]))
        for name, found in row["results"].items():
            spread = f"[{found['low']:.3f}, {found['high']:.3f}]"
            time = f"{found['seconds'] * 1e3:9.3f} ms"
            lines.append(f"  {name:24} {time}   ratio {found['ratio']:.3f} {spread}")
    return "\n".join(lines)
