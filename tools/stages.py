"""Run the stages of validation, two at a time, and skip those whose inputs have not changed.

Imports tools.inputs, tools.notebooks.
Must not import gatelib: every stage is a process of its own.

    python tools/stages.py test             every stage
    python tools/stages.py book             one stage
    python tools/stages.py unit             the tests of every folder
    python tools/stages.py chapters         strict nbval over every chapter
    python tools/stages.py --fresh test     forget what passed before

GATES_STUDY=full in the environment: the chapters replay every run of their studies (STUDIES=full).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import inputs, notebooks  # noqa: E402

PASSED = ROOT / "_build" / "passed"
PAGE = ROOT / "_build" / "html" / "index.html"
SLOTS = 2
LONG = ("kernels", "nn", "spec", "lab", "house", "families", "data")  # folders, the longest first
QUIETLY = ("-q", "-p", "no:nbval")  # which takes a second of each process that has no notebook
LIBRARY = ("gatelib/**/*.py", "gatelib/**/*.pyi", "requirements.lock", "pyproject.toml")
FOLDERS = ("benchmarks", "book", "chapters", "gatelib", "tests", "tools")
SOURCES = (
    *(f"{name}/**/*.py" for name in FOLDERS),
    "chapters/**/*.py",
    "chapters/*.ipynb",
    "pyproject.toml",
)
BOOK = (
    *LIBRARY,
    "book/**/*",
    "chapters/*.ipynb",
    "chapters/studies/*.json*",
    "chapters/studies/*.npz",
    "tools/*.py",
    "tools/*.mjs",
    "_config.yml",
    "_toc.yml",
)
EVERYTHING = (
    *BOOK,
    "*",
    "chapters/support/*.py",
    ".ci/*",
    ".github/**/*",
    "benchmarks/**/*",
    "binder/*",
    "tests/**/*",
)
DRAWING = ("book/static/**/*.js", "book/_ext/*.py", "tools/*.mjs")
"""What tests of the pages' scripts read besides what they import."""
COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?|xfailed|xpassed|warnings?)\b")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step: the commands it runs, the files it reads, the stages it waits for.

    What the files of `modules` import is read too, and what that imports.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    inputs: tuple[str, ...]
    after: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

    def key(self) -> str:
        """A hash of this stage's commands and of every byte that it reads."""
        how = (self.name, self.commands, sys.version, os.environ.get("GATES_STUDY"))
        digest = hashlib.sha256(repr(how).encode())
        files = found(self.inputs) | inputs.reached(found(self.modules), ROOT)
        for path in sorted(files):
            if "__pycache__" not in path.parts:
                digest.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
        return digest.hexdigest()


def found(patterns: Sequence[str]) -> set[Path]:
    """The files that match a pattern, from the root."""
    return {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}


@dataclasses.dataclass
class Result:
    """What a stage came to."""

    ok: bool
    seconds: float
    summary: str
    output: str = ""
    remembered: bool = False


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module in this environment."""
    return (sys.executable, "-m", module, *arguments)


def script(name: str) -> tuple[str, str]:
    """The command that runs a program beside this Python, whatever its first line says.

    That line names the place where the environment was made, which may be another clone's.
    """
    return sys.executable, str(Path(sys.executable).with_name(name))


def chapter_stage(path: Path) -> Stage:
    """Strict nbval over one chapter, as chapters/conftest.py sets it up."""
    relative = str(path.relative_to(ROOT))
    command = python("pytest", "--nbval", "-p", "no:cacheprovider", "-q", relative)
    shared = f"chapters/support/{path.stem[3:]}.py"
    records = f"chapters/studies/{path.stem}-*.*"
    runner = ("chapters/conftest.py", "tools/notebooks.py", "tests/nbval.cfg")
    return Stage(path.stem, (command,), (*LIBRARY, *runner, shared, records, relative))


def unit_stages() -> list[Stage]:
    """One stage for each folder of tests but the site's; long ones first."""
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))}
    rest = sorted(folders - {*LONG, "site"})
    return [unit_stage(name) for name in (*LONG, *rest)]


