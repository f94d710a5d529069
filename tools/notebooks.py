"""Execute the chapters in place with byte-stable results, and pair them with text twins.

Imports the notebook stack (nbformat, nbclient, jupytext) and the standard library.
Must not import gatelib: a chapter meets the library in its own kernel only.

    python tools/notebooks.py                  execute every chapter
    python tools/notebooks.py --timed 06_lstm  the same for one, and measure its timed cells anew
    python tools/notebooks.py --text           bring chapters and text twins into agreement
    python tools/notebooks.py --lab            JupyterLab on the chapters, same environment
"""

from __future__ import annotations

import argparse
import copy
import difflib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = ROOT / "chapters"
BUILD = ROOT / "_build"
STATUS = BUILD / "status.json"

# What a kernel inherits. One thread, because two collapse small steps beside a busy process;
# a hash seed and an epoch, because sets and SVG dates would differ; folders of our own,
# because a reader's IPython and matplotlib settings would change the page; this clone's library,
# because an environment may hold another's.
ENVIRONMENT = {
    "IPYTHONDIR": str(BUILD / "ipython"),
    "JUPYTER_PREFER_ENV_PATH": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MPLCONFIGDIR": str(BUILD / "matplotlib"),
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(ROOT),
    "SOURCE_DATE_EPOCH": "0",
}
CELL_METADATA = ("mystnb", "tags")
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SHOWN_VERSIONS = ("numpy", "sympy", "torch", "triton", "matplotlib", "scikit-learn", "jupyter-book")
CELL_SECONDS = 3600 if os.environ.get("GATES_STUDY") == "full" else 300
SANITISERS = ROOT / "tests" / "nbval.cfg"


def prepare_environment() -> dict[str, str]:
    """Return the kernels' environment; make its folders and matplotlib's font cache first.

    Without the warm-up the first plot on a new machine writes a notice into a chapter.
    """
    environment = os.environ | ENVIRONMENT
    Path(ENVIRONMENT["IPYTHONDIR"]).mkdir(parents=True, exist_ok=True)
    fonts = Path(ENVIRONMENT["MPLCONFIGDIR"])
    if not list(fonts.glob("fontlist*.json")):
        fonts.mkdir(parents=True, exist_ok=True)
        warm_up = "import matplotlib.font_manager"
        subprocess.run(
            [sys.executable, "-c", warm_up], env=environment, stderr=subprocess.DEVNULL, check=True
        )
    return environment


# --- one notebook -----------------------------------------------------------------------------


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def kind(cell: NotebookNode) -> str:
    """How a code cell is validated: 'exact', 'measured' or 'timed'."""
    return next((k for k in ("measured", "timed") if k in tags(cell)), "exact")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: NotebookNode) -> str:
    """Sixteen hex digits that change when the source of any code cell does."""
    sources = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def clean(notebook: NotebookNode) -> NotebookNode:
    """Leave only metadata that a reader or a check needs; add the hash of the code that ran."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA | {"ran": code_hash(notebook)})
    for cell in notebook.cells:
        kept = {k: cell.metadata[k] for k in CELL_METADATA if cell.metadata.get(k)}
        cell.metadata = nbformat.from_dict(kept)
    return notebook


def keep_timed_outputs(before: NotebookNode, after: NotebookNode) -> None:
    """Put the stored outputs of timed cells back if not one code cell has changed since."""
    if before.metadata.get("ran") != code_hash(after):
        return
    for old, new in zip(code_cells(before), code_cells(after), strict=True):
        if kind(new) == "timed" and old.outputs:
            new.outputs = old.outputs


def execute(path: Path, timed: bool = False) -> dict[str, Any]:
    """Run a chapter, with what was edited in its text twin; return seconds and peak memory.

    The cells run in a copy. It is written when all of them have passed, if a byte changed.
    """
    from nbclient import NotebookClient

    os.environ.update(prepare_environment())
    before = nbformat.read(path, as_version=4)
    notebook = copy.deepcopy(taken_over(path, before))
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    seconds = time.perf_counter() - start
    if not timed:
        keep_timed_outputs(before, notebook)
    write(clean(notebook), path)
    if path.with_suffix(".md").exists():
        write_twin(path, notebook)
    return {"seconds": round(seconds, 1), "megabytes": peak_megabytes()}


def peak_megabytes() -> int:
    """The largest resident memory of any finished child of this process, in MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a valid notebook, whole or not at all, and only if its bytes differ."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        half = path.with_suffix(".writing")
        half.write_text(text, encoding="utf-8")
        half.replace(path)


