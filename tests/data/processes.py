"""A program run in a process of its own, as a reader's first line would be.

Imports the standard library.
"""

from __future__ import annotations

import os
import subprocess
import sys


def printed(program: str, seed: str = "0") -> list[str]:
    """The lines that it prints, under this hash seed."""
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [sys.executable, "-c", program]
    options = {"env": environment, "capture_output": True, "text": True, "check": True}
    return subprocess.run(command, **options).stdout.splitlines()


def printed_by_all(program: str) -> list[str]:
    """The lines that every process prints, whatever its hash seed is."""
    first, second = (printed(program, seed) for seed in ("1", "2"))
    assert first == second
    return first
