"""A fingerprint of what a function computes: its code, all own code it reaches, and its data.

Imports the standard library, and its neighbours syntax, sources and contents.
Must not import any other floor: it reads whatever object it meets.

Own code is that of the notebook, of `gatelib`, of the chapters' `support`, and of the module in
which a function that is asked about is defined. It is read as a syntax tree, so that comments,
docstrings, annotations, layout and names of local variables leave no trace, and every Python gives
the same; numbers, defaults, operators, keywords, attributes and order do count. Of any other
package only the name counts: its version is for a record's head.

What can't be followed: names put together at run time (`getattr(layer, "w" + k)`, `globals()`,
`eval`), files that a function opens, and the state of the machine.
"""

from __future__ import annotations

import builtins
import contextlib
import enum
import functools
import gc
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gatelib.lab import contents, sources, syntax

__all__ = ["fingerprint", "short"]

OWN = ("__main__", "gatelib", "support")
WATCHERS = """compared contents figures fingerprint runs shown source sources stacks study style
syntax tables verdict watch""".split()
"""Instruments of `gatelib.lab` that watch, keep and show runs: they change no number of a run."""
WRITERS = ("circuit", "latex", "printers_javascript")
"""Floors of gatelib that write for a reader."""
UNREAD = tuple(f"gatelib.{name}." for name in (*(f"lab.{w}" for w in WATCHERS), *WRITERS))
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
MACHINERY = ("torch._library", "torch.library", "torch._ops")
"""Where torch keeps operators, which change as they are called; of them our functions are read."""
UNREADABLE = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)


def short(text: str | bytes) -> str:
    """The first eight hexadecimal digits of SHA-256."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()[:8]


def fingerprint(**roots: Any) -> dict[str, str]:
    """{place: hash} of all that `roots` reach.

    A place is the name of a root, of a function, class or variable of the notebook, or of a module
    of gatelib, so that a message can say what has changed.

    Raises: ValueError for an own function whose source isn't known or has changed since it was
        compiled; TypeError for a value that can be read only once.
    """
    walk = _Walk({module for root in roots.values() for module in _modules(root)})
    with _no_collection():
        for name, root in roots.items():
            walk.note(name, name, root)
        walk.finish()
    return {place: short("\n".join(sorted(texts))) for place, texts in sorted(walk.found.items())}


def _modules(root: Any) -> Iterator[str]:
    """The module in which a root is defined."""
    while isinstance(root, functools.partial):
        root = root.func
    root = getattr(root, "__func__", root)
    if isinstance(root, type | types.FunctionType):
        yield contents.home(root)[0]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Trees have many nodes and no garbage: looking for it takes as long as reading them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class ReadOnce(Exception):
    """A generator, say: what it still holds can't be read without taking it away."""


