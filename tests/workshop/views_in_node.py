"""Runs the functions of `book/static/views` in node, and says what they give.

Imports the standard library, NumPy and the paths of tools.vendor. Must not import gatelib.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tools import vendor

ROOT = Path(__file__).resolve().parents[2]
VIEWS = ROOT / "book" / "static" / "views"
CORE = ("pieces", "axes", "cells", "gate", "sequence")


def scripts() -> list[Path]:
    """All files of views in the order in which a page loads them."""
    rest = sorted(path for path in VIEWS.glob("*.js") if path.stem not in CORE)
    return [*(VIEWS / f"{name}.js" for name in CORE), *rest]


def answers(code: str, **given: Any) -> Any:
    """What a JavaScript expression gives, where `GatesViews` and the given names are known."""
    names = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in given.items())
    sources = "\n".join(path.read_text(encoding="utf8") for path in scripts())
    program = f"{sources}\n{names}process.stdout.write(JSON.stringify({code}));\n"
    done = subprocess.run(
        [str(vendor.node()), "-"], input=program, capture_output=True, text=True, encoding="utf8"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