# --- all of them ------------------------------------------------------------------------------


def find(names: Sequence[str]) -> list[Path]:
    """The chapters that are asked for by name, number or path; all of them for no name."""
    chapters = sorted(CHAPTERS.glob("[0-9][0-9]_*.ipynb"))
    found = []
    for name in names:
        stem = Path(name).stem.zfill(2)
        match = [p for p in chapters if stem in (p.stem, p.stem[:2], p.stem[3:])]
        if not match:
            known = ", ".join(p.stem for p in chapters) or "none"
            raise SystemExit(f"no chapter is called {name!r}; there are: {known}")
        found += match
    return found if names else chapters


def execute_all(paths: Sequence[Path], timed: bool, jobs: int = 2) -> int:
    """Execute chapters, two at a time; print the seconds of each; return how many failed."""
    prepare_environment()
    failed = 0
    with ProcessPoolExecutor(jobs, max_tasks_per_child=1) as pool:
        runs = {path: pool.submit(execute, path, timed) for path in paths}
        for path, run in runs.items():
            try:
                cost = run.result()
            except Exception as error:
                failed += 1
                print(f"{path.stem:20} failed, left as it was\n{plain(str(error))}", flush=True)
                continue
            record(path.stem, cost)
            print(f"{path.stem:20} {cost['seconds']:6.1f} s {cost['megabytes']:6} MB", flush=True)
    return failed


def plain(text: str) -> str:
    """The text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in SHOWN_VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def record(chapter: str, cost: dict[str, Any]) -> None:
    """Store what a run of a chapter cost where the status page looks; git ignores that file.

    The committed chapter holds no seconds, so that running it again changes no byte.
    """
    status: dict[str, Any] = {"chapters": {}}
    if STATUS.exists():
        status = json.loads(STATUS.read_text())
    status["versions"] = versions()
    status["chapters"][chapter] = cost
    STATUS.parent.mkdir(exist_ok=True)
    STATUS.write_text(json.dumps(status, indent=1, sort_keys=True) + "\n")


# --- text twins -------------------------------------------------------------------------------


def as_text(notebook: NotebookNode, paired: str = "") -> str:
    """The chapter as MyST Markdown; its header holds the hash of what it was made from."""
    import jupytext

    twin = copy.deepcopy(notebook)
    twin.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    if paired:
        twin.metadata["paired"] = paired
        twin.metadata["jupytext"] = {"notebook_metadata_filter": "paired"}
    for cell in twin.cells:
        cell.metadata = nbformat.from_dict(
            {k: cell.metadata[k] for k in CELL_METADATA if cell.metadata.get(k)}
        )
    return str(jupytext.writes(twin, fmt="md:myst"))


def from_text(text: str) -> NotebookNode:
    """The notebook, without outputs, that a text twin stands for."""
    import jupytext

    return jupytext.reads(text, fmt="md:myst")


def cell_key(cell: NotebookNode) -> str:
    """What makes a cell the same cell: its type, source, and the metadata that we keep."""
    kept = {k: cell.metadata[k] for k in CELL_METADATA if cell.metadata.get(k)}
    return json.dumps([cell.cell_type, cell.source.strip(), kept], sort_keys=True)


def content_hash(notebook: NotebookNode) -> str:
    """A hash of the cells as a text twin can express them."""
    through_text = from_text(as_text(notebook))
    keys = "\n".join(cell_key(cell) for cell in through_text.cells)
    return hashlib.sha256(keys.encode()).hexdigest()[:16]


def merge(notebook: NotebookNode, edited: NotebookNode) -> NotebookNode:
    """The edited cells, with ids and outputs of the notebook's where a cell is still the same."""
    old, new = notebook.cells, edited.cells
    match = difflib.SequenceMatcher(
        None, [cell_key(c) for c in old], [cell_key(c) for c in new], autojunk=False
    )
    cells: list[NotebookNode] = []
    for change, i1, i2, j1, j2 in match.get_opcodes():
        if change == "equal":
            cells += old[i1:i2]
            continue
        for offset, cell in enumerate(new[j1:j2]):
            twin = old[i1 + offset] if i1 + offset < i2 else None
            cell.id = ""
            if twin is not None and twin.cell_type == cell.cell_type:
                cell.id = twin.id
                if cell.cell_type == "code" and twin.source == cell.source:
                    cell.outputs, cell.execution_count = twin.outputs, twin.execution_count
            cells.append(cell)
    notebook.cells = cells
    number_new_cells(cells)
    return notebook


