"""Gates, written once and seen by independent witnesses.

Imports nothing heavy: each floor loads when it is first used.
Must not import SymPy, torch or Triton at import time.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

FLOORS = (
    "circuit",
    "data",
    "derived",
    "equations",
    "kernels",
    "lab",
    "nn",
    "printers",
    "reference",
    "spec",
)

__all__ = ["__version__", *FLOORS]


def __getattr__(name: str) -> ModuleType:
    if name in FLOORS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
