"""Text → names and expressions: reads assignments in Python's syntax, and only a gate's arithmetic.

Imports SymPy, gatelib.functions, gatelib.constants and gatelib.algebra.
Must not import any other floor of gatelib: it knows no Spec.
"""

from __future__ import annotations

import ast
import difflib
import keyword
import re
import textwrap
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import sympy as sp

from gatelib.algebra import Equation, apply, plus, power, symbol, times
from gatelib.constants import NoNumber, as_number, checked, constant, fraction
from gatelib.functions import FUNCTIONS, Expr

__all__ = [
    "SpecError",
    "Text",
    "check_gate_name",
    "check_name",
    "did_you_mean",
    "free",
    "read_expression",
    "read_signature",
]

RESERVED = frozenset({"F", "np", "special", "torch"})
"""What generated source calls its modules; a gate of that name would hide them."""

DEEPEST = 90
"""Brackets and functions within each other; Python reads 200, and derivatives nest deeper."""

OTHER_NAMES = {"max": "maximum", "sum": "total", "logistic": "sigmoid", "ln": "log", "avg": "mean"}
OTHER_NAMES |= {"min": "minimum", "clamp": "minimum", "clip": "minimum"}
OTHER_NAMES |= {"swish": "silu", "heaviside": "step", "layernorm": "normalize", "norm": "normalize"}


class SpecError(ValueError):
    """A gate's text is wrong; the message names the line and the reason.

    line, column: where, counted from 1 in the text as it was given; None where the reason stands in
    no text. about: the name of the value that it is about, or "".
    """

    def __init__(
        self, message: str, line: int | None = None, column: int | None = None, about: str = ""
    ) -> None:
        super().__init__(message)
        self.line, self.column, self.about = line, column, about


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing where no known name is like this one."""
    names = sorted(known)
    other = OTHER_NAMES.get(name.lower())
    if other in names:
        return f"; did you mean `{other}`?"
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean `{lower[close[0]]}`?" if close else ""


def check_name(name: str, where: str) -> None:
    """Raise SpecError for what can't be the name of a value."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise SpecError(f"{where}: `{name}` is not a name", about=name)
    if name in FUNCTIONS:
        raise SpecError(f"{where}: `{name}` is the name of a function", about=name)
    if name in RESERVED:
        raise SpecError(f"{where}: `{name}` is the name of a module in generated source")
    if name.endswith("_") or "__" in name or name.startswith("_"):
        raise SpecError(f"{where}: `{name}` may not start or end with _ or hold __", about=name)


def check_gate_name(name: str) -> None:
    """Raise SpecError for what can't be the name of a gate, and so of a function."""
    if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
        raise SpecError(f"name: expected a free identifier, got {name!r}")


def read_signature(signature: str, where: str) -> tuple[list[str], list[str]]:
    """The names of inputs and outputs in `"inputs -> outputs"`."""
    if signature.count("->") != 1:
        raise SpecError(f"{where}: expected a signature 'inputs -> outputs', got {signature!r}")
    normal = unicodedata.normalize("NFKC", signature)  # as Python reads the names in the lines
    inputs, outputs = (part.split() for part in normal.split("->"))
    for group in (inputs, outputs):
        for repeated in sorted({n for n in group if group.count(n) > 1}):
            raise SpecError(f"{where}: `{repeated}` stands twice in the signature", about=repeated)
    for name in (*inputs, *outputs):
        check_name(name, f"{where}: signature")
    return inputs, outputs


Tree = TypeVar("Tree", ast.Module, ast.Expression)


def _one_expression(text: str) -> ast.Expression:
    return ast.parse(text, mode="eval")


@dataclass
class Text:
    """Lines of a gate, and where each value was defined: {name: (line, column)}.

    where: what an error calls the text. above: lines that stand above it in what the author gave.
    """

    where: str
    text: str
    above: int = 0
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        even = textwrap.dedent(self.text)
        self.body = even.strip("\n")
        self.above += len(even) - len(even.lstrip("\n"))
        first = self.body.partition("\n")[0]
        given = next((line for line in self.text.splitlines() if line.strip()), "")
        self.margin = len(given) - len(first) if given.endswith(first) else 0
        self.lines = re.split("\r\n|\r|\n", self.body)

    def equations(self, inputs: Iterable[str]) -> list[Equation]:
        """One equation a line. Raises SpecError with line, column and reason."""
        scope = {name: symbol(name) for name in inputs}
        return [self._equation(s, scope) for s in self._tree(self.body, ast.parse).body]

    def _equation(self, statement: ast.stmt, scope: dict[str, Expr]) -> Equation:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case _:
                raise self.error("expected 'name = expression'", statement)
        line, column = self._place(statement)
        try:
            check_name(name, f"{self.where}, line {line}")
        except SpecError as error:
            raise SpecError(str(error), line, column, name) from None
        if name in scope:
            raise self.error(f"`{name}` is already defined", statement, name)
        found = Reader(self, scope).read(value)
        scope[name], self.places[name] = symbol(name), (line, column)
        return scope[name], found

    def expression(self, scope: Mapping[str, Expr]) -> Expr:
        """The one expression that the text is."""
        return Reader(self, scope).read(self._tree(self.body.strip(), _one_expression).body)

    def _tree(self, text: str, parse: Callable[[str], Tree]) -> Tree:
        try:
            return parse(text)
        except SyntaxError as error:
            line = (error.lineno or 1) + self.above
            column = max(error.offset or 1, 1) + self.margin
            shown = f" in {self.text!r}" if parse is _one_expression else ""
            message = f"{self.where}, line {line}: {error.msg}{shown}"
            raise SpecError(message, line, column) from None
        except (RecursionError, MemoryError):
            message = f"{self.where}: nested too deeply, more than {DEEPEST} within each other"
            raise SpecError(message, 1 + self.above, 1 + self.margin) from None
        except ValueError as error:  # a null character
            raise SpecError(f"{self.where}: {error}", 1 + self.above, 1 + self.margin) from None

    def _place(self, node: ast.AST) -> tuple[int, int]:
        line, offset = getattr(node, "lineno", 1), getattr(node, "col_offset", 0)
        whole = self.lines[line - 1] if line <= len(self.lines) else ""
        before = whole.encode()[:offset].decode()
        return line + self.above, len(before) + self.margin + 1

    def segment(self, node: ast.AST) -> str:
        """What the author wrote there."""
        line, last = int(getattr(node, "lineno", 0)), getattr(node, "end_lineno", 0)
        if line != last or not 0 < line <= len(self.lines):
            return ast.unparse(node)
        start, end = int(getattr(node, "col_offset", 0)), int(getattr(node, "end_col_offset", 0))
        return self.lines[line - 1].encode()[start:end].decode()

    def error(self, reason: str, node: ast.AST, about: str = "") -> SpecError:
        line, column = self._place(node)
        return SpecError(f"{self.where}, line {line}: {reason}", line, column, about)


