"""Finds the syntax tree that a function was compiled from, in a file or in a cell.

Imports the standard library, and its neighbour syntax.
Must not import any other module of gatelib but syntax: other Pythons find sources with it too.

Lines come from `linecache`, where IPython puts cells and `gatelib.load` what it generates. The tree
is compiled again and compared with the function, since a file may have been edited after it was
imported.
"""

from __future__ import annotations
import __future__

import ast
import functools
import linecache
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FunctionType

from gatelib.lab.syntax import FUNCTIONS, Function, Reads, read

__all__ = ["reads_of", "tree_of"]

FUTURE = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)

BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
COMPARED = tuple(
    f"co_{name}"
    for name in """name firstlineno code names varnames freevars cellvars argcount posonlyargcount
    kwonlyargcount""".split()
)


class _Source:
    """A parsed text: its functions by their first line, and its statements' code."""

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self.functions: dict[int, list[tuple[Function, ast.stmt]]] = defaultdict(list)
        for statement in self.tree.body:
            for node in _definitions(statement):
                first = node.decorator_list[0] if node.decorator_list else node
                self.functions[first.lineno].append((node, statement))
        self.imports = list(_imports(self.tree))
        self._codes: dict[tuple[ast.stmt, int], list[CodeType]] = {}

    def lambdas(self, line: int) -> list[tuple[Function, ast.stmt]]:
        """The lambdas that begin in a line, and the statement around each."""
        around = (s for s in self.tree.body if s.lineno <= line <= (s.end_lineno or line))
        found = ((node, s) for s in around for node in ast.walk(s))
        return [(n, s) for n, s in found if isinstance(n, ast.Lambda) and n.lineno == line]

    def codes(self, statement: ast.stmt, flags: int) -> list[CodeType]:
        """Every code object of a statement, compiled anew.

        With the imports around it, since Python calls a name of an imported module in another way.
        """
        key = statement, flags
        if key not in self._codes:
            module = ast.Module([*self.imports, statement], [])
            code = compile(module, "<source>", "exec", flags=flags, dont_inherit=True)
            self._codes[key] = list(_inner(code))
        return self._codes[key]


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> _Source:
    return _Source(text)


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions with a name in a statement."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield node
    for part in BLOCKS:
        for child in getattr(node, part, ()):
            yield from _definitions(child)


def _imports(node: ast.AST) -> Iterator[ast.stmt]:
    """The imports of a module's own scope."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            yield from _imports(child)


def _inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _inner(value)


_READ: dict[int, tuple[CodeType, Reads]] = {}
"""By the id of a code object, which never changes; it is kept, so that its id stays its own."""


def reads_of(function: FunctionType) -> Reads:
    """The canonical text of a function and what it reads from outside. Errors: as `tree_of`."""
    code = function.__code__
    if id(code) not in _READ:
        around = code.co_qualname.split(".")[:-1]
        mangle = around[-1] if around and around[-1] != "<locals>" else ""
        found = read(tree_of(function), code.co_freevars, mangle, nested="<locals>" in around)
        _READ[id(code)] = code, found
    return _READ[id(code)][1]


def tree_of(function: FunctionType) -> Function:
    """The node of a function's definition.

    Raises: ValueError where no source is known, or where it is not what the function was made from.
    """
    code, name = function.__code__, f"{function.__module__}.{function.__qualname__}"
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    if not text:
        raise ValueError(
            f"{name}: no source is known for it; define it in a cell or in a file, "
            "or let gatelib.load run generated text"
        )
    try:
        found = list(_candidates(_parsed(text), code))
    except SyntaxError:
        found = []
    if len(found) != 1:
        reason = "several on one line can't be told apart" if found else "its source has changed"
        raise ValueError(f"{name}: {reason} ({code.co_filename}, line {code.co_firstlineno})")
    return found[0]


def _candidates(source: _Source, code: CodeType) -> Iterator[Function]:
    """The nodes that a code object may come from: one, if all is well."""
    if code.co_name == "<lambda>":
        named = source.lambdas(code.co_firstlineno)
    else:
        starting = source.functions.get(code.co_firstlineno, [])
        named = [(n, s) for n, s in starting if getattr(n, "name", "") == code.co_name]
    if len(named) > 1:
        around = [pair for pair in named if _holds(pair[0], code)]
        named = [max(around, key=lambda pair: _start(pair[0]))] if around else named
    for node, statement in named:
        if any(_equal(code, other) for other in source.codes(statement, code.co_flags & FUTURE)):
            yield node


def _start(node: ast.expr | ast.stmt) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _holds(node: Function, code: CodeType) -> bool:
    """Does every instruction come from the body of this lambda?"""
    body = node.body[0] if isinstance(node.body, list) else node.body
    start, end = _start(body), (body.end_lineno, body.end_col_offset)
    for line, last, column, stop in code.co_positions():
        if None in (line, last, column, stop) or (column, stop) == (0, 0):
            continue
        if (line, column) < start or (last, stop) > end:
            return False
    return True


def _equal(one: CodeType, other: CodeType) -> bool:
    """Do two code objects compute the same? Where their lines come from is left out."""
    if any(getattr(one, name) != getattr(other, name) for name in COMPARED):
        return False
    pairs = list(zip(one.co_consts, other.co_consts, strict=False))
    return len(one.co_consts) == len(other.co_consts) and all(_alike(a, b) for a, b in pairs)


def _alike(one: object, other: object) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _equal(one, other)
    if isinstance(one, frozenset):
        return one == other
    return type(one) is type(other) and repr(one) == repr(other)
