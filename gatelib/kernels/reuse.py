"""A program with fewer buffers: a scratch value is computed where the value made of it will stand.

Imports gatelib.kernels.inplace.
Must not import torch, gatelib.nn, gatelib.reference, gatelib.lab or gatelib.data.

For elementwise programs alone, whose calls may write over what they read.
"""

from __future__ import annotations

import re
from dataclasses import replace

from gatelib.kernels.inplace import FULL, Program

__all__ = ["reusing"]

INTO = re.compile(r"(?:out|grad_input)=(\w+)\)$|^(\w+)\.copy_\(")


def reusing(program: Program, shapes: dict[str, str]) -> Program:
    """The same program where a scratch buffer that dies in a call is that call's result.

    `shapes` are those of the results; results and scratch of full shape take each other's place.
    """
    _, *lines = program.source.splitlines()
    shapes = shapes | program.scratch
    for name in reversed([v for v, shape in program.scratch.items() if shape == FULL]):
        at = [k for k, line in enumerate(lines) if _names(line, name)]
        to = _into(lines[at[-1]])
        before = any(_names(line, to) for line in lines[: at[-1]])
        if to == name or before or shapes.get(to) != FULL:
            continue
        lines = [re.sub(rf"\b{name}\b", to, line) for line in lines]
    used = {v for v in program.arguments if any(_names(line, v) for line in lines)}
    kept = tuple(v for v in program.arguments if v in used or v not in program.scratch)
    scratch = {v: shape for v, shape in program.scratch.items() if v in used}
    source = "\n".join([f"def {program.name}({', '.join(kept)}):", *lines, ""])
    return replace(program, source=source, arguments=kept, scratch=scratch)


def _names(line: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", line) is not None


def _into(line: str) -> str:
    found = INTO.search(line.strip())
    return "" if found is None else found[1] or found[2]
