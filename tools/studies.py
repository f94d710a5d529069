"""Make the records of a chapter's studies: run its cells, up to its last study, in this terminal.

Imports IPython, nbformat and tools.notebooks.
Must not import gatelib: the chapter does.

    python tools/studies.py 06           run what the records of chapter 6 lack
    python tools/studies.py --adopt 06   its code was changed, its numbers were not: keep the runs

A cell that fails stops nothing but itself: what it shows may need a record that is still to come.
Ctrl-C ends the run; what has ended by then is kept.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import notebooks  # noqa: E402


def makes(source: str) -> list[str]:
    """The names of the studies that a cell makes; a name that isn't written out is "?"."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell with a line of IPython's own
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        str(call.args[0].value) if call.args and isinstance(call.args[0], ast.Constant) else "?"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "study"
    ]


def cells_to_run(path: Path) -> list[str]:
    """A chapter's code up to its last study."""
    sources = [c.source for c in notebooks.code_cells(nbformat.read(path, as_version=4))]
    last = max((i for i, source in enumerate(sources) if makes(source)), default=-1)
    return sources[: last + 1]


def run(sources: list[str]) -> int:
    """Run cells in this process; return how many of those that make a study failed."""
    from IPython.core.interactiveshell import InteractiveShell

    shell, failed = InteractiveShell.instance(), 0
    for number, source in enumerate(sources, 1):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            result = shell.run_cell(source, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        if isinstance(error, KeyboardInterrupt):
            return 1
        if error and makes(source):
            failed += 1
            print(notebooks.plain(said.getvalue()), flush=True)
        elif error:
            print(f"cell {number}, left behind: {type(error).__name__}: {error}", flush=True)
        for name in makes(source) if not error else []:
            print(f"{name}: done", flush=True)
    return failed


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("chapter", nargs="?")
    parser.add_argument("--adopt", action="store_true", help="keep runs whose code was changed")
    options = parser.parse_args()
    if not options.chapter:
        parser.error("which chapter? make study CHAPTER=06")
    (path,) = notebooks.find([options.chapter])
    sources = cells_to_run(path)
    if not sources:
        print(f"{path.stem} has no study")
        return 0
    os.environ.update(notebooks.prepare_environment())
    mode = "adopt" if options.adopt else "run"
    os.environ.update(GATES_STUDY=mode, GATES_CHAPTER=path.stem, MPLBACKEND="agg")
    os.chdir(path.parent)
    sys.path.insert(0, str(path.parent))  # support.NAME, as a kernel finds it
    return min(run(sources), 1)


if __name__ == "__main__":
    raise SystemExit(main())
