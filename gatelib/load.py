"""Runs generated source, in one place for every language that Python runs.

Imports the standard library alone.
Must not import any other module of gatelib: printers and kernels of all kinds call it.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
import types
from collections.abc import Mapping
from typing import Any

__all__ = ["load"]


def load(source: str, title: str, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run `source` as a module of its own, and return its names.

    Args:
        source: what a printer wrote.
        title: what it is, for the reader of a traceback: "torch lstm".
        known: the names that the source uses without an import of its own.

    Returns:
        The names that the source defines, beside the `known` ones.

    Tracebacks, `inspect` and debuggers show the lines. The file name under which they stand holds a
    hash of the source, the same in every process, so that equal text has an equal name. Under such
    a name the module can be imported too.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    filename = f"<gatelib {title} {digest}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    module = types.ModuleType(f"gatelib_{digest}", title)
    module.__dict__.update(known or {})
    exec(compile(source, filename, "exec"), module.__dict__)
    sys.modules[module.__name__] = (
        module  # torch.compile looks a function's globals up by this name
    )
    return module.__dict__
