"""Runs a cell's equations over a sequence: the witness that knows nothing but the Specs.

Imports NumPy, gatelib.spec and gatelib.printers.
Must not import gatelib.reference or gatelib.nn: it is compared with both.

The forward pass is the Spec's own generated NumPy; the backward pass is `spec.vjp()`, step by step
from the end. Only the matrix products around the cell are written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.spec import Spec

Array = NDArray[Any]
Arrays = dict[str, Array]


def symbolic(
    cell: Spec | Sequence[Spec],
    x: Array,
    weights: Arrays,
    initial: Arrays,
    upstream: Arrays,
) -> Arrays:
    """Outputs and all gradients of a cell over a sequence, from its equations alone.

    A cell is one Spec, or several where a matrix product stands between the equations: a stage
    behind the first may use the values of those before it by name, and its U multiplies their
    output `q` in the place of h_{t−1}.

    x (B, T, D); weights `W` (G·H, D), `U` (G·H, H), `b` (G·H,) packed in the order of the
    preactivations `a_k` in the stages' signatures, and the learned vectors (H,); initial states
    (B, H) by name (`h`, `c`); upstream: the loss's gradients by the outputs `y` (B, T, H) and the
    final states, by name. `a_k` is W_k x + U_k h + b_k; where the Spec has `u_k` too, `a_k` is
    W_k x + b_k, and `u_k` is U_k h. A second bias `b_u` (G·H,), if there is one, is added to U h.
    Returns `y`, final states, and `d_NAME` for every input. An empty sequence gives the initial
    states back.
    """
    stages = (cell,) if isinstance(cell, Spec) else tuple(cell)
    run = _Run(stages, x, weights, initial)
    run.forward()
    return run.results() | run.backward(upstream)


class _Stage:
    """One Spec of a cell, with its rows of the packed weights."""

    def __init__(self, spec: Spec, start: int, hidden: int, weights: Arrays) -> None:
        names = [str(v) for v in spec.inputs]
        self.gates = [n for n in names if n.startswith("a_")]
        self.split = [n for n in names if n.startswith("u_")]
        self.vectors = [n for n in names if n in weights]
        known = {*self.gates, *self.split, *self.vectors}
        self.others = [n for n in names if n not in known]
        self.rows = slice(start, start + len(self.gates) * hidden)
        everything = tuple(v for v, _ in spec.equations)
        self.values = Spec(f"{spec.name}_values", spec.equations, spec.inputs, everything)
        self.vjp, self.outputs = spec.vjp(), [str(v) for v in spec.outputs]

    def preactivations(self, from_x: Array, from_h: Array) -> Arrays:
        """`a_k` and `u_k` of one step, from W x + b and U h + b'."""
        count, found = max(len(self.gates), 1), Arrays()
        a, u = (np.split(part[:, self.rows], count, axis=1) for part in (from_x, from_h))
        for k, name in enumerate(self.gates):
            other = name.replace("a_", "u_", 1)
            found |= {name: a[k], other: u[k]} if other in self.split else {name: a[k] + u[k]}
        return found

    def adjoints(self, found: Arrays, like: Array) -> tuple[Array, Array]:
        """The adjoints of W x + b and of U h + b' in this stage's rows."""
        d_a = [found[f"d_{n}"] + np.zeros_like(like) for n in self.gates]
        others = [n.replace("a_", "u_", 1) for n in self.gates]
        d_u = [
            found[f"d_{u}"] + np.zeros_like(like) if u in self.split else d
            for u, d in zip(others, d_a, strict=True)
        ]
        none = like[:, :0]
        return np.concatenate([none, *d_a], axis=1), np.concatenate([none, *d_u], axis=1)


