"""Runs a cell's equations over a sequence: the witness that knows nothing but the Spec.

Imports NumPy, gatelib.spec and gatelib.printers.
Must not import gatelib.reference or gatelib.nn: it is compared with both.

The forward pass is the Spec's own generated NumPy; the backward pass is `spec.vjp()`, step by step
from the end. Only the two matrix products around the cell are written here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatelib.spec import Spec

Array = NDArray[Any]


def symbolic(
    spec: Spec,
    x: Array,
    weights: dict[str, Array],
    initial: dict[str, Array],
    upstream: dict[str, Array],
) -> dict[str, Array]:
    """Outputs and all gradients of a cell over a sequence, from its equations alone.

    x (B, T, D); weights `W` (G·H, D), `U` (G·H, H), `b` (G·H,) packed in the order of the
    preactivations `a_k` in the Spec's signature, and the Spec's learned vectors (H,); initial
    states (B, H) by name (`h`, `c`); upstream: the loss's gradients by the outputs `y` (B, T, H)
    and the final states, by name. Returns `y`, final states, and `d_NAME` for every input.
    """
    run = _Run(spec, x, weights, initial)
    run.forward()
    return run.results() | run.backward(upstream)


class _Run:
    def __init__(
        self, spec: Spec, x: Array, weights: dict[str, Array], initial: dict[str, Array]
    ) -> None:
        self.x, self.weights, self.initial = x, weights, initial
        names = [str(v) for v in spec.inputs]
        self.gates = [n for n in names if n.startswith("a_")]
        self.vectors = [n for n in names if n in weights]
        self.states = list(dict.fromkeys(["h", *(str(v) for v in spec.carries.values())]))
        everything = tuple(v for v, _ in spec.equations)
        self.values = Spec(f"{spec.name}_values", spec.equations, spec.inputs, everything)
        self.vjp, self.outputs = spec.vjp(), [str(v) for v in spec.outputs]

    def forward(self) -> None:
        self.saved: list[dict[str, Array]] = []
        state = dict(self.initial)
        for t in range(self.x.shape[1]):
            packed = self.x[:, t] @ self.weights["W"].T + self.weights["b"]
            packed = packed + state["h"] @ self.weights["U"].T
            step = {f"{name}_prev": value for name, value in state.items()}
            step |= dict(zip(self.gates, np.split(packed, len(self.gates), axis=1), strict=True))
            step |= {name: self.weights[name] for name in self.vectors}
            step |= self.values.evaluate(step)
            state = {name: step[name] for name in self.states}
            self.saved.append(step)

    def results(self) -> dict[str, Array]:
        y = np.stack([step["h"] for step in self.saved], axis=1)
        return {"y": y} | {f"final_{name}": self.saved[-1][name] for name in self.states}

    def backward(self, upstream: dict[str, Array]) -> dict[str, Array]:
        d_state = {name: upstream[name] for name in self.states}
        d_packed = np.zeros((*self.x.shape[:2], self.weights["b"].size))
        sums = {name: np.zeros_like(self.weights[name]) for name in self.vectors}
        for t in reversed(range(self.x.shape[1])):
            seeds = {f"g_{name}": d_state.get(name, 0.0) for name in self.outputs}
            seeds["g_h"] = seeds["g_h"] + upstream["y"][:, t]
            found = self.vjp.evaluate(self.saved[t] | seeds)
            zeros = np.zeros_like(self.saved[t]["h"])
            parts = [found[f"d_{name}"] + zeros for name in self.gates]
            d_packed[:, t] = np.concatenate(parts, axis=1)
            for name in self.vectors:
                sums[name] += (found[f"d_{name}"] + zeros).sum(axis=0)
            d_state = {n: found.get(f"d_{n}_prev", zeros) for n in self.states}
            d_state["h"] = d_state["h"] + d_packed[:, t] @ self.weights["U"]
        return self._gradients(d_packed, d_state, sums)

    def _gradients(
        self, d_packed: Array, d_state: dict[str, Array], sums: dict[str, Array]
    ) -> dict[str, Array]:
        before = [self.initial["h"], *(step["h"] for step in self.saved[:-1])]
        gradients = {
            "d_W": np.einsum("btg,btd->gd", d_packed, self.x),
            "d_U": np.einsum("btg,bth->gh", d_packed, np.stack(before, axis=1)),
            "d_b": d_packed.sum(axis=(0, 1)),
            "d_x": d_packed @ self.weights["W"],
        }
        gradients |= {f"d_{name}0": value for name, value in d_state.items()}
        return gradients | {f"d_{name}": value for name, value in sums.items()}