def unit_stage(folder: str) -> Stage:
    """The tests of one folder: they read what they import. The house looks at every file."""
    command = python("pytest", f"tests/{folder}", *QUIETLY, "-p", "no:cacheprovider")
    if folder == "house":
        return Stage(folder, (command,), EVERYTHING)
    modules = (f"tests/{folder}/**/*.py", "tests/conftest.py")
    read = ("requirements.lock", "pyproject.toml", *(DRAWING if folder == "workshop" else ()))
    return Stage(folder, (command,), read, modules=modules)


def book_commands() -> tuple[tuple[str, ...], ...]:
    """Fetch the pinned web assets, pack Python, build every page; a warning is an error."""
    return (
        (sys.executable, "tools/vendor.py"),
        (sys.executable, "tools/pack.py"),
        (*script("jupyter-book"), "build", ".", "--all", "-q", "-W", "-n", "--keep-going"),
    )


def all_stages() -> dict[str, Stage]:
    """Every stage by name, in the order in which they start.

    The chapters come early, since the book waits for them and the site for the book; short stages
    fill the two slots at the end.
    """
    chapters = [chapter_stage(path) for path in notebooks.find(())]
    style = (python("ruff", "check", "."), python("ruff", "format", "--check", "."))
    site = python("pytest", "tests/site", *QUIETLY)
    pages = (*BOOK, "_build/status.json")
    longest, *units = unit_stages()
    stages = [
        Stage("style", style, SOURCES),
        Stage("floors", (script("lint-imports"),), LIBRARY),
        longest,
        *sorted(chapters, key=lambda stage: -(ROOT / stage.inputs[-1]).stat().st_size),
        Stage("book", book_commands(), pages, after=tuple(stage.name for stage in chapters)),
        Stage("site", (site,), (*pages, "tests/conftest.py", "tests/site/*"), after=("book",)),
        *units,
        Stage("types", (python("mypy"),), LIBRARY),
    ]
    return {stage.name: stage for stage in stages}


# --- running ----------------------------------------------------------------------------------


def remembered(stage: Stage, key: str) -> Result | None:
    """The result of an earlier pass over the very same bytes, if there is one."""
    memory = PASSED / f"{stage.name}.json"
    if stage.name in ("book", "site") and not PAGE.exists():
        return None
    if not memory.exists():
        return None
    found = json.loads(memory.read_text())
    if found["key"] != key:
        return None
    return Result(True, found["seconds"], found["summary"], remembered=True)


def run(stage: Stage, fresh: bool) -> Result:
    """Run a stage's commands until one fails; remember a pass."""
    key = stage.key()
    known = None if fresh else remembered(stage, key)
    if known is not None:
        return known
    start, output, peak, status = time.perf_counter(), "", 0, 0
    for command in stage.commands:
        status, text, megabytes = call(command)
        output, peak = output + text, max(peak, megabytes)
        if status:
            break
    seconds = round(time.perf_counter() - start, 1)
    result = Result(status == 0, seconds, summary_of(output, status), output)
    if stage.name in {path.stem for path in notebooks.find(())}:
        with LOCK:
            notebooks.record(stage.name, {"seconds": seconds, "megabytes": peak})
    remember(stage, key, result)
    return result


LOCK = threading.Lock()