class _Run:
    def __init__(self, cell: tuple[Spec, ...], x: Array, weights: Arrays, initial: Arrays) -> None:
        self.x, self.weights, self.initial = x, weights, initial
        hidden, start, self.stages = weights["U"].shape[1], 0, list[_Stage]()
        for spec in cell:
            self.stages.append(_Stage(spec, start, hidden, weights))
            start = self.stages[-1].rows.stop
        carries = [n for stage in self.stages for n in stage.others if n.endswith("_prev")]
        self.states = list(dict.fromkeys(["h", *(n.removesuffix("_prev") for n in carries)]))
        self.vectors = [n for stage in self.stages for n in stage.vectors]

    def forward(self) -> None:
        self.saved: list[Arrays] = []
        self.sources: list[list[Array]] = []
        state, w = dict(self.initial), self.weights
        for t in range(self.x.shape[1]):
            step = {f"{name}_prev": value for name, value in state.items()}
            step |= {name: w[name] for name in self.vectors}
            from_x = self.x[:, t] @ w["W"].T + w["b"]
            sources = [state["h"]]
            for stage in self.stages:
                from_h = sources[-1] @ w["U"].T + w.get("b_u", 0.0)
                step |= stage.preactivations(from_x, from_h)
                step |= stage.values.evaluate(step)
                sources.append(step.get("q", sources[-1]))
            state = {name: step[name] for name in self.states}
            self.saved.append(step)
            self.sources.append(sources)

    def results(self) -> Arrays:
        batch, hidden = self.initial["h"].shape
        ys = [step["h"] for step in self.saved]
        y = np.stack(ys, axis=1) if ys else np.zeros((batch, 0, hidden))
        last = self.saved[-1] if self.saved else self.initial
        return {"y": y} | {f"final_{name}": last[name] for name in self.states}

    def backward(self, upstream: Arrays) -> Arrays:
        d_state = {name: upstream[name] for name in self.states}
        rows = self.weights["b"].size
        self.d_a, self.d_u = (np.zeros((*self.x.shape[:2], rows)) for _ in range(2))
        self.sums = {name: np.zeros_like(self.weights[name]) for name in self.vectors}
        for t in reversed(range(self.x.shape[1])):
            d_state["h"] = d_state["h"] + upstream["y"][:, t]
            d_state = self._step_back(t, d_state)
        return self._gradients(d_state)

    def _step_back(self, t: int, d_state: Arrays) -> Arrays:
        """Adjoints of the states before step t, from those after it; fills d_a, d_u and sums."""
        zeros = np.zeros_like(self.initial["h"])
        adjoint = dict(d_state) | {f"{name}_prev": zeros for name in self.states}
        for index, stage in reversed(list(enumerate(self.stages))):
            seeds = {f"g_{name}": adjoint.get(name, zeros) for name in stage.outputs}
            found = stage.vjp.evaluate(self.saved[t] | seeds)
            d_a, d_u = stage.adjoints(found, zeros)
            self.d_a[:, t, stage.rows], self.d_u[:, t, stage.rows] = d_a, d_u
            for name in stage.vectors:
                self.sums[name] += (found[f"d_{name}"] + zeros).sum(axis=0)
            for name in stage.others:
                adjoint[name] = adjoint.get(name, zeros) + found[f"d_{name}"]
            source = "q" if index else "h_prev"
            through = d_u @ self.weights["U"][stage.rows]
            adjoint[source] = adjoint.get(source, zeros) + through
        return {name: adjoint[f"{name}_prev"] for name in self.states}

    def _gradients(self, d_state: Arrays) -> Arrays:
        d_U = np.zeros_like(self.weights["U"])
        for t, sources in enumerate(self.sources):
            for stage, source in zip(self.stages, sources, strict=False):
                d_U[stage.rows] += self.d_u[:, t, stage.rows].T @ source
        gradients = {
            "d_W": np.einsum("btg,btd->gd", self.d_a, self.x),
            "d_U": d_U,
            "d_b": self.d_a.sum(axis=(0, 1)),
            "d_x": self.d_a @ self.weights["W"],
        }
        if "b_u" in self.weights:
            gradients["d_b_u"] = self.d_u.sum(axis=(0, 1))
        gradients |= {f"d_{name}0": value for name, value in d_state.items()}
        return gradients | {f"d_{name}": value for name, value in self.sums.items()}
