"""The canonical text of a function's syntax tree, and the names that it reads from outside.

Imports the standard library.
Must not import any other module of gatelib: other Pythons read trees with it too.

Two functions have one text if they differ in comments, docstrings, annotations, layout and the
names of local variables alone. A local variable is written as a number, given in the order in which
a walk of the tree meets it, so the scopes of a function are found first, as Python finds them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Function", "Reads", "read"]

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Chain = tuple[str, ...]

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
NAMED = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.ExceptHandler,
    ast.MatchAs,
    ast.MatchStar,
)
UNSEEN = ("ctx", "type_comment", "kind", "annotation", "returns", "type_params", "simple")
"""Fields that say nothing about what is computed."""
BARE: Chain = ("",)
"""Of an import that only loads a module: nothing is read through it."""
KINDS = ("ClassVar", "InitVar", "KW_ONLY")
"""What an annotation in the body of a class may say about a field."""
OPEN = {"locals", "vars", "dir", "eval", "exec"}
OPEN_ATTRIBUTES = {"__name__", "__qualname__", "__code__"}
"""Whoever uses one of these may see the names of local variables."""


@dataclass
class Reads:
    """What a function takes from outside.

    text: the canonical text of its tree.
    names: chains of global names and attributes, `("figures", "new")` for `figures.new`.
    imports: (module, level, name or None, attributes that follow) of each import inside it.
    free: names of the enclosing functions' variables, in the order of their numbers.
    """

    text: str = ""
    names: dict[Chain, None] = field(default_factory=dict)
    imports: dict[tuple[str, int, str | None, Chain], None] = field(default_factory=dict)
    free: list[str] = field(default_factory=list)


class _Scope:
    """The names of one function, class body or comprehension."""

    def __init__(self, kind: str, parent: _Scope | None) -> None:
        self.kind, self.parent = kind, parent
        self.bound: set[str] = set()
        self.elsewhere: dict[str, str] = {}  # declared global or nonlocal
        self.inner: dict[ast.AST, _Scope] = {}

    def bind(self, name: str | None) -> None:
        if name is not None:
            self.bound.add(name)

    def holder(self, name: str) -> _Scope | None:
        """The scope whose variable `name` means here; None for a global or one further out."""
        if self.elsewhere.get(name) == "global":
            return None
        if name in self.bound and name not in self.elsewhere:
            return self
        outer = self.parent
        while outer is not None and outer.kind == "class":  # methods don't see names of the class
            outer = outer.parent
        return outer.holder(name) if outer is not None else None


# --- scopes -----------------------------------------------------------------------------------


def _arguments(args: ast.arguments) -> Iterable[ast.arg]:
    stars = [arg for arg in (args.vararg, args.kwarg) if arg is not None]
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, *stars]


def _enter(node: ast.AST, kind: str, scope: _Scope, body: Iterable[ast.AST]) -> None:
    inner = scope.inner[node] = _Scope(kind, scope)
    for parameter in getattr(node, "type_params", ()):
        inner.bind(parameter.name)
    if isinstance(node, FUNCTIONS):
        for arg in _arguments(node.args):
            inner.bind(arg.arg)
    _collect(body, inner)


def _body(node: Any) -> list[ast.AST]:
    return node.body if isinstance(node.body, list) else [node.body]


def _outside(node: Any) -> list[ast.AST]:
    """The parts of a function or class that its surroundings evaluate."""
    found = list(getattr(node, "decorator_list", []))
    if isinstance(node, ast.ClassDef):
        return [*found, *node.bases, *node.keywords]
    return [*found, *node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]


def _collect(nodes: Iterable[ast.AST], scope: _Scope) -> None:
    """Find what each scope binds, here and in all scopes inside."""
    for node in nodes:
        _bind(node, scope)
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            _collect(_outside(node), scope)
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            _enter(node, kind, scope, _body(node))
        elif isinstance(node, COMPREHENSIONS):
            first, *others = node.generators
            _collect([first.iter], scope)
            values = [v for v in (getattr(node, n, None) for n in ("elt", "key", "value")) if v]
            rest: list[ast.AST] = [first.target, *first.ifs, *others, *values]
            _enter(node, "comprehension", scope, rest)
        elif isinstance(node, ast.AnnAssign):
            _collect([node.target, *([node.value] if node.value else [])], scope)
        else:
            _collect(ast.iter_child_nodes(node), scope)


def _bind(node: ast.AST, scope: _Scope) -> None:
    """Note the name that a node gives a value to."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        scope.bind(node.id)
    elif isinstance(node, ast.NamedExpr):
        outer = scope
        while outer.kind == "comprehension" and outer.parent is not None:
            outer = outer.parent
        if outer is not scope:  # `:=` in a comprehension binds outside of it
            scope.elsewhere[node.target.id] = "nonlocal"
        outer.bind(node.target.id)
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            scope.bind(alias.asname or alias.name.split(".")[0])
    elif isinstance(node, ast.Global | ast.Nonlocal):
        scope.elsewhere |= dict.fromkeys(node.names, type(node).__name__.lower())
    elif isinstance(node, ast.MatchMapping):
        scope.bind(node.rest)
    elif isinstance(node, NAMED):
        scope.bind(node.name)


