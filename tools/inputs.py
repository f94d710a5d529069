"""The files of this repository that a Python file reads, as its imports say.

Imports the standard library.
Must not import what it looks at: a file is parsed, never run.

An import counts wherever it stands, in a function or in the text of a program that a test starts.
A package that loads its modules when a name is asked for counts whole.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("benchmarks", "chapters", "gatelib", "tests", "tools")
SCRIPTS = ("benchmarks", "tools")  # whose files a test may start by their name
DOTTED = re.compile(rf"\b(?:{'|'.join(FOLDERS)})(?:\.\w+)+")
WHOLE = re.compile(rf"\bfrom ({'|'.join(FOLDERS)}) import")


def reached(starts: Iterable[Path], root: Path = ROOT) -> set[Path]:
    """The starts, and every file that one of them imports, directly or through others."""
    found, todo = set[Path](), list(starts)
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += imported(path, root) if path.suffix == ".py" else ()
    return found


@functools.lru_cache(maxsize=1024)
def imported(path: Path, root: Path) -> frozenset[Path]:
    """The files of the modules that one file imports, with the packages around them."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    told = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
    names = {name for node in nodes if id(node) not in told for name in _names(node)}
    return frozenset(file for name in names for file in _files(name, root))


def _names(node: ast.AST) -> Iterator[str]:
    """What one piece of code imports, as `module` or `module.name`.

    A text counts in which a program is written or the file of one is named.
    """
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from DOTTED.findall(node.value)
        yield from WHOLE.findall(node.value)
        yield from (f"{f}.{node.value[:-3]}" for f in SCRIPTS if node.value.endswith(".py"))


@functools.lru_cache(maxsize=4096)
def _files(name: str, root: Path) -> frozenset[Path]:
    """The files behind a dotted name: its packages, and its module or what it is found in."""
    parts, place, files = name.split("."), root, set[Path]()
    if parts[0] not in FOLDERS:
        return frozenset()
    for part in parts:
        if (module := (place / part).with_suffix(".py")).is_file():
            return frozenset(files | {module})
        if not (place / part).is_dir():  # something in a package that is no module
            return frozenset(files | (_all(place) if _is_lazy(place) else set()))
        place = place / part
        files |= {start} if (start := place / "__init__.py").is_file() else set()
    return frozenset(files | (_all(place) if _is_lazy(place) else set()))


def _is_lazy(package: Path) -> bool:
    """Whether a package loads its modules when a name is asked for."""
    start = package / "__init__.py"
    return start.is_file() and "def __getattr__" in start.read_text(encoding="utf-8")


def _all(package: Path) -> set[Path]:
    """Every file of a package, its stubs too."""
    return {path for path in package.rglob("*.py*") if "__pycache__" not in path.parts}