def number_new_cells(cells: Iterable[NotebookNode]) -> None:
    """Give cells without an id one that follows from their source, not from chance."""
    used = {cell.id for cell in cells if cell.id}
    for cell in cells:
        salt = 0
        while not cell.id:
            text = f"{salt}{cell.source}".encode()
            new = hashlib.sha256(text).hexdigest()[:8]
            cell.id, salt = ("" if new in used else new), salt + 1
        used.add(cell.id)


class EditedTwiceError(RuntimeError):
    """A chapter and its text twin were both edited since they last agreed."""


def taken_over(path: Path, notebook: NotebookNode) -> NotebookNode:
    """The chapter with what was edited in its text twin; itself where nothing was.

    Writes nothing. Raises EditedTwiceError if both were edited since they last agreed.
    """
    twin = path.with_suffix(".md")
    if not twin.exists():
        return notebook
    edited = from_text(twin.read_text(encoding="utf-8"))
    base, text, now = edited.metadata.get("paired"), content_hash(edited), content_hash(notebook)
    if text in (now, base):
        return notebook
    if base != now:
        raise EditedTwiceError(
            f"{path.name} and {twin.name} were both edited since they agreed; "
            f"delete {twin.name} to keep the notebook, or restore the notebook to keep the text"
        )
    return merge(copy.deepcopy(notebook), edited)


def write_twin(path: Path, notebook: NotebookNode) -> None:
    """Write the text twin of a chapter, with the hash of the cells that it was made from."""
    text = as_text(notebook, content_hash(notebook))
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def pair(path: Path) -> str:
    """Bring a chapter and its text twin into agreement without a run; say what was done."""
    notebook = nbformat.read(path, as_version=4)
    twin, merged = path.with_suffix(".md"), taken_over(path, notebook)
    was = content_hash(from_text(twin.read_text(encoding="utf-8"))) if twin.exists() else ""
    if merged is not notebook:
        write(merged, path)
        said = "notebook updated: execute it"
    elif was == content_hash(notebook):
        return "in agreement"
    else:
        said = "text updated" if was else "text written"
    write_twin(path, merged)
    return said


def pair_all(paths: Sequence[Path]) -> int:
    """Pair chapters with their text twins; print what was done; return how many were refused."""
    refused = 0
    for path in paths:
        try:
            said = pair(path)
        except EditedTwiceError as error:
            refused, said = refused + 1, str(error)
        print(f"{path.stem:20} {said}")
    return refused


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("chapters", nargs="*", help="names or numbers; all if none is given")
    parser.add_argument("--timed", action="store_true", help="measure timed cells anew")
    parser.add_argument("--text", action="store_true", help="pair with text twins, run nothing")
    parser.add_argument("--lab", action="store_true", help="start JupyterLab")
    options = parser.parse_args()
    if options.lab:
        command = [sys.executable, "-m", "jupyterlab", "--ServerApp.root_dir=chapters"]
        return subprocess.call(command, env=prepare_environment(), cwd=ROOT)
    paths = find(options.chapters)
    if options.text:
        return pair_all(paths) > 0
    return execute_all(paths, options.timed) > 0


if __name__ == "__main__":
    raise SystemExit(main())