# --- text -------------------------------------------------------------------------------------


def constant(value: object) -> str:
    """A constant of the source, the same text in every Python."""
    if type(value) is int:
        return hex(value)
    return ascii(value) if not isinstance(value, tuple | frozenset) else f"{type(value).__name__}"


class _Writer:
    def __init__(self, outside: frozenset[str], mangle: str) -> None:
        self.outside, self.mangle = outside, mangle
        self.reads = Reads()
        self.numbers: dict[tuple[_Scope, str], str] = {}
        self.modules: dict[tuple[_Scope, str], list[tuple[str, int, str | None]]] = {}
        self.open = False
        self.special: dict[type[ast.AST], Callable[[Any, _Scope], str]] = {
            ast.AnnAssign: self._annotated,
            ast.Attribute: self._attribute,
            ast.ClassDef: self._class,
            ast.Constant: lambda node, scope: constant(node.value),
            ast.ExceptHandler: self._binding,
            ast.ImportFrom: self._import,
            ast.Import: self._import,
            ast.JoinedStr: self._joined,
            ast.MatchAs: self._binding,
            ast.MatchMapping: self._binding,
            ast.MatchStar: self._binding,
            ast.Name: lambda node, scope: self.name(node.id, scope),
            ast.arguments: self._parameters,
        }
        self.special |= dict.fromkeys(FUNCTIONS, self._function)
        self.special |= dict.fromkeys(COMPREHENSIONS, self._comprehension)

    def write(self, node: Any, scope: _Scope) -> str:
        """The text of a node, of a list of nodes, or of what else stands in a field."""
        if isinstance(node, list):
            return f"[{' '.join(filter(None, (self.write(part, scope) for part in node)))}]"
        if not isinstance(node, ast.AST):
            return constant(node)
        if isinstance(node, ast.Pass | ast.Global | ast.Nonlocal):
            return ""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return ""  # a docstring, or a string that stands as a comment
        special = self.special.get(type(node))
        return special(node, scope) if special else self.plain(node, scope)

    def plain(self, node: ast.AST, scope: _Scope, **instead: str) -> str:
        """The type of a node and its fields, those that are `instead` as they are given."""
        parts = [type(node).__name__]
        for name in node._fields:
            value = getattr(node, name, None)
            if name in instead:
                parts.append(f"{name}={instead[name]}")
            elif name not in UNSEEN and value is not None:
                text = self.write(value, scope)
                parts += [f"{name}={text}"] if text != "[]" else []
        return f"({' '.join(parts)})"

    # --- names

    def name(self, name: str, scope: _Scope, chain: Chain = ()) -> str:
        """A variable: a number where it is local, and what is read where it is not."""
        holder = scope.holder(name)
        if holder is not None and holder.kind != "class":
            for module in self.modules.get((holder, name), ()):
                self.reads.imports[(*module, chain)] = None
            return self._number(holder, name)
        self.open |= name in OPEN
        if holder is None and name in self.outside:
            if name not in self.reads.free:
                self.reads.free.append(name)
            return f"free{self.reads.free.index(name)}"
        private = self.mangle and name.startswith("__") and not name.endswith("__")
        self.reads.names[(f"_{self.mangle}{name}" if private else name, *chain)] = None
        return f"{'class' if holder else 'global'}:{name}"

    def _number(self, scope: _Scope, name: str) -> str:
        return self.numbers.setdefault((scope, name), f"local{len(self.numbers)}")

    def _attribute(self, node: ast.Attribute, scope: _Scope) -> str:
        chain, base = [node.attr], node.value
        while isinstance(base, ast.Attribute):
            chain.append(base.attr)
            base = base.value
        chain.reverse()
        self.open |= not OPEN_ATTRIBUTES.isdisjoint(chain)
        isname = isinstance(base, ast.Name)
        head = self.name(base.id, scope, tuple(chain)) if isname else self.write(base, scope)  # type: ignore[attr-defined]
        return f"(Attribute {head} {'.'.join(chain)})"

    def _import(self, node: ast.Import | ast.ImportFrom, scope: _Scope) -> str:
        parts = []
        module, level = getattr(node, "module", None) or "", getattr(node, "level", 0)
        for alias in node.names:
            bound = alias.asname or alias.name.split(".")[0]
            found: tuple[str, int, str | None]
            if isinstance(node, ast.ImportFrom):
                found = (module, level, alias.name)
            else:
                found = (alias.name if alias.asname else bound, 0, None)
                self.reads.imports[(alias.name, 0, None, BARE)] = None
            holder = scope.holder(bound)
            if holder is not None and holder.kind != "class":
                self.modules.setdefault((holder, bound), []).append(found)
            else:
                self.reads.imports[(*found, ())] = None
            parts.append(f"{alias.name} as {self.name(bound, scope)}")
        return f"({type(node).__name__} {level} {module}: {', '.join(parts)})"

    def _binding(self, node: Any, scope: _Scope) -> str:
        """A clause that binds a name without a Name node."""
        key = "rest" if isinstance(node, ast.MatchMapping) else "name"
        name = getattr(node, key)
        return self.plain(node, scope, **({key: self.name(name, scope)} if name else {}))

    # --- statements and expressions with rules of their own

    def _annotated(self, node: ast.AnnAssign, scope: _Scope) -> str:
        if scope.kind == "class":  # a field
            words = ast.unparse(node.annotation)
            marks = " ".join(kind for kind in KINDS if kind in words)
            return f"{self.plain(node, scope)}{marks}"
        if node.value is not None:
            return self.write(ast.Assign([node.target], node.value), scope)
        return "" if isinstance(node.target, ast.Name) else self.write(node.target, scope)

    def _joined(self, node: ast.JoinedStr, scope: _Scope) -> str:
        """An f-string; Pythons cut its plain parts in different ways."""
        parts: list[Any] = []
        for part in node.values:
            plain = part.value if isinstance(part, ast.Constant) else part
            if isinstance(plain, str) and parts and isinstance(parts[-1], str):
                parts[-1] += plain
            elif plain != "":
                parts.append(plain)
        return f"(JoinedStr {self.write(parts, scope)})"

    def _parameters(self, node: ast.arguments, scope: _Scope) -> str:
        """Parameters of a function whose scope is `scope`: those passed by keyword have a name."""

        def numbered(args: list[ast.arg], named: bool) -> str:
            return " ".join(f"{a.arg if named else ''}:{self.name(a.arg, scope)}" for a in args)

        several = [node.vararg] if node.vararg else []
        keywords = [node.kwarg] if node.kwarg else []
        given = [(node.posonlyargs, False), (node.args, True), (several, False)]
        given += [(node.kwonlyargs, True), (keywords, False)]
        return " | ".join(numbered(args, named) for args, named in given)

    def function(self, node: Function, scope: _Scope) -> str:
        """Parameters without defaults, and body; `scope` is the function's own."""
        body = self.write(_body(node), scope)
        return f"({type(node).__name__} {self.write(node.args, scope)} {body})"

    def _function(self, node: Function, scope: _Scope) -> str:
        """A function inside: its variable, decorators, defaults, and what it is."""
        target = "" if isinstance(node, ast.Lambda) else self.name(node.name, scope)
        outside = [self.write(getattr(node, "decorator_list", []), scope)]
        outside += [self.write(part, scope) for part in (node.args.defaults, node.args.kw_defaults)]
        return f"({target} {' '.join(outside)} {self.function(node, scope.inner[node])})"

    def _class(self, node: ast.ClassDef, scope: _Scope) -> str:
        head = [self.name(node.name, scope), node.name]
        head += [self.write(part, scope) for part in (node.decorator_list, node.bases)]
        keywords, body = self.write(node.keywords, scope), self.write(node.body, scope.inner[node])
        return f"(Class {' '.join(head)} {keywords} {body})"

    def _comprehension(self, node: Any, scope: _Scope) -> str:
        inner, (first, *others) = scope.inner[node], node.generators
        start = self.write(first.iter, scope)
        head = self.plain(first, inner, iter=start)
        rest = self.write(others, inner)
        parts = [getattr(node, name) for name in ("elt", "key", "value") if hasattr(node, name)]
        return f"({type(node).__name__} {head} {rest} {self.write(parts, inner)})"


def read(node: Function, free: Iterable[str] = (), mangle: str = "", nested: bool = False) -> Reads:
    """The canonical text of a function and what it reads.

    Defaults are left out: those of a function that exists are values.

    Args:
        free: the names of variables of the functions around it.
        mangle: the name of the class around it, which private names get.
        nested: it stands in a function, so its decorators may hold that one's local names.
    """
    writer, outer = _Writer(frozenset(free), mangle.lstrip("_")), _Scope("module", None)
    _enter(node, "function", outer, _body(node))
    scope = outer.inner[node]
    text = writer.function(node, scope)
    if not nested:
        text += writer.write(getattr(node, "decorator_list", []), outer)
    if writer.open:
        text += f" open {[name for _, name in writer.numbers]} {getattr(node, 'name', '')}"
    writer.reads.text = text
    return writer.reads
