"""Cells of the grammar through every floor: plain NumPy, the tape, the plain loop, the fused path.

Imports NumPy, torch, gatelib. Run it for many cells: `python -m tests.lab.soak 2000`.

Each cell runs over a few steps in float64; its outputs, and its gradients by every input, weight,
vector and initial state, are compared. An error is relative to the largest value of its array where
that is above 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from gatelib import derived, lab
from gatelib.cell import Cell, cell
from gatelib.lab.canonical import canonical
from gatelib.lab.grammar import Bounds, mutate, reset_before, sample
from gatelib.nn import Recurrent

B, T, D, H = 2, 3, 3, 4
BOUND = 1e-8
BOUNDS = (Bounds(), Bounds(lines=6, gates=3, depth=1), Bounds(lines=14, gates=6, depth=3))


class Case(NamedTuple):
    """A cell with numbers: inputs by name, and upstream gradients of its outputs."""

    cell: Cell
    inputs: dict[str, np.ndarray]
    upstream: dict[str, np.ndarray]


def cells(seed: int = 0) -> Iterator[Cell]:
    """Cells without end, none twice: samples and their mutations, and their twins of two stages."""
    rng, seen = np.random.default_rng(seed), set[str]()
    for turn in range(10**9):
        bounds = BOUNDS[turn % len(BOUNDS)]
        drawn = sample(rng, bounds)
        for spec in (drawn, mutate(drawn, rng, bounds)):
            for one in (cell(spec), reset_before(spec)):
                if one is not None and (form := canonical(one)) not in seen:
                    seen.add(form)
                    yield one


def case(one: Cell, seed: int) -> Case:
    """The cell with random weights, states and upstream gradients."""
    rng, rows = np.random.default_rng(seed), len(one.gates) * H
    shapes: dict[str, tuple[int, ...]] = {"x": (B, T, D), "W": (rows, D), "U": (rows, H)}
    shapes |= {"b": (rows,)} | ({"b_u": (rows,)} if one.split else {})
    shapes |= dict.fromkeys(one.vectors, (H,)) | {f"{s}0": (B, H) for s in one.states}
    ends = {"y": (B, T, H)} | {f"final_{s}": (B, H) for s in one.states}
    draw = {name: rng.normal(size=shape) for name, shape in (shapes | ends).items()}
    inputs = {name: (draw[name] if name == "x" else 0.6 * draw[name]) for name in shapes}
    return Case(one, inputs, {name: draw[name] for name in ends})


def by_numpy(given: Case) -> dict[str, np.ndarray]:
    """The outputs alone: products of NumPy, and the Specs evaluated line by line."""
    one, g = given.cell, given.inputs
    states, ys = {s: g[f"{s}0"] for s in one.states}, []
    for t in range(T):
        known = {v: g[v] + np.zeros((B, H)) for v in one.vectors}
        known |= {f"{s}_prev": v for s, v in states.items()}
        first, source = 0, states["h"]
        for stage in one.stages:
            for k in one.gates_of(stage):
                rows = slice(first, first + H)
                a = g["x"][:, t] @ g["W"][rows].T + g["b"][rows]
                u = source @ g["U"][rows].T + (g["b_u"][rows] if "b_u" in g else 0)
                known |= {f"a_{k}": a, f"u_{k}": u} if k in one.split else {f"a_{k}": a + u}
                first += H
            known |= stage.evaluate(known)
            source = known.get("q", source)
        states = {s: known[s] for s in one.states}
        ys.append(states["h"])
    return {"y": np.stack(ys, 1)} | {f"final_{s}": v for s, v in states.items()}


def by_layer(given: Case, impl: str) -> dict[str, np.ndarray]:
    """Outputs and gradients of `nn.Recurrent`."""
    layer = Recurrent(given.cell, D, H, impl=impl)
    return lab.gradients(lab.over_time(layer), given.inputs, given.upstream)


def errors(given: Case) -> dict[str, float]:
    """{witness: its largest relative error against the plain loop}."""
    true = by_layer(given, "reference")
    run = partial(derived.rnn.over_time, given.cell)
    found = {
        "numpy": by_numpy(given),
        "tape": derived.gradients(run, given.inputs, given.upstream),
        "fused": by_layer(given, "fused"),
    }
    assert found["tape"].keys() == found["fused"].keys() == true.keys()
    assert all(np.isfinite(v).all() for v in true.values())
    return {
        witness: max(float(_relative(values[name], true[name])) for name in values)
        for witness, values in found.items()
    }


def _relative(found: np.ndarray, true: np.ndarray) -> np.floating:
    assert found.shape == true.shape
    return np.abs(found - true).max(initial=0.0) / max(1.0, np.abs(true).max(initial=0.0))


def soak(count: int, seed: int = 0, tell: int = 0) -> dict[str, float]:
    """The largest errors over that many cells; AssertionError with the cell that errs more."""
    worst = dict.fromkeys(("numpy", "tape", "fused"), 0.0)
    staged, start = 0, time.perf_counter()
    for number, one in zip(range(1, count + 1), cells(seed), strict=False):
        try:
            own = errors(case(one, number))
        except Exception as error:
            raise AssertionError(f"cell {number} of seed {seed}: {one.stages}") from error
        assert max(own.values()) <= BOUND, f"{own} for cell {number} of seed {seed}: {one.stages}"
        worst = {name: max(value, own[name]) for name, value in worst.items()}
        staged += len(one.stages) > 1
        if tell and number % tell == 0:
            seconds = time.perf_counter() - start
            print(f"{number} cells ({staged} of two stages), {seconds:.0f} s, {worst}", flush=True)
    return worst


if __name__ == "__main__":
    soak(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, tell=50)
