"""What Python in the workshop's page would answer, worked out when the book is built, and kept.

Imports joblib, tools.inputs at once, gatelib and SymPy where something has to be worked out.
Must not import torch.

The circuits of all gates take two minutes of a processor. They are drawn beside the build, on all
processors, and kept in `_vendor` as long as the gate and the code that answers stay the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import inputs
import joblib

ROOT = Path(__file__).resolve().parents[2]
MEMORY = ROOT / "_vendor" / "catalogue"
CALLS = {"answer": "workshop.py", "drawing": "circuit/__init__.py"}
"""What the page asks of gatelib.workshop, and the module that decides what comes."""


@functools.cache
def code(module: str) -> bytes:
    """A digest of every file that a module of gatelib reads, and of SymPy's version."""
    import sympy

    digest = hashlib.sha256(sympy.__version__.encode())
    for path in sorted(inputs.reached([ROOT / "gatelib" / module])):
        digest.update(path.read_bytes())
    return digest.digest()


def place(call: str, text: str) -> Path:
    """Where an answer is kept."""
    return MEMORY / f"{hashlib.sha256(code(CALLS[call]) + text.encode()).hexdigest()}.json"


def asked(call: str, text: str) -> dict[str, Any]:
    """One answer, from memory where it is there. Raises ValueError for a text that is no gate."""
    kept = place(call, text)
    if not kept.exists():
        from gatelib import workshop

        MEMORY.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(getattr(workshop, call)(text), encoding="utf8")
        part.replace(kept)
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf8"))
    if "error" in found:
        raise ValueError(f"the workshop refuses a gate of the book: {found['error']}\n{text}")
    return found


def of(text: str) -> dict[str, Any]:
    """Everything that the page shows of a gate: its sheet, with its circuit."""
    return asked("answer", text) | {"circuit": asked("drawing", text)}


# ---- beside the build ----------------------------------------------------------------------

running: list[subprocess.Popen[str]] = []


def begin(texts: list[str]) -> None:
    """Let another process work out what isn't known, and forget what older code answered."""
    known = {place(call, text) for call in CALLS for text in texts}
    for old in set(MEMORY.glob("*.json")) - known:
        old.unlink(missing_ok=True)
    if all(path.exists() for path in known):
        return
    paths = (Path(__file__).parent, ROOT, ROOT / "tools")
    command = [sys.executable, "-c", "import answers; answers.fill()"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None
    with process.stdin as pipe:
        json.dump(texts, pipe)
    running.append(process)


def fill(texts: Iterable[str] | None = None) -> None:
    """Answer for every text (those of stdin), the longest first, on all processors."""
    wanted = sorted(json.load(sys.stdin) if texts is None else texts, key=len, reverse=True)
    joblib.Parallel(n_jobs=-1)(joblib.delayed(of)(text) for text in wanted)


def wait() -> None:
    """Wait until what was begun has ended."""
    while running:
        running.pop().wait()
