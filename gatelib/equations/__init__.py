"""The equations: each family of gates as short ordered lists of scalar equations (`Spec`).
Imports gatelib.cell, and a family once it is asked for.
Must not import NumPy, torch, or another floor: what is written here is checked by the others.

Each module here is a family, and its `ALL` holds the family's cells by name. `ALL` of this package
is one namespace over all families: `equations.ALL["peephole"]`. A family is read when it is used,
`equations.lstm` say; `ALL` reads them all.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatelib.cell import Cell

    ALL: dict[str, Cell]

__all__ = ["ALL", "FAMILIES"]

FAMILIES = tuple(module.name for module in pkgutil.iter_modules(__path__))
"""The names of the families, which are the modules of this package."""


@functools.cache
def _everything() -> dict[str, Cell]:
    """The cells of all families; ValueError where two share a name."""
    from gatelib.cell import named

    families = (importlib.import_module(f"{__name__}.{name}") for name in FAMILIES)
    return named(*(cell for family in families for cell in family.ALL.values()))


def __getattr__(name: str) -> Any:
    if name == "ALL":
        return _everything()
    if name in FAMILIES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *FAMILIES})