def read_expression(text: str, scope: Mapping[str, Expr], where: str) -> Expr:
    """One expression of the names in `scope`. Raises SpecError, which calls the text `where`."""
    return Text(where, text).expression(scope)


SIGNS: Mapping[type[ast.operator], bool] = {ast.Add: False, ast.Sub: True}


class Reader:
    """SymPy expressions from Python's syntax tree, in the author's order."""

    def __init__(self, text: Text, scope: Mapping[str, Expr]) -> None:
        self.text, self.scope, self.depth = text, scope, 0

    def read(self, node: ast.expr) -> Expr:
        """The expression. A chain such as a + b + … is as long as one likes, nesting isn't."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.text.error(f"nested too deeply, more than {DEEPEST} within each other", node)
        try:
            return self._read(node)
        except NoNumber as error:
            shown = self.text.segment(node)
            shown = shown if len(shown) < 60 else f"{shown[:57]}..."
            raise self.text.error(f"`{shown}` has no finite real value: {error}", node) from None
        finally:
            self.depth -= 1

    def _read(self, node: ast.expr) -> Expr:
        match node:
            case ast.BinOp():
                return self._chain(node)
            case ast.UnaryOp(op=ast.USub()):
                return self._negated(node)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self._call(name, args, node)
            case ast.Name(id=name) if name in self.scope:
                return self.scope[name]
            case ast.Name(id=name):
                hint = did_you_mean(name, [*self.scope, *FUNCTIONS])
                reason = f"`{name}` is neither an input nor defined above{hint}"
                if name in FUNCTIONS:
                    reason = f"`{name}` is a function: write `{name}(...)`"
                raise self.text.error(reason, node, name)
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self._number(node, value)
        raise self.text.error(
            f"`{ast.unparse(node)}` is not an expression that a gate may use", node
        )

    def _number(self, node: ast.Constant, value: float) -> Expr:
        """The decimal as it was written, which float64 may only be near to."""
        text = self.text.segment(node).replace("_", "")
        if type(value) is int:
            return checked(sp.Integer(value))
        if value in (0.0, float("inf")):  # Rational would spell 1e999999999 out
            if value or re.search("[1-9]", text.lower().partition("e")[0]):
                raise NoNumber(f"it is out of float64's range, too {'large' if value else 'small'}")
            return sp.S.Zero
        return fraction(sp.Rational(text))

    def _negated(self, node: ast.expr) -> Expr:
        """A chain of minus signs."""
        sign = sp.S.One
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -sign, node.operand
        return times(sign, self.read(node))

    def _chain(self, node: ast.expr) -> Expr:
        """a + b - c, or a*b/c: from the left, as Python computes it."""
        right: list[ast.BinOp] = []
        while isinstance(node, ast.BinOp):
            right.append(node)
            node = node.left
        found = self.read(node)
        for step in reversed(right):
            found = self._binary(found, step)
        return found

    def _binary(self, left: Expr, step: ast.BinOp) -> Expr:
        right = self.read(step.right)
        match step.op:
            case ast.Add():
                return plus(left, right)
            case ast.Sub():
                return plus(left, times(sp.S.NegativeOne, right))
            case ast.Mult():
                return times(left, right)
            case ast.Div():
                return times(left, power(right, sp.S.NegativeOne))
            case ast.Pow() if (number := as_number(right)) is not None:
                return power(left, number)
        raise self.text.error("only + - * / and ** with a number are allowed", step.right)

    def _call(self, name: str, nodes: list[ast.expr], node: ast.expr) -> Expr:
        if name not in FUNCTIONS:
            known = ", ".join(sorted(FUNCTIONS))
            hint = did_you_mean(name, FUNCTIONS)
            reason = f"`{name}` is not a known function; known are {known}{hint}"
            raise self.text.error(reason, node, name)
        expected = next(iter(FUNCTIONS[name].nargs))
        if len(nodes) != expected:
            reason = f"`{name}` takes {expected} argument(s), got {len(nodes)}"
            raise self.text.error(reason, node)
        arguments = [self.read(argument) for argument in nodes]
        found = apply(FUNCTIONS[name], *arguments)
        constant(found)
        return found


def free(prefix: str, taken: Collection[str]) -> str:
    """The prefix itself, or with the first number behind it that makes a name nobody has."""
    name, count = prefix, 0
    while name in taken:
        count += 1
        name = f"{prefix}_{count}"
    return name
