"""Cells of the grammar through every floor: plain NumPy, the tape, the plain loop, the fused path.

Imports NumPy, torch, gatelib. Run it for many cells: `python -m tests.lab.soak 2000`.

Each cell runs over a few steps in float64; its outputs, and its gradients by every input, weight,
vector and initial state, are compared, once with whole rows and once with rows of several lengths.
Of every fifth cell most gates are saturated. An error is relative to the largest value of its array
where that is above 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from gatelib import derived, lab
from gatelib.cell import Cell, cell
from gatelib.lab.canonical import canonical
from gatelib.lab.grammar import Bounds, mutate, reset_before, sample
from gatelib.nn import Recurrent

B, T, D, H = 3, 3, 3, 4
LENGTHS = (3, 1, 0)
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
    far = {"W": 12.0, "x": 1.0} if seed % 5 == 0 else {"x": 1.0}
    inputs = {name: far.get(name, 0.6) * draw[name] for name in shapes}
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


def by_tape(given: Case) -> dict[str, np.ndarray]:
    """Outputs and gradients of the equations over time, with their derived backward."""
    run = partial(derived.rnn.over_time, given.cell)
    return derived.gradients(run, given.inputs, given.upstream)


def by_rows(given: Case) -> dict[str, np.ndarray]:
    """The same for rows of several lengths: each row alone as far as it goes, on the tape."""
    found: dict[str, np.ndarray] = {}
    own = {"x", *(f"{s}0" for s in given.cell.states)}
    for row, length in enumerate(LENGTHS):
        inputs = {n: v[row : row + 1] if n in own else v for n, v in given.inputs.items()}
        inputs["x"] = inputs["x"][:, :length]
        upstream = {n: v[row : row + 1] for n, v in given.upstream.items()}
        upstream["y"] = upstream["y"][:, :length]
        for name, value in by_tape(Case(given.cell, inputs, upstream)).items():
            rest = [(0, 0), (0, T - length), (0, 0)] if name in ("y", "d_x") else None
            value = np.pad(value, rest) if rest else value
            joins = name == "y" or name.startswith("final_") or name.removeprefix("d_") in own
            before = found.get(name, value[:0] if joins else 0)
            found[name] = np.concatenate([before, value]) if joins else before + value
    return found


class Padded(torch.nn.Module):
    """A recurrent layer whose rows have several lengths."""

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.layer, self.cell, self.num_layers = layer, layer.cell, 1

    def forward(self, x, states):
        return self.layer(x, states, torch.tensor(LENGTHS))


def by_layer(given: Case, impl: str, padded: bool = False) -> dict[str, np.ndarray]:
    """Outputs and gradients of `nn.Recurrent`."""
    layer = Recurrent(given.cell, D, H, impl=impl)
    if not padded:
        return lab.gradients(lab.over_time(layer), given.inputs, given.upstream)
    rest = given.inputs.keys() - {"x", *(f"{s}0" for s in given.cell.states)}
    names = {name: f"layer.{WEIGHTS.get(name, f'{name}_l0')}" for name in rest}
    return lab.gradients(lab.over_time(Padded(layer), **names), given.inputs, given.upstream)


WEIGHTS = {"W": "weight_ih_l0", "U": "weight_hh_l0", "b": "bias_ih_l0", "b_u": "bias_hh_l0"}


def errors(given: Case) -> dict[str, float]:
    """{witness: its largest relative error against the plain loop}."""
    whole, padded = (by_layer(given, "reference", short) for short in (False, True))
    assert all(np.isfinite(v).all() for v in whole.values())
    return {
        "numpy": _largest(by_numpy(given), whole, outputs_alone=True),
        "tape": max(_largest(by_tape(given), whole), _largest(by_rows(given), padded)),
        "fused": max(
            _largest(by_layer(given, "fused"), whole),
            _largest(by_layer(given, "fused", padded=True), padded),
        ),
    }


def _largest(found: dict[str, np.ndarray], true: dict[str, np.ndarray], outputs_alone=False):
    assert outputs_alone or found.keys() == true.keys()
    return max(float(_relative(found[name], true[name])) for name in found)


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