class _Walk:
    """Goes from value to value, and from function to function."""

    def __init__(self, own: Iterable[str]) -> None:
        known = sys.stdlib_module_names
        self.own = {name for name in own if name.split(".")[0] not in (*known, "gatelib")}
        self.found: dict[str, set[str]] = {}
        self.waiting: list[Any] = []
        self.queued: dict[int, Any] = {}
        self.noted: dict[tuple[str, str], int] = {}
        self.shared: dict[int, list[tuple[str, str]]] = {}
        self.strangers: dict[
            type, list[tuple[str, Any]]
        ] = {}  # classes, and what of ours is in them
        self.met: dict[int, int] = {}  # in the value that is being described
        self.kept: list[Any] = []  # keeps what was met alive, so that ids stay unique

    # --- places

    def is_own(self, module: str | None) -> bool:
        """Is code of this module read?"""
        name = module or ""
        if f"{name}.".startswith(UNREAD):
            return False
        return name in self.own or name.split(".")[0] in OWN or name.startswith("gatelib_")

    def place(self, module: str, name: str) -> str:
        """Where a message says that something is: a module of gatelib, else a name."""
        return module if module.split(".")[0] in OWN[1:] else name.split(".")[0]

    def note(self, place: str, name: str, value: Any) -> None:
        """Describe a value under a place, once; `name` says where it was met."""
        if self.noted.get((place, name)) == id(value):
            return
        self.kept.append(value)
        self.noted[place, name] = id(value)
        met, self.met = self.met, {}
        try:
            self.found.setdefault(place, set()).add(f"{name} = {self.text(value)}")
        except ReadOnce as error:
            raise TypeError(f"{name}: expected what can be read twice, got {error}") from None
        self.met = met
        if contents.is_shared(value):
            self.shared.setdefault(id(value), []).append((place, name))

    def finish(self) -> None:
        """Read every function and class that was met by its name; say which globals are one."""
        while self.waiting:
            value = self.waiting.pop()
            self.met = {}
            module, name = contents.home(value)
            text = self.body(value)
            self.found.setdefault(self.place(module, name), set()).add(f"{module}.{name}: {text}")
        for names in self.shared.values():
            for place, name in names if len(names) > 1 else ():
                self.found[place].add(f"{name} is one of {sorted(names)}")

    # --- values

    def text(self, value: Any) -> str:
        """What a value is. Own code that has a name is read later, and leaves its name here."""
        if type(value) in PLAIN:
            return syntax.constant(value)
        if isinstance(value, type | types.FunctionType):
            return self.code(value)
        if type(value) is tuple:
            return f"({self.texts(value)})"
        if isinstance(value, types.ModuleType):
            return self.module(value)
        if isinstance(value, UNREADABLE):
            raise ReadOnce(f"the {type(value).__name__} {value.__qualname__}")
        if special := contents.described(value):
            return special
        if id(value) in self.met:
            return f"#{self.met[id(value)]}"
        self.met[id(value)] = len(self.met)
        self.kept.append(value)
        if type(value) in CONTAINERS:
            return CONTAINERS[type(value)](self, value)
        for kinds, describe in KINDS:
            if isinstance(value, kinds):
                return describe(self, value)
        return self.thing(value)

    def texts(self, values: Iterable[Any]) -> str:
        """Values one after the other."""
        return ", ".join(map(self.text, values))

    def pairs(self, values: Iterable[tuple[Any, Any]]) -> str:
        """Names and values, in the order in which they are given."""
        return ", ".join(f"{self.text(k)}: {self.text(v)}" for k, v in values)

    def module(self, module: types.ModuleType) -> str:
        """A module that is handed on: anything in it may be used."""
        if self.is_own(module.__name__) and id(module) not in self.queued:
            self.queued[id(module)] = module
            for name, value in sorted(vars(module).items()):
                inside = getattr(value, "__module__", module.__name__) == module.__name__
                if not name.startswith("__") and inside and not isinstance(value, types.ModuleType):
                    full = f"{module.__name__}.{name}"
                    self.note(self.place(module.__name__, name), full, value)
        return f"module {contents.public(module.__name__)}"

    def thing(self, value: Any) -> str:
        """An instance: its class, and what it holds."""
        kind = type(value)
        if (numbers := contents.numbers(value)) is not None:
            return f"{self.text(kind)} {numbers}"
        if self.is_own(kind.__module__) or contents.is_module(value):
            return f"{self.text(kind)} {self.pairs(contents.state(value))}"
        return self.stranger(value, f"{contents.public(kind.__module__)}.{kind.__qualname__}")

    def stranger(self, value: Any, name: str) -> str:
        """An instance of another package's class: as it would be pickled, else by its class."""
        if name.startswith(("os.", "weakref.")):  # the environment; what others may drop
            return name
        try:
            reduced = (
                None if type(value).__module__.startswith(MACHINERY) else value.__reduce_ex__(4)
            )
        except Exception:  # a lock, say, is no number
            reduced = None
        if reduced is None:
            held = sorted(getattr(value, "__dict__", {}).items())
            code = [(k, v) for k, v in held if isinstance(v, types.FunctionType | types.MethodType)]
            return f"{name} {self.pairs(code)}"
        if isinstance(reduced, str):
            return f"{name} {reduced}"
        parts = [*reduced[:3], *(list(items) if items else items for items in reduced[3:5])]
        return f"{name} {self.texts(parts)}"

    # --- code

    def code(self, value: Any) -> str:
        """A function or class: its name if that leads to it, else what it is."""
        module, name = contents.home(value)
        if not self.is_own(module):
            return self.foreign(value, f"{contents.public(module)}.{name}")
        if contents.is_named(value):
            if id(value) not in self.queued:
                self.queued[id(value)] = value
                self.waiting.append(value)
            return f"<{module}.{name}>"
        if id(value) in self.met:
            return f"#{self.met[id(value)]}"
        self.met[id(value)] = len(self.met)
        return f"<{module} {hashlib.sha256(self.body(value).encode()).hexdigest()}>"

    def foreign(self, value: Any, name: str) -> str:
        """Code of another package: its name, what it was given, and methods of ours put into it."""
        if id(value) in self.met:
            return name
        self.met[id(value)] = len(self.met)
        if isinstance(value, type):
            if value not in self.strangers:
                methods = contents.methods(value)
                self.strangers[value] = [
                    (k, v) for k, v in methods if self.is_own(contents.home(v)[0])
                ]
            ours = self.strangers[value]
            return f"{name} {self.pairs(ours)}" if ours else name
        return f"{name} {self.texts(value.__closure__)}" if self.is_ours(value) else name

    def own_methods(self, cls: type) -> list[tuple[str, Any]]:
        """The methods of a class, and of its bases, that were written by us."""
        if cls not in self.strangers:
            found = contents.methods(cls)
            self.strangers[cls] = [(k, v) for k, v in found if self.is_own(contents.home(v)[0])]
        return self.strangers[cls]

    def body(self, value: Any) -> str:
        """All that a function or class is."""
        return self.class_body(value) if isinstance(value, type) else self.function_body(value)

    def function_body(self, function: types.FunctionType) -> str:
        """Its tree, defaults, the variables around it and its attributes."""
        code, reads = function.__code__, sources.reads_of(function)
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        implied = sorted(cells.keys() - set(reads.free))  # __class__, which super() reads
        defaults = [function.__defaults__, sorted((function.__kwdefaults__ or {}).items())]
        around = self.texts(cells[name] for name in (*reads.free, *implied))
        attributes = self.pairs(sorted(vars(function).items()))
        read = self.follow(function, reads)
        return f"{reads.text}\n{self.texts(defaults)}\n{around}\n{attributes}\n{read}"

    def class_body(self, cls: type) -> str:
        """Bases, and what it holds; of an enumeration its members."""
        head = self.texts((*cls.__bases__, type(cls)))
        items = contents.class_items(cls)
        if issubclass(cls, enum.Enum):
            head += self.pairs((name, member.value) for name, member in cls.__members__.items())
            methods = dict(contents.methods(cls))
            items = [
                (k, v)
                for k, v in items
                if k in methods and self.is_own(contents.home(methods[k])[0])
            ]
        return f"{head} {self.pairs(items)}"

    # --- what code reads

    def follow(self, function: types.FunctionType, reads: syntax.Reads) -> str:
        """Describe the globals that a function reads, and what it imports.

        They are noted under their places. Those of a function that stands in no module, but in
        names that somebody gave to `exec`, are part of the function: the text that is returned.
        """
        names, place = function.__globals__, self.place(*contents.home(function))
        module = names.get("__name__", "")
        found = []
        for first, *chain in reads.names:
            value = names.get(first, getattr(builtins, first, None))
            if first in names or isinstance(value, types.FunctionType):
                found += self.reached(place, module, first, value, chain)
        for source, level, name, further in reads.imports:
            base = source
            if level:
                base = importlib.util.resolve_name("." * level + source, names["__package__"])
            if further != syntax.BARE and (base.split(".")[0] in OWN or base in self.own):
                value = importlib.import_module(base)
                value = value if name is None else contents.member(value, name)
                found += self.reached(place, base, name or base, value, further)
        if getattr(sys.modules.get(module), "__dict__", None) is not names:
            return self.pairs((name, value) for _, name, value in found)
        for there, name, value in found:
            self.note(there, name, value)
        return ""

    def reached(
        self, place: str, at: str, name: str, value: Any, chain: Sequence[str]
    ) -> list[tuple[str, str, Any]]:
        """(place, label, value) of a global of the module `at`, or of what is read through it.

        Code is noted where it is read, for it has a place of its own; so are packages of others.
        """
        rest = list(chain)
        while rest and isinstance(value, types.ModuleType) and self.is_own(value.__name__):
            at, name = value.__name__, rest.pop(0)
            value = contents.member(value, name)
        label, inside = f"{at}.{name}", value
        while rest and isinstance(inside, types.ModuleType):
            inside = contents.member(inside, rest.pop(0))
        if isinstance(value, types.FunctionType | type | types.ModuleType):
            put = inside is not value and self.is_ours(inside)
            return [(place, label, value), *([(place, f"{label}…", inside)] if put else [])]
        return [(self.place(at, name), label, value)] if self.is_own(at) else []

    def is_ours(self, value: Any) -> bool:
        """Is what stands in another package our function, or does it hold one?"""
        if isinstance(value, type):
            return bool(self.own_methods(value))
        if not isinstance(value, types.FunctionType):
            return False
        held = (_content(cell) for cell in value.__closure__ or ())
        return self.is_own(contents.home(value)[0]) or any(
            self.is_own(contents.home(v)[0]) for v in held if isinstance(v, types.FunctionType)
        )


