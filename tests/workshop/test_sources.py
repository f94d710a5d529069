"""The sources of the workshop run as they are pasted, and agree, for every gate of the book.

Imports NumPy, torch and gatelib; node, which comes with the locked packages, for JavaScript.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gatelib import equations, workshop
from gatelib.functions import FUNCTIONS
from gatelib.spec import Spec
from tools import vendor

ROOT = Path(__file__).resolve().parents[2]
RUNNER = """
const jobs = JSON.parse(require("fs").readFileSync(0, "utf8"));
const found = jobs.map(([source, name, given]) =>
  new Function(`"use strict";\\n${source}\\nreturn ${name};`)()(...given));
process.stdout.write(JSON.stringify(found));
"""


def alone(name: str) -> Spec:
    """A gate of one function."""
    arguments = ["x", "y"][: next(iter(FUNCTIONS[name].nargs))]
    line = f"u = 2*{name}({', '.join(arguments)})"
    return Spec.parse(f"only_{name}", f"{' '.join(arguments)} -> u", line)


STAGES = [stage for known in equations.ALL.values() for stage in known.stages]
GATES = list(dict.fromkeys([*STAGES, *map(alone, FUNCTIONS)]))


def named(gates):
    return pytest.mark.parametrize("gate", gates, ids=lambda gate: gate.name)


def values_of(gate: Spec, seed: int = 0) -> list[np.ndarray]:
    """One array an input; the last axis holds the features."""
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.15, 0.85, size=(2, 5)) for _ in gate.inputs]


@functools.cache
def sources(gate: Spec) -> dict[str, dict[str, str]]:
    """What the page shows, by language."""
    return workshop.sheet(gate)["source"]


@functools.cache
def pasted(gate: Spec, language: str) -> tuple[Any, Any]:
    """The two functions that the page's code defines, and nothing else is known."""
    names: dict[str, Any] = {}
    exec(compile(sources(gate)[language]["code"], language, "exec"), names)
    return names[gate.name], names[f"{gate.name}_vjp"]


def as_tuple(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def both_ways(gate: Spec, language: str, make: Any) -> list[Any]:
    """Outputs, then adjoints, from the code as it was pasted."""
    forward, backward = pasted(gate, language)
    given = dict(zip(map(str, gate.inputs), map(make, values_of(gate)), strict=True))
    vjp = gate.vjp("")
    seeds = {str(v): make(x) for v, x in zip(vjp.inputs, values_of(vjp, seed=1), strict=True)}
    asked = seeds | given
    return [
        *as_tuple(forward(*given.values())),
        *as_tuple(backward(*(asked[str(v)] for v in vjp.inputs))),
    ]


@named(GATES)
def test_numpy_and_torch_agree_forward_and_backward(gate):
    mine = both_ways(gate, "numpy", np.asarray)
    theirs = both_ways(gate, "torch", torch.tensor)
    for a, b in zip(mine, theirs, strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-12


def differentiated(gate: Spec, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """The adjoints of a sum of all outputs, by autograd through the pasted forward."""
    forward, _ = pasted(gate, "torch")
    found = [f for f in as_tuple(forward(*given)) if torch.is_tensor(f) and f.requires_grad]
    if not found:
        return [torch.zeros_like(v) for v in given]
    total = sum(torch.broadcast_to(f, given[0].shape).sum() for f in found)
    grads = torch.autograd.grad(total, given, allow_unused=True)
    return [torch.zeros_like(v) if g is None else g for v, g in zip(given, grads, strict=True)]


@named(GATES)
def test_the_pasted_backward_pass_is_the_slope_of_the_pasted_forward_pass(gate):
    given = [torch.tensor(v, requires_grad=True) for v in values_of(gate)]
    by_name = dict(zip(map(str, gate.inputs), given, strict=True))
    vjp = gate.vjp("")
    asked = [by_name.get(str(v), torch.ones(2, 5, dtype=torch.float64)) for v in vjp.inputs]
    found = as_tuple(pasted(gate, "torch")[1](*asked))
    for mine, theirs in zip(found, differentiated(gate, given), strict=True):
        assert (torch.as_tensor(mine) - theirs).abs().max() < 1e-11


# ---- JavaScript --------------------------------------------------------------------------------


def in_javascript(code: str, name: str, values: list[np.ndarray], elementwise: bool) -> list[Any]:
    """A function of a source, and its arguments: numbers, or arrays over the features."""
    return [code, name, [v[0, 0] if elementwise else v[0].tolist() for v in values]]


def last_function(code: str) -> str:
    return re.findall(r"^function (\w+)\(", code, re.MULTILINE)[-1]


def jobs_of(gate: Spec) -> list[tuple[list[Any], Spec, list[np.ndarray]]]:
    """What node computes, and the Spec whose NumPy function must give the same."""
    run = workshop.brief(gate)["run"]
    hidden = [v for v in gate.carries.values() if v not in gate.outputs]
    whole = Spec(gate.name, gate.equations, gate.inputs, (*gate.outputs, *hidden), gate.roles)
    code = sources(gate)["javascript"]["code"]
    names = [n for n in re.findall(r"^function (\w+)\(", code, re.MULTILINE) if gate.name in n]
    made = [
        (run["forward"], last_function(run["forward"]), gate.exposed),
        (run["backward"], last_function(run["backward"]), whole.vjp("")),
        (code, names[0], gate),
        (code, names[-1], gate.vjp("")),
    ]
    values = [values_of(spec) for _, _, spec in made]
    return [
        (in_javascript(text, name, given, gate.is_elementwise), spec, given)
        for (text, name, spec), given in zip(made, values, strict=True)
    ]


@functools.cache
def from_node() -> list[tuple[Spec, list[np.ndarray], Any]]:
    """Every gate and its backward pass, computed in one process."""
    jobs = [job for gate in GATES for job in jobs_of(gate)]
    text = json.dumps([job for job, _, _ in jobs])
    command = [str(vendor.node()), "-e", RUNNER]
    ran = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    return [(spec, given, f) for (_, spec, given), f in zip(jobs, found, strict=True)]


def test_javascript_computes_what_numpy_does_for_every_gate_and_its_backward_pass():
    assert len(from_node()) == 4 * len(GATES)
    for spec, given, found in from_node():
        expected = as_tuple(spec.compile("numpy")(*given))
        for mine, theirs in zip(found, expected, strict=True):
            row = np.broadcast_to(theirs, (2, 5))[0]
            row = row[0] if spec.is_elementwise else row
            assert np.abs(np.asarray(mine, float) - row).max() < 1e-12, spec.name


# ---- Triton ------------------------------------------------------------------------------------


def test_the_pasted_kernels_run_in_tritons_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("pasted_kernels.py"))]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.split()[0] == "ran", ran.stdout + ran.stderr
