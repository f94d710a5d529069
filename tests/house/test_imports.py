"""What a module's docstring says that it imports is what it imports.

Imports pytest.
Must not import what it reads: a file is parsed, never run.

It names the packages of others and the other floors of gatelib (`gatelib.spec`); not the standard
library. Neighbours in its own package it may name where it imports them.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "gatelib").rglob("*.py"))
USUAL = {"numpy": "NumPy", "scipy": "SciPy", "sympy": "SymPy", "triton": "Triton"}
USUAL |= {"ipython": "IPython", "pygments": "Pygments"}
SENTENCE = re.compile(r"\bImports\b(.*?)\.(?=\s|$)", re.S)


def modules(path: Path) -> set[str]:
    """The dotted names of all that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


def imported(path: Path) -> set[str]:
    """The packages of others, in small letters, and the floors but its own."""
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts[:2])
    floors = {".".join(name.split(".")[:2]) for name in modules(path) if of_gatelib(name)}
    others = {name.split(".")[0].casefold() for name in modules(path) if not of_gatelib(name)}
    return others | floors - {own, "gatelib.__version__"}


def of_gatelib(name: str) -> bool:
    return name.startswith("gatelib.")


THIRD = {name for path in MODULES for name in imported(path) if not of_gatelib(name)}


def told(path: Path) -> tuple[set[str], set[str]]:
    """What the sentence of its docstring that begins with "Imports" names: others, and gatelib."""
    found = SENTENCE.search(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    sentence = found[1] if found else ""
    ours = set(re.findall(r"gatelib(?:\.\w+)+", sentence))
    words = re.sub(r"gatelib(\.\w+)+", "", sentence).casefold()
    return set(re.findall(r"\w+", words)) & THIRD, ours


def sentence(path: Path) -> str:
    """The shortest sentence that is true."""
    names = sorted(imported(path), key=lambda name: (of_gatelib(name), name))
    return f"Imports {', '.join(USUAL.get(n, n) for n in names) or 'the standard library'}."


def is_true(path: Path) -> bool:
    """Whether it names all that it must, and nothing that is not imported."""
    others, ours = told(path)
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts[:2])
    floors = {".".join(name.split(".")[:2]) for name in ours} - {own}
    within = all(any(f"{m}.".startswith(f"{name}.") for m in modules(path)) for name in ours)
    return others | floors == imported(path) and within


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_imports(path):
    assert is_true(path), f"its docstring should say: {sentence(path)}"