Describe = Callable[[_Walk, Any], str]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "an empty cell"


def _builtin(walk: _Walk, value: Any) -> str:
    """A function of a package, or a method bound to a value."""
    if value.__module__ is not None or isinstance(value.__self__, types.ModuleType):
        return f"{contents.public(value.__module__)}.{value.__qualname__}"
    return f"{value.__qualname__} of {walk.text(value.__self__)}"


CONTAINERS: dict[type, Describe] = {
    list: lambda walk, v: f"[{walk.texts(v)}]",
    dict: lambda walk, v: f"{{{walk.pairs(v.items())}}}",
    set: lambda walk, v: f"set({', '.join(sorted(map(walk.text, v)))})",
    frozenset: lambda walk, v: f"frozenset({', '.join(sorted(map(walk.text, v)))})",
}
KINDS: tuple[tuple[Any, Describe], ...] = (
    (functools.partial, lambda walk, v: f"partial({walk.texts((v.func, v.args, v.keywords))})"),
    (types.MethodType, lambda walk, v: f"method({walk.texts((v.__self__, v.__func__))})"),
    (types.BuiltinFunctionType, _builtin),
    (types.CellType, lambda walk, v: walk.text(_content(v))),
    (types.MappingProxyType, lambda walk, v: f"{{{walk.pairs(v.items())}}}"),
    (staticmethod | classmethod, lambda walk, v: f"{type(v).__name__} {walk.text(v.__func__)}"),
    (property, lambda walk, v: f"property({walk.texts((v.fget, v.fset, v.fdel))})"),
    (functools.cached_property, lambda walk, v: f"cached_property {walk.text(v.func)}"),
    (type(functools.cache(short)), lambda walk, v: f"cache {walk.text(v.__wrapped__)}"),
    (enum.Enum, lambda walk, v: f"{walk.text(type(v))} {v.name} {walk.text(v.value)}"),
    (types.WrapperDescriptorType | types.MethodDescriptorType, lambda walk, v: repr(v)),
    (types.MemberDescriptorType | types.GetSetDescriptorType, lambda walk, v: v.__name__),
)
