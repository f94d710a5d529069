"""What gatelib.workshop answers in Pyodide, from the scripts that the built pages load, in node.

Imports tools.vendor and tests.site.built.
Must not import gatelib: the other Python has its own.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.site.built import HTML
from tools import vendor

PROGRAM = Path(__file__).with_name("pyodide.mjs")


def answers(asked: Iterable[tuple[str, str]]) -> list[tuple[str, float]]:
    """The answer to each (call, text), as JSON, and the milliseconds that it took."""
    pack = HTML / "_static" / "pack"
    command = [str(vendor.node()), str(PROGRAM), str(vendor.VENDOR / "pyodide"), str(pack)]
    text = json.dumps(list(asked))
    ran = subprocess.run(command, input=text, capture_output=True, text=True)
    assert not ran.returncode, ran.stderr[-2000:]
    return [(answer, milliseconds) for answer, milliseconds in json.loads(ran.stdout)]
