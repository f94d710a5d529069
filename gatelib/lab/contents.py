"""What values and classes are made of, in an order and in words that no run and no Python changes.

Imports the standard library.
Must not import any other module of gatelib, nor a package: other Pythons read values with it too,
and arrays and tensors are known by the classes of whoever has loaded theirs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
import types
from typing import Any

__all__ = [
    "class_items",
    "described",
    "home",
    "is_module",
    "is_named",
    "is_shared",
    "member",
    "methods",
    "numbers",
    "public",
    "state",
]

UNSEEN = """__abstractmethods__ __annotate__ __annotate_func__ __annotations__ __annotations_cache__
__dict__ __doc__ __firstlineno__ __module__ __orig_bases__ __parameters__ __protocol_attrs__
__qualname__ __replace__ __static_attributes__ __type_params__ __weakref__ _abc_impl
_autograd_function_id _backward_cls _prop_handler default_assumptions""".split()
"""What is noted in a class by Python, by some Pythons, by torch and by SymPy."""
FIELD = ("name", "default", "default_factory", "init", "repr", "hash", "compare", "kw_only")
PARAMS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
BASES: tuple[Any, ...] = (
    dict,
    list,
    tuple,
    set,
    frozenset,
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
)


# --- names ------------------------------------------------------------------------------------


def public(module: str | None) -> str:
    """The name of a module without parts that begin with "_", which move between versions."""
    name = "os.path" if module in ("posixpath", "ntpath") else module or ""
    first, *others = name.split(".")
    return ".".join([first.lstrip("_"), *(part for part in others if not part.startswith("_"))])


def home(value: Any) -> tuple[str, str]:
    """The module in which a function or class was written, and its name there.

    Not what `functools.wraps` says, which is true of the function inside.
    """
    if isinstance(value, types.FunctionType):
        return value.__globals__.get("__name__", ""), value.__code__.co_qualname
    return value.__module__, value.__qualname__


def is_named(value: Any) -> bool:
    """Does its name lead to this very function or class, whatever is wrapped round it?"""
    module, name = home(value)
    found: Any = sys.modules.get(module)
    names = getattr(found, "__dict__", None)
    if isinstance(value, types.FunctionType) and names is not value.__globals__:
        return False
    for part in name.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    while found is not None and found is not value:
        inner = ("__func__", "__wrapped__", "fget", "func")
        found = next((vars_of(found, key) for key in inner if hasattr(found, key)), None)
    return found is value


def vars_of(value: Any, name: str) -> Any:
    """An attribute, or None where reading it fails."""
    try:
        return getattr(value, name)
    except Exception:
        return None


def member(module: types.ModuleType, name: str) -> Any:
    """A name of a module, or a module inside of it; None where there is neither.

    Of other packages nothing is loaded that isn't loaded yet.
    """
    if not module.__name__.startswith("gatelib"):
        return vars(module).get(name)
    try:
        return getattr(module, name)
    except AttributeError:
        full = f"{module.__name__}.{name}"
        there = hasattr(module, "__path__") and importlib.util.find_spec(full)
        return importlib.import_module(full) if there else None


# --- instances --------------------------------------------------------------------------------


def is_module(value: Any) -> bool:
    """Is this a torch module, of whatever package?"""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def is_shared(value: Any) -> bool:
    """May a change through one of its names be seen through another?"""
    return type(value) in (list, dict, set) or numbers(value, False) is not None or is_module(value)


def state(value: Any) -> list[tuple[str, Any]]:
    """What an instance holds: attributes, slots, and its items where it is a container too.

    Not what a `cached_property` has kept, and of a torch module not what every one has.
    """
    held = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        for name, slot in vars(kind).items():
            if isinstance(slot, types.MemberDescriptorType) and hasattr(value, name):
                held[name] = getattr(value, name)
    usual = vars(sys.modules["torch"].nn.Module()) if is_module(value) else {}
    found = [
        (name, list(item.values()) if name in usual and name.endswith("_hooks") else item)
        for name, item in sorted(held.items(), key=lambda pair: str(pair[0]))
        if not (name in usual and _same(usual[name], item))
        and not isinstance(_static(type(value), name), functools.cached_property)
    ]
    return found + [(base.__name__, base(value)) for base in BASES if isinstance(value, base)]


def _static(cls: type, name: str) -> Any:
    return next((vars(kind)[name] for kind in cls.__mro__ if name in vars(kind)), None)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one is other or (not one and not other))


def described(value: Any) -> str:
    """Gates, formulas and types such as `Literal`, by their text; else the empty text.

    What `typing` keeps inside an object differs between versions of Python, its text does not.
    """
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if type(value).__module__ == "typing":
        return f"{kind} {value!r}"
    if kind == "gatelib.spec.Spec":
        return f"{kind} {value!r}"
    if kind == "gatelib.cell.Cell":
        return f"{kind} {value.name} {value.stages!r}"
    if kind.startswith("sympy.") and hasattr(value, "free_symbols"):
        return f"{kind} {sys.modules['sympy'].srepr(value)}"
    return ""


def numbers(value: Any, content: bool = True) -> str | None:
    """Arrays and tensors, by their type, shape and content; None for anything else."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.is_meta or value.layout is not torch.strided or value.is_quantized:
            return None
        head = f"{value.dtype} {tuple(value.shape)} {value.requires_grad}"
        return f"{head} {_hash(_bytes(value, torch))}" if content else head
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        if value.dtype.hasobject:
            return None
        head = f"{value.dtype.descr} {value.shape}"
        return f"{head} {_hash(numpy.ascontiguousarray(value).tobytes())}" if content else head
    return None


def _bytes(tensor: Any, torch: Any) -> bytes:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
    found: bytes = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- classes ----------------------------------------------------------------------------------


def methods(cls: type) -> list[tuple[str, types.FunctionType]]:
    """The functions that a class and its bases hold, through descriptors too."""
    found = []
    for name, value in (item for kind in cls.__mro__ for item in vars(kind).items()):
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(inner, types.FunctionType):
            found.append((name, inner))
    return sorted(found, key=lambda pair: pair[0])


def class_items(cls: type) -> list[tuple[str, Any]]:
    """What a class holds, sorted by name, but for what Python and `dataclass` put there.

    Of a dataclass its fields in their order come first, and how it was made.
    """
    fields = vars(cls).get("__dataclass_fields__")
    found: list[tuple[str, Any]] = []
    for field in (fields or {}).values():
        given = [getattr(field, key) for key in FIELD]
        found.append((field.name, [*given, field._field_type.name]))
    if params := vars(cls).get("__dataclass_params__"):
        found.append(("dataclass", [getattr(params, key) for key in PARAMS]))
    for name, value in sorted(vars(cls).items()):
        hidden = name in UNSEEN or name.startswith("__dataclass_")
        if not hidden and not (fields is not None and _generated(value)) and not _is_index(value):
            found.append((name, value))
    return found


def _generated(value: Any) -> bool:
    """Did `dataclass` write this method?"""
    inner = getattr(value, "__wrapped__", value)
    return isinstance(inner, types.FunctionType) and inner.__code__.co_filename == "<string>"


def _is_index(value: Any) -> bool:
    """Is this how a named tuple finds a field? `_fields` says it too."""
    return type(value).__name__ == "_tuplegetter"
