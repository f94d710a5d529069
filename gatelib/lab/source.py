"""Shows the source of a function or class of the package, so that page and package can't drift.

Imports the standard library.
Must not import the floors below; it reads the source of whatever object it is given.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any

__all__ = ["LONGEST", "Source", "show"]

LONGEST = 25
"""Lines that a reader sees at a time."""


class Source:
    """Python code that a notebook shows highlighted; `str()` gives it plain."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __str__(self) -> str:
        return self.code

    __repr__ = __str__

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": self.code, "text/markdown": f"```python\n{self.code}\n```"}


def _docstrings(tree: ast.Module) -> list[ast.Expr]:
    """The docstring nodes of `tree`, wherever they stand."""
    owners = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, owners)]
    return [
        node.body[0]
        for node in nodes
        if ast.get_docstring(node, clean=False) is not None and isinstance(node.body[0], ast.Expr)
        if len(node.body) > 1
    ]


def without_docstrings(code: str) -> str:
    """Drop every docstring and the empty line after it, and what is said to a checker of types.

    Other comments stay.
    """
    lines = [re.sub(r"\s*# type: ignore(\[[\w, -]*\])?$", "", line) for line in code.splitlines()]
    for node in sorted(_docstrings(ast.parse(code)), key=lambda node: -node.lineno):
        last = node.end_lineno or node.lineno
        if last < len(lines) and not lines[last].strip():
            last += 1
        del lines[node.lineno - 1 : last]
    return "\n".join(lines).strip("\n")


def source_of(obj: Any) -> str:
    """The dedented source of one object, without docstrings."""
    target = (
        obj.fget if isinstance(obj, property) else inspect.unwrap(obj) if callable(obj) else obj
    )
    if not (inspect.isclass(target) or inspect.isfunction(target) or inspect.ismethod(target)):
        raise TypeError(
            f"obj: expected a function, method, property or class, got {type(obj).__name__}"
        )
    try:
        return without_docstrings(textwrap.dedent(inspect.getsource(target)))
    except OSError as error:
        raise ValueError(f"obj: no source is known for {target.__qualname__}") from error


def show(*objects: Any, lines: tuple[int, int] | None = None) -> Source:
    """Show the source of functions, methods or classes, without docstrings.

    Args:
        objects: what to show, one below the other.
        lines: first and last line to show, counted from 1 after docstrings are gone.

    Raises:
        TypeError: an object has no Python source by nature.
        ValueError: more than 25 lines would be shown, or `lines` lies outside the source.
    """
    if not objects:
        raise ValueError("objects: expected at least one, got none")
    code = "\n\n\n".join(source_of(obj) for obj in objects).splitlines()
    if lines is not None:
        first, last = lines
        if not 1 <= first <= last <= len(code):
            raise ValueError(f"lines: expected 1 ≤ first ≤ last ≤ {len(code)}, got {lines}")
        code = textwrap.dedent("\n".join(code[first - 1 : last])).splitlines()
    if len(code) > LONGEST:
        raise ValueError(
            f"objects: expected at most {LONGEST} lines at a time, got {len(code)}; "
            "choose some with lines=(first, last)"
        )
    return Source("\n".join(code))
