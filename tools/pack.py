"""Pack Python for the workshop's page: Pyodide, SymPy and gatelib, as scripts in `_vendor`.

Imports tools.vendor and, through its files alone, SymPy and mpmath.
Must not import gatelib or SymPy: node runs Pyodide, which compiles them.

What a page loads is `_static/pack/*.js`, each a file as gzip in base64, so that it loads from a
folder on disk too. It is packed in two parts, each under a stamp of exactly what goes in: the base
(Pyodide, the standard library, SymPy; 20 s, when a version changes) and gatelib (seconds).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import vendor

ROOT = vendor.ROOT
PACK = vendor.VENDOR / "site" / "pack"
START = ROOT / "gatelib" / "workshop.py"
LICENCES = ROOT / "book" / "licences"
PYTHON = ("sympy", "mpmath")
"""The packages beside gatelib, as they are installed here."""
BASE = (
    "pyodide.js",
    "pyodide.asm.js",
    "pyodide.asm.wasm",
    "pyodide-lock.json",
    "python_stdlib.zip",
    "sympy.zip",
)
LIBRARY = ("gatelib.zip",)
"""The files inside the scripts, which are called NAME.js."""


class PackError(RuntimeError):
    """Pyodide could not run, or could not load what the workshop needs."""


def imported(path: Path) -> set[str]:
    """The dotted names of all that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def library() -> tuple[Path, ...]:
    """The files of gatelib that the workshop imports, with the packages on the way."""
    found, todo = set[Path](), [START]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += [file for name in imported(path) for file in _files(name)]
    return tuple(sorted(found))


def _files(name: str) -> Iterator[Path]:
    """The file of a module of gatelib, and those of the packages around it."""
    parts = name.split(".") if name.startswith("gatelib.") else []
    for count in range(1, len(parts) + 1):
        place = ROOT.joinpath(*parts[:count])
        yield from (p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file())


def asked_of_others() -> list[str]:
    """The modules of others that these files import: a new one means another base."""
    names = {name for path in library() for name in imported(path)}
    return sorted(name for name in names if not name.startswith("gatelib"))


def _digest(parts: Iterable[str | bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(hashlib.sha256(data).digest())
    return found.hexdigest()


@functools.cache
def base_stamp() -> str:
    """A digest of the pinned Pyodide, the packages, what is asked of them, and these programs."""
    lock = json.loads((vendor.PINNED / "package-lock.json").read_text())
    programs = (ROOT / "tools" / name for name in ("compiled.py", "pack.mjs"))
    return _digest(
        [
            lock["packages"]["node_modules/pyodide"]["integrity"],
            *(distribution(name).read_text("RECORD") or "" for name in PYTHON),
            *asked_of_others(),
            *(path.read_bytes() for path in programs),
            *(path.read_bytes() for path in sorted(LICENCES.iterdir())),
        ]
    )


@functools.cache
def library_stamp() -> str:
    """A digest of the base and of every byte of gatelib that goes in."""
    names = [str(path.relative_to(ROOT)) for path in library()]
    return _digest([base_stamp(), *names, *(path.read_bytes() for path in library())])


def is_complete(part: str, names: Sequence[str], stamp: str, pack: Path = PACK) -> bool:
    """Whether a part is there, made of exactly what is here now."""
    mark = pack / f"{part}.stamp"
    if not mark.exists() or mark.read_text() != stamp:
        return False
    return all((pack / f"{name}.js").exists() for name in names)


def ensure(pack: Path = PACK) -> list[str]:
    """Pack what is missing; return the names of the parts that had to be made."""
    made = []
    for part, names, stamp in (
        ("base", BASE, base_stamp()),
        ("gatelib", LIBRARY, library_stamp()),
    ):
        if not is_complete(part, names, stamp, pack):
            make(part, pack)
            (pack / f"{part}.stamp").write_text(stamp)
            made.append(part)
    return made


def make(part: str, pack: Path) -> None:
    """Run Pyodide in node, which writes one part; what is there already is replaced whole."""
    pack.mkdir(parents=True, exist_ok=True)
    (pack / f"{part}.stamp").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=vendor.VENDOR) as scratch:
        command = [str(vendor.node()), str(ROOT / "tools" / "pack.mjs")]
        asked = json.dumps(_asked(part, Path(scratch)))
        ran = subprocess.run(command, input=asked, capture_output=True, text=True)
        if ran.returncode:
            raise PackError(f"{part} could not be packed: {(ran.stderr or ran.stdout)[-2000:]}")
        for path in Path(scratch).glob("*.js"):
            path.replace(pack / path.name)
    if part == "base":
        _licences(pack)


def _asked(part: str, scratch: Path) -> dict[str, object]:
    """What node is told."""
    return {
        "part": part,
        "pyodide": str(vendor.VENDOR / "pyodide"),
        "packages": str(Path(str(distribution("sympy").locate_file(""))).resolve()),
        "repository": str(ROOT),
        "files": [str(path.relative_to(ROOT)) for path in library()],
        "out": str(scratch),
    }


def _licences(pack: Path) -> None:
    """Put the licence of everything that is packed beside it."""
    for path in LICENCES.iterdir():
        shutil.copyfile(path, pack / f"{path.stem}-LICENSE.txt")
    shutil.copyfile(ROOT / "LICENSE", pack / "gatelib-LICENSE.txt")
    for name in PYTHON:
        files = distribution(name).files or ()
        source = next(
            file for file in files if file.name == "LICENSE" and ".dist-info" in str(file)
        )
        shutil.copyfile(Path(source.locate()), pack / f"{name}-LICENSE.txt")


if __name__ == "__main__":
    try:
        print(f"packed {' and '.join(ensure()) or 'nothing: all is in place'}")
    except (PackError, vendor.VendorError) as error:
        sys.exit(f"pack: {error}")