def call(command: Sequence[str]) -> tuple[int, str, int]:
    """Run one command; return its exit status, its output, and its peak memory in MB."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | notebooks.ENVIRONMENT | {"NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as pipe:
        output = pipe.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    per_megabyte = 1e6 if sys.platform == "darwin" else 1e3
    return process.returncode, output, round(usage.ru_maxrss / per_megabyte)


def summary_of(output: str, status: int) -> str:
    """The last line of the output that says how it went."""
    lines = [notebooks.plain(line).strip(" =") for line in output.splitlines() if line.strip()]
    counts = [line for line in lines if COUNT.search(line) and " in " in line]
    if counts:
        return counts[-1]
    return "passed" if status == 0 else f"failed with exit status {status}"


def remember(stage: Stage, key: str, result: Result) -> None:
    """Store a pass under the bytes that it was made from; forget an earlier one after a failure."""
    memory = PASSED / f"{stage.name}.json"
    memory.unlink(missing_ok=True)
    if result.ok:
        memory.parent.mkdir(parents=True, exist_ok=True)
        found = {"key": key, "seconds": result.seconds, "summary": result.summary}
        memory.write_text(json.dumps(found))


def run_all(stages: Sequence[Stage], fresh: bool) -> dict[str, Result]:
    """Run stages in two slots, each after those it waits for; print each as it ends."""
    results: dict[str, Result] = {}
    names = {stage.name for stage in stages}
    waiting, running = list(stages), dict[str, Future[Result]]()
    changed = threading.Condition()

    def work(stage: Stage) -> Result:
        try:
            return run(stage, fresh)
        finally:
            with changed:
                changed.notify()

    with ThreadPoolExecutor(SLOTS) as pool:
        while waiting or running:
            for stage in [s for s in waiting if not (set(s.after) & names) - set(results)]:
                if len(running) < SLOTS:
                    waiting.remove(stage)
                    running[stage.name] = pool.submit(work, stage)
            with changed:
                changed.wait(timeout=0.2)
            for name in [name for name, future in running.items() if future.done()]:
                results[name] = running.pop(name).result()
                show(name, results[name])
    return results


# --- telling ----------------------------------------------------------------------------------


def show(name: str, result: Result) -> None:
    """Print one line for a stage that has ended."""
    verdict = "ok    " if result.ok else "FAILED"
    when = ", unchanged since" if result.remembered else ""
    print(f"{verdict} {name:16} {result.seconds:7.1f} s  {result.summary}{when}", flush=True)


def totals(results: dict[str, Result]) -> dict[str, int]:
    """Passed, failed, skipped over all stages; a stage without tests counts as one test."""
    total = {"failed": 0, "passed": 0, "skipped": 0}
    for result in results.values():
        counts = {word.rstrip("s"): int(n) for n, word in COUNT.findall(result.summary)}
        if not counts:
            total["passed" if result.ok else "failed"] += 1
        failed = counts.get("failed", 0) + counts.get("error", 0)
        total["failed"] += failed or (bool(counts) and not result.ok)
        total["passed"] += counts.get("passed", 0)
        total["skipped"] += counts.get("skipped", 0) + counts.get("xfailed", 0)
    return total


def report(results: dict[str, Result], seconds: float) -> None:
    """Print what failed in full, then one line over everything in pytest's form."""
    for name, result in results.items():
        if not result.ok:
            print(f"\n----- {name} -----\n{result.output.rstrip()}")
    total = totals(results)
    parts = [f"{total[k]} {k}" for k in ("failed", "passed", "skipped") if total[k]]
    skips = [line for r in results.values() for line in skip_lines(r.output)]
    print("\n".join(["", *skips]) if skips else "")
    print(f"===== {', '.join(parts)} in {seconds:.2f}s =====", flush=True)


def skip_lines(output: str) -> list[str]:
    """Pytest's lines that say what was skipped and why."""
    return [line for line in output.splitlines() if line.startswith("SKIPPED")]


def chosen(names: Sequence[str]) -> list[Stage]:
    """The stages that are meant by names on the command line."""
    stages = all_stages()
    chapters = [path.stem for path in notebooks.find(())]
    units = [stage.name for stage in unit_stages()]
    groups = {"test": list(stages), "chapters": chapters, "unit": units}
    wanted = [stage for name in names for stage in groups.get(name, [name])]
    unknown = [name for name in wanted if name not in stages]
    if unknown:
        known = ", ".join([*groups, *stages])
        raise SystemExit(f"no stage is called {unknown[0]!r}; there are: {known}")
    return [stage for name, stage in stages.items() if name in wanted]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--fresh", action="store_true", help="run even what passed before")
    options = parser.parse_args()
    stages = chosen(options.stages)
    start = time.perf_counter()
    notebooks.prepare_environment()
    results = run_all(stages, options.fresh)
    report(results, time.perf_counter() - start)
    return any(not result.ok for result in results.values())


if __name__ == "__main__":
    raise SystemExit(main())
